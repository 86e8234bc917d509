"""What the entries of a composite reach; errors for those that reach nothing say what they could have reached."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from difflib import get_close_matches

import torch

from headwater.engine.blocks import Group, matches_call
from headwater.engine.graph import Operation
from headwater.engine.layer_table import is_registered, joins_branches
from headwater.engine.layers import Block, Join, Layer, MatrixProduct, Product, Rearrange
from headwater.engine.rules import Pass, Rule
from headwater.engine.structure import Structure
from headwater.engine.where import (
    AfterJoin,
    Blocks,
    Choice,
    Classifier,
    Entry,
    First,
    Last,
    LastBlocks,
    Module,
    Place,
    Registered,
    Satisfying,
    Type,
    place_of,
)
from headwater.errors import InputError

_CATEGORIES = ("linear", "average", "max_pool", "elementwise", "rearrange", "product", "matrix_product", "join")
_SHOWN = 6


def takes_joins(choice: Choice) -> bool:
    """Whether this can say how relevance divides at a join: a splitting, or a rule that names joins as its layers."""
    if not isinstance(choice, Rule):
        return hasattr(choice, "identity_skips")
    kinds = choice.layers if isinstance(choice.layers, tuple) else (choice.layers,)
    return any(issubclass(kind, Join) for kind in kinds)


def is_for(choice: Choice, layer: Layer) -> bool:
    """Whether a rule, a splitting or a choice of gates can pass relevance through this layer."""
    if isinstance(layer, Join):
        return len(layer.operation.inputs) > 1 and takes_joins(choice)
    if not isinstance(choice, Rule):
        return not takes_joins(choice) and isinstance(layer, (Product, MatrixProduct))
    several = len(layer.operation.inputs) > 1
    moves = several or isinstance(layer, Rearrange)  # an output element has no input element at its own place
    return isinstance(layer, choice.layers) and not (moves and type(choice) is Pass)


def misplaced(name: str, entry: Entry, layer: Layer) -> InputError:
    """The error for an entry that gives an operation a rule that is for others."""
    operation = layer.operation
    expected = (
        "joins take a splitting, such as Ratio(), or a rule whose layers are joins"
        if isinstance(layer, Join)
        else "which is not what it is for"
    )
    return InputError(
        f"composite {name!r}: {entry.where} gives {entry.rule} to {operation.kind!r} (a {type(layer).__name__}) in "
        f"module {operation.module!r}; {expected}"
    )


def check_blocks(name: str, patterns: Sequence[str], found: Sequence[Group], operations: Sequence[Operation]) -> None:
    """Every named entry for blocks must have made a block.

    Raises:
        InputError: one has not.
    """
    for pattern in patterns:
        if any(matches_call(group.call, pattern) for group in found):
            continue
        calls = {call.key: call for operation in operations for call in operation.calls}.values()
        if any(matches_call(call, pattern) for call in calls):
            reason = "what it means lies inside of other blocks"
        else:
            known = [word for call in calls for word in (call.kind, call.path)]
            reason = f"no module of the network has such a path or class; {_near(pattern, known)}"
        raise InputError(f"composite {name!r}: {Blocks(pattern)} reaches nothing: {reason}")


def check_reach(
    name: str, table: Sequence[Entry], used: Collection[int], structure: Structure, reached: Collection[str]
) -> None:
    """Every entry that must reach something has decided a rule.

    Args:
        name: of the composite.
        table: its entries.
        used: places in the table of those that decided the rule of a layer that relevance reaches.
        structure: the network.
        reached: values that relevance reaches.

    Raises:
        InputError: an entry reaches nothing, or a type is neither an ATen name nor a category.
    """
    kinds = {word for layer in structure.layers for word in (layer.operation.kind, layer.category)}
    places = [(layer, place_of(layer, structure)) for layer in structure.layers]
    for k, entry in enumerate(table):
        where = entry.where
        if isinstance(where, Type) and not _is_type(where.name, kinds):
            raise InputError(
                f"composite {name!r}: {where} is neither an ATen name nor a category; "
                f"{_near(where.name, [*kinds, *_CATEGORIES])}"
            )
        if k in used or isinstance(where, (Blocks, Registered)) or not (entry.required or where.always_checked):
            continue
        if isinstance(where, (Module, Satisfying)):
            reason, advice = _unreached_pattern(table, k, places, reached), ""
        else:
            reason = _unreached_type(where.name, kinds, structure) if isinstance(where, Type) else ""
            reason = reason or _unreached_place(where, places, structure)
            advice = "; leave it out, or say strict=False for a composite that is to serve many networks"
        raise InputError(f"composite {name!r}: {where} reaches nothing: {reason}{advice}")


def _is_type(key: str, kinds: Collection[str]) -> bool:
    """Whether operations somewhere go by this ATen name or category. A block goes by neither."""
    if key == "block" or key.endswith("_"):
        return False
    return key in kinds or key in (*_CATEGORIES, "unknown") or is_registered(key) or hasattr(torch.ops.aten, key)


def _unreached_type(key: str, kinds: set[str], structure: Structure) -> str:
    inside = {o.kind for layer in structure.layers if isinstance(layer, Block) for o in layer.operations}
    if key not in kinds and key in inside:
        return "all such operations lie inside of blocks, which are layers of their own"
    if key not in kinds:
        where = " outside of blocks" if inside else ""
        return f"the network has no such operation{where}; {_listed('it has', kinds - {'block'})}"
    if (key == "join" or joins_branches(key)) and not structure.joins:
        return "constants are added there, no branches"
    return "other entries that come first, or no relevance, reach all such operations"


def _unreached_place(where: object, places: Sequence[tuple[Layer, Place]], structure: Structure) -> str:
    if isinstance(where, AfterJoin) and len(structure.joins) < where.count:
        return f"the network has {len(structure.joins)} joins outside of blocks, and it says {where.count}"
    kinds = (First, Last, AfterJoin, LastBlocks, Classifier)
    there = [p for _, p in places if isinstance(where, kinds) and where.matches(p)]
    if not there and isinstance(where, (Last, Classifier)):
        return (
            "no linear operation with parameters makes the scores; name the module that does, as in "
            "load_composite('otsuki2024').prepend(('head.*', Epsilon()))"
        )
    if not there:
        return "no operation of the network is there, outside of blocks"
    named = f"what is there ({', '.join(repr(p.module) for p in there[:_SHOWN])})"
    return f"{named} gets its rule from entries that come first, or gets no relevance"


def _unreached_pattern(
    table: Sequence[Entry], index: int, places: Sequence[tuple[Layer, Place]], reached: Collection[str]
) -> str:
    """Why a pattern or a predicate decides nothing, and what it could reach."""
    where, choice = table[index].where, table[index].rule
    fitting = [(layer, place) for layer, place in places if where.matches(place)]
    if not fitting and isinstance(where, Module):
        return _no_such_path(where.pattern, choice, places)
    if not fitting:
        return "it is false for every layer of the network"
    right = [(layer, place) for layer, place in fitting if is_for(choice, layer)]
    if not right:
        return f"{_listed('it fits', [_described(layer, place) for layer, place in fitting])}; {_purpose(choice)}"
    if not any(layer.operation.name in reached for layer, _ in right):
        return (
            "no relevance arrives at the operations that it fits, as in the branch of a gate (Gates('half') sends some)"
        )
    for earlier in table[:index]:
        if any(earlier.where.matches(place) and is_for(earlier.rule, layer) for layer, place in right):
            return f"{earlier.where} stands before it and takes what it fits; put the narrower one first"
    return "other entries take what it fits"


def _no_such_path(pattern: str, choice: Choice, places: Sequence[tuple[Layer, Place]]) -> str:
    where = Module(pattern)
    for layer, place in places:
        if isinstance(layer, Block) and any(where.fits(o.module) for o in layer.operations):
            return f"what it fits lies inside the block {place.module!r}, which is one layer"
    calls = {call.path for layer, _ in places for call in layer.operation.calls}
    if any(where.fits(path) for path in calls):
        return f"the module does nothing itself; {pattern + '.*'!r} means the operations of the modules inside it"
    possible = [place.module for layer, place in places if is_for(choice, layer)]
    if not possible:
        return f"no operation of the network is of that path or kind; {_purpose(choice)}"
    return f"no operation of the network has such a path; {_near(pattern, possible)}"


def _described(layer: Layer, place: Place) -> str:
    if isinstance(layer, Block):
        return f"the block {place.module!r}"
    return f"{place.kind} in {place.module or 'the network itself'}"


def _purpose(choice: Choice) -> str:
    """What a rule is for, and what is for joins."""
    if not isinstance(choice, Rule):
        return f"{choice} is for {'joins' if takes_joins(choice) else 'products'}"
    kinds = choice.layers if isinstance(choice.layers, tuple) else (choice.layers,)
    named = (
        "layers that keep each element in its place"
        if type(choice) is Pass
        else ", ".join(kind.__name__ for kind in kinds)
    )
    return f"{choice} is for {named} (joins take a splitting, such as Ratio())"


def _near(word: str, known: Iterable[str]) -> str:
    words = sorted({word for word in known if word})
    near = get_close_matches(word, words, n=3)
    return f"did you mean {', '.join(map(repr, near))}?" if near else _listed("it could reach", map(repr, words))


def _listed(intro: str, words: Iterable[str]) -> str:
    words = sorted(dict.fromkeys(words))
    more = f" and {len(words) - _SHOWN} more" if len(words) > _SHOWN else ""
    return f"{intro} {', '.join(words[:_SHOWN])}{more}"
