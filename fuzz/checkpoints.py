"""Checkpoints and run folders: damaged, with other shapes and dtypes, with unexpected keys, or with code."""

from __future__ import annotations

import io
import json
import pickle
import warnings
import zipfile
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

import headwater as hw
from fuzz.case import Draw, must
from fuzz.damage import WORDS, damaged, damaged_text
from fuzz.subjects import compare, write
from headwater.errors import HeadwaterError
from headwater.models import load_model
from headwater.models.checkpoints import read_checkpoint
from headwater.models.tiny20 import CLASSES, MEAN, STD

State = dict[Any, Any]


class Payload:
    """A pickle that creates a file when it is loaded: code in a checkpoint that must never run."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.canary,)


def checkpoints(draw: Draw) -> None:
    """A state dict, changed or not, in a file or a run folder: it is loaded unchanged, or refused."""
    area = draw.one((_small, _small, _small, _network, _run, _run))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            area(draw)
        finally:
            must(not (draw.folder / "canary").exists(), "code in a checkpoint was run")


def _small(draw: Draw) -> None:
    """A few tensors, read as a state dict."""
    state: State = {
        f"layer{k}.weight": torch.randn(draw.whole(1, 4), draw.whole(1, 4)) for k in range(draw.whole(1, 4))
    }
    state = _changed(draw, state) if draw.chance(0.6) else state
    path, content, intact = _stored(draw, state)
    got = read_checkpoint(write(path, content))
    must(
        got and all(isinstance(k, str) and isinstance(t, Tensor) for k, t in got.items()),
        "the result is no state dict",
    )
    if not intact:
        return
    wanted = {**state}
    for prefix in ("module.", "model.", "network."):
        if all(str(name).startswith(prefix) for name in wanted):
            wanted = {name.removeprefix(prefix): tensor for name, tensor in wanted.items()}
    must(got.keys() == wanted.keys(), f"names {list(got)[:3]} were read of {list(wanted)[:3]}")
    must(all(_equal(got[k], wanted[k]) for k in got), "tensors came back changed")


def _network(draw: Draw) -> None:
    """The bundled network's weights, loaded by their architecture."""
    state: State = dict(_bundled())
    changed = draw.chance(0.7)
    if changed:
        state = _changed(draw, state)
    arch = draw.one(("tiny20",) * 8 + ("resnet18", "no-such", "", "²"))
    path, content, intact = _stored(draw, state)
    model = load_model(write(path, content), arch=arch)
    must(arch == "tiny20", f"weights of tiny20 were loaded as {arch!r}")
    _check_loaded(draw, model, read_checkpoint(path), trusted=intact and not changed)


def _run(draw: Draw) -> None:
    """A run folder, its card or its weights damaged."""
    card: dict[str, Any] = {
        "arch": "tiny20",
        "attention_after": None,
        "classes": list(CLASSES),
        "preprocessing": {
            "resize": 76,
            "crop": 64,
            "mean": list(MEAN),
            "std": list(STD),
            "interpolation": "bilinear",
            "stretch": False,
        },
    }
    way = draw.one(("value", "value", "value", "text", "dropped", "weights", "valid"))
    text = json.dumps(card)
    if way == "value":
        place: dict[str, Any] = card["preprocessing"] if draw.chance(0.6) else card
        key = draw.one(tuple(place))
        place[key] = draw.one(_VALUES)
        draw.note(f"card {key} = {str(place[key])[:80]!r}")
        text = json.dumps(card)
    elif way == "dropped":
        place = card["preprocessing"] if draw.chance(0.5) else card
        key = draw.one(tuple(place))
        del place[key]
        draw.note(f"card without {key}")
        text = json.dumps(card)
    content = damaged_text(draw, json.dumps(card, indent=1)) if way == "text" else text.encode()
    weights = _bundled_file()
    run = draw.folder / "run"
    write(run / "card.json", content)
    write(run / "model.safetensors", damaged(draw, weights) if way == "weights" else weights)
    try:
        model = load_model(run)
    except HeadwaterError as error:
        must(way != "valid", f"a valid run was refused: {error}")
        raise
    _check_loaded(draw, model, read_checkpoint(run / "model.safetensors"), trusted=way == "valid")


