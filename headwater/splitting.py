"""How relevance divides where branches join; see :mod:`headwater.engine.splitting`."""

from headwater.engine.splitting import Ratio, Splitting, Symmetric

__all__ = [
    "Ratio",
    "Splitting",
    "Symmetric",
]
