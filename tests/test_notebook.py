"""What an explanation shows of itself, and the tutorial, cell by cell."""

from __future__ import annotations

import io
import re
from xml.etree import ElementTree

import nbformat
import pytest
import torch
from helpers import EXAMPLES
from nbclient import NotebookClient
from PIL import Image

import headwater as hw

ROOT = EXAMPLES.parent


def elements(html: str) -> ElementTree.Element:
    """The parts of an explanation's HTML; a parser of XML takes it once its images are closed."""
    closed = re.sub(r"(<img [^>]*)>", r"\1/>", html)
    return ElementTree.fromstring(f"<div>{closed}</div>")


def test_an_image_shows_its_figure_classes_and_account():
    e = hw.explain(EXAMPLES / "tabby.jpg", "tiny20", target="lion")
    page = elements(e._repr_html_())
    assert "tabby.jpg, its relevance map by headwater for lion" in page.find("img").get("alt")
    classes, account = page.findall("table")
    rows = ["|".join(cell.text or "" for cell in row) for row in classes.iter("tr")]
    assert rows[1] == "tabby|81.2%|"
    assert [row.split("|")[0] for row in rows if row.endswith("|explained")] == ["lion"]
    seed, total, error = (float(cell.text) for cell in account.find("tbody").iter() if cell.tag in ("th", "td"))
    assert seed == pytest.approx(total, rel=1e-3) and seed == pytest.approx(e.probability.item(), rel=1e-3)
    assert error < 1e-5
    assert Image.open(io.BytesIO(e._repr_png_())).format == "PNG"


def test_a_batch_shows_its_maps_and_says_how_many_it_leaves_out(tiny):
    e = hw.LRP(tiny)(torch.rand(18, 3, 16, 16))
    page = elements(e._repr_html_())
    (table,) = page.findall("table")
    assert table.find("caption").text == "The first 16 of 18 images." and len(table.find("tbody")) == 16
    assert "Relevance maps of 16 images" in page.find("img").get("alt")
    one = Image.open(io.BytesIO(e.select(0)._repr_png_()))
    assert Image.open(io.BytesIO(e._repr_png_())).width > 3 * one.width


def test_a_method_without_an_account_has_empty_cells(tiny):
    e = hw.load_method("random", tiny)(torch.rand(1, 3, 16, 16))
    assert all(cell.text is None for cell in list(elements(e._repr_html_()).find("table/tbody/tr"))[3:])
    assert len(elements(hw.explain(EXAMPLES / "tabby.jpg", "tiny20", "random")._repr_html_()).findall("table")) == 1


def test_names_are_escaped(tmp_path):
    path = tmp_path / 'a"><script>.png'
    Image.new("RGB", (70, 80)).save(path)
    assert "<script" not in hw.explain(path, "tiny20")._repr_html_()


def test_the_tutorial_runs(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(ROOT / "docs" / "tutorial.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "the documentation's build makes the outputs"
    where = {"metadata": {"path": str(ROOT / "docs")}}
    NotebookClient(notebook, timeout=600, startup_timeout=300, resources=where).execute()  # on a busy machine, too
    shown = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum({"text/html", "image/png"} <= set(data) for data in shown) == 3
    assert sum("image/png" in data for data in shown) == 4
