"""What is drawn sums to what the network's map sums to, and says in which unit."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import EXAMPLES
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

import headwater as hw
from headwater.data import Box, Preprocessing
from headwater.data.preprocessing import to_image
from headwater.report import Labels, Style, figure, overlay
from headwater.report.images import shown

EPS = float(np.finfo(np.float32).eps)
SIZES = [(40, 30), (30, 40), (333, 217), (32, 32), (500, 1), (1, 500), (7, 5), (1000, 90), (3, 2)]


def total(values: np.ndarray) -> float:
    return float(np.nansum(values, dtype=np.float64))


def random_map(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "prepare",
    [Preprocessing(36, 32), Preprocessing(32, 32), Preprocessing(64, 24), Preprocessing(32, 32, stretch=True)],
)
def test_the_sum_of_the_drawn_values_is_the_maps(size, prepare):
    heatmap = random_map(prepare.crop, prepare.crop)
    laid = to_image(heatmap, prepare.box(*size), *size)
    assert laid.shape == size[::-1]
    # Each drawn value is rounded to float32 once, by half an eps at most; pixels that are covered by less than 1e-9 of
    # their side are left out, which is less.
    assert abs(total(laid) - heatmap.sum().item()) <= EPS * heatmap.abs().sum().item()


def test_each_drawn_value_is_the_integral_over_its_pixel():
    """Beside a fine numerical integral of the bilinear interpolation."""
    heatmap, box, width, height = random_map(6, 5), Box(1.3, 0.4, 9.1, 7.9), 11, 8
    fine = 64
    x, y = (np.arange(width * fine) + 0.5) / fine, (np.arange(height * fine) + 0.5) / fine
    grid = torch.stack(
        torch.meshgrid(
            torch.tensor(2 * (y - box.top) / (box.bottom - box.top) - 1),
            torch.tensor(2 * (x - box.left) / (box.right - box.left) - 1),
            indexing="ij",
        )[::-1],
        dim=-1,
    )
    density = torch.nn.functional.grid_sample(
        heatmap[None, None], grid[None], padding_mode="border", align_corners=False
    )[0, 0]
    inside = (grid.abs() <= 1).all(-1)
    cell = 6 / (box.bottom - box.top) * 5 / (box.right - box.left) / fine**2
    expected = (density * inside * cell).reshape(height, fine, width, fine).sum((1, 3)).numpy()
    laid = np.nan_to_num(to_image(heatmap, box, width, height))
    # The midpoint rule misses up to one of 64 strips at each edge of the box, and 1 / (24 * 64^2) of the curvature.
    assert np.abs(laid - expected).max() <= 2 / fine * heatmap.abs().max().item() * cell * fine**2


def test_values_that_do_not_add_up_keep_their_size():
    for size in SIZES:
        laid = to_image(torch.full((32, 32), 0.7), Preprocessing(36, 32).box(*size), *size, additive=False)
        assert np.allclose(laid[np.isfinite(laid)], 0.7, rtol=1e-6)
        assert np.isfinite(laid).any()


def test_relevance_on_padding_is_outside_the_image():
    """A crop larger than the resized image: the network sees a border that the photo does not have."""
    prepare = Preprocessing(24, 32)
    heatmap, box = random_map(32, 32), prepare.box(60, 40)
    inner = to_image(heatmap, box, 60, 40)
    moved = Box(box.left + 20, box.top + 20, box.right + 20, box.bottom + 20)
    whole = to_image(heatmap, moved, 100, 80)
    assert abs(total(whole) - heatmap.sum().item()) <= EPS * heatmap.abs().sum().item()
    assert np.allclose(whole[20:60, 20:80], inner, rtol=0, atol=1e-6, equal_nan=True)
    assert abs(total(inner) - total(whole)) > 1e-3


class Recorded:
    """What a figure draws and says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.maps: list[np.ndarray] = []
        self.texts: list[str] = []
        imshow, text, colorbar = Axes.imshow, Figure.text, Figure.colorbar

        def drawing(axis, values, *args, **options):
            if np.ndim(values) == 2:
                self.maps.append(np.asarray(values))
            return imshow(axis, values, *args, **options)

        def writing(canvas, x, y, said, **options):
            self.texts.append(said)
            return text(canvas, x, y, said, **options)

        def bars(canvas, mappable, *args, **options):
            bar = colorbar(canvas, mappable, *args, **options)
            self.bar = np.ma.filled(mappable.get_array(), np.nan), bar.ax
            return bar

        monkeypatch.setattr(Axes, "imshow", drawing)
        monkeypatch.setattr(Figure, "text", writing)
        monkeypatch.setattr(Figure, "colorbar", bars)

    @property
    def said(self) -> str:
        return "\n".join([*self.texts, self.bar[1].get_ylabel()])


