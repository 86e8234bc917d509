"""Models by name, with their weights, preprocessing and class names."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial
from importlib import import_module, resources
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
import torchvision
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from headwater.data.preprocessing import Preprocessing
from headwater.errors import CheckpointError, DownloadError, InputError, MissingDependencyError
from headwater.files import is_file
from headwater.models import tiny20
from headwater.models.abn import AttentionBranchNetwork

_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_FAMILIES = re.compile(r"(resnet|resnext|wide_resnet)\d+.*")
_SUFFIXES = (".pth", ".pt", ".ckpt", ".safetensors")
_TINY20_PREPROCESSING = Preprocessing(tiny20.RESIZE, tiny20.SIZE, tiny20.MEAN, tiny20.STD)
RUN_CARD, RUN_WEIGHTS = "card.json", "model.safetensors"
"""What a finished training leaves in its run folder, to be loaded again."""
_IMAGENET_CLASSES = 1000
_IMAGENET_WNIDS = "385e0240499426c022b773be1ae4da780f057b89c9694c7f47199f62746b6edd"
"""SHA-256 of the sorted WordNet numbers of ImageNet's classes, one a line."""
_NETWORK_TIMEOUT = 30.0  # seconds without an answer before a download is given up


@dataclass(frozen=True)
class ModelCard:
    """What belongs to a model besides its weights.

    Attributes:
        name: the name it was loaded by.
        weights: where the weights come from.
        preprocessing: from an image to the network's input.
        classes: class names in the order of the logits; ``None`` where they are not known.
        wnids: the classes' WordNet numbers (``n02123045``), likewise.
    """

    name: str
    weights: str
    preprocessing: Preprocessing
    classes: tuple[str, ...] | None = None
    wnids: tuple[str, ...] | None = None

    def class_name(self, index: int) -> str:
        """Name of a class, or its number where names are not known."""
        return self.classes[index] if self.classes is not None and index < len(self.classes) else f"class {index}"

    def class_index(self, name: str | int) -> int:
        """Index of a class given by its number or its name (case does not matter).

        Raises:
            InputError: no class, or more than one, has that name; the nearest names are suggested.
        """
        text = str(name).strip()
        if text.removeprefix("-").isdecimal():
            return int(text)
        if self.classes is None:
            raise InputError(f"class names of {self.name} are not known; give the class by its number, not {text!r}")
        lowered = [c.lower() for c in self.classes]
        found = [index for index, c in enumerate(lowered) if c == text.lower()]
        if len(found) == 1:
            return found[0]
        if len(found) > 1:
            raise InputError(f"{self.name} has {len(found)} classes called {text!r}: {found}; give the number")
        near = get_close_matches(text.lower(), lowered, n=5, cutoff=0.5)
        near += [c for c in lowered if text.lower() in c and c not in near][: 5 - len(near)]
        hint = f"; did you mean {', '.join(self.classes[lowered.index(c)] for c in near)}?" if near else ""
        raise InputError(f"{self.name} has no class {text!r}{hint}")


def list_models() -> list[str]:
    """Names that :func:`load_model` takes, besides ``timm:NAME`` and checkpoint files.

    >>> {"tiny20", "resnet50", "resnext50_32x4d", "wide_resnet50_2"} <= set(list_models())
    True
    """
    names = torchvision.models.list_models(module=torchvision.models)
    return ["tiny20", *(name for name in names if _FAMILIES.fullmatch(name))]


def card_of(model: nn.Module, preprocessing: Preprocessing | None = None) -> ModelCard:
    """The card of a model that :func:`load_model` returned, or one made up for a model of your own.

    Args:
        model: the model.
        preprocessing: takes the place of the card's; without either it is ``Preprocessing(256, 224)``.
    """
    card = getattr(model, "card", None)
    if not isinstance(card, ModelCard):
        card = ModelCard(type(model).__name__, "given", Preprocessing(256, 224))
    return card if preprocessing is None else replace(card, preprocessing=preprocessing)


