"""Every family that people deploy, exact at every cut; the table in the documentation is made by the same code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.architectures import ARCHITECTURES, LIMIT, measure

DOCS = Path(__file__).resolve().parents[1] / "docs"


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.name)
def test_relevance_is_conserved_at_every_cut(architecture):
    if architecture.name.startswith("timm:"):
        pytest.importorskip("timm")
    row = measure(architecture)
    assert row.problem == ""
    assert row.at_input <= LIMIT
    assert row.at_cuts <= LIMIT
    assert row.cuts >= 10, "picture, output and what lies between"


def test_the_documented_table_lists_every_architecture():
    documented = set(re.findall(r"^\| [^|]* \| `([^`]+)`", (DOCS / "architectures.md").read_text(), re.M))
    assert documented == {architecture.name for architecture in ARCHITECTURES}
    assert len(documented) >= 40
