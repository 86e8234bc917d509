"""Which rule goes where; see :mod:`headwater.engine.composites`."""

from headwater.engine.composites import (
    Composite,
    list_composites,
    load_composite,
    register_composite,
    register_rule,
    registry_version,
)

__all__ = [
    "Composite",
    "list_composites",
    "load_composite",
    "register_composite",
    "register_rule",
    "registry_version",
]
