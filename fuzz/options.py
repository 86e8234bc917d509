"""The command line: every option of every command, taken from the commands themselves, with values of all kinds."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from PIL import Image
from safetensors.torch import save as to_safetensors

import headwater as hw
from fuzz.case import Draw, must
from fuzz.damage import WORDS
from fuzz.subjects import photo, write
from headwater.cli import app as cli
from headwater.data import open_image
from headwater.errors import HeadwaterError
from headwater.models import load_model

LIMIT = 100.0  # seconds for one command
_PROCESSES = multiprocessing.get_context("fork")
_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HTTPS_PROXY": "http://127.0.0.1:9",
    "HTTP_PROXY": "http://127.0.0.1:9",
    "https_proxy": "http://127.0.0.1:9",
    "http_proxy": "http://127.0.0.1:9",
    "COLUMNS": "200",
}

_GOOD: dict[str, tuple[str, ...]] = {
    "images": ("a.png", "b.png", "sub/a.png", "a.jpg", "broken.png", "missing.png", "."),
    "model": ("tiny20",) * 12 + ("run", "tiny.safetensors", "resnet50", "no-such", "timm:resnet18", "timm:no-such"),
    "arch": ("tiny20", "resnet18", "no-such"),
    "weights": ("v1", "v2", "none", "IMAGENET1K_V1", "tiny.safetensors", "no-such"),
    "method": ("otsuki2024", "otsuki2024", "gradcam", "gradient-x-input", "random", "epsilon", "no-such"),
    "methods": ("random", "otsuki2024,random", "random+hq", "gradcam", "random,random", "no-such"),
    "target": ("tabby", "5", "19", "20", "TABBY", "class 3"),
    "out": ("out", "out", "out", "a.png", "new/deep/out"),
    "quantize": ("2", "8", "1000"),
    "colormap": ("jet", "viridis", "no-such"),
    "sign": ("auto", "positive", "absolute", "signed", "no-such"),
    "device": ("cpu", "cuda", "meta", "cpu:0", "mps"),
    "devices": ("cpu", "cpu,cpu", "cuda:0", "meta", "auto", "1"),
    "batch_size": ("1", "2", "64"),
    "data": ("data", "data", "data", "images", "missing", "a.png", "labelled"),
    "labels": ("names", "positions", "predicted", "labels.csv", "missing.csv"),
    "samples": ("1", "2", "1000"),
    "protocol": ("published", "budget", "published,budget", "no-such"),
    "split": ("val", "train"),
    "seed": ("0", "42", "7"),
    "seeds": ("0", "0,1", "1,1", "x"),
    "step": ("64", "500", "4095", "4096", "10000"),
    "randomise": ("0", "0", "1"),
    "name": ("otsuki2024-table2", "no-such", "tiny20", "cub-resnet50"),
    "threshold": ("0.3", "-1"),
    "worst": ("1", "5"),
    "recipe": ("otsuki2024", "doublet2024", "no-such"),
    "epochs": ("1",),
    "size": ("8", "64"),
    "lr": ("0.001", "0", "-1"),
    "validation": ("1", "5"),
    "test_split": ("val", "test"),
    "workers": ("0", "1"),
}
"""Meaningful values by parameter; other parameters get random words."""

_EXPENSIVE = {"train": 0.02, "reproduce": 0.1, "evaluate": 0.3}
"""Probability that these commands get usable data."""


@dataclass(frozen=True)
class Finished:
    """How a command ended: its status (negative: the signal that ended it) and its output."""

    status: int
    stdout: str
    stderr: str


def options(draw: Draw) -> None:
    """One command with random options, in a process of its own."""
    _furnish(draw.folder)
    command, arguments = _arguments(draw)
    stream = draw.one(("utf-8",) * 8 + ("ascii", "latin-1", "closed"))
    draw.note(
        f"headwater {' '.join(map(repr, arguments))}"[:600] + (f" [stdout {stream}]" if stream != "utf-8" else "")
    )
    done = run(arguments, draw.folder, stream)
    _check_streams(done)
    if done.status != 0:
        if stream == "closed" and not done.stderr.strip():  # nobody reads the stream, and the status says it
            raise HeadwaterError("standard output was closed")
        must(done.stderr.strip(), f"status {done.status} without a message on stderr")
        raise HeadwaterError(_complaint(done.stderr))
    if command == "explain" and "--help" not in arguments:
        _check_maps(draw, arguments)


def _check_streams(done: Finished) -> None:
    for mark in ("Traceback (most recent call last)", "Exception ignored"):
        if mark in done.stderr:
            last = next(line for line in reversed(done.stderr.splitlines()) if line and not line.startswith(" "))
            places = [line.strip() for line in done.stderr.splitlines() if "/headwater/" in line]
            raise RuntimeError(f"{mark.split()[0]}: {last} {places[-1] if places else ''}")
    must(done.status >= 0, f"ended by signal {-done.status}: {done.stderr[:1500]}")
    must(done.status in (0, 1, 2), f"status {done.status}: {done.stderr[-300:]}")


def _complaint(stderr: str) -> str:
    """The first line of standard error that names the error."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return next((line for line in lines if "rror:" in line), lines[-1])