def network_input(
    model: nn.Module, images: Sequence[Image.Image], preprocessing: Preprocessing | None = None
) -> Tensor:
    """Images as the model takes them, ``(N, C, H, W)``, on its device and in its dtype."""
    prepare = card_of(model, preprocessing).preprocessing
    reference = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    return torch.stack([prepare(image) for image in images]).to(reference.device, reference.dtype)


def load_model(
    name: str | Path,
    weights: str = "DEFAULT",
    arch: str | None = None,
    progress: bool = True,
    allow_code: bool = False,
) -> nn.Module:
    """Load a classifier, in eval mode; its :class:`ModelCard` is its attribute ``card``.

    Args:
        name: a torchvision name (``"resnet50"``), ``"timm:NAME"``, ``"tiny20"`` (bundled), a checkpoint file
            (``.pth``, ``.pt``, ``.ckpt`` with a state dict, or ``.safetensors``), the run folder of a training, or
            ``"package.module:function"``: a function of your own that returns the network. The network's attribute
            ``card``, if it is a :class:`ModelCard`, says how images are prepared and what the classes are called.
        weights: a member of torchvision's weights enum (``"DEFAULT"``, ``"IMAGENET1K_V1"``, ...), or ``"none"`` for
            random weights. For a function of your own, a checkpoint file, or nothing to take what it returns.
        arch: for a checkpoint file, the name of its architecture.
        progress: show a bar while downloading.
        allow_code: import and call ``"package.module:function"``; nothing else ever runs code.

    Raises:
        InputError: no model or weights of that name, or code that is not allowed or fails.
        DownloadError: the weights are not in torch's cache and cannot be fetched.
        CheckpointError: the file or run is missing, unsafe, broken, or does not fit ``arch``.
        MissingDependencyError: ``timm:`` without timm installed.

    >>> model = load_model("tiny20")
    >>> model.card.classes[5]
    'tabby'
    """
    text = str(name)
    if Path(text).is_dir() and text not in list_models():
        model, card = _from_run(Path(text), arch)
    elif text.endswith(_SUFFIXES) or (is_file(Path(text)) and text not in list_models()):
        model, card = _from_file(Path(text), arch)
    elif arch is not None:
        raise InputError(f"arch={arch!r} goes with a checkpoint file; {text!r} is not one ({', '.join(_SUFFIXES)})")
    elif text == "tiny20":
        model, card = _bundled()
    elif _FUNCTION.fullmatch(text) and not text.startswith("timm:"):
        model, card = _from_function(text, weights, allow_code)
    elif text.startswith("timm:"):
        model, card = _from_timm(text.removeprefix("timm:"), weights)
    else:
        model, card = _from_torchvision(text, weights, progress)
    model.card = card  # type: ignore[assignment]
    return model.eval()


def _bundled() -> tuple[nn.Module, ModelCard]:
    model = tiny20.Tiny20()
    with resources.as_file(resources.files("headwater.models") / "tiny20.safetensors") as path:
        model.load_state_dict({name: _as(model, name, tensor) for name, tensor in load_file(path).items()})
    return model, ModelCard("tiny20", "bundled with headwater", _TINY20_PREPROCESSING, tiny20.CLASSES, tiny20.WNIDS)


