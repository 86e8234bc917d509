"""Every family that people deploy, exact at every cut; the table in the documentation is made by the same code."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import pytest
import torch

import headwater as hw
from benchmarks.architectures import ARCHITECTURES, LIMIT, build, measure

DOCS = Path(__file__).resolve().parents[2] / "docs"


QUICK = (
    *("resnet18", "mobilenet_v3_small", "convnext_tiny", "swin_t", "fcn_resnet50", "timm:deit_tiny_patch16_224"),
    *("timm:ecaresnet26t", "timm:skresnet18", "timm:resnetv2_50x1_bit", "timm:convnextv2_atto"),
    *("timm:efficientnet_lite0", "timm:hrnet_w18_small"),
)
"""What `make test` runs: chosen greedily, by kinds of operation with their rules per second, until every kind that
test_operations.py does not have (and every kind of rule) is met in a whole network. `make test-all` runs all."""


@pytest.mark.parametrize(
    "architecture",
    [pytest.param(a, id=a.name, marks=[] if a.name in QUICK else pytest.mark.full) for a in ARCHITECTURES],
)
def test_relevance_is_conserved_at_every_cut(architecture):
    if architecture.name.startswith("timm:"):
        pytest.importorskip("timm")
    row = measure(architecture)
    assert row.problem == ""
    assert row.at_input <= LIMIT
    assert row.at_cuts <= LIMIT
    assert row.by_headwater <= LIMIT
    assert row.cuts >= 10, "image, output and what lies between"


@pytest.mark.full
@pytest.mark.parametrize("architecture", [pytest.param(a, id=a.name) for a in ARCHITECTURES if a.name in QUICK])
def test_the_sweep_of_several_images_is_traced_whole(architecture, monkeypatch):
    """What generated code does with it is asked of fewer networks: it takes minutes for each."""
    if architecture.name.startswith("timm:"):
        pytest.importorskip("timm")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    size = architecture.sizes[0]
    model, x = build(architecture, size), torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    compiled, plain = (hw.LRP(model, "otsuki2024", architecture.output, compile=c)(x).heatmap for c in (True, False))
    assert (compiled - plain).abs().max() <= 1e-5 * plain.abs().max()


def test_the_documented_table_lists_every_architecture():
    documented = set(re.findall(r"^\| [^|]* \| `([^`]+)`", (DOCS / "architectures.md").read_text(), re.M))
    assert documented == {architecture.name for architecture in ARCHITECTURES}
    assert len(documented) >= 40
