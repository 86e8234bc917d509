"""RISE against its expectation, and its promises: seeded, apart, bounded."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

import headwater as hw
from headwater.errors import InputError
from headwater.methods.rise import Rise, RisePublished


class Brightness(nn.Module):
    """The probability of class 1 is a weighted mean of the image, which lies in [0, 1]."""

    def __init__(self, weights):
        super().__init__()
        self.register_buffer("weights", weights / weights.sum())

    def forward(self, x):
        p = (x.mean(1) * self.weights).sum((1, 2)).clamp(1e-6, 1 - 1e-6)
        return torch.stack([(1 - p).log(), p.log()], 1)


def test_the_map_is_its_expectation_on_a_linear_network():
    """On an image of ones S_i = E[f(M) M_i] / p, with f(M) = sum_j w_j M_j and the moments of the masks written out:
    E[M_i M_j] = p^2 + p (1 - p) sum_c B_ic B_jc, where B enlarges cell c to pixel i, averaged over the shifts."""
    torch.manual_seed(0)
    p, count = 0.3, 60_000
    model = Brightness(torch.rand(12, 12) ** 4)
    heatmap = Rise(model, masks=count, cells=4, keep=p, batch_size=1000)(torch.ones(1, 3, 12, 12), 1).heatmap.flatten()
    enlarge = nn.functional.interpolate(torch.eye(25).view(25, 1, 5, 5), (15, 15), mode="bilinear")[:, 0]
    together = torch.zeros(144, 144)
    for row in range(3):
        for column in range(3):
            cells = enlarge[:, row : row + 12, column : column + 12].flatten(1)
            together += cells.T @ cells / 9
    expected = (p**2 + p * (1 - p) * together @ model.weights.flatten()) / p
    standard_error = 0.45 / count**0.5  # deviation of f(M) M_i / p is below 0.45
    assert (heatmap - expected).abs().max() < 5 * standard_error
    assert torch.corrcoef(torch.stack([heatmap, expected]))[0, 1] > 0.95


def test_masks_show_the_asked_part_on_average():
    model = Brightness(torch.ones(20, 30))
    masks = torch.cat(list(Rise(model, masks=4000, cells=5, keep=0.3).draw((20, 30), torch.zeros(1))))
    assert masks.shape == (4000, 20, 30)
    assert masks.min() >= 0 and masks.max() <= 1
    assert (masks.mean(0) - 0.3).abs().max() < 0.03, "everywhere, by the random shift"


def test_images_stay_apart_and_the_seed_decides(tiny, images):
    rise = Rise(tiny, masks=40, cells=3, batch_size=16)
    together = rise(images).heatmap
    assert torch.equal(together, rise(images).heatmap)
    torch.testing.assert_close(torch.cat([rise(one[None]).heatmap for one in images]), together)
    assert not torch.equal(together, Rise(tiny, masks=40, cells=3, batch_size=16, seed=1)(images).heatmap)


def test_interface_progress_and_model_untouched(tiny, images):
    tiny.train()
    seen = []
    rise = Rise(tiny, masks=40, cells=3, batch_size=16)
    e = rise(images, torch.tensor([0, 1, 2]), progress=lambda *s: seen.append(s))
    assert seen == [(16, 40), (32, 40), (40, 40)]
    assert e.heatmap.shape == (3, 16, 12)
    assert e.target.tolist() == [0, 1, 2]
    assert all(module.training for module in tiny.modules())
    assert "rise" in hw.list_methods()
    assert isinstance(hw.load_method("rise", tiny), Rise)


@pytest.mark.parametrize("kind", [Rise, RisePublished])
def test_maps_are_those_of_a_loop_over_images_and_masks(tiny, images, kind):
    method = kind(tiny, masks=30, cells=3, batch_size=8)
    masks, classes = torch.cat(list(method.draw((16, 12), images))), torch.tensor([0, 1, 2])
    for image, index, found in zip(images, classes, method(images, classes).heatmap, strict=True):
        with torch.no_grad():
            total = sum(tiny((image * mask)[None]).softmax(1)[0, index] * mask for mask in masks)
        torch.testing.assert_close(found, method._scaled((total / (30 * 0.3))[None])[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", [{"masks": 0}, {"cells": 0}, {"keep": 0.0}, {"keep": 1.5}, {"batch_size": 0}])
def test_bad_settings(tiny, options):
    with pytest.raises(InputError, match="must be"):
        Rise(tiny, **options)


def test_bad_images(tiny, images):
    with pytest.raises(InputError, match="The batch comes first: a batch of one is"):
        Rise(tiny)(images[0])
    with pytest.raises(InputError, match="out of range"):
        Rise(tiny, masks=2)(images, 9)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_five_thousand_masks_of_a_large_image_stay_under_two_gigabytes():
    program = """
import re, torch
from pathlib import Path
from headwater.methods.rise import Rise, RisePublished
model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 7, 8), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
Rise(model)(torch.rand(1, 3, 224, 224))
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < 2e9
