"""Sphinx configuration, and the parts of pages that are generated from the code."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import typer.cli
from sphinx.application import Sphinx

import headwater
from headwater.cli.app import app as commands

project = "Headwater"
author = "The Headwater developers"
copyright = "2026, The Headwater developers"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax", "sphinx.ext.viewcode"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300  # seconds per cell
nb_output_stderr = "remove"  # of a kernel without widgets, which tqdm complains about
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_attr_annotations = False  # shapes such as "*pixels" are not reStructuredText
smartquotes = False  # "--model" is not a dash
html_theme = "furo"
html_title = "Headwater"
exclude_patterns = ["_build", "jupyter_execute", "results/tables"]
nitpicky = False
suppress_warnings = ["myst.xref_missing"]


def list_commands() -> str:
    """What every command says of itself, as Markdown."""
    group = typer.main.get_command(commands)
    context = typer.Context(group, info_name="headwater")
    return "".join(
        typer.cli.get_docs_for_click(obj=command, ctx=context, indent=1, call_prefix="headwater")
        for command in group.commands.values()
    )


def engine_modules() -> list[Path]:
    """The engine's files from top to bottom, as the contract on its imports has them; then those that it leaves out."""
    settings = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    (layers,) = (one["layers"] for one in contracts if one.get("containers") == ["headwater.engine"])
    order = [name.strip() for layer in layers for name in layer.split("|")]
    files = sorted((Path(headwater.__file__).parent / "engine").glob("[!_]*.py"))
    return sorted(files, key=lambda path: order.index(path.stem) if path.stem in order else len(order))


def list_engine_modules() -> str:
    """A table of the engine's modules with the first line of their docstrings."""
    rows = []
    for path in engine_modules():
        summary = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0]
        rows.append(f"| `{path.stem}` | {summary.replace('``', '`')} |")
    return "\n".join(["| module | |", "|---|---|", *rows])


def document_engine() -> str:
    """What autodoc says of the engine's modules whose names are not public elsewhere."""
    public = {"composites", "explanation", "flow", "lrp", "presets", "registrations", "rules", "splitting", "where"}
    modules = [path.stem for path in engine_modules() if path.stem not in public]
    directives = [f".. automodule:: headwater.engine.{module}\n   :members:" for module in modules]
    return "\n".join(["```{eval-rst}", *directives, "```"])


GENERATED = {
    "commands": list_commands,
    "engine modules": list_engine_modules,
    "engine reference": document_engine,
}
"""What stands in place of ``<!-- generated: NAME -->``."""


def fill_in(_: Sphinx, _page: str, source: list[str]) -> None:
    """Put the generated parts into a page's source."""
    source[0] = re.sub(r"<!-- generated: (.+?) -->", lambda marker: GENERATED[marker[1]](), source[0])


def setup(app: Sphinx) -> None:
    """Sphinx calls this when it starts."""
    app.connect("source-read", fill_in)