_VALUES: tuple[Any, ...] = (
    *WORDS[:30],
    None,
    True,
    0,
    -1,
    1.5,
    3,
    64,
    2**40,
    float("nan"),
    float("inf"),
    [],
    {},
    [0.0, 0.0, 0.0],
    [1.0, 1.0, 0.0],
    [-1.0, 1.0, 1.0],
    [0.5],
    [0.5] * 4,
    ["a", "b", "c"],
    [None] * 3,
    [[1, 2, 3]],
    "layer3",
    "bicubic",
    "nearest",
    "resnet18",
    [1, 2, 3],
    ["a"] * 20,
    "abcdefghijklmnopqrst",
)


def _changed(draw: Draw, state: State) -> State:
    """The state dict with one or two changes."""
    state = dict(state)
    for _ in range(draw.whole(1, 2)):
        tensors = [k for k, v in state.items() if isinstance(v, Tensor) and v.is_floating_point() and v.ndim]
        if not tensors:
            return state
        name = draw.one(tensors)
        value = state[name]
        way = draw.one(tuple(_CHANGES))
        draw.note(f"{way} ({name})")
        if way == "dropped":
            del state[name]
        elif way == "renamed":
            state[draw.one(("", " ", "x", f"{name}.", f"module.{name}", "²"))] = state.pop(name)
        elif way == "prefixed":
            state = {f"module.{k}": v for k, v in state.items()}
        elif way == "integer key":
            state[draw.whole(0, 3)] = value
        elif way == "other key":
            state[draw.one((None, (1, 2), 1.5, b"x"))] = value
        elif way == "extra":
            state["extra"] = draw.one((1, "text", [value], {"a": value}, None, torch.randn(2)))
        else:
            with suppress(
                NotImplementedError, RuntimeError
            ):  # torch does not make every kind of tensor from every other
                state[name] = _CHANGES[way](value)
    return state


_CHANGES: dict[str, Any] = {
    "dropped": None,
    "renamed": None,
    "prefixed": None,
    "integer key": None,
    "other key": None,
    "extra": None,
    "complex": lambda t: t.to(torch.complex64) * 1j,
    "int8": lambda t: (t * 10).clamp(-100, 100).to(torch.int8),
    "bool": lambda t: t > 0,
    "float64": lambda t: t.double(),
    "float16": lambda t: t.half(),
    "bfloat16": lambda t: t.bfloat16(),
    "float8": lambda t: t.to(torch.float8_e4m3fn),
    "transposed": lambda t: t.flatten()[:, None],
    "scalar": lambda t: t.sum(),
    "no elements": lambda t: t[:0],
    "sparse": lambda t: t.to_sparse(),
    "meta": lambda t: t.to("meta"),
    "nan": lambda t: torch.full_like(t, float("nan")),
    "inf": lambda t: torch.full_like(t, float("inf")),
    "huge": lambda t: t.double() * 1e300,
    "quantized": lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
    "parameter": lambda t: nn.Parameter(t.float()),
    "expanded": lambda t: t.flatten()[:1].expand(t.numel()).view(t.shape),
}


