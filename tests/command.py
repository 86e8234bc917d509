"""The command line in a process of its own, forked from one that has imported everything already."""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(
    ["headwater.cli.app", "headwater.evaluation", "headwater.experiments", "headwater.models", "headwater.training"]
)


@dataclass(frozen=True)
class Finished:
    returncode: int | None
    stdout: str
    stderr: str


def started(
    *arguments: str,
    stdout: Path | str = os.devnull,
    stderr: Path | str = os.devnull,
    cwd: Path | None = None,
    **environment: str,
) -> ForkServerProcess:
    """A running ``headwater ARGUMENTS``; what it prints goes to the files."""
    process = _PROCESSES.Process(target=_main, args=(arguments, str(stdout), str(stderr), cwd, environment))
    process.start()
    return process


def headwater(*arguments: str, cwd: Path | None = None, seconds: float = 300, **environment: str) -> Finished:
    """``headwater ARGUMENTS``, run to its end, which must come within so many seconds."""
    with tempfile.TemporaryDirectory() as folder:
        stdout, stderr = Path(folder, "stdout"), Path(folder, "stderr")
        process = started(*arguments, stdout=stdout, stderr=stderr, cwd=cwd, **environment)
        process.join(seconds)
        if process.is_alive():
            process.kill()
            raise TimeoutError(f"headwater {' '.join(arguments)} ran for more than {seconds} s: {stderr.read_text()}")
        return Finished(process.exitcode, stdout.read_text(), stderr.read_text())


def _main(arguments: tuple[str, ...], stdout: str, stderr: str, cwd: Path | None, environment: dict[str, str]) -> None:
    for number, path in ((1, stdout), (2, stderr)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ.update(environment)
    if cwd is not None:
        os.chdir(cwd)
    sys.argv = ["headwater", *arguments]
    from headwater.cli.app import main

    main()
