"""What the entries of a composite reach; errors for those that reach nothing say what they could have reached."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Protocol

import torch

from headwater.engine.blocks import Blocks, Group, matches
from headwater.engine.graph import Operation
from headwater.engine.layer_table import is_registered, joins_branches
from headwater.engine.layers import Block, Join, Layer
from headwater.engine.linear_layers import Linear
from headwater.engine.rules import Pass, Rule
from headwater.engine.splitting import Splitting
from headwater.engine.structure import Structure
from headwater.errors import InputError

Entry = tuple[str, str]
"""A field of a composite and, where it is a table, the key: ``("names", "layer4.*")``, ``("first", "")``."""

_CATEGORIES = ("linear", "average", "max_pool", "elementwise", "rearrange", "product", "matrix_product", "join")
_SHOWN = 6


class Entries(Protocol):
    """The fields of a composite that are asked about here."""

    @property
    def name(self) -> str: ...
    @property
    def names(self) -> Mapping[str, Rule | Splitting]: ...
    @property
    def types(self) -> Mapping[str, Rule | Splitting]: ...
    @property
    def first(self) -> Rule | None: ...
    @property
    def last(self) -> Rule | None: ...
    @property
    def after(self) -> tuple[int, Rule] | None: ...
    @property
    def strict(self) -> bool: ...


def takes_joins(choice: Rule | Splitting) -> bool:
    """Whether this can say how relevance divides at a join: a splitting, or a rule that names joins as its layers."""
    if not isinstance(choice, Rule):
        return True
    kinds = choice.layers if isinstance(choice.layers, tuple) else (choice.layers,)
    return any(issubclass(kind, Join) for kind in kinds)


def check_table(field: str, table: Mapping[str, Rule | Splitting]) -> None:
    """Check that ``names`` or ``types`` goes from strings to rules and splittings.

    Raises:
        InputError: it does not.
    """
    for key, choice in table.items():
        if not isinstance(key, str):
            raise InputError(f"{field} goes by strings, such as 'conv2d' or 'layer4.*'; got {key!r}")
        if not isinstance(choice, Rule) and (isinstance(choice, type) or not hasattr(choice, "identity_skips")):
            raise InputError(f"{field}[{key!r}] must be a Rule object, or a splitting for joins; got {choice!r}")


def is_for(choice: Rule | Splitting, layer: Layer) -> bool:
    """Whether a rule, or a splitting, can pass relevance through this layer."""
    if isinstance(layer, Join):
        return len(layer.operation.inputs) > 1 and takes_joins(choice)
    if not isinstance(choice, Rule):
        return False
    several = len(layer.operation.inputs) > 1
    return isinstance(layer, choice.layers) and not (several and type(choice) is Pass)


def path_of(layer: Layer) -> str:
    """The module path that ``names`` go by: a block's own, else that of the innermost module."""
    return layer.call.path if isinstance(layer, Block) else layer.operation.module


def misplaced(name: str, entry: Entry | None, choice: Rule | Splitting, layer: Layer) -> InputError:
    """The error for an entry that gives an operation a rule that is for others."""
    operation = layer.operation
    where = "a registration" if entry is None else entry[0] + (f"[{entry[1]!r}]" if entry[1] else "")
    expected = (
        "joins take a splitting, such as Ratio(), or a rule whose layers are joins"
        if isinstance(layer, Join)
        else "which is not what it is for"
    )
    return InputError(
        f"composite {name!r}: {where} gives {choice} to {operation.kind!r} (a {type(layer).__name__}) in module "
        f"{operation.module!r}; {expected}"
    )


def check_blocks(name: str, blocks: Blocks, found: Sequence[Group], operations: Sequence[Operation]) -> None:
    """Every entry of ``blocks`` must have made a block.

    Raises:
        InputError: one has not.
    """
    for pattern in blocks:
        if any(matches(group.call, pattern) for group in found):
            continue
        calls = {call.key: call for operation in operations for call in operation.calls}.values()
        if any(matches(call, pattern) for call in calls):
            reason = "what it means lies inside of other blocks"
        else:
            known = [word for call in calls for word in (call.kind, call.path)]
            reason = f"no module of the network has such a path or class; {_near(pattern, known)}"
        raise InputError(f"composite {name!r}: blocks {pattern!r} reaches nothing: {reason}")


