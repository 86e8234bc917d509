"""Every classifier and segmentation network of ``transformers``, explained: is relevance conserved?

    python -m benchmarks.zoo                      # measures what docs/results/zoo.json lacks, writes docs/zoo.md
    python -m benchmarks.zoo --again 'Mobile*'    # measures these anew; --again failed: those that are not conserved

Each architecture is made as small as its configuration allows and has random weights. Each row is measured in a process
of its own, so that a network that crashes or hangs is a row that says so.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from fnmatch import fnmatch
from pathlib import Path

import torch
import transformers

from headwater.files import write_text

from .configurations import Entry, entries
from .measuring import METHODS, Row, measure_apart
from .page import page

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__}


def kept(path: Path) -> dict[str, Row]:
    """The rows of a file, by the keys of their entries; none where other versions measured them."""
    if not path.exists():
        return {}
    stored = json.loads(path.read_text())
    return {key: Row(**row) for key, row in stored["rows"].items()} if stored["versions"] == VERSIONS else {}


def store(path: Path, rows: Mapping[str, Row]) -> None:
    order = [entry.key for entry in entries() if entry.key in rows]
    content = {"versions": VERSIONS, "rows": {key: asdict(rows[key]) for key in order}}
    write_text(path, json.dumps(content, indent=1) + "\n")


def chosen(entry: Entry, row: Row | None, again: str | None) -> bool:
    """Whether an entry is to be measured."""
    if row is None or again is None:
        return row is None
    if again == "failed":
        return not all(row.conserved(method) for method in METHODS)
    return any(fnmatch(name, again) for name in (entry.key, entry.name, entry.model))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rows", type=Path, default=ROOT / "docs" / "results" / "zoo.json", help="keeps measured rows")
    parser.add_argument(
        "--again", metavar="PATTERN", help="measure these rows anew: a task, name or class, or 'failed'"
    )
    parser.add_argument("--jobs", type=int, default=1, help="networks at a time; each takes up to 1 GB")
    parser.add_argument("--limit", type=float, default=180.0, help="seconds for each network")
    arguments = parser.parse_args()
    rows = kept(arguments.rows)
    missing = [entry for entry in entries() if chosen(entry, rows.get(entry.key), arguments.again)]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        pending = {pool.submit(measure_apart, entry, arguments.limit): entry for entry in missing}
        for done, future in enumerate(as_completed(pending), 1):
            row = rows[pending[future].key] = future.result()
            store(arguments.rows, rows)
            told = row.problem or ", ".join(f"{method} {error:.1e}" for method, error in row.errors.items())
            print(f"{done}/{len(missing)} {pending[future].key}: {told} ({row.seconds:g} s)", flush=True)
    measured = {entry: rows[entry.key] for entry in entries()}
    others = (ROOT / "docs" / "architectures.md").read_text()
    print(write_text(ROOT / "docs" / "zoo.md", page(measured, others, VERSIONS)))


if __name__ == "__main__":
    main()
