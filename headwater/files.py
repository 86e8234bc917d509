"""Results are written under a temporary name and renamed, so a file is either whole or not there."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

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
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}; choose a folder that can be written"
        ) from error
    return path


def write_text(path: str | Path, content: str) -> Path:
    """Write ``content`` as UTF-8 to ``path``, like :func:`write_bytes`."""
    return write_bytes(path, content.encode())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