def _as(model: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """The stored tensor in the dtype that the model has it in (weights are stored in half precision)."""
    return tensor.to(model.state_dict()[name].dtype)


def _from_torchvision(name: str, weights: str, progress: bool) -> tuple[nn.Module, ModelCard]:
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        near = get_close_matches(name, [*list_models(), *known], n=4)
        hint = f"; did you mean {', '.join(dict.fromkeys(near))}?" if near else ""
        raise InputError(
            f"no model is called {name!r}{hint} See headwater models, or give a checkpoint file with arch="
        )
    enum = torchvision.models.get_model_weights(name)
    if weights.lower() == "none":
        model, card = (
            torchvision.models.get_model(name, weights=None),
            ModelCard(name, "random", Preprocessing(256, 224)),
        )
        return model, card
    if weights not in enum.__members__:
        raise InputError(f"{name} has no weights {weights!r}; there are {', '.join(enum.__members__)} and none")
    chosen = enum[weights]
    model = torchvision.models.get_model(name, weights=None, **_building(chosen))
    with _patience():
        try:
            state = chosen.get_state_dict(progress=progress, check_hash=True, weights_only=True)
        except (OSError, RuntimeError) as error:
            place = Path(torch.hub.get_dir()) / "checkpoints" / Path(chosen.url).name
            raise DownloadError(
                f"the weights {chosen} are not in the cache and could not be downloaded ({error}). "
                f"Fetch {chosen.url} on a connected machine and put it at {place}, or use the bundled model: tiny20"
            ) from error
    model.load_state_dict(state)
    preset = chosen.transforms()
    preprocessing = Preprocessing(
        preset.resize_size[0], preset.crop_size[0], tuple(preset.mean), tuple(preset.std), preset.interpolation.value
    )
    categories = tuple(chosen.meta["categories"])
    return model, ModelCard(name, str(chosen), preprocessing, categories, _imagenet_wnids(categories))


def _building(weights: Any) -> dict[str, Any]:
    """Settings of the network that go with its trained weights."""
    return {"num_classes": len(weights.meta["categories"])}


def _from_function(text: str, weights: str, allow_code: bool) -> tuple[nn.Module, ModelCard]:
    """A network that the user's own code makes."""
    if not allow_code:
        raise InputError(
            f"{text} is Python code of yours, which is only imported and called if you say so: --allow-code on the "
            "command line, allow_code=True in Python"
        )
    path, _, function = text.partition(":")
    try:
        with _importing_from_here():
            model = getattr(import_module(path), function)()
    except Exception as error:  # whatever the user's code raises
        raise InputError(f"{text} could not be called: {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"{text} must return a torch.nn.Module, got {type(model).__name__}")
    card = getattr(model, "card", None)
    card = (
        card if isinstance(card, ModelCard) else ModelCard(text, f"as {function} returns it", Preprocessing(256, 224))
    )
    if weights not in ("DEFAULT", "none"):
        _fill(model, read_checkpoint(Path(weights)), weights, text)
        card = replace(card, weights=weights)
    return model, card


@contextmanager
def _importing_from_here() -> Iterator[None]:
    """Modules of the current folder can be imported, as with ``python -m``."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        if here in sys.path:
            sys.path.remove(here)


def _from_timm(name: str, weights: str) -> tuple[nn.Module, ModelCard]:
    try:
        import timm
        from timm.data.config import resolve_model_data_config
    except ImportError as error:
        raise MissingDependencyError(f"timm:{name} needs timm: pip install 'headwater[timm]'") from error
    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('.')[0]}*")[:5]
        raise InputError(f"timm has no model {name!r}" + (f"; did you mean {', '.join(near)}?" if near else ""))
    pretrained = weights.lower() != "none"
    with _patience(), _hub():
        try:
            model = timm.create_model(name, pretrained=pretrained)
        except (OSError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise DownloadError(
                f"the weights of timm:{name} are not in the cache and could not be downloaded ({reason}). "
                "Connect and try again, or take random weights: --weights none"
            ) from error
    config: Mapping[str, Any] = resolve_model_data_config(model)
    crop = int(config["input_size"][-1])
    preprocessing = Preprocessing(
        round(crop / config["crop_pct"]), crop, tuple(config["mean"]), tuple(config["std"]), config["interpolation"]
    )
    source = "timm" if pretrained else "random"
    return model, ModelCard(f"timm:{name}", source, preprocessing, *_timm_classes(model))


def _timm_classes(model: nn.Module) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
    """Names and WordNet numbers of the classes of a timm network that was trained on ImageNet or a part of it."""
    from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset(model)
    if subset is None:
        return None, None
    info = ImageNetInfo(subset)
    names = tuple(info.index_to_description(k).split(",")[0] for k in range(info.num_classes()))
    return names, tuple(info.index_to_label_name(k) for k in range(info.num_classes()))


def _imagenet_wnids(categories: Sequence[str]) -> tuple[str, ...] | None:
    """WordNet numbers of ImageNet's 1,000 classes, in torchvision's order, which timm knows where it is installed."""
    if not _are_imagenets(categories):
        return None
    try:
        from timm.data.imagenet_info import ImageNetInfo
    except ImportError:
        return None
    info = ImageNetInfo("imagenet-1k")
    return tuple(info.index_to_label_name(k) for k in range(_IMAGENET_CLASSES))


def _are_imagenets(categories: Sequence[str]) -> bool:
    """Whether these are the names of ImageNet's 1,000 classes, as torchvision has them."""
    return list(categories) == torchvision.models.ResNet18_Weights.DEFAULT.meta["categories"]


def wnids_among(names: Sequence[str], card: ModelCard, count: int) -> tuple[str, ...] | None:
    """WordNet numbers of a network's classes: its card's, or ImageNet's where the data have all 1,000 of them.

    ImageNet's classes are in the order of their numbers, so a data set that has them all tells which is which, also
    without timm. A network of 1,000 classes without names is taken for one of ImageNet on such data only.

    Args:
        names: of the data's classes.
        card: of the network.
        count: of its classes.
    """
    numbers = sorted({name.split("_")[0] for name in names})
    complete = hashlib.sha256("\n".join(numbers).encode()).hexdigest() == _IMAGENET_WNIDS
    imagenet = count == _IMAGENET_CLASSES if card.classes is None else _are_imagenets(card.classes)
    return tuple(numbers) if card.wnids is None and complete and imagenet else card.wnids


def _from_file(path: Path, arch: str | None) -> tuple[nn.Module, ModelCard]:
    state = read_checkpoint(path)
    if arch is None:
        raise InputError(f"{path} holds weights without a network; say which: arch='resnet50', or --arch resnet50")
    build, preprocessing, names = architecture(arch)
    with torch.device("meta"):
        head = [name for name in build().state_dict() if name.endswith("weight")][-1]
    classes = len(state[head]) if head in state and state[head].ndim else len(names)
    model = build(num_classes=classes)
    _fill(model, state, str(path), arch)
    known = names if len(names) == classes else None
    wnids = None if known is None else tiny20.WNIDS if arch == "tiny20" else _imagenet_wnids(known)
    return model, ModelCard(str(path), str(path), preprocessing, known, wnids)


def _from_run(folder: Path, arch: str | None) -> tuple[nn.Module, ModelCard]:
    """The network that ``headwater train`` left in its run folder."""
    runs = find_runs(folder)
    if len(runs) > 1:
        raise InputError(f"{folder} holds {len(runs)} runs ({', '.join(run.name for run in runs)}); name one of them")
    (run,) = runs
    try:
        known = json.loads((run / RUN_CARD).read_text())
        name, after, classes = known["arch"], known["attention_after"], known["classes"]
        if not (isinstance(name, str) and isinstance(after, str | None) and isinstance(classes, list)):
            raise TypeError("arch must be text, attention_after text or null, classes a list")
        if not classes or not all(isinstance(c, str) for c in classes):
            raise TypeError("classes must be names")
        stored: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in known["preprocessing"].items()}
        preprocessing = Preprocessing(**stored)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{run / RUN_CARD} is not the card of a run ({error})") from error
    if arch is not None and arch != name:
        raise CheckpointError(f"{run} is a run of {name}, not of {arch}")
    model = build_classifier(name, len(classes), after)
    _fill(model, read_checkpoint(run / RUN_WEIGHTS), str(run), name)
    return model, ModelCard(str(run), f"{run / RUN_WEIGHTS}", preprocessing, tuple(classes))


def find_runs(folder: Path) -> list[Path]:
    """The finished runs of ``headwater train`` in a folder: itself, or those below it.

    Raises:
        CheckpointError: there is none.
    """
    if (folder / RUN_CARD).is_file():
        return [folder]
    found = sorted(path.parent for path in folder.glob(f"*/{RUN_CARD}"))
    if not found:
        raise CheckpointError(f"{folder} holds no finished run of headwater train (no {RUN_CARD})")
    return found


def build_classifier(arch: str, classes: int, attention_after: str | None = None) -> nn.Module:
    """A network with random weights, with an attention branch after a stage where one is named."""
    model = architecture(arch)[0](num_classes=classes)
    return model if attention_after is None else AttentionBranchNetwork(model, attention_after)


def architecture(name: str) -> tuple[Callable[..., nn.Module], Preprocessing, tuple[str, ...]]:
    """How to build a network of that name, and what its usual weights go with.

    Raises:
        InputError: no architecture has that name.
    """
    if name == "tiny20":
        return tiny20.Tiny20, _TINY20_PREPROCESSING, tiny20.CLASSES
    if name in torchvision.models.list_models(module=torchvision.models):
        build = partial(torchvision.models.get_model, name, weights=None)
        names = tuple(torchvision.models.get_model_weights(name)["DEFAULT"].meta["categories"])
        return build, Preprocessing(256, 224), names
    raise InputError(f"no architecture is called {name!r}; see headwater models")


def _fill(model: nn.Module, state: Mapping[str, Tensor], source: str, arch: str) -> None:
    """Load weights, or say what does not fit."""
    expected = model.state_dict()
    missing = [name for name in expected if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in expected]
    shapes = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in expected
        if name in state and state[name].shape != expected[name].shape
    ]
    kinds = [
        f"{name} {str(state[name].dtype).removeprefix('torch.')}"
        for name in expected
        if name in state and expected[name].is_floating_point() and not state[name].is_floating_point()
    ]
    problems = [
        f"{what}: {', '.join(found[:3])}{' ...' if len(found) > 3 else ''} ({len(found)})"
        for what, found in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", shapes),
            ("not floating point", kinds),
        )
        if found
    ]
    if problems:
        raise CheckpointError(f"{source} does not fit {arch}; {'; '.join(problems)}")
    model.load_state_dict({name: _as(model, name, tensor) for name, tensor in state.items()}, strict=False)


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The state dict in a file, without running any code that the file may hold.

    Raises:
        CheckpointError: the file is missing, broken, holds no state dict, or needs code to be run.
    """
    if not is_file(path):
        raise CheckpointError(f"{path} does not exist")
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a readable safetensors file ({error})") from error
    except Exception as error:  # broken archives raise anything from EOFError to RuntimeError
        raise CheckpointError(
            f"{path} was refused: it is broken or holds more than tensors, and code in a checkpoint is never run "
            f"({type(error).__name__}). Save model.state_dict(), or convert to safetensors."
        ) from error
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content or not all(isinstance(t, Tensor) for t in content.values()):
        raise CheckpointError(f"{path} holds no state dict (names with tensors)")
    unnamed = [key for key in content if not isinstance(key, str)]
    if unnamed:
        raise CheckpointError(f"{path} holds no state dict: its keys must be names, one is {unnamed[0]!r}")
    for key, tensor in content.items():
        kinds = {
            "meta (without values)": tensor.is_meta,
            "quantised": tensor.is_quantized,
            "sparse": tensor.layout != torch.strided,
            "complex": tensor.is_complex(),
        }
        kind = next((name for name, is_it in kinds.items() if is_it), None)
        if kind is not None:
            raise CheckpointError(f"{path}: {key} is {kind}; save plain dense tensors of real numbers")
    for prefix in ("module.", "model.", "network."):
        if all(name.startswith(prefix) for name in content):
            content = {name.removeprefix(prefix): tensor for name, tensor in content.items()}
    return dict(content)


@contextmanager
def _hub() -> Iterator[None]:
    """The model hub's library, quiet; without a connection it looks into its cache at once."""
    from huggingface_hub import constants

    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "timm", "httpx")]
    levels, offline = [logger.level for logger in loggers], constants.HF_HUB_OFFLINE
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    constants.HF_HUB_OFFLINE = offline or not _reachable(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _reachable(address: str) -> bool:
    """Whether a web address has a host that is known here, or a proxy that may know it."""
    if getproxies():
        return True
    try:
        socket.getaddrinfo(urlsplit(address).hostname, 443)
    except OSError:
        return False
    return True


@contextmanager
def _patience() -> Iterator[None]:
    """Give a silent network a limit; the hub's loader sets none."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_NETWORK_TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
