"""How relevance divides where branches join; see :mod:`headwater.engine.splitting`."""

from headwater.engine.splitting import Ratio, Signed, Splitting, Symmetric

__all__ = [
    "Ratio",
    "Signed",
    "Splitting",
    "Symmetric",
]
