"""Result files and run folders.

A file is written under a unique temporary name and renamed, so it is either whole or not there. (A record's name is a
hard link to the temporary file; where a file system has none, it is reserved by an empty file first.) No file of
another result is overwritten, and no run continues in the folder of another.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any
from uuid import uuid4

from headwater.errors import DataError, OutputError


def write_bytes(path: str | Path, content: bytes) -> Path:
    """Write ``content`` to ``path``, creating its folder.

    Raises:
        OutputError: the folder cannot be made or written to; what stood at ``path`` before is still there.
    """
    path = Path(path)
    try:
        with _written(path.parent, content) as file:
            file.replace(path)
    except OSError as error:
        raise _unwritable(path, error.strerror or str(error)) from error
    return path


def write_text(path: str | Path, content: str) -> Path:
    """Write ``content`` as UTF-8 to ``path``, like :func:`write_bytes`."""
    return write_bytes(path, content.encode())


def write_checked(path: Path, content: bytes) -> None:
    """Write a file, and its SHA-256 beside it, for formats whose readers do not notice every flipped bit.

    Raises:
        OutputError: the folder cannot be written.
    """
    write_bytes(path, content)
    write_text(_checksum_file(path), hashlib.sha256(content).hexdigest())


def is_intact(path: Path) -> bool:
    """Whether a file of :func:`write_checked` matches its checksum."""
    try:
        return _checksum_file(path).read_bytes() == hashlib.sha256(path.read_bytes()).hexdigest().encode()
    except OSError:
        return False


def _checksum_file(path: Path) -> Path:
    return path.with_suffix(".sha256")


def is_file(path: Path) -> bool:
    """Whether ``path`` is a file; a path that no file system takes (too long, say) is none."""
    try:
        return path.is_file()
    except OSError:
        return False


def check_folder(folder: Path) -> None:
    """Create a folder and check that files can be written to it, before any work is done.

    Raises:
        OutputError: they cannot.
    """
    trial = _unused(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial.open("xb").close()
        trial.unlink()
    except FileExistsError as error:
        raise _unwritable(folder, "it is a file") from error
    except OSError as error:
        _remove(trial)
        raise _unwritable(folder, error.strerror or str(error)) from error


def claim(folder: Path, settings: Mapping[str, Any], file: str, what: str = "settings") -> None:
    """Make a folder that of one run: write its settings there, or check that the run already there has the same.

    Args:
        folder: of the run, created if need be.
        settings: everything that the run's results depend on; values that JSON can hold.
        file: name of the file that the settings are written to.
        what: what they are called in errors; of anything but ``"settings"`` only the keys that differ are named.

    Raises:
        DataError: the run there has other settings (the differences are named), or its settings cannot be read.
        OutputError: the folder cannot be written.
    """
    path, now = folder / file, json.loads(json.dumps(settings))
    if not path.is_file():
        write_text(path, json.dumps(now, indent=1))
        return
    try:
        before = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path} is not readable as {what} of a run ({error}); choose another --out") from error
    if not isinstance(before, dict):
        raise DataError(f"{path} does not hold the {what} of a run; choose another --out")
    differing = [key for key in {**now, **before} if before.get(key) != now.get(key)]
    if differing and what == "settings":
        told = "; ".join(f"{key}: {before.get(key)} there, {now.get(key)} asked" for key in differing)
        raise DataError(f"{folder} holds a run with other settings ({told}); choose another --out")
    if differing:
        names = ", ".join(differing)
        raise DataError(f"{folder} holds a run with another {what} ({names} differ); choose another --out")


def concerns_all(error: OutputError) -> bool:
    """Whether no other file can be written either: the disk is full, the quota is reached, or it is read-only."""
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def safe_name(text: str, longest: int = 60) -> str:
    """``text`` as a part of a file name: letters, digits and ``-_+.``, at most ``longest`` bytes of UTF-8.

    Every other character becomes a hyphen. A name that is too long is cut and ends in a short hash of the whole, so
    that long names with the same beginning stay different.

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

    Call it before writing the result's other files: it reserves their name. The same result made again, with the same
    ``record[identity]``, replaces its own files; no other file is overwritten.

    Args:
        folder: created if need be.
        stem: the name; if taken, ``STEM-2``, ``STEM-3`` and so on.
        record: values that JSON can hold.
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
    """Write a file unless one of that name exists, also one that another process has just created.

    Returns:
        Whether it was written.
    """
    try:
        with _written(path.parent, content.encode()) as file:
            _name_once(file, path)
    except FileExistsError:
        if path.parent.is_dir():
            return False
        raise _unwritable(path, "its folder is a file") from None
    except OSError as error:
        raise _unwritable(path, error.strerror or str(error)) from error
    return True


@contextlib.contextmanager
def _written(folder: Path, content: bytes) -> Iterator[Path]:
    """A hidden file with this content in a folder, created if need be, to be given a name; removed if it gets none."""
    file = _unused(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with file.open("xb") as stream:
            stream.write(content)
        yield file
    finally:
        _remove(file)


def _name_once(file: Path, path: Path) -> None:
    """Give a file a name that no other has; only one of several processes succeeds.

    Raises:
        FileExistsError: the name is taken.
    """
    try:
        path.hardlink_to(file)
    except FileExistsError:
        raise
    except (OSError, NotImplementedError):  # no hard links here: reserve the name, then put the file there
        path.open("xb").close()
        try:
            file.replace(path)
        except OSError:
            _remove(path)
            raise


def _unused(folder: Path) -> Path:
    """A hidden file's name that nothing else has."""
    return folder / f".headwater.{uuid4().hex}"


def _remove(path: Path) -> None:
    """Remove a file, if it is there and can be removed."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def _unwritable(path: Path, reason: str) -> OutputError:
    return OutputError(f"cannot write {path}: {reason}; choose a folder that can be written")
