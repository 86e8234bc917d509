"""The named composites."""

from __future__ import annotations

from dataclasses import replace

from headwater.engine.composites import REGISTERED, Composite
from headwater.engine.linear_rules import WPlus, ZPlus
from headwater.engine.rules import Follow, Gradient, MeanPool, Pass, WinnerTakesAll
from headwater.engine.signed_rules import AlphaBeta, Epsilon
from headwater.engine.splitting import Gates, Ratio, Signed, SignedGates, Splitting, Symmetric
from headwater.engine.where import AfterJoin, Blocks, Classifier, Entry, First, Last, LastBlocks, Pair, Type
from headwater.errors import InputError

_REST: tuple[Pair, ...] = (
    (Type("max_pool"), WinnerTakesAll()),
    (Type("elementwise"), Pass()),
    (Type("rearrange"), Follow()),
    (Type("product"), Gates("features")),
    (Type("matrix_product"), Gates("features")),
)
"""What carries no weights passes relevance on unchanged, element by element, to the winner, to the features."""
_EXACT: tuple[Pair, ...] = (REGISTERED, (Type("linear"), ZPlus()), (Type("average"), ZPlus()), *_REST)
_PUBLISHED_ZPLUS = ZPlus(eps=1e-5, fallback=False, signed=False)
_PUBLISHED: tuple[Pair, ...] = (
    REGISTERED,
    (Type("linear"), _PUBLISHED_ZPLUS),
    (Type("average"), _PUBLISHED_ZPLUS),
    (Type("max_pool2d"), MeanPool(eps=1e-5)),
    *_REST,
)
"""The authors' code; their network has no other maximum than its one pooling, others get the exact rule."""
_SPLITTINGS: dict[str, Splitting] = {
    "": Ratio(),
    "-i": Symmetric(identity_skips=False),
    "-ii": Symmetric(),
    "-iii": Ratio(identity_skips=False),
}
"""Otsuki et al. 2024, Table 2."""
_COMPOSITES: dict[str, Composite] = {}


def register_composite(composite: Composite) -> None:
    """Make ``composite`` known by its name, to :func:`load_composite`, methods and the command line."""
    _COMPOSITES[composite.name] = composite


def unregister_composite(name: str) -> None:
    """Forget a composite.

    Raises:
        InputError: there is none of that name.
    """
    load_composite(name)
    del _COMPOSITES[name]


def load_composite(name: str) -> Composite:
    """A composite by name.

    Raises:
        InputError: there is none of that name.

    >>> print(load_composite("otsuki2024-iii"))  # doctest: +ELLIPSIS
    otsuki2024-iii
      first linear operation  WPlus(eps=0.0, fallback=True)
      type 'join'             Ratio(identity_skips=False)
      type 'linear'           ZPlus(eps=0.0, fallback=True, signed=True)
      type 'average'          ZPlus(eps=0.0, fallback=True, signed=True)
      type 'max_pool'         WinnerTakesAll()
      type 'elementwise'      Pass()
      type 'rearrange'        Follow()
      type 'product'          Gates(to='features')
      type 'matrix_product'   Gates(to='features')...
    """
    if name not in _COMPOSITES:
        raise InputError(f"no composite is called {name!r}; there are {', '.join(list_composites())}")
    return _COMPOSITES[name]


def list_composites() -> list[str]:
    """Names of all composites.

    >>> "otsuki2024" in list_composites()
    True
    """
    return sorted(_COMPOSITES)


def _preset(name: str, *rules: Pair | Entry, contrast: float = 0.0) -> None:
    """Register a composite; what a pair says need not be in every network, what an entry says must be."""
    entries = Composite(name, rules).entries
    required = [isinstance(given, Entry) for given in rules]
    optional = (replace(entry, required=must) for entry, must in zip(entries, required, strict=True))
    register_composite(Composite(name, tuple(optional), contrast=contrast))


for _suffix, _splitting in _SPLITTINGS.items():
    _join: Pair = (Type("join"), _splitting)
    _preset(f"otsuki2024{_suffix}", (First(), WPlus()), _join, *_EXACT)
    _preset(f"otsuki2024{_suffix}-published", (First(), WPlus(eps=1e-5, fallback=False)), _join, *_PUBLISHED)
_join = (Type("join"), Ratio())
_preset(
    "headwater",
    Entry(Last(), AlphaBeta(centred=True)),  # a network without one is an error: the map would not be about the class
    (Classifier(), AlphaBeta()),
    (LastBlocks(), AlphaBeta()),
    (First(), WPlus()),
    _join,
    *_EXACT,
    contrast=1.0,
)
_preset(
    "headwater-text",
    (Type("join"), Signed()),
    (Type("matrix_product"), SignedGates("features")),
    REGISTERED,
    (Type("linear"), Epsilon()),
    (Type("average"), Epsilon()),
    *_REST,
)
_preset("otsuki2024-mixture", (First(), WPlus()), (AfterJoin(8), Epsilon()), _join, *_EXACT)
_preset(
    "otsuki2024-mixture-published",
    (First(), WPlus(eps=1e-5, fallback=False)),
    (AfterJoin(8), Epsilon(1e-5, bias=True, fallback=False)),
    _join,
    *_PUBLISHED,
)
_preset(
    "epsilon", _join, REGISTERED, (Type("linear"), Epsilon(bias=True)), (Type("average"), Epsilon(threshold=0)), *_REST
)
_preset(
    "doublet2024",
    (Blocks("residual"), Gradient()),
    (Type("conv2d"), Gradient()),
    (Type("batch_norm"), Gradient()),
    _join,
    REGISTERED,
    (Type("linear"), Epsilon(fallback=False)),
    (Type("average"), Gradient()),
    (Type("max_pool"), Gradient()),
    *_REST[1:],
)
