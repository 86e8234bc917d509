"""How relevance divides at joins, as numbers and as an image."""

from __future__ import annotations

import io
import json

import pytest
import torch
from command import headwater
from helpers import EXAMPLES
from PIL import Image
from torch import nn

import headwater as hw
from headwater.engine.flow import Flow
from headwater.errors import InputError
from headwater.report.flow import flow_figure


def test_a_join_divides_what_reaches_it(tiny, images):
    e = hw.LRP(tiny)(images, checkpoints=["head"])
    assert [join.module for join in e.flow.joins] == ["block1", "block2"]
    assert [join.branches for join in e.flow.joins] == [("branch", "skip")] * 2
    for join in e.flow.joins:
        assert join.relevance.shape == (3, 2)
        torch.testing.assert_close(join.relevance.sum(1), e.probability)
        assert ((join.skip > 0) & (join.skip < 1)).all()


def test_symmetric_splitting_halves_and_left_out_skips_get_nothing(tiny, images):
    halves = hw.LRP(tiny, "otsuki2024-ii")(images).flow
    for join in halves.joins:
        torch.testing.assert_close(join.skip, torch.full((3,), 0.5))
    projected, identity = hw.LRP(tiny, "otsuki2024-i")(images).flow.joins
    torch.testing.assert_close(projected.skip, torch.full((3,), 0.5))
    assert (identity.skip == 0).all()


def test_branches_of_equal_length_have_no_skip(images):
    class Twins(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1)

        def forward(self, x):
            return (self.a(x) + self.b(x)).mean((2, 3))

    (join,) = hw.LRP(Twins().eval())(images).flow.joins
    assert join.branches == ("branch", "branch")
    assert (join.skip == 0).all()


def test_a_mean_over_images_and_one_image_of_a_batch(tiny, images):
    e = hw.LRP(tiny)(images)
    one = e.select(1).flow
    torch.testing.assert_close(one.joins[0].relevance, e.flow.joins[0].relevance[1:2])
    mean = Flow.mean([e.select(k).flow for k in range(3)])
    torch.testing.assert_close(mean.joins[1].relevance[0], e.flow.joins[1].relevance.mean(0))


def test_the_figure_grows_with_the_network(tiny, images):
    flow = hw.LRP(tiny)(images).flow
    small = Image.open(io.BytesIO(flow_figure(flow, "tiny")))
    many = Image.open(io.BytesIO(flow_figure(Flow(flow.joins * 10))))
    assert small.format == "PNG"
    assert many.height > small.height
    assert many.width > small.width


def test_a_network_without_joins_has_nothing_to_draw(images):
    flow = hw.LRP(nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten()).eval())(images).flow
    assert flow.joins == ()
    with pytest.raises(InputError, match="no join"):
        flow_figure(flow)


def test_the_command_line_averages_over_images(tmp_path):
    images = [str(EXAMPLES / name) for name in ("espresso.jpg", "tabby.jpg")]
    done = headwater("explain", *images, "--model", "tiny20", "--flow", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    numbers = json.loads((tmp_path / "flow.tiny20.headwater.predicted.json").read_text())
    assert numbers["images"] == 2
    alone = [
        json.loads((tmp_path / f"{name}.tiny20.headwater.{name}.json").read_text())["flow"]
        for name in ("espresso", "tabby")
    ]
    for join, *each in zip(numbers["joins"], *alone, strict=True):
        mean = sum(torch.tensor(one["relevance"]) for one in each) / 2
        torch.testing.assert_close(torch.tensor(join["relevance"]), mean)
    assert Image.open(tmp_path / "flow.tiny20.headwater.predicted.png").format == "PNG"
