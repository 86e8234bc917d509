"""Measures of explanation maps."""

from headwater.metrics.insertion_deletion import InsertionDeletion, insertion_deletion

__all__ = ["InsertionDeletion", "insertion_deletion"]
