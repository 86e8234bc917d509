from __future__ import annotations

import pytest
import torch

import headwater as hw
from headwater.errors import InputError


def test_published_levels_include_both_ends_and_values_fall():
    heatmap = torch.tensor([[0.0, 0.9, 1.0, 6.99, 7.0]])
    assert hw.heat_quantization(heatmap).tolist() == [[0, 0, 1, 6, 7]]


def test_equation_has_q_bins_and_the_largest_value_in_a_ninth():
    heatmap = torch.linspace(0, 8, 81).view(1, 81)
    quantized = hw.heat_quantization(heatmap, 8, "equation")
    assert len(quantized.unique()) == 9
    assert (quantized == quantized.max()).sum() == 1
    assert quantized.max() == 8 * 8, "the printed factor is Q"


@pytest.mark.parametrize("variant", ["published", "equation"])
def test_each_map_of_a_batch_by_its_own_range(variant):
    maps = torch.randn(2, 3, 5, 6) * torch.tensor([1.0, 100.0]).view(2, 1, 1, 1)
    together = hw.heat_quantization(maps, 8, variant)
    assert together.shape == maps.shape
    for i in range(2):
        for j in range(3):
            assert torch.equal(together[i, j], hw.heat_quantization(maps[i, j], 8, variant))


@pytest.mark.parametrize("variant", ["published", "equation"])
def test_order_is_kept_and_a_constant_map_comes_back(variant):
    heatmap = torch.randn(9, 9, dtype=torch.float64)
    quantized = hw.heat_quantization(heatmap, 8, variant).flatten()
    assert (quantized[heatmap.flatten().argsort()].diff() >= 0).all()
    constant = torch.stack([torch.full((4, 4), 0.3), torch.rand(4, 4)])
    assert torch.equal(hw.heat_quantization(constant, 8, variant)[0], constant[0])


@pytest.mark.parametrize(
    ("heatmap", "options", "message"),
    [
        (torch.rand(4), {}, r"\(\.\.\., H, W\)"),
        (torch.zeros(2, 2, dtype=torch.long), {}, "floating point"),
        (torch.rand(2, 2), {"levels": 1}, "at least 2"),
        (torch.rand(2, 2), {"variant": "other"}, "published, equation"),
        (torch.tensor([[float("nan"), 1.0]]), {}, "NaN"),
    ],
)
def test_bad_input(heatmap, options, message):
    with pytest.raises(InputError, match=message):
        hw.heat_quantization(heatmap, **options)
