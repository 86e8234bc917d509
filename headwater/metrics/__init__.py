"""Measures of explanation maps."""

from headwater.metrics.insertion_deletion import InsertionDeletion, insertion_deletion, pixel_ranks
from headwater.metrics.localisation import pointing_game, relevance_mass, relevance_rank
from headwater.metrics.sanity import Randomisation, randomisation, rank_correlation
from headwater.metrics.sparseness import gini

__all__ = [
    "InsertionDeletion",
    "Randomisation",
    "gini",
    "insertion_deletion",
    "pixel_ranks",
    "pointing_game",
    "randomisation",
    "rank_correlation",
    "relevance_mass",
    "relevance_rank",
]