@lru_cache(maxsize=1)
def _commands() -> dict[str, Any]:
    group: Any = typer.main.get_command(cli.app)
    return dict(group.commands)


def _arguments(draw: Draw) -> tuple[str, list[str]]:
    commands = _commands()
    ending = tuple(command for command in commands if command != "serve")
    name = draw.one(("explain",) * 8 + ("evaluate",) * 5 + ending)
    arguments: list[str] = []
    positional: list[str] = []
    nasty = draw.chance(0.75)
    usable = draw.chance(_EXPENSIVE.get(name, 1.0))
    for parameter in commands[name].params:
        argument = parameter.param_type_name == "argument"
        if not (
            argument or parameter.required or draw.chance(0.25) or (parameter.name == "model" and draw.chance(0.9))
        ):
            continue
        if parameter.required and draw.chance(0.02):
            continue
        count = draw.whole(1, 3) if argument and parameter.nargs == -1 else 1
        count = 2 if getattr(parameter, "multiple", False) and draw.chance(0.2) else count
        for _ in range(count):
            value = draw.one(_GOOD.get(parameter.name, WORDS))
            if parameter.name == "data" and not usable:
                value = draw.one(("missing", "a.png", "empty", *WORDS))
            elif nasty and draw.chance(0.25):
                value = draw.one(WORDS)
            value = value.replace("\0", "")
            if argument:
                positional.append(value)
            elif parameter.opts[0] in ("--help",) or parameter.is_flag:
                arguments.append(draw.one(parameter.opts))
            elif draw.chance(0.5):
                arguments.append(f"{draw.one(parameter.opts)}={value}")
            else:
                arguments += [draw.one(parameter.opts), value]
    arguments += ["--", *positional] if draw.chance(0.3) else positional
    if draw.chance(0.02):
        arguments.insert(draw.whole(0, len(arguments)), draw.one(("--help", "--no-such", "--debugger", "-h", *WORDS)))
    return name, [*([] if draw.chance(0.01) else [name]), *arguments]


