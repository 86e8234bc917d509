from __future__ import annotations

import warnings

import pytest
import torch

from headwater.engine.explanation import Conservation, warn_if_lost
from headwater.errors import ConservationWarning

SEED = torch.tensor([0.5, 0.25], dtype=torch.float64)


def account(*arrived: float) -> Conservation:
    return Conservation(SEED, torch.tensor(arrived, dtype=torch.float64))


@pytest.mark.parametrize(("arrived", "images", "size"), [(0.3, r"\[1\]", "2.0e-01"), (float("nan"), r"\[1\]", "inf")])
def test_a_map_that_does_not_conserve_is_told_with_its_images(arrived, images, size):
    with pytest.warns(ConservationWarning, match=rf"'mine' did not conserve .*{images}.*by {size}"):
        warn_if_lost(account(0.5, arrived), "mine")


def test_rounding_and_composites_known_to_lose_are_no_news():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_lost(account(0.5 + 1e-5, 0.25), "mine")
        warn_if_lost(account(0.5 + 1e-2, 0.25), "mine", torch.bfloat16)
        for name in ("epsilon", "doublet2024", "otsuki2024-i-published"):
            warn_if_lost(account(7.0, float("inf")), name)


def test_a_finer_dtype_has_a_finer_limit():
    with pytest.warns(ConservationWarning):
        warn_if_lost(account(0.5 + 1e-5, 0.25), "mine", torch.float64)
