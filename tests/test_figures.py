"""Figures for papers: formats, sizes that are printed, what a caption needs, photos that stay visible."""

from __future__ import annotations

import json
import re
import warnings

import numpy as np
import pytest
import torch
from helpers import EXAMPLES, TinyResidual, settle
from matplotlib.figure import Figure
from PIL import Image

import headwater as hw
from headwater.errors import InputError
from headwater.figures import COLUMN, PAGE
from headwater.report import Style, overlay
from headwater.report.images import shown

PHOTOS = [EXAMPLES / "tabby.jpg", EXAMPLES / "espresso.jpg"]
METHODS = ["otsuki2024", "otsuki2024-published+hq", "random"]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    network = settle(TinyResidual())
    network.card = hw.ModelCard(
        "tiny", "random", hw.Preprocessing(48, 40), ("a", "b", "c", "a class of a long name", "e")
    )
    return network


@pytest.fixture(scope="module")
def figure(model):
    return hw.figures.grid(
        PHOTOS, METHODS, model, targets=[None, "a class of a long name"], protocol="budget", step=400
    )


@pytest.mark.parametrize("suffix", ["pdf", "svg", "png"])
def test_every_format_with_its_facts_beside_it(figure, tmp_path, suffix):
    written = figure.save(tmp_path / f"maps.{suffix}")
    assert [path.name for path in written] == [f"maps.{suffix}", "maps.txt", "maps.json"]
    content = written[0].read_bytes()
    assert content.startswith({"pdf": b"%PDF", "svg": b"<?xml", "png": b"\x89PNG"}[suffix])
    assert content == figure.save(tmp_path / f"again.{suffix}")[0].read_bytes(), "the same figure is the same file"
    facts, caption = json.loads(written[2].read_text()), written[1].read_text()
    assert facts["model"] == "tiny" and facts["weights"] == "random" and facts["methods"] == METHODS
    for part in (
        "tabby.jpg",
        "Network tiny",
        "authors' code",
        "8 levels",
        "budget protocol",
        f"headwater {hw.__version__}",
    ):
        assert part in caption


def test_text_is_text_in_the_size_of_a_papers_notes(figure, tmp_path):
    svg = figure.save(tmp_path / "maps.svg")[0].read_text()
    assert ">otsuki2024<" in svg and ">random<" in svg
    assert set(re.findall(r"font(?:-size)?: ([\d.]+)px", svg)) == {"7"}, (
        "points of a figure that is printed in its own size"
    )
    assert figure.figure().get_figwidth() == COLUMN
    assert b"/Type3" not in figure.save(tmp_path / "maps.pdf")[0].read_bytes()


def test_rows_are_images_and_columns_methods(figure, model):
    assert len(figure.rows) == 2 and [len(row) for row in figure.rows] == [4, 4]
    assert figure.headings == ("input", *METHODS) and figure.titles[1] == "a class of a long name"
    first = np.asarray(figure.rows[1][0], dtype=float)
    with Image.open(PHOTOS[1]) as photo:
        x = model.card.preprocessing(photo.convert("RGB"))[None]
    assert first.shape == (40, 40, 3) and first.std() > 10
    e = hw.LRP(model)(x, 3)
    expected = hw.insertion_deletion(model, x, e.heatmap, 3, "budget", 400).id.item()
    assert figure.scores[1][0] == pytest.approx(expected, abs=1e-6)


def test_many_methods_take_a_page_and_too_many_are_refused(model):
    wide = hw.figures.grid(PHOTOS[:1], ["otsuki2024", "otsuki2024-i", "otsuki2024-ii", "random"], model)
    assert wide.figure().get_figwidth() == PAGE and wide.scores == ()
    with pytest.raises(InputError, match=r"5 panels do not fit in 1\.2 inches"):
        wide.figure(1.2)


@pytest.mark.parametrize(
    ("images", "methods", "options", "message"),
    [
        ([], METHODS, {}, "needs lists of images and of methods"),
        (PHOTOS, "random", {}, "needs lists of images and of methods"),
        (PHOTOS, ["random"], {"targets": [1]}, "as many targets as rows or columns: 2, got 1"),
        (PHOTOS, ["random"], {"headings": []}, "as many headings"),
    ],
)
def test_what_does_not_fit(model, images, methods, options, message):
    with pytest.raises(InputError, match=message):
        hw.figures.grid(images, methods, model, **options)


def test_another_format_is_refused(figure, tmp_path):
    with pytest.raises(InputError, match=r"written as \.pdf, \.svg, \.png, got 'maps\.docx'"):
        figure.save(tmp_path / "maps.docx")


def test_headings_are_text(model):
    """Dollar signs are no mathematics, and letters that the font lacks are drawn as boxes, without a warning."""
    figure = hw.figures.grid(PHOTOS[:1], ["random"], model, headings=["$x$ 日本"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert figure._repr_png_().startswith(b"\x89PNG")
    assert not any(text.get_parse_math() for text in figure.figure().texts)


def test_a_map_that_is_one_level_but_for_a_few_pixels_shows_these():
    heatmap = np.full((64, 64), -0.1)
    heatmap[:3, :3] = 1.0
    view = shown(heatmap)
    assert view.norm.vmax == 1.0 and np.median(view.strength()) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("method", "quantize", "steps"),
    [
        ("otsuki2024+hq", None, 8),
        ("otsuki2024+hq-equation", None, 9),
        ("otsuki2024", 5, 5),
        ("random+hq", 3, 3),
        ("otsuki2024", None, 0),
    ],
)
def test_the_colours_of_a_quantized_map_come_in_as_many_steps(model, monkeypatch, method, quantize, steps):
    bars = []
    colorbar = Figure.colorbar
    monkeypatch.setattr(Figure, "colorbar", lambda *a, **k: bars.append(colorbar(*a, **k)) or bars[-1])
    hw.explain(PHOTOS[0], model, method, quantize=quantize).figure()
    (bar,) = bars
    if steps:
        assert steps == bar.cmap.N and len(bar.norm.boundaries) == steps + 1
        assert len(np.unique(bar.cmap(np.arange(steps)), axis=0)) == steps
    else:
        assert bar.cmap.N > 32


@pytest.mark.parametrize("colormap", ["inferno", "jet", "RdBu_r", "gray", "viridis"])
def test_no_map_darkens_the_photo_by_more_than_half(colormap):
    """Under every strength of every colour; a level of 255 is lost to rounding."""
    rng, weights = np.random.default_rng(0), np.array([0.299, 0.587, 0.114])
    photo = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    heatmap = np.linspace(-1, 1, 64 * 64).reshape(64, 64)
    laid = np.asarray(overlay(Image.fromarray(photo), heatmap, Style(colormap=colormap, opacity=1.0)))
    assert (laid @ weights >= 0.5 * (photo @ weights) - 1).all()
