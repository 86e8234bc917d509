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
from headwater.models import huggingface, tiny20
from headwater.models.abn import FUKUI, AttentionBranchNetwork, Variant
from headwater.models.card import ModelCard, imagenet_wnids
from headwater.models.checkpoints import as_parameter, load_weights, read_checkpoint
from headwater.models.efficientnet_lite0 import NAME as LITE0
from headwater.models.efficientnet_lite0 import load_efficientnet_lite0
from headwater.models.hub import hub, patience
from headwater.models.weights import (
    RANDOM,
    SUFFIXES,
    is_weights_file,
    preprocessing_of,
    torchvision_weights,
    weights_in_file,
)

_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_FAMILIES = re.compile(r"(resnet|resnext|wide_resnet)\d+.*")
_VERSION = re.compile(r"\w+_Weights\.\w+")
_TINY20_PREPROCESSING = Preprocessing(tiny20.RESIZE, tiny20.SIZE, tiny20.MEAN, tiny20.STD)
RUN_CARD, RUN_WEIGHTS = "card.json", "model.safetensors"
"""Files in the run folder of a finished training, from which the network is loaded."""


def list_models() -> list[str]:
    """Names that :func:`load_model` takes, besides ``timm:NAME``, ``hf:OWNER/NAME``, checkpoint files and folders.

    >>> {"tiny20", "resnet50", "resnext50_32x4d", "wide_resnet50_2"} <= set(list_models())
    True
    """
    names = torchvision.models.list_models(module=torchvision.models)
    return ["tiny20", LITE0, *(name for name in names if _FAMILIES.fullmatch(name))]


def load_model(
    name: str | Path,
    weights: str | Path | None = None,
    arch: str | None = None,
    progress: bool = True,
    allow_code: bool = False,
) -> nn.Module:
    """Load a classifier, in eval mode; its :class:`ModelCard` is its attribute ``card``.

    Args:
        name: a torchvision name (``"resnet50"``), ``"timm:NAME"``, ``"tiny20"`` (bundled),
            ``"efficientnet-lite0"`` (ImageNet, of the extra ``headwater[imagenet]``), a checkpoint file (``.pth``,
            ``.pt``, ``.ckpt`` with a state dict, or ``.safetensors``), the run folder of a training, a folder of
            ``save_pretrained`` or ``"hf:OWNER/NAME"`` from Hugging Face's hub (safetensors alone, in float32), or
            ``"package.module:function"``: a function of your own that returns the network. The network's attribute
            ``card``, if it is a :class:`ModelCard`, says how images are prepared and what the classes are called.
        weights: ``"v1"`` or ``"v2"`` of torchvision's ImageNet weights (or a member of its enum), a file, or ``"none"``
            for random weights. If not given, what goes with the name: V1, the weights of the papers, for a network of
            torchvision's (its default where there is no V1), timm's, the bundled ones, what the function returns.
            A checkpoint file, a folder and a network of the hub have weights of their own.
        arch: for a checkpoint file, the name of its architecture.
        progress: show a bar while downloading.
        allow_code: import and call ``"package.module:function"``; nothing else ever runs code.

    Raises:
        InputError: no model or weights of that name, weights for a model that has its own, or code that is not allowed
            or fails.
        DownloadError: the weights are not in the cache and cannot be fetched.
        CheckpointError: the file, run or folder is missing, unsafe, broken, or does not fit the network.
        MissingDependencyError: ``timm:`` without timm, ``"efficientnet-lite0"`` without its extra, or ``hf:`` without
            transformers.

    >>> model = load_model("tiny20")
    >>> model.card.classes[5]
    'tabby'
    """
    text, wanted = str(name), None if weights is None else str(weights)
    if has_own_weights(text):
        if wanted is not None:
            raise InputError(f"{text} has weights of its own; weights={wanted!r} goes with the name of a network")
        model, card = _with_own_weights(text, arch, progress)
    elif arch is not None:
        raise InputError(f"arch={arch!r} goes with a checkpoint file; {text!r} is not one ({', '.join(SUFFIXES)})")
    elif text == LITE0:
        model, card = load_efficientnet_lite0(wanted)
    elif _FUNCTION.fullmatch(text) and not text.startswith("timm:"):
        model, card = _from_function(text, wanted, allow_code)
    elif text.startswith("timm:"):
        model, card = _from_timm(text.removeprefix("timm:"), wanted)
    else:
        _check_name(text)
        if wanted is not None and is_weights_file(wanted):
            model, card = _from_file(Path(wanted), text, named=True)
            card = replace(card, name=text)
        elif wanted is not None and wanted.lower() == RANDOM:
            build, preprocessing, _ = architecture(text)
            model, card = build(), ModelCard(text, "random", preprocessing)
        elif text == "tiny20":
            model, card = _bundled(wanted)
        else:
            model, card = _from_torchvision(text, wanted, progress)
    model.card = card  # type: ignore[assignment]
    return model.eval()