def check_entries(composite: Entries, used: Collection[Entry], structure: Structure, reached: Collection[str]) -> None:
    """Every pattern must have decided a rule; where the composite is strict, every type and place too.

    Args:
        composite: whose entries are checked.
        used: entries that decided the rule of an operation that relevance reaches.
        structure: the network.
        reached: values that relevance reaches.

    Raises:
        InputError: an entry reaches nothing, or a type is none.
    """
    for pattern, choice in composite.names.items():
        if ("names", pattern) not in used:
            reason = _unreached_pattern(composite, pattern, choice, structure.layers, reached)
            raise InputError(f"composite {composite.name!r}: names[{pattern!r}] reaches nothing: {reason}")
    kinds = {word for layer in structure.layers for word in (layer.operation.kind, layer.category)}
    for key in composite.types:
        if not _is_type(key, kinds):
            raise InputError(
                f"composite {composite.name!r}: types[{key!r}] is neither an ATen name nor a category; "
                f"{_near(key, [*kinds, *_CATEGORIES])}"
            )
    if not composite.strict:
        return
    for key in composite.types:
        if ("types", key) not in used:
            raise _unreached(composite, f"types[{key!r}]", _unreached_type(key, kinds, structure))
    for place in ("first", "last", "after"):
        if getattr(composite, place) is not None and (place, "") not in used:
            raise _unreached(composite, place, _unreached_place(composite, place, structure))


def _unreached(composite: Entries, entry: str, reason: str) -> InputError:
    return InputError(
        f"composite {composite.name!r}: {entry} reaches nothing: {reason}; leave it out, or say strict=False for a "
        "composite that is to serve many networks"
    )


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


def _unreached_place(composite: Entries, place: str, structure: Structure) -> str:
    if place == "after" and composite.after is not None and len(structure.joins) < composite.after[0]:
        return f"the network has {len(structure.joins)} joins outside of blocks, and it says {composite.after[0]}"
    names = getattr(structure, place, ())
    if not any(isinstance(layer, Linear) for layer in structure.layers) or (place != "after" and not names):
        return "no operation of the network is there, outside of blocks"
    paths = [path_of(layer) for layer in structure.layers if layer.operation.name in names]
    where = f"what is there ({', '.join(map(repr, paths))})" if paths else "all that is there"
    return f"{where} gets its rule from entries that come first, or gets no relevance"


def _unreached_pattern(
    composite: Entries, pattern: str, choice: Rule | Splitting, layers: Sequence[Layer], reached: Collection[str]
) -> str:
    """Why a pattern of ``names`` decides nothing, and what it could reach."""
    fitting = [layer for layer in layers if fnmatchcase(path_of(layer), pattern)]
    if not fitting:
        return _no_such_path(pattern, choice, layers)
    right = [layer for layer in fitting if is_for(choice, layer)]
    if not right:
        what = _listed("it fits", [_described(layer) for layer in fitting])
        return f"{what}; {_purpose(choice)}"
    if not any(layer.operation.name in reached for layer in right):
        return (
            "no relevance arrives at the operations that it fits, as in the branch of a gate (gates='half' sends some)"
        )
    for other, earlier in composite.names.items():
        if other == pattern:
            break
        if any(fnmatchcase(path_of(layer), other) and is_for(earlier, layer) for layer in right):
            return f"names[{other!r}] stands before it and takes what it fits; put the narrower pattern first"
    return "other entries take what it fits"


def _no_such_path(pattern: str, choice: Rule | Splitting, layers: Sequence[Layer]) -> str:
    for layer in layers:
        if isinstance(layer, Block) and any(fnmatchcase(o.module, pattern) for o in layer.operations):
            return f"what it fits lies inside the block {path_of(layer)!r}, which is one layer"
    calls = {call.path for layer in layers for call in layer.operation.calls}
    if any(fnmatchcase(path, pattern) for path in calls):
        return f"the module does nothing itself; {pattern + '.*'!r} means the operations of the modules inside it"
    possible = [path_of(layer) for layer in layers if is_for(choice, layer)]
    if not possible:
        return f"no operation of the network is of that path or kind; {_purpose(choice)}"
    return f"no operation of the network has such a path; {_near(pattern, possible)}"


def _described(layer: Layer) -> str:
    if isinstance(layer, Block):
        return f"the block {path_of(layer)!r}"
    return f"{layer.operation.kind} in {path_of(layer) or 'the network itself'}"


def _purpose(choice: Rule | Splitting) -> str:
    """What a rule is for, and what is for joins."""
    if not isinstance(choice, Rule):
        return f"{choice} is for joins"
    kinds = choice.layers if isinstance(choice.layers, tuple) else (choice.layers,)
    named = "layers with one input" if type(choice) is Pass else ", ".join(kind.__name__ for kind in kinds)
    return f"{choice} is for {named} (joins take a splitting, such as Ratio())"


def _near(word: str, known: Iterable[str]) -> str:
    words = sorted({word for word in known if word})
    near = get_close_matches(word, words, n=3)
    return f"did you mean {', '.join(map(repr, near))}?" if near else _listed("it could reach", map(repr, words))


def _listed(intro: str, words: Iterable[str]) -> str:
    words = sorted(dict.fromkeys(words))
    more = f" and {len(words) - _SHOWN} more" if len(words) > _SHOWN else ""
    return f"{intro} {', '.join(words[:_SHOWN])}{more}"