@pytest.mark.parametrize("size", [(45, 30), (30, 41), (60, 60), (500, 1), (1, 500), (400, 20)])
@pytest.mark.parametrize("prepare", [Preprocessing(40, 32), Preprocessing(32, 32, stretch=True)])
def test_the_figure_draws_the_probability(tiny, tmp_path, monkeypatch, size, prepare):
    path = tmp_path / "photo.png"
    with Image.open(EXAMPLES / "tabby.jpg") as photo:
        photo.resize(size).save(path)
    e = hw.explain(path, model=tiny, preprocessing=prepare)
    recorded = Recorded(monkeypatch)
    png = Image.open(io.BytesIO(e.figure()))
    assert max(png.size) <= 1500, "whatever the image's shape"
    probability = e.probability.item()
    for values in (*recorded.maps, recorded.bar[0]):
        # 1e-5 is the limit of the sweep's own conservation; the drawn values add less than an eps of float32.
        assert total(values) == pytest.approx(probability, rel=1e-5 + EPS)
    assert len(recorded.maps) == 1
    for part in ("photo.png", "headwater", "TinyResidual", "relevance per\nimage pixel", f"sum to {probability:.4g}"):
        assert part in recorded.said


@pytest.mark.parametrize(("method", "quantize"), [("otsuki2024", 8), ("gradcam", None), ("otsuki2024+hq", None)])
def test_values_that_do_not_sum_to_the_probability_say_so(tiny, monkeypatch, method, quantize):
    e = hw.explain(
        EXAMPLES / "tabby.jpg", tiny, method, quantize=quantize, preprocessing=Preprocessing(40, 32), target=2
    )
    recorded = Recorded(monkeypatch)
    e.figure()
    assert not e.additive
    assert "do not sum to the probability" in recorded.said and "value of" in recorded.said
    assert "relevance per" not in recorded.said
    drawn = recorded.maps[0][np.isfinite(recorded.maps[0])]
    levels = e.heatmap if quantize is None else hw.heat_quantization(e.heatmap, quantize)
    assert drawn.max() <= levels.max().item() * (1 + EPS)
    if quantize:
        assert "otsuki2024+hq8" in recorded.said and "8 levels" in recorded.said


def test_the_predicted_class_is_named_where_another_is_explained(tiny, monkeypatch):
    e = hw.explain(EXAMPLES / "tabby.jpg", tiny, preprocessing=Preprocessing(40, 32))
    other = (e.predicted + 1) % 5
    recorded = Recorded(monkeypatch)
    replace(e, target=torch.tensor([other])).figure()
    assert f"Predicted: class {e.predicted}" in recorded.said
    assert f"class {other}" in recorded.texts[0]


def test_little_negative_relevance_stays_in_the_sum_and_gets_no_colour():
    heatmap = np.full((20, 20), 1.0)
    heatmap[3, 4] = -0.2
    view = shown(heatmap)
    assert not view.signed and view.below
    assert view.sum == pytest.approx(398.8)
    assert view.strength()[3, 4] == 0
    assert shown(heatmap, Style(sign="positive")).sum == 399
    assert shown(heatmap, Style(sign="absolute")).sum == pytest.approx(399.2)


def test_long_names_are_shortened_and_odd_ones_do_no_harm(monkeypatch):
    recorded = Recorded(monkeypatch)
    photo, heatmap = Image.new("RGB", (30, 20)), np.ones((20, 30))
    long = "a class, with synonyms, " * 20
    labels = Labels(long, "93.1%", f"{'n' * 300}.jpg", "m" * 300, "x/" * 200, note="note " * 200)
    assert figure(photo, heatmap, labels)
    assert all(len(text) < 200 and "…" in text for text in recorded.texts if text not in ("overlay", ""))
    assert recorded.texts[0].endswith("  93.1%") and recorded.texts[1].endswith(".jpg")
    assert figure(photo, heatmap, Labels("$x_{", "1%", "a\nb\udc80{sum}.jpg", "画像", "{}"))


@pytest.mark.parametrize("size", [(9000, 3), (3, 9000), (1, 1)])
def test_an_overlay_has_the_images_size(size):
    assert overlay(Image.new("RGB", size), np.ones(size[::-1])).size == size
