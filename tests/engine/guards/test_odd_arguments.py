"""Arguments and files that fit nothing, found by fuzzing: one clear line, or the right numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import headwater as hw
from headwater.data.classes import listed_images
from headwater.data.labelled import LabelledImages
from headwater.errors import CheckpointError, DataError, InputError
from headwater.metrics import pointing_game
from headwater.models import load_model
from headwater.models.checkpoints import read_checkpoint

MAPS = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0))


class Mean(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("levels", [1, 1.5, math.nan, "8", None, [1, 2], True, 10**9])
def test_levels_that_are_no_number_of_levels(levels):
    with pytest.raises(InputError, match="levels must be a whole number of at least 2"):
        hw.heat_quantization(MAPS, levels)


@pytest.mark.parametrize(
    "options", [{"size": 0}, {"size": 1e30}, {"size": (4, 4)}, {"threshold": "0.5"}, {"threshold": ()}]
)
@pytest.mark.parametrize("region", [hw.c3, hw.c1c])
def test_sizes_and_thresholds_of_regions_that_are_no_numbers(region, options):
    with pytest.raises(InputError, match=r"(size|threshold) must be a"):
        region(MAPS, **options)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("levels", [2, 8, 1000])
def test_maps_in_half_precision_are_quantized_as_in_single(dtype, levels):
    maps = (MAPS * 2 - 1).to(dtype) * 6e4
    quantized = hw.heat_quantization(maps, levels)
    assert quantized.dtype == dtype
    assert quantized.isfinite().all(), "from -6e4 to 6e4 is more than float16 holds"
    assert torch.equal(quantized, hw.heat_quantization(maps.float(), levels).to(dtype))
    assert torch.equal(quantized.amax((1, 2)), maps.amax((1, 2)))


def test_a_range_that_no_float_holds_is_refused():
    with pytest.raises(InputError, match="scale the maps"):
        hw.heat_quantization(torch.tensor([[-3e38, 0.0, 3e38]]))


@pytest.mark.parametrize(
    "options",
    [
        {"resolution": -1},
        {"resolution": (0, 0)},
        {"resolution": (1.5, 2)},
        {"mean": "8"},
        {"mean": (0.5,)},
        {"std": (0.0, 1.0, 1.0)},
        {"seed": 1.5},
        {"seed": 2**70},
    ],
)
def test_options_of_insertion_and_deletion_that_are_none(options):
    x = torch.rand(2, 3, 4, 4)
    with pytest.raises(InputError, match=r"must be|need a number"):
        hw.insertion_deletion(Mean().eval(), x, MAPS, 1, "budget", 4, **options)


def test_areas_of_a_float64_network_are_float64():
    model, x = Mean().double().eval(), torch.rand(2, 3, 4, 4, dtype=torch.float64)
    result = hw.insertion_deletion(model, x, MAPS, 1, "budget", 3)
    pixels = torch.arange(7, dtype=torch.float64).mul(3).clamp(max=16) / 16
    torch.testing.assert_close(result.insertion, torch.trapezoid(result.insertion_curve, pixels), rtol=1e-14, atol=0)


@pytest.mark.parametrize("mask", [None, 1, "mean", (4, 4)])
def test_masks_that_are_no_tensors(mask):
    with pytest.raises(InputError, match="masks must be a dense tensor"):
        pointing_game(MAPS, mask)


def test_maps_without_values_and_sparse_ones_are_refused():
    for maps, problem in ((MAPS.to("meta"), "meta device"), (MAPS.to_sparse(), "sparse")):
        with pytest.raises(InputError, match=problem):
            hw.c3(maps)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool])
def test_weights_that_are_not_floating_point_are_not_taken_for_it(tmp_path, dtype):
    state = load_model("tiny20").state_dict()
    state["fc.bias"] = state["fc.bias"].to(dtype)
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=f"not floating point: fc.bias {str(dtype).removeprefix('torch.')}"):
        load_model(tmp_path / "weights.pth", arch="tiny20")


def test_a_key_that_is_nothing_is_no_name(tmp_path):
    torch.save({None: torch.zeros(1)}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="keys must be names, one is None"):
        read_checkpoint(tmp_path / "weights.pth")


def test_a_name_too_long_for_a_file_is_a_file_that_is_not_there(tmp_path):
    (tmp_path / "labels.csv").write_text(f"image,label\n{'a' * 300}.png,0\n")
    none = LabelledImages("images", ())
    with pytest.raises(DataError, match="does not exist"):
        listed_images(none, tmp_path, tmp_path / "labels.csv", lambda labels: dict.fromkeys(labels, 0))
