"""Models by name, with their weights, preprocessing and class names."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from importlib import import_module, resources
from pathlib import Path
from typing import Any

import torch
import torchvision
from safetensors.torch import load_file
from torch import nn

from headwater.data.preprocessing import Preprocessing
from headwater.errors import CheckpointError, DownloadError, InputError, MissingDependencyError
from headwater.files import is_file
from headwater.models import tiny20
from headwater.models.abn import FUKUI, AttentionBranchNetwork, Variant
from headwater.models.card import ModelCard, imagenet_wnids
from headwater.models.checkpoints import as_parameter, load_weights, read_checkpoint
from headwater.models.hub import hub, patience

_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_FAMILIES = re.compile(r"(resnet|resnext|wide_resnet)\d+.*")
_SUFFIXES = (".pth", ".pt", ".ckpt", ".safetensors")
_TINY20_PREPROCESSING = Preprocessing(tiny20.RESIZE, tiny20.SIZE, tiny20.MEAN, tiny20.STD)
RUN_CARD, RUN_WEIGHTS = "card.json", "model.safetensors"
"""Files in the run folder of a finished training, from which the network is loaded."""


def list_models() -> list[str]:
    """Names that :func:`load_model` takes, besides ``timm:NAME`` and checkpoint files.

    >>> {"tiny20", "resnet50", "resnext50_32x4d", "wide_resnet50_2"} <= set(list_models())
    True
    """
    names = torchvision.models.list_models(module=torchvision.models)
    return ["tiny20", *(name for name in names if _FAMILIES.fullmatch(name))]


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
        model.load_state_dict({name: as_parameter(model, name, tensor) for name, tensor in load_file(path).items()})
    return model, ModelCard("tiny20", "bundled with headwater", _TINY20_PREPROCESSING, tiny20.CLASSES, tiny20.WNIDS)


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
    with patience():
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
    return model, ModelCard(name, str(chosen), preprocessing, categories, imagenet_wnids(categories))


def _building(weights: Any) -> dict[str, Any]:
    """Settings of the network that go with its trained weights."""
    return {"num_classes": len(weights.meta["categories"])}


def _from_function(text: str, weights: str, allow_code: bool) -> tuple[nn.Module, ModelCard]:
    """A network that a function of the user's returns."""
    if not allow_code:
        raise InputError(
            f"{text} is Python code of yours, which is imported and called only if you allow it: --allow-code on the "
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
        load_weights(model, read_checkpoint(Path(weights)), weights, text)
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
    with patience(), hub():
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
    return model, ModelCard(f"timm:{name}", source, preprocessing, *timm_classes(model))


def timm_classes(model: nn.Module) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
    """Names and WordNet numbers of the classes of a timm network that was trained on ImageNet or a part of it."""
    from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset(model)
    if subset is None:
        return None, None
    info = ImageNetInfo(subset)
    names = tuple(info.index_to_description(k).split(",")[0] for k in range(info.num_classes()))
    return names, tuple(info.index_to_label_name(k) for k in range(info.num_classes()))


def _from_file(path: Path, arch: str | None) -> tuple[nn.Module, ModelCard]:
    state = read_checkpoint(path)
    if arch is None:
        raise InputError(f"{path} holds weights without a network; say which: arch='resnet50', or --arch resnet50")
    build, preprocessing, names = architecture(arch)
    with torch.device("meta"):
        head = [name for name in build().state_dict() if name.endswith("weight")][-1]
    classes = len(state[head]) if head in state and state[head].ndim else len(names)
    model = build(num_classes=classes)
    load_weights(model, state, str(path), arch)
    known = names if len(names) == classes else None
    wnids = None if known is None else tiny20.WNIDS if arch == "tiny20" else imagenet_wnids(known)
    return model, ModelCard(str(path), str(path), preprocessing, known, wnids)


def _from_run(folder: Path, arch: str | None) -> tuple[nn.Module, ModelCard]:
    """The network in a run folder of ``headwater train``."""
    runs = find_runs(folder)
    if len(runs) > 1:
        raise InputError(f"{folder} holds {len(runs)} runs ({', '.join(run.name for run in runs)}); name one of them")
    (run,) = runs
    try:
        known = json.loads((run / RUN_CARD).read_text())
        name, after, classes = known["arch"], known["attention_after"], known["classes"]
        variant = known.get("attention_variant", FUKUI)
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
    model = build_classifier(name, len(classes), after, variant)
    load_weights(model, read_checkpoint(run / RUN_WEIGHTS), str(run), name)
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


def build_classifier(
    arch: str, classes: int, attention_after: str | None = None, attention_variant: Variant = FUKUI
) -> nn.Module:
    """A network with random weights, with an attention branch after a stage where one is named."""
    model = architecture(arch)[0](num_classes=classes)
    return model if attention_after is None else AttentionBranchNetwork(model, attention_after, attention_variant)


def architecture(name: str) -> tuple[Callable[..., nn.Module], Preprocessing, tuple[str, ...]]:
    """How to build a network of that name, its preprocessing, and the class names of its usual weights.

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
