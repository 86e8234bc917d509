"""Localisation, sparseness and sanity against hand-made maps and scipy."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import headwater as hw
from headwater.errors import InputError
from headwater.metrics import gini, pointing_game, randomisation, rank_correlation, relevance_mass, relevance_rank

MASK = torch.tensor([[[1, 1, 0], [0, 0, 0]]])


def test_pointing_game_shares_ties():
    assert pointing_game(torch.tensor([[[0.0, 5, 1], [2, 0, 0]]]), MASK).item() == 1
    assert pointing_game(torch.tensor([[[0.0, 1, 1], [2, 0, 0]]]), MASK).item() == 0
    assert pointing_game(torch.tensor([[[0.0, 2, 2], [2, 0, 0]]]), MASK).item() == pytest.approx(1 / 3)


def test_relevance_mass_counts_positive_relevance():
    assert relevance_mass(torch.tensor([[[1.0, 2, 1], [-8, 0, 0]]]), MASK).item() == 0.75
    assert relevance_mass(torch.full((1, 2, 3), -1.0), MASK).item() == 0


def test_relevance_rank_looks_at_as_many_pixels_as_the_mask_has():
    assert relevance_rank(torch.tensor([[[9.0, 1, 8], [0, 0, 0]]]), MASK).item() == 0.5
    assert relevance_rank(torch.tensor([[[9.0, 8, 1], [0, 0, 0]]]), MASK).item() == 1


def test_a_smaller_map_is_enlarged():
    mask = torch.zeros(1, 8, 8)
    mask[:, :4, :4] = 1
    small = torch.tensor([[[1.0, 0], [0, 0]]])
    assert pointing_game(small, mask).item() == 1
    assert relevance_mass(small, mask).item() > 0.6


@pytest.mark.parametrize("measure", [pointing_game, relevance_mass, relevance_rank])
def test_bad_maps_and_masks(measure):
    with pytest.raises(InputError, match="empty"):
        measure(torch.rand(1, 2, 3), torch.zeros(1, 2, 3))
    with pytest.raises(InputError, match="NaN"):
        measure(torch.full((1, 2, 3), float("nan")), MASK)
    with pytest.raises(InputError, match=r"\(N, H, W\)"):
        measure(torch.rand(2, 3), MASK)


def test_gini_is_its_definition():
    values = torch.rand(3, 5, 7)
    flat = values.flatten(1)
    pairs = (flat[:, :, None] - flat[:, None, :]).abs().mean((1, 2)) / (2 * flat.mean(1))
    torch.testing.assert_close(gini(values), pairs)
    torch.testing.assert_close(gini(-values), gini(values))
    assert gini(torch.zeros(1, 4, 4)).item() == 0


def test_rank_correlation_is_scipys():
    stats = pytest.importorskip("scipy.stats")
    a, b = torch.rand(4, 50), torch.rand(4, 50).round(decimals=1)
    expected = [stats.spearmanr(x, y).statistic for x, y in zip(a.numpy(), b.numpy(), strict=True)]
    torch.testing.assert_close(rank_correlation(a, b), torch.tensor(expected, dtype=torch.float64))
    assert rank_correlation(torch.ones(1, 5), torch.rand(1, 5)).item() == 0


def test_randomisation_goes_from_the_output_down_and_leaves_the_model_alone(tiny, images):
    before = {key: tensor.clone() for key, tensor in tiny.state_dict().items()}
    result = randomisation(tiny, lambda m: hw.load_method("otsuki2024", m), images, 2, comparisons=99)
    assert result.layers[0] == "head"
    assert result.layers[-1] == "stem"
    assert result.correlation.shape == (3, len(result.layers))
    assert (result.correlation[:, -1] < 0.99).all()
    assert all(torch.equal(tensor, before[key]) for key, tensor in tiny.state_dict().items())
    again = randomisation(tiny, lambda m: hw.load_method("otsuki2024", m), images, 2, comparisons=2)
    torch.testing.assert_close(again.correlation[:, -1], result.correlation[:, -1])
    assert (again.layers[-1], again.correlation.shape) == ("stem", (3, 2))
    assert again.counts[-1] == 2 * again.counts[0], "evenly spaced"


def test_a_map_that_ignores_the_network_does_not_change(tiny, images):
    class Brightness:
        def __init__(self, model):
            pass

        def __call__(self, x, target=None):
            from headwater.engine.explanation import Explanation

            return Explanation(x.sum(1), x[:, 0, 0], x[:, 0, 0, 0], torch.zeros(len(x)).long())

    result = randomisation(tiny, Brightness, images, 1)
    torch.testing.assert_close(result.correlation, torch.ones_like(result.correlation))


def test_a_network_without_parameters_cannot_be_randomised(images):
    with pytest.raises(InputError, match="no layers"):
        randomisation(nn.Flatten(), lambda m: None, images, 0)
