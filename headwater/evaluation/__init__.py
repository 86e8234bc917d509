"""Every measure of every method on labelled images: one row per image and method."""

from headwater.evaluation.run import Progress, evaluate, measure_randomisation, object_mask
from headwater.evaluation.settings import Settings

__all__ = ["Progress", "Settings", "evaluate", "measure_randomisation", "object_mask"]
