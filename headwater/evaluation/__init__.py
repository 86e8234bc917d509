"""Every measure of every method on labelled images: one row per image and method."""

from headwater.evaluation.accuracy import split_accuracy
from headwater.evaluation.run import Expected, Progress, evaluate, measure_randomisation
from headwater.evaluation.settings import Settings
from headwater.evaluation.time_estimate import Estimate, estimate
from headwater.evaluation.worker import object_mask

__all__ = [
    "Estimate",
    "Expected",
    "Progress",
    "Settings",
    "estimate",
    "evaluate",
    "measure_randomisation",
    "object_mask",
    "split_accuracy",
]
