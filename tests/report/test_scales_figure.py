"""The figure of all scales, and maps of one class against another, from files and on the command line."""

from __future__ import annotations

import json

import numpy as np
import pytest
from command import headwater
from helpers import EXAMPLES

import headwater as hw
from headwater.errors import InputError
from headwater.report import scales_figure

TABBY = EXAMPLES / "tabby.jpg"


def test_a_map_against_another_class_sums_to_the_difference_of_the_logits(tmp_path):
    e = hw.explain(TABBY, "tiny20", "headwater", target="tabby", against="lion")
    difference = e.logits[0, int(e.target)] - e.logits[0, int(e.against)]
    assert e.heatmap.sum().item() == pytest.approx(difference.item(), rel=1e-4)
    assert np.nansum(e.image_map, dtype=np.float64) == pytest.approx(difference.item(), rel=1e-4)
    assert e.additive and e.explained == "tabby, not lion"
    e.save(tmp_path, scales=True)
    (drawn,) = tmp_path.glob("*.scales.png")
    assert drawn.stat().st_size > 10_000
    record = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert record["against"]["name"] == "lion"
    assert e.figure() != hw.explain(TABBY, "tiny20", "headwater", target="tabby").figure()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "lion", "against": "lion"}, "same class, lion"),
        ({"against": "tabby"}, "tabby.jpg: target and against are the same class"),
        ({"against": "lion", "method": "gradcam"}, "'gradcam' explains one class"),
        ({"against": "lian"}, "did you mean lion"),
    ],
)
def test_what_cannot_be_explained_against_is_said(options, message):
    with pytest.raises(InputError, match=message):
        hw.explain(TABBY, "tiny20", **options)


def test_a_method_without_scales_says_so(tmp_path):
    e = hw.explain(TABBY, "tiny20", "random")
    with pytest.raises(InputError, match="'random' has no scales"):
        e.save(tmp_path, scales=True)
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="no scale to draw"):
        scales_figure(e.image, {})


def test_the_command_line_draws_scales_and_explains_against(tmp_path):
    arguments = ("explain", str(TABBY), "--model", "tiny20", "--method", "headwater", "--out", str(tmp_path))
    done = headwater(*arguments, "--against", "lion", "--scales")
    assert done.returncode == 0, done.stderr
    assert "tabby, not lion" in done.stdout and "conserved" in done.stdout
    assert len(list(tmp_path.glob("*.scales.png"))) == 1
    again = headwater(*arguments, "--against", "tabby")
    assert again.returncode == 1 and "same class" in again.stderr and "Traceback" not in again.stderr
