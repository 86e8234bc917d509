"""Insertion and deletion: parity with the authors' curves, and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import headwater as hw
from headwater.engine.prediction import Predictor
from headwater.errors import InputError
from headwater.metrics.insertion_deletion import IMAGENET_MEAN, IMAGENET_STD, _blurred, pixel_ranks


class MeanBrightness(nn.Module):
    """Two classes; the logit of class 1 is the mean of the image times a factor."""

    def __init__(self, factor=4.0):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x):
        brightness = x.mean((1, 2, 3)) * self.factor
        return torch.stack([torch.zeros_like(brightness), brightness], 1)


PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


@pytest.mark.parametrize("index", [0, pytest.param(1, marks=pytest.mark.full)])
@pytest.mark.parametrize("kind", ["raw", "hq"])
def test_published_protocol_agrees_with_the_authors_curves(parity, index, kind):
    model, x = parity.build("resnet18"), parity.inputs(2)[index : index + 1]
    heatmap = torch.from_numpy(parity.reference["resnet18/flows_skip"][index])[None]
    heatmap = hw.heat_quantization(heatmap) if kind == "hq" else heatmap
    result = hw.insertion_deletion(model, x, heatmap, model(x).argmax(1))
    for name in ("insertion", "deletion"):
        curve = parity.reference[f"resnet18/{name}_curve/{kind}/{index}"]
        np.testing.assert_allclose(getattr(result, f"{name}_curve")[0].numpy(), curve, atol=1e-4)
        area = parity.reference[f"resnet18/{name}/{kind}/{index}"]
        np.testing.assert_allclose(getattr(result, name)[0].item(), area, atol=1e-4)


def test_points_of_both_protocols():
    x, heatmap = torch.ones(1, 3, 4, 5), torch.arange(20.0).view(1, 4, 5)
    published = hw.insertion_deletion(MeanBrightness(), x, heatmap, 1, step=6, **PLAIN)
    assert (published.fraction * 20).round().tolist() == [[7, 13, 19, 20]], "every pixel at or above the threshold"
    budget = hw.insertion_deletion(MeanBrightness(), x, heatmap, 1, "budget", step=6, **PLAIN)
    assert (budget.fraction * 20).round().tolist() == [[0, 6, 12, 18, 20]]
    expected = torch.sigmoid(4 * budget.fraction)
    torch.testing.assert_close(budget.insertion_curve, expected)
    torch.testing.assert_close(budget.deletion_curve, torch.sigmoid(4 * (1 - budget.fraction)))
    widths = torch.tensor([0.3, 0.3, 0.3, 0.1])
    torch.testing.assert_close(budget.insertion, ((expected[:, 1:] + expected[:, :-1]) / 2 * widths).sum(1))
    torch.testing.assert_close(budget.id, budget.insertion - budget.deletion)


@pytest.mark.parametrize("protocol", ["published", "budget"])
def test_areas_are_trapezoids_over_evenly_spaced_points_or_over_the_part_of_the_pixels(tiny, images, protocol):
    result = hw.insertion_deletion(tiny, images, torch.rand(3, 16, 12), 1, protocol, step=50)
    widths = result.fraction.diff() if protocol == "budget" else 1 / (result.fraction.shape[1] - 1)
    for area, curve in ((result.insertion, result.insertion_curve), (result.deletion, result.deletion_curve)):
        torch.testing.assert_close(area, ((curve[:, 1:] + curve[:, :-1]) / 2 * widths).sum(1))


def test_tied_pixels_enter_together_in_one_protocol_and_one_by_one_in_the_other():
    x = torch.ones(1, 3, 4, 4)
    heatmap = torch.tensor([1.0, 1, 0, 0]).repeat(4, 1)[None]
    published = hw.insertion_deletion(MeanBrightness(), x, heatmap, 1, step=2, **PLAIN)
    assert (published.fraction * 16).tolist() == [[8, 8, 8, 16, 16, 16, 16, 16]]
    budget = hw.insertion_deletion(MeanBrightness(), x, heatmap, 1, "budget", step=2, **PLAIN)
    assert (budget.fraction * 16).tolist() == [[0, 2, 4, 6, 8, 10, 12, 14, 16]]


@pytest.mark.parametrize("protocol", ["published", "budget"])
def test_a_constant_map_has_a_stated_answer(protocol):
    x = torch.randn(1, 3, 8, 8)
    result = hw.insertion_deletion(MeanBrightness(), x, torch.zeros(1, 8, 8), 1, protocol, step=8, **PLAIN)
    if protocol == "published":
        assert (result.fraction == 1).all()
    else:
        again = hw.insertion_deletion(MeanBrightness(), x, torch.ones(1, 8, 8), 1, protocol, step=8, **PLAIN)
        assert torch.equal(result.insertion_curve, again.insertion_curve)
        other = hw.insertion_deletion(MeanBrightness(), x, torch.ones(1, 8, 8), 1, protocol, step=8, seed=1, **PLAIN)
        assert not torch.equal(result.insertion_curve, other.insertion_curve)


@pytest.mark.parametrize("protocol", ["published", "budget"])
@pytest.mark.parametrize("options", [{}, {"baseline": "blur"}, {"resolution": (4, 3)}], ids=str)
def test_curves_are_those_of_a_loop_over_images_points_and_both_curves(tiny, images, protocol, options):
    heatmaps, labels, step = torch.rand(3, 4, 3), [0, 1, 2], 5 if "resolution" in options else 50
    result = hw.insertion_deletion(
        tiny, images, heatmaps, torch.tensor(labels), protocol, step, batch_size=7, **options
    )
    order = pixel_ranks(heatmaps, protocol, resolution=options.get("resolution", (16, 12)))
    cells = order[0].numel()
    black = -torch.tensor(IMAGENET_MEAN) / torch.tensor(IMAGENET_STD)
    empty = _blurred(images, (2, 3)) if "baseline" in options else black.view(1, 3, 1, 1).expand_as(images)
    for k, label in enumerate(labels):
        for point, fraction in enumerate(result.fraction[k]):
            entered = (order[k] < round(fraction.item() * cells)).repeat_interleave(16 // order.shape[1], 0)
            entered = entered.repeat_interleave(12 // order.shape[2], 1)
            for curve, kept in ((result.insertion_curve, entered), (result.deletion_curve, ~entered)):
                expected = tiny(torch.where(kept, images[k], empty[k])[None]).softmax(1)[0, label]
                torch.testing.assert_close(curve[k, point], expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("protocol", ["published", "budget"])
def test_images_do_not_influence_each_other_and_batches_do_not_matter(tiny, images, protocol):
    heatmaps = torch.randn(3, 16, 12)
    together = hw.insertion_deletion(tiny, images, heatmaps, torch.tensor([0, 1, 2]), protocol, step=20)
    for k in range(3):
        alone = hw.insertion_deletion(tiny, images[k : k + 1], heatmaps[k : k + 1], k, protocol, step=20, batch_size=3)
        torch.testing.assert_close(alone.insertion_curve[0], together.insertion_curve[k])
        torch.testing.assert_close(alone.deletion_curve[0], together.deletion_curve[k])


def test_equal_images_are_evaluated_once():
    class Counting(MeanBrightness):
        seen = 0

        def forward(self, x):
            Counting.seen += len(x)
            return super().forward(x)

    x, heatmap = torch.randn(2, 3, 8, 8), hw.heat_quantization(torch.rand(2, 8, 8), 4)
    network = Counting()
    Predictor(network, x)  # which traces it
    Counting.seen = 0
    hw.insertion_deletion(network, x, heatmap, 1, step=2, **PLAIN)
    assert Counting.seen <= 2 * 2 * 4, "4 levels give at most 4 different masks of each kind for an image"
    Counting.seen = 0
    hw.insertion_deletion(network, x, torch.rand(2, 8, 8), 1, "budget", step=8, **PLAIN)
    assert Counting.seen == 2 * (9 + 9 - 2)


def test_baselines():
    x = torch.full((1, 3, 20, 20), 2.0)
    heatmap = torch.rand(1, 20, 20)

    def empty(baseline, **options):
        return hw.insertion_deletion(
            MeanBrightness(1.0), x, heatmap, 1, "budget", step=100, baseline=baseline, **options
        ).insertion_curve[0, 0]

    black = -(torch.tensor([0.485, 0.456, 0.406]) / torch.tensor([0.229, 0.224, 0.225])).mean()
    torch.testing.assert_close(empty("black"), torch.sigmoid(black))
    torch.testing.assert_close(empty("mean"), torch.tensor(0.5))
    torch.testing.assert_close(empty("blur"), torch.sigmoid(torch.tensor(2.0)))
    torch.testing.assert_close(empty(torch.full_like(x, -1.0)), torch.sigmoid(torch.tensor(-1.0)))


def test_a_blurred_image_is_its_convolution_with_a_gaussian_that_repeats_the_border(tiny):
    x = torch.rand(1, 3, 20, 26)
    offsets = torch.arange(-6.0, 7.0)  # three deviations of a tenth of 20 pixels
    kernel = torch.exp(-((offsets / 2) ** 2) / 2)
    kernel = (kernel / kernel.sum()).expand(3, 1, -1)
    padded = nn.functional.pad(x, (6,) * 4, mode="replicate")
    rows = nn.functional.conv2d(padded, kernel[:, :, None], groups=3)
    blurred = nn.functional.conv2d(rows, kernel[..., None], groups=3)
    curves = [
        hw.insertion_deletion(tiny, x, torch.rand(1, 20, 26), 1, "budget", step=100, baseline=baseline)
        for baseline in ("blur", blurred)
    ]
    torch.testing.assert_close(curves[0].insertion_curve[:, 0], curves[1].insertion_curve[:, 0])


def test_a_smaller_map_is_enlarged_and_cells_can_be_ranked_instead_of_pixels():
    x, heatmap = torch.randn(1, 3, 12, 12), torch.rand(1, 3, 4)
    enlarged = nn.functional.interpolate(heatmap[:, None], (12, 12), mode="bilinear", align_corners=False)[:, 0]
    small = hw.insertion_deletion(MeanBrightness(), x, heatmap, 1, step=12, **PLAIN)
    torch.testing.assert_close(
        small.insertion_curve, hw.insertion_deletion(MeanBrightness(), x, enlarged, 1, step=12, **PLAIN).insertion_curve
    )
    cells = hw.insertion_deletion(MeanBrightness(), x, heatmap, 1, "budget", step=1, resolution=(3, 4), **PLAIN)
    assert cells.insertion_curve.shape == (1, 13)
    best = heatmap[0].flatten().argmax()
    row, column = best // 4 * 4, best % 4 * 3
    only = torch.zeros_like(x)
    only[:, :, row : row + 4, column : column + 3] = x[:, :, row : row + 4, column : column + 3]
    torch.testing.assert_close(cells.insertion_curve[0, 1], MeanBrightness()(only).softmax(1)[0, 1])


def test_the_model_is_untouched_and_runs_as_in_eval_mode(tiny, images):
    before = {name: tensor.clone() for name, tensor in tiny.state_dict().items()}
    expected = hw.insertion_deletion(tiny, images, torch.rand(3, 16, 12), 1, step=50).insertion_curve[:, -1]
    tiny.train()
    heatmap = torch.rand(3, 16, 12)
    trained = hw.insertion_deletion(tiny, images, heatmap, 1, step=50)
    torch.testing.assert_close(trained.insertion_curve[:, -1], expected)
    assert all(module.training for module in tiny.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heatmap": torch.rand(3, 17, 12)}, "larger than the images"),
        ({"heatmap": torch.rand(2, 16, 12)}, "2 maps for 3 images"),
        ({"heatmap": torch.full((3, 16, 12), float("nan"))}, "NaN"),
        ({"heatmap": np.zeros((3, 16, 12))}, "got ndarray"),
        ({"x": torch.zeros(3, 3, 16, 12, dtype=torch.uint8)}, "fails on inputs of shape .* uint8"),
        ({"x": torch.full((3, 3, 16, 12), float("nan"))}, "the input holds NaN"),
        ({"label": 5}, "classes 0 to 4"),
        ({"label": "cat"}, "label must be an int"),
        ({"label": [1, 2]}, "one per image"),
        ({"protocol": "own"}, "published, budget"),
        ({"step": 0}, "at least 1"),
        ({"baseline": "white"}, "black, mean, blur"),
        ({"std": True}, "a number for each of 3 channels"),
        ({"mean": (0.5, 0.5)}, "a number for each of 3 channels"),
        ({"baseline": torch.zeros(1, 3, 2, 2)}, "baseline is"),
    ],
)
def test_bad_arguments(tiny, images, change, message):
    arguments = {"x": images, "heatmap": torch.rand(3, 16, 12), "label": 1, "step": 50, **change}
    with pytest.raises(InputError, match=message):
        hw.insertion_deletion(tiny, **arguments)


def test_a_constant_map_has_the_largest_difference_there_is_under_published(tiny, images):
    """The protocol's own limit case, stated in docs/methods.md."""
    with torch.no_grad():
        label = tiny(images).argmax(1)
        black = torch.zeros_like(images) - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1) / torch.tensor(
            [0.229, 0.224, 0.225]
        ).view(3, 1, 1)
        whole, nothing = (tiny(x).softmax(1).gather(1, label[:, None])[:, 0] for x in (images, black))
    constant = torch.ones(3, 16, 12)
    result = hw.insertion_deletion(tiny, images, constant, label, "published", step=20)
    torch.testing.assert_close(result.id, whole - nothing, rtol=1e-4, atol=1e-6)
    assert (hw.insertion_deletion(tiny, images, constant, label, "budget", step=20).id < result.id).all()
