"""Results are written under a temporary name and renamed, so a file is either whole or not there; and their names."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from headwater.errors import OutputError


def write_bytes(path: str | Path, content: bytes) -> Path:
    """Write ``content`` to ``path``, creating its folder.

    Raises:
        OutputError: the folder cannot be made or written to; what stood at ``path`` before is still there.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".headwater.")
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise _unwritable(path, error.strerror or str(error)) from error
    return path


def write_text(path: str | Path, content: str) -> Path:
    """Write ``content`` as UTF-8 to ``path``, like :func:`write_bytes`."""
    return write_bytes(path, content.encode())


def is_file(path: Path) -> bool:
    """Whether there is such a file; no name of one, however long, is an error."""
    try:
        return path.is_file()
    except OSError:
        return False


def check_folder(folder: Path) -> None:
    """Make a folder and see that files can be written to it, before any work.

    Raises:
        OutputError: they cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, prefix=".headwater."):
            pass
    except FileExistsError as error:
        raise _unwritable(folder, "it is a file") from error
    except OSError as error:
        raise _unwritable(folder, error.strerror or str(error)) from error


def concerns_all(error: OutputError) -> bool:
    """Whether no other file can be written either: the disk is full, the quota is reached, or it is read-only."""
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def safe_name(text: str, longest: int = 60) -> str:
    """``text`` as a part of a file name: letters, digits and ``-_+.``, at most ``longest`` bytes of UTF-8.

    Everything else becomes a hyphen. What is too long is cut and ends in a short hash of the whole, so that long names
    with the same beginning stay different.

    >>> safe_name("timm:resnet50/a1 in1k")
    'timm-resnet50-a1-in1k'
    """
    kept = "".join(c if c.isalnum() or c in "_+." else "-" for c in text)
    name = "-".join(part for part in kept.split("-") if part).strip(".") or "unnamed"
    if len(name.encode()) <= longest:
        return name
    digest = hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:8]
    return f"{name.encode()[: longest - 9].decode(errors='ignore')}-{digest}"


def write_record(
    folder: Path, stem: str, record: Mapping[str, Any], identity: str, suffixes: Sequence[str] = ()
) -> str:
    """Write ``record`` as ``STEM.json`` and return the stem, numbered if files of another result have that name.

    Call it before the result's other files are written: it takes the name. A result that is made again, with the same
    ``record[identity]``, replaces its own files; no other file is overwritten.

    Args:
        folder: created if need be.
        stem: the name; then ``STEM-2``, ``STEM-3`` and so on.
        record: what JSON takes.
        identity: the key of ``record`` that says what the result was made from.
        suffixes: of the result's other files, such as ``".npy"``.

    Raises:
        OutputError: the folder cannot be made or written to.
    """
    text = json.dumps(record, indent=1)
    made_from = json.loads(text)[identity]
    for number in count(1):
        name = stem if number == 1 else f"{stem}-{number}"
        path = folder / f"{name}.json"
        if _identity(path, identity) == made_from:
            write_text(path, text)
            return name
        if any(os.path.lexists(folder / f"{name}{suffix}") for suffix in (".json", *suffixes)):
            continue
        if _create(path, text):
            return name
    raise AssertionError("count() does not end")


def _identity(path: Path, key: str) -> Any:
    """What the result at ``path`` was made from; ``None`` where there is no such record."""
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return record.get(key) if isinstance(record, dict) else None


def _create(path: Path, content: str) -> bool:
    """Write a file unless there is one, also one that another process has made a moment ago; whether it was written."""
    created = False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            created = True
            file.write(content)
    except FileExistsError:
        if path.parent.is_dir():
            return False
        raise _unwritable(path, "its folder is a file") from None
    except OSError as error:
        if created:
            path.unlink(missing_ok=True)
        raise _unwritable(path, error.strerror or str(error)) from error
    return True


def _unwritable(path: Path, reason: str) -> OutputError:
    return OutputError(f"cannot write {path}: {reason}; choose a folder that can be written")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