def _stored(draw: Draw, state: State) -> tuple[Path, bytes, bool]:
    """Path and bytes of a file with the state dict, and whether the file is intact."""
    kind = draw.one(("pth", "pth", "pt", "ckpt", "safetensors", "safetensors"))
    draw.note(kind)
    content = b""
    intact = True
    if kind == "safetensors":
        try:
            content = to_safetensors({str(k): v.contiguous() for k, v in state.items()})
            intact = all(isinstance(k, str) for k in state)
        except Exception:  # written as a pickle under the wrong name instead
            draw.note("a pickle called safetensors")
            kind, content = "safetensors", b""
    if not content:
        wrapped: Any = state
        if draw.chance(0.2):
            key = draw.one(("state_dict", "model_state_dict", "model", "ema"))
            draw.note(f"under {key}")
            wrapped = {key: state, "epoch": 3}
            intact = key != "ema"
        if draw.chance(0.12):
            draw.note("with code")
            wrapped = draw.one(
                (
                    {**state, "code": Payload(draw.folder / "canary")},
                    Payload(draw.folder / "canary"),
                    [Payload(draw.folder / "canary")],
                )
            )
            intact = False
        stream = io.BytesIO()
        if draw.chance(0.1):
            draw.note("plain pickle")
            try:
                pickle.dump(wrapped, stream)
            except Exception:  # meta or quantised tensors have no plain pickle
                stream.write(b"\x80")
            intact = False
        else:
            try:
                torch.save(wrapped, stream, _use_new_zipfile_serialization=draw.chance(0.8))
            except Exception:  # the old format does not hold every dtype
                stream = io.BytesIO()
                torch.save(wrapped, stream)
        content = stream.getvalue()
    if draw.chance(0.35):
        content, intact = damaged(draw, content), False
        if zipfile.is_zipfile(io.BytesIO(content)) and draw.chance(0.1):
            draw.note("an archive of something else")
            stream = io.BytesIO()
            with zipfile.ZipFile(stream, "w") as archive:
                archive.writestr("a.txt", "text")
            content = stream.getvalue()
    return draw.folder / f"weights.{kind}", content, intact


def _check_loaded(draw: Draw, model: nn.Module, state: dict[str, Tensor], trusted: bool) -> None:
    """The model holds the file's tensors and a valid card, and it can be explained."""
    inside = model.state_dict()
    for name, tensor in inside.items():
        if name in state:
            stored = state[name]
            must(
                not inside[name].is_floating_point() or stored.is_floating_point(),
                f"{name} is {stored.dtype} in the file and was taken as {tensor.dtype}",
            )
            must(_equal(tensor, stored.to(tensor.dtype)), f"{name} is not what the file holds")
    card = model.card
    assert isinstance(card, hw.ModelCard)
    must(card.classes is None or all(isinstance(c, str) for c in card.classes), f"class names are {card.classes}")
    if not draw.chance(0.1) and not trusted:
        return
    side = card.preprocessing.crop
    must(isinstance(side, int) and 0 < side <= 10_000, f"a card with a crop of {side!r} was accepted")
    if side > 128:
        return
    x = card.preprocessing(Image.effect_noise((80, 70), 60).convert("RGB"))[None]
    must(x.shape == (1, 3, side, side), f"preprocessing gave {tuple(x.shape)}")
    if not x.isfinite().all():
        must(False, "preprocessing gave values that are not finite")
    if draw.chance(0.3):
        compare(draw, hw.load_method("otsuki2024", model)(x), hw.LRP(model)(x), "a loaded network")


def _equal(a: Tensor, b: Tensor) -> bool:
    """Bit for bit, NaN equal to NaN."""
    if a.shape != b.shape or a.dtype != b.dtype or a.layout != b.layout or a.is_quantized != b.is_quantized:
        return False
    if a.is_quantized or b.is_meta:
        return True
    a, b = a.detach().contiguous(), b.detach().contiguous()
    return a.numel() == 0 or a.reshape(-1).view(torch.uint8).equal(b.reshape(-1).view(torch.uint8))


@lru_cache(maxsize=1)
def _bundled() -> dict[str, Tensor]:
    return {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in _tiny20().items()}


@lru_cache(maxsize=1)
def _bundled_file() -> bytes:
    return to_safetensors(_bundled())


def _tiny20() -> dict[str, Tensor]:
    return dict(load_model("tiny20").state_dict())
