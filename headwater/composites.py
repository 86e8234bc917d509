"""Which rule goes where; see :mod:`headwater.engine.composites` and :mod:`headwater.engine.where`."""

from headwater.engine.composites import REGISTERED, Composite
from headwater.engine.presets import list_composites, load_composite, register_composite, unregister_composite
from headwater.engine.registrations import register_rule, registered_rules, unregister_rule
from headwater.engine.splitting import Gates, SignedGates
from headwater.engine.where import AfterJoin, Blocks, Classifier, Entry, First, Last, LastBlocks, Module, Place, Type

__all__ = [
    "REGISTERED",
    "AfterJoin",
    "Blocks",
    "Classifier",
    "Composite",
    "Entry",
    "First",
    "Gates",
    "Last",
    "LastBlocks",
    "Module",
    "Place",
    "SignedGates",
    "Type",
    "list_composites",
    "load_composite",
    "register_composite",
    "register_rule",
    "registered_rules",
    "unregister_composite",
    "unregister_rule",
]
