"""Headwater traces a prediction back to its source: relevance flows from the logit to the pixels, and nothing is lost.

The public names are listed in ``__init__.pyi``, for type checkers and for this file alike; each is imported when it is
first used, so ``import headwater`` costs nothing.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
