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


# -- C1C and C3 -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [0, 1])
def test_c1c_agrees_with_the_published_behaviour(parity, index):
    heatmap = torch.from_numpy(parity.reference["resnet18/flows_skip"][index])
    expected = torch.from_numpy(parity.reference[f"resnet18/c1c/{index}"])
    torch.testing.assert_close(hw.c1c(heatmap), expected, rtol=1e-5, atol=1e-10)


def plane(*rows):
    """A 28x28 map from rows of digits, zeros around them."""
    values = torch.zeros(28, 28)
    for k, row in enumerate(rows):
        values[k + 3, 3 : 3 + len(row)] = torch.tensor([float(c) for c in row])
    return values


def test_c3_keeps_what_both_masks_have():
    two = plane("110000", "110001", "000001", "000001")
    kept = hw.c3(two)
    assert torch.equal(kept, plane("110000", "110000"))
    ring_around_more = plane("1111111", "1000001", "1022201", "1022201", "1022201", "1000001", "1111111")
    ring = plane("1111111", "1000001", "1000001", "1000001", "1000001", "1000001", "1111111")
    assert torch.equal(hw.c3(ring_around_more), ring), "the ring has most pixels and encloses most"


def test_c3_contour_and_component_can_differ():
    """A thin ring encloses most, a solid square beside it has most pixels: nothing is in both."""
    thin = torch.zeros(28, 28)
    thin[2:12, 2] = thin[2:12, 11] = thin[2, 2:12] = thin[11, 2:12] = 1
    square = torch.zeros(28, 28)
    square[15:22, 15:22] = 1
    assert hw.c3(thin + square).sum() == 0
    inside = torch.zeros(28, 28)
    inside[4:10, 4:10] = 1
    more = torch.zeros(28, 28)
    more[3:11, 3:11] = 1
    hollow = torch.zeros(28, 28)
    hollow[1:13, 1] = hollow[1:13, 12] = hollow[1, 1:13] = hollow[12, 1:13] = 1
    assert torch.equal(hw.c3(hollow + inside * 2), hollow), "44 ring pixels against 36 inside"
    assert torch.equal(hw.c3(hollow + more * 0 + inside * 2, threshold=1.5), inside * 2)


def test_c3_a_contour_with_a_hole_keeps_the_component_without_it():
    ring = plane("11111", "10001", "10001", "11111")
    assert torch.equal(hw.c3(ring), ring)


def test_of_equal_contours_the_first_counts():
    assert torch.equal(hw.c3(plane("110011", "110011")), plane("110000", "110000"))


def test_diagonal_pixels_are_connected():
    chain = plane("1000", "0100", "0010", "0000", "0000", "1110")
    assert torch.equal(hw.c3(chain), plane("1000", "0100", "0010"))


@pytest.mark.parametrize("mask", [hw.c1c, hw.c3])
def test_maps_with_nothing_above_the_threshold_become_zero(mask):
    assert mask(torch.full((28, 28), 0.1)).sum() == 0
    assert mask(torch.rand(28, 28), threshold=2.0).sum() == 0
    assert mask(torch.zeros(56, 40)).sum() == 0


def test_the_whole_map_may_be_one_component_and_values_may_be_negative():
    heatmap = torch.rand(28, 28)
    assert torch.equal(hw.c3(heatmap, threshold=-1.0), heatmap)
    negative = -1 - torch.rand(28, 28)
    kept = hw.c3(negative)
    assert ((kept == 0) | (kept == negative)).all()
    assert (kept != 0).any()


def test_masks_work_on_batches_and_return_the_images_size():
    heatmaps = torch.rand(2, 3, 56, 40, dtype=torch.float64)
    assert hw.c3(heatmaps).shape == heatmaps.shape
    assert hw.c3(heatmaps, enlarge=False).shape == (2, 3, 28, 28)
    assert hw.c1c(heatmaps).shape == (2, 3, 28, 28)
    assert hw.c1c(heatmaps, enlarge=True).dtype == torch.float64
    torch.testing.assert_close(hw.c3(heatmaps)[1, 2], hw.c3(heatmaps[1, 2]))


@pytest.mark.parametrize("mask", [hw.c1c, hw.c3])
def test_bad_maps_for_masks(mask):
    for given, message in (
        (torch.rand(5), r"\(\.\.\., H, W\)"),
        (torch.ones(5, 5).long(), "floating point"),
        (torch.full((5, 5), float("inf")), "NaN or infinity"),
    ):
        with pytest.raises(InputError, match=message):
            mask(given)
    with pytest.raises(InputError, match="at least 1"):
        mask(torch.rand(5, 5), size=0)


@pytest.mark.parametrize("name", ["c3-lrp", "c1c-lrp"])
def test_masked_methods(tiny, images, name):
    plain, masked = hw.load_method("doublet2024", tiny)(images), hw.load_method(name, tiny)(images)
    assert masked.heatmap.shape == plain.heatmap.shape
    torch.testing.assert_close(masked.relevance, plain.relevance)
    assert (masked.heatmap == 0).any()
