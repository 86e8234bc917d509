"""Rules that users have registered for operations and modules that Headwater does not know."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from headwater.engine.layer_table import joins_branches, layer_version
from headwater.engine.reach import takes_joins
from headwater.engine.rules import Rule
from headwater.errors import InputError

_RULES: dict[str, Rule] = {}
_CHANGES: list[str] = []  # names in the order of their registrations


def registered_rules() -> Mapping[str, Rule]:
    """What :func:`register_rule` was told, by name."""
    return MappingProxyType(_RULES)


def registry_version() -> tuple[int, int]:
    """Differs from before once a rule or a layer was registered; what is kept of an assignment goes by it."""
    return len(_CHANGES), layer_version()


def register_rule(name: str, rule: Rule) -> None:
    """Say how relevance passes an operation or a module that Headwater does not know, in every composite.

    Args:
        name: an ATen name (``"logsumexp"``, as an error message gives it), or the name of a module's class, whose
            operations are then taken as one layer.
        rule: a rule of :mod:`headwater.rules` or your own. Entries of a composite that come before its registered rules
            (in the presets all but those for categories) keep theirs. For additions and subtractions, which join
            branches, it must be a rule for joins.

    It counts from the next call on, also of an :class:`~headwater.LRP` that has been called before.

    Raises:
        InputError: ``rule`` is not a rule, or not one for joins where ``name`` is an addition.

    >>> import torch, headwater as hw
    >>> from headwater.rules import Pass
    >>> class Squash(torch.nn.Module):
    ...     def forward(self, h):
    ...         return torch.erf(h)
    >>> hw.register_rule("Squash", Pass())
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), Squash(), torch.nn.Flatten(), torch.nn.Linear(144, 2))
    >>> hw.LRP(model)(torch.rand(1, 3, 8, 8)).conservation.error.item() < 1e-5
    True
    >>> hw.unregister_rule("Squash")
    """
    if not isinstance(rule, Rule):
        raise InputError(f"rule must be a Rule object, got {rule!r}")
    if joins_branches(name) and not takes_joins(rule):
        raise InputError(
            f"{rule} is not for {name!r}, which joins branches: relevance divides there by the composite's splitting; "
            f"prepend (Type({name!r}), a splitting) to a composite, or register a rule whose layers are joins"
        )
    _RULES[name] = rule
    _CHANGES.append(name)


def unregister_rule(name: str) -> None:
    """Forget what :func:`register_rule` was told about ``name``.

    Raises:
        InputError: nothing was registered for it.
    """
    if name not in _RULES:
        raise InputError(f"no rule is registered for {name!r}; there are {', '.join(sorted(_RULES)) or 'none'}")
    del _RULES[name]
    _CHANGES.append(name)