def _furnish(folder: Path) -> None:
    """Write the images, data, weights and the run folder that options can name."""
    for k, name in enumerate(("a.png", "b.png", "sub/a.png")):
        write(folder / name, photo(k, (40, 30)))
    stream = io.BytesIO()
    Image.open(folder / "a.png").save(stream, "jpeg")
    write(folder / "a.jpg", stream.getvalue())
    write(folder / "broken.png", photo(0)[:60])
    for name in ("tabby", "lion"):
        write(folder / "data" / name / "0.png", photo(len(name), (40, 30)))
        write(folder / "images" / f"{name}.png", photo(len(name), (40, 30)))
        write(folder / "labelled" / "class_of_my_own" / f"{name}.png", photo(len(name), (40, 30)))
    (folder / "empty").mkdir()
    write(folder / "labels.csv", "image,label\ntabby/0.png,tabby\nlion/0.png,6\n")
    _model_files()
    kept, card = _model_files()
    for name in ("tiny.safetensors", "run/model.safetensors"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(kept)
    write(folder / "run" / "card.json", card)


@lru_cache(maxsize=1)
def _model_files() -> tuple[Path, str]:
    """The bundled weights as a file, and the card of a run."""
    from tempfile import mkdtemp

    model = load_model("tiny20")
    card = model.card
    assert isinstance(card, hw.ModelCard)
    path = Path(mkdtemp(prefix="headwater-fuzz-weights-")) / "model.safetensors"
    path.write_bytes(to_safetensors(dict(model.state_dict())))
    stored = {
        "arch": "tiny20",
        "attention_after": None,
        "classes": card.classes,
        "preprocessing": vars(card.preprocessing),
    }
    return path, json.dumps(stored)


def run(arguments: list[str], folder: Path, stdout: str = "utf-8") -> Finished:
    """``headwater ARGUMENTS`` in a process of its own, forked from one that has imported everything."""
    cwd = folder / "work"
    for path in list(folder.iterdir()):
        if path != cwd:
            cwd.mkdir(exist_ok=True)
            path.rename(cwd / path.name)
    streams = folder / "stdout", folder / "stderr"
    server = prepare()
    server.send((arguments, cwd, streams, stdout))
    status = server.recv()
    if status is None:
        raise TimeoutError(f"the command ran for more than {LIMIT:.0f} s")
    said = [path.read_text(errors="replace") if path.exists() else "" for path in streams]
    return Finished(status, *said)


@lru_cache(maxsize=1)
def prepare() -> Any:
    """Start the process that commands are forked from, and return the connection to it.

    It must begin before this process has computed a gradient: torch's autograd does not survive a fork.
    """
    ours, theirs = _PROCESSES.Pipe()
    _PROCESSES.Process(target=_serve, args=(ours, theirs), daemon=True).start()
    theirs.close()
    return ours


def _serve(parents: Connection, connection: Connection) -> None:
    """Run one command after the other until the parent is gone."""
    parents.close()
    with suppress(EOFError, OSError):
        while True:
            work = connection.recv()
            child = os.fork()
            if child == 0:
                os._exit(_in_child(*work))
            connection.send(_ended(child))


def _ended(child: int) -> int | None:
    """The status of a process, negative for a signal; ``None`` if it had to be killed."""
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _in_child(arguments: list[str], cwd: Path, streams: tuple[Path, Path], stdout: str) -> int:
    """Run ``main`` as the interpreter would, with its arguments and streams, and return the exit status."""
    torch.set_num_threads(1)  # makes torch's pool anew; left to the first two threads that need it, they race and abort
    os.chdir(cwd)
    os.environ.update(_OFFLINE, HOME=str(cwd), TORCH_HOME=str(cwd / "torch"), XDG_CACHE_HOME=str(cwd / "cache"))
    torch.hub.set_dir(str(cwd / "torch"))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if stdout == "closed":
        reader, writer = os.pipe()
        os.close(reader)
        os.dup2(writer, 1)
    else:
        os.dup2(os.open(streams[0], os.O_WRONLY | os.O_CREAT), 1)
    os.dup2(os.open(streams[1], os.O_WRONLY | os.O_CREAT), 2)
    coding = "utf-8" if stdout == "closed" else stdout
    sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", closefd=False), coding, line_buffering=False)
    sys.stderr = io.TextIOWrapper(os.fdopen(2, "wb", closefd=False), coding, "backslashreplace", line_buffering=True)
    sys.argv = ["headwater", *arguments]
    status = _status(cli.main)
    try:
        sys.stdout.flush()
    except (OSError, ValueError) as error:
        print(f"Exception ignored while flushing sys.stdout: {error}", file=sys.stderr)
        status = 120
    sys.stderr.flush()
    return status


def _status(main: Callable[[], None]) -> int:
    try:
        main()
    except SystemExit as stop:
        if stop.code is None:
            return 0
        if isinstance(stop.code, int):
            return stop.code & 255
        print(stop.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _check_maps(draw: Draw, arguments: list[str]) -> None:
    """Each image has its four files, and each map is that of a fresh explanation."""
    cwd = draw.folder / "work"
    before = {"card.json"}
    records = [p for p in cwd.rglob("*.json") if p.name not in before and not p.name.startswith("flow.")]
    records += [p for p in draw.folder.glob("*/*.json") if p.parent != cwd and p not in records]
    named = sum(a in _GOOD["images"] for a in arguments)
    must(records or not named, "status 0 and no map")
    for record in records[:2]:
        told = json.loads(record.read_text())
        base = record.name.removesuffix(".json")
        for suffix in (".npy", ".overlay.png", ".figure.png"):
            must((record.parent / f"{base}{suffix}").is_file(), f"{base}{suffix} is missing")
        stored = torch.from_numpy(np.load(record.parent / f"{base}.npy"))
        if (
            told["method"] not in hw.list_composites()
            or "tiny20" not in f"{told['model']} {told['weights']} run tiny20"
        ):
            continue
        model = _bundled()
        card = model.card
        assert isinstance(card, hw.ModelCard)
        if told["weights"] == "random":
            continue
        path = Path(told["image"])
        x = card.preprocessing(open_image(path if path.is_absolute() else cwd / path))[None]
        index = told["target"]["index"]
        fresh = hw.LRP(model, told["method"])(x, index).heatmap[0]
        exact = hw.LRP(_bundled(torch.float64), told["method"])(x.double(), index).heatmap[0]
        scale = fresh.abs().max().clamp(min=1e-30)
        # The command explains in batches, whose kernels add in another order: hundreds of float32 roundings. A rule
        # that amplifies them ("epsilon" can, by thousands) shows it by the distance of a float32 map to the exact one.
        limit = max(1e-5, 10 * float((fresh - exact).abs().max() / scale))
        off = float((stored - fresh).abs().max() / scale)
        must(off <= limit, f"{base}.npy is off by {off:.1e} of a fresh explanation's maximum, more than {limit:.1e}")
        draw.maps += 1


@lru_cache(maxsize=2)
def _bundled(dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    model = load_model("tiny20").to(dtype)
    assert isinstance(model, torch.nn.Module)
    return model
