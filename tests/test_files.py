from __future__ import annotations

import os
from pathlib import Path

import pytest

from headwater.errors import OutputError
from headwater.files import write_bytes, write_text


def test_writes_whole_files_and_makes_folders(tmp_path):
    path = write_text(tmp_path / "a" / "b.txt", "grüße")
    assert path.read_text(encoding="utf-8") == "grüße"
    assert [p.name for p in path.parent.iterdir()] == ["b.txt"]


def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        assert write_text(tmp_path / "x", "").stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(before)


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path, monkeypatch):
    path = write_bytes(tmp_path / "x", b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OutputError, match="No space left"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"):
        write_text(tmp_path / "file" / "x", "")
