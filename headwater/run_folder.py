"""A folder that belongs to one run: its settings are written down, and a run with other settings is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headwater.errors import DataError
from headwater.files import write_text


def claim(out: Path, settings: Mapping[str, Any], file: str) -> None:
    """Write the settings into ``out``, or check that the run already there has the same.

    Raises:
        DataError: it has others; the differences are named.
        OutputError: the folder cannot be written.
    """
    path, now = out / file, json.loads(json.dumps(settings))
    if path.is_file():
        try:
            before = json.loads(path.read_text())
        except ValueError as error:
            raise DataError(f"{path} is not readable as settings of a run ({error}); choose another --out") from error
        if not isinstance(before, dict):
            raise DataError(f"{path} does not hold the settings of a run; choose another --out")
        keys = [*now, *(key for key in before if key not in now)]
        differing = [f"{k}: {before.get(k)} there, {now.get(k)} asked" for k in keys if before.get(k) != now.get(k)]
        if differing:
            raise DataError(f"{out} holds a run with other settings ({'; '.join(differing)}); choose another --out")
    else:
        write_text(path, json.dumps(now, indent=1))
