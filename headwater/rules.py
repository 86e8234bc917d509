"""How relevance passes one operation; ``linear_rules``, ``signed_rules`` and ``rules`` of the engine define it."""

from headwater.engine.linear_rules import Flat, LinearRule, Part, WPlus, WSquare, ZBox, ZPlus, redistribute
from headwater.engine.rules import (
    Follow,
    Gate,
    Gradient,
    MatrixGate,
    MeanPool,
    Pass,
    Rule,
    SignedGate,
    Split,
    ToTokens,
    WinnerTakesAll,
)
from headwater.engine.signed_rules import AlphaBeta, Epsilon, Gamma, SignedRule

__all__ = [
    "AlphaBeta",
    "Epsilon",
    "Flat",
    "Follow",
    "Gamma",
    "Gate",
    "Gradient",
    "LinearRule",
    "MatrixGate",
    "MeanPool",
    "Part",
    "Pass",
    "Rule",
    "SignedGate",
    "SignedRule",
    "Split",
    "ToTokens",
    "WPlus",
    "WSquare",
    "WinnerTakesAll",
    "ZBox",
    "ZPlus",
    "redistribute",
]
