"""Every Python example and every command of the README and the documentation is run."""

from __future__ import annotations

import argparse
import doctest
import re
import runpy
import shlex
from itertools import chain
from pathlib import Path

import pytest
import typer
from command import headwater
from helpers import EXAMPLES, no_registrations

from headwater.cli.app import app

ROOT = EXAMPLES.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = [*PAGES, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs" / "results").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def fences(page: Path, language: str) -> list[str]:
    return [code for found, code in FENCE.findall(page.read_text(encoding="utf-8")) if found == language]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_python_examples(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    code = "\n".join(fences(page, "python"))
    example = doctest.DocTestParser().get_doctest(code, {}, page.name, str(page), 0)
    report: list[str] = []
    with no_registrations():  # no page sees another's
        result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE).run(
            example, out=report.append
        )
    assert result.failed == 0, "".join(report)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands(page, tmp_path):
    """``headwater explain`` on the example images, as printed; those that need the reader's own files are left."""
    for line in "\n".join(fences(page, "")).splitlines():
        if not line.startswith("headwater explain examples/"):
            continue
        words = [sorted(map(str, ROOT.glob(word))) if "*" in word else [word] for word in shlex.split(line)[1:]]
        done = headwater(*chain(*words), "--out", str(tmp_path), cwd=ROOT)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
    if page.name in ("README.md", "quickstart.md"):
        assert list(tmp_path.iterdir()), "the page shows at least one command that a newcomer can run as it stands"


def test_links_between_files_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!http|#|mailto)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


class ParsedError(Exception):
    """The arguments of a command were understood."""


def commands(page: Path) -> list[tuple[str, bool]]:
    """Commands of a page, and whether each is whole: a line of a code block, not named in the text."""
    text = page.read_text(encoding="utf-8")
    lines = [(line, True) for code in fences(page, "") for line in code.splitlines()]
    named = [(line, False) for line in re.findall(r"`([^`]+)`", text)]
    starts = re.compile(r"(\w+=\S+ )?(headwater|python -m) [a-z]")
    return [(line, whole) for line, whole in lines + named if starts.match(line)]


@pytest.mark.parametrize("page", [page for page in TEXTS if commands(page)], ids=lambda p: p.name)
def test_every_command_is_one_that_parses(page, monkeypatch):
    """With names as they stand; nothing is run."""

    whole = argparse.ArgumentParser.parse_args

    def parse_args(parser, *_):
        whole(parser)
        raise ParsedError

    for line, complete in commands(page):
        words = shlex.split(line)
        if "=" in words[0]:
            words = words[1:]
        if words[0] == "headwater":
            group = typer.main.get_command(app)
            try:
                name, command, rest = group.resolve_command(group.make_context("headwater", [words[1]]), words[1:])
                command.make_context(name, [word for word in rest if word != "..."])
            except Exception as error:  # Typer has click's errors under a private name
                if complete or "Missing" not in type(error).__name__:
                    pytest.fail(f"{page.name}: {line}: {error}")
        else:
            with monkeypatch.context() as patch, pytest.raises((ParsedError, SystemExit)) as ended:
                patch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
                patch.setattr("sys.argv", words[2:])
                runpy.run_module(words[2] if words[2] != "fuzz" else "fuzz.__main__", run_name="__main__")
            assert ended.type is ParsedError, f"{page.name}: {line}"