def has_own_weights(name: str) -> bool:
    """Whether a model is a checkpoint file, a folder, or one of the hub, not the name of a network."""
    if name.startswith(huggingface.PREFIX):
        return True
    return name not in list_models() and (Path(name).is_dir() or is_weights_file(name))


def _with_own_weights(text: str, arch: str | None, progress: bool) -> tuple[nn.Module, ModelCard]:
    """A network of the hub, a folder or a file."""
    path = Path(text)
    saved = path.is_dir() and huggingface.is_saved(path) and not (path / RUN_CARD).is_file()
    if arch is not None and (saved or text.startswith(huggingface.PREFIX)):
        raise InputError(f"{text} says itself which network it holds; arch={arch!r} goes with a checkpoint file")
    if text.startswith(huggingface.PREFIX):
        return huggingface.from_hub(text.removeprefix(huggingface.PREFIX), progress)
    if saved:
        return huggingface.from_folder(path)
    return _from_run(path, arch) if path.is_dir() else _from_file(path, arch)


def _bundled(weights: str | None) -> tuple[nn.Module, ModelCard]:
    if weights is not None:
        raise InputError(f"tiny20 comes with its weights; others can be a file, or {RANDOM}, not {weights!r}")
    model = tiny20.Tiny20()
    with resources.as_file(resources.files("headwater.models") / "tiny20.safetensors") as path:
        model.load_state_dict({name: as_parameter(model, name, tensor) for name, tensor in load_file(path).items()})
    return model, ModelCard("tiny20", "bundled with headwater", _TINY20_PREPROCESSING, tiny20.CLASSES, tiny20.WNIDS)


def _check_name(name: str) -> None:
    """Raise an InputError with the nearest names where no network is called that."""
    known = ["tiny20", *torchvision.models.list_models(module=torchvision.models)]
    if name not in known:
        near = get_close_matches(name, [*list_models(), *known], n=4)
        hint = f"; did you mean {', '.join(dict.fromkeys(near))}?" if near else ""
        raise InputError(
            f"no model is called {name!r}{hint} See headwater models, or give a checkpoint file with arch=, a folder "
            "of save_pretrained, or hf:OWNER/NAME"
        )


def _from_torchvision(name: str, weights: str | None, progress: bool) -> tuple[nn.Module, ModelCard]:
    chosen = torchvision_weights(name, weights)
    model = torchvision.models.get_model(name, weights=None, **_building(chosen))
    with patience():
        try:
            state = chosen.get_state_dict(progress=progress, check_hash=True, weights_only=True)
        except (OSError, RuntimeError) as error:
            place = Path(torch.hub.get_dir()) / "checkpoints" / Path(chosen.url).name
            raise DownloadError(
                f"the weights {chosen} are not in the cache and could not be downloaded ({error}). "
                f"Fetch {chosen.url} on a connected machine and name the file (--weights FILE) or put it at {place}, "
                "or use the bundled model: tiny20"
            ) from error
    model.load_state_dict(state)
    categories, known = tuple(chosen.meta["categories"]), str(chosen)
    return model, ModelCard(
        name, known, preprocessing_of(chosen), categories, imagenet_wnids(categories), version=known
    )


