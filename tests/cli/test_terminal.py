"""Progress of an evaluation, and what is checked before anything is loaded."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from headwater.cli.app import app
from headwater.cli.terminal import evaluation_progress
from headwater.errors import DataError


def test_progress_begins_at_once_and_counts_what_this_call_measures(capsys):
    with evaluation_progress(100, 10) as progress:
        assert capsys.readouterr().err == "measuring up to 100 images, 10 at a time\n"
        progress(60, 100, 5.0)  # fifty were there before
        progress(70, 100, 10.0)
        progress(10, 30, 2.0)  # the next run of an experiment
        progress(30, 30, 5.0)
    shown = capsys.readouterr()
    assert shown.err.splitlines() == [
        "60 of 100 images, 2.00 images/s, 20 s left",
        "70 of 100 images, 2.00 images/s, 15 s left",
        "10 of 30 images, 5.00 images/s, 4 s left",
        "30 of 30 images, 6.00 images/s, 0 s left",
    ]
    assert shown.out == "", "results alone are on stdout"


@pytest.mark.parametrize("command", [["evaluate", "--methods", "random"], ["reproduce", "otsuki2024-table2"]])
@pytest.mark.parametrize("kind", ["missing", "file"])
def test_data_that_cannot_be_read_are_an_error_before_a_network_is_loaded(tmp_path, monkeypatch, command, kind):
    data, out = tmp_path / "data", tmp_path / "out"
    if kind == "file":
        data.write_bytes(b"")
    monkeypatch.setattr(f"headwater.cli.{command[0]}.load_network", lambda *_: pytest.fail("a network was loaded"))
    done = CliRunner().invoke(app, [*command, "--data", str(data), "--model", "tiny20", "--out", str(out)])
    assert isinstance(done.exception, DataError) and "is not a folder that can be read" in str(done.exception)
    assert not out.exists()
