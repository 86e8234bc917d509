"""Headwater traces a prediction back to its source: relevance flows from the logit to the pixels, and nothing is lost."""

from headwater import errors
from headwater.composites import Composite, list_composites, load_composite, register_composite
from headwater.errors import HeadwaterError
from headwater.explanation import Conservation, Explanation
from headwater.lrp import LRP

__version__ = "0.1.0"