def _building(weights: Any) -> dict[str, Any]:
    """Settings of the network that go with its trained weights."""
    return {"num_classes": len(weights.meta["categories"])}


def _from_function(text: str, weights: str | None, allow_code: bool) -> tuple[nn.Module, ModelCard]:
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
    if weights is not None:
        if not is_weights_file(weights):
            raise InputError(f"{text} returns its network with weights; others can be a file, not {weights!r}")
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


def _from_timm(name: str, weights: str | None) -> tuple[nn.Module, ModelCard]:
    try:
        import timm
        from timm.data.config import resolve_model_data_config
    except ImportError as error:
        raise MissingDependencyError(f"timm:{name} needs timm: pip install 'headwater[timm]'") from error
    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('.')[0]}*")[:5]
        raise InputError(f"timm has no model {name!r}" + (f"; did you mean {', '.join(near)}?" if near else ""))
    if weights is not None and weights.lower() != RANDOM and not is_weights_file(weights):
        raise InputError(
            f"timm has its weights in the name of a model (timm:resnet50.a1_in1k); weights can be {RANDOM}, or a file, "
            f"not {weights!r}"
        )
    pretrained = weights is None
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
    if weights is not None and is_weights_file(weights):
        load_weights(model, read_checkpoint(Path(weights)), weights, f"timm:{name}")
        source = weights
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


def _from_file(path: Path, arch: str | None, named: bool = False) -> tuple[nn.Module, ModelCard]:
    """A network with the weights in a file.

    Its classes are known where the network is ``named``, which says that they are that network's usual ones, or where
    the file is torchvision's. Their number alone says nothing.
    """
    state = read_checkpoint(path)
    if arch is None:
        raise InputError(f"{path} holds weights without a network; say which: arch='resnet50', or --arch resnet50")
    build, preprocessing, names = architecture(arch)
    with torch.device("meta"):
        head = [name for name in build().state_dict() if name.endswith("weight")][-1]
    classes = len(state[head]) if head in state and state[head].ndim else len(names)
    model = build(num_classes=classes)
    load_weights(model, state, str(path), arch)
    published = weights_in_file(path, arch)
    known = names if (named or published is not None) and len(names) == classes else None
    wnids = None if known is None else tiny20.WNIDS if arch == "tiny20" else imagenet_wnids(known)
    if published is None:
        return model, ModelCard(str(path), str(path), preprocessing, known, wnids)
    version, preprocessing = str(published), preprocessing_of(published)
    return model, ModelCard(str(path), f"{version} ({path})", preprocessing, known, wnids, version)


def _from_run(folder: Path, arch: str | None) -> tuple[nn.Module, ModelCard]:
    """The network in a run folder of ``headwater train``."""
    runs = find_runs(folder)
    if len(runs) > 1:
        raise InputError(f"{folder} holds {len(runs)} runs ({', '.join(run.name for run in runs)}); name one of them")
    (run,) = runs
    try:
        known = json.loads((run / RUN_CARD).read_text())
        name, after, classes = known["arch"], known["attention_after"], known["classes"]
        start = known.get("start")
        variant = known.get("attention_variant", FUKUI)
        if not (isinstance(name, str) and isinstance(after, str | None) and isinstance(classes, list)):
            raise TypeError("arch must be text, attention_after text or null, classes a list")
        if not isinstance(start, str | None):
            raise TypeError("start must be text or null")
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
    weights = f"{run / RUN_WEIGHTS}" + (f", trained from {start}" if start else "")
    version = start if start and _VERSION.fullmatch(start) else None
    return model, ModelCard(str(run), weights, preprocessing, tuple(classes), version=version)


def find_runs(folder: Path) -> list[Path]:
    """The finished runs of ``headwater train`` in a folder: itself, or those below it.

    Raises:
        CheckpointError: there is none.
    """
    if (folder / RUN_CARD).is_file():
        return [folder]
    found = sorted(path.parent for path in folder.glob(f"*/{RUN_CARD}"))
    if not found:
        raise CheckpointError(
            f"{folder} holds no finished run of headwater train (no {RUN_CARD}), and no network of save_pretrained (no "
            f"{huggingface.CONFIG})"
        )
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
