"""Every Python example and every command of the README and the documentation is run."""

from __future__ import annotations

import doctest
import re
import shlex
from itertools import chain
from pathlib import Path

import pytest
from command import headwater
from helpers import EXAMPLES, no_registrations

ROOT = EXAMPLES.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
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
