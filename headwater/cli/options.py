"""Options that several commands share, and what their values mean."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwater.errors import DataError, InputError

if TYPE_CHECKING:
    from torch import nn

    from headwater.cluster import Ray

_NAMED = re.compile(r"([A-Za-z][\w-]*)=(.+)")


def folder(text: str | Path) -> Path:
    if not str(text).strip():
        raise typer.BadParameter("the name of the folder is empty; . is this folder")
    if "://" in str(text):
        raise typer.BadParameter(f"{text} is an address; results are written to a folder")
    return Path(text)


Folder = Annotated[Path, typer.Option(parser=folder, metavar="DIR", help="Folder for the results.")]
RunFolder = Annotated[
    Path, typer.Option(parser=folder, metavar="DIR", help="Folder of this run; an unfinished run in it is continued.")
]
Data = Annotated[Path, typer.Option(parser=folder, metavar="DIR", help="Folder with labelled images.")]
Model = Annotated[
    str | None,
    typer.Option(
        help="Name, checkpoint file, folder of a run or of save_pretrained, hf:OWNER/NAME or module:function; else "
        "ResNet-50, EfficientNet-Lite0 or tiny20."
    ),
]
Arch = Annotated[str | None, typer.Option(help="Architecture of a checkpoint file.")]
Weights = Annotated[
    str | None,
    typer.Option(metavar="v1|v2|FILE|none", help="Torchvision's ImageNet weights, a file, or random; v1 if not given."),
]
Prepare = Annotated[
    str | None,
    typer.Option(
        "--preprocessing",
        metavar="crop|stretch",
        help="As the authors' code (short side to 256, centre 224) or the papers' text (stretched to 224); "
        "the network's own if not given.",
    ),
]
AllowCode = Annotated[
    bool, typer.Option("--allow-code", help="Let --model module:function import and call your own Python code.")
]
Devices = Annotated[str | None, typer.Option(help="Separated by commas; cuda where there is one.")]
Seed = Annotated[int, typer.Option(help="Of the sample and of ties.", min=0, max=2**63 - 1)]
Samples = Annotated[int, typer.Option(help="Images, balanced over the classes.", min=1)]
Split = Annotated[str, typer.Option(help="Of the data set.")]
Step = Annotated[int | None, typer.Option(help="Pixels between two points; 500 of 224x224.", min=1)]
BatchSize = Annotated[int, typer.Option(help="Images at a time.", min=1)]
Labels = Annotated[
    str,
    typer.Option(
        help="names (matched with the network's), positions, predicted, or a CSV file: image,label or folder,label."
    ),
]


def data_place(text: str) -> Any:
    """A folder, or an address in object storage."""
    from headwater.data.storage import as_path, is_address

    return as_path(text) if is_address(text) else folder(text)


DataPlace = Annotated[
    Path, typer.Option(parser=data_place, metavar="DIR", help="Folder with labelled images, or an address: s3://...")
]
Engine = Annotated[str, typer.Option(metavar="local|ray", help="This process, or the workers of a Ray cluster.")]
Workers = Annotated[
    int | None, typer.Option(help="Of --engine ray: processes; one per GPU, or CPU, if not given.", min=1)
]


def check_engine(name: str, workers: int | None, devices: str | None = None) -> Ray | None:
    """The engine that ``--engine`` names; ``None`` for this process.

    Raises:
        InputError: there is none of that name, or an option does not go with it.
        MissingDependencyError: Ray is not installed.
    """
    if name == "local":
        if workers is not None:
            raise InputError("--workers goes with --engine ray; --devices divides the work in this process")
        return None
    if name != "ray":
        raise InputError(f"--engine is local or ray, not {name!r}")
    if devices is not None:
        raise InputError("--engine ray takes the cluster's GPUs, or its CPUs; --devices goes with --engine local")
    from headwater.cluster import Ray

    return Ray(workers)


def check_readable(folder: Path) -> None:
    """Check that a folder of images is there, before a network or a library is loaded.

    Raises:
        DataError: it is not, or cannot be listed.
        StorageError: it is an address, and cannot be listed.
    """
    try:
        next(folder.iterdir(), None)
    except OSError as error:
        raise DataError(
            f"{folder} is not a folder that can be read ({error.strerror}); give one with images"
        ) from error


def load_network(
    model: str | None, weights: str | None, arch: str | None, allow_code: bool, prepare: str | None = None
) -> nn.Module:
    """The network that ``--model`` names, or the default one, with the weights and preprocessing that are asked for."""
    from headwater.data.preprocessing import with_pipeline
    from headwater.models import card_of, default_model, load_model

    if model is None and weights is None and arch is None:
        network = default_model()
    else:
        network = load_model(model or "resnet50", weights, arch, allow_code=allow_code)
    if prepare is not None:
        card = card_of(network)
        changed = replace(card, preprocessing=with_pipeline(card.preprocessing, prepare))
        network.card = changed  # type: ignore[assignment]
    return network


def by_name(texts: Sequence[str]) -> dict[str, list[str]]:
    """Values of ``NAME=VALUE`` by name, in their order; those without a name under ``""``.

    A path that exists is a value as a whole, also with an equals sign in it.

    >>> by_name(["cub=birds", "imagenet=a", "imagenet=b"])
    {'cub': ['birds'], 'imagenet': ['a', 'b']}
    """
    values: dict[str, list[str]] = {}
    for text in texts:
        named = None if _exists(text) else _NAMED.fullmatch(text)
        name, value = (named[1], named[2]) if named else ("", text)
        values.setdefault(name, []).append(value)
    return values


def _exists(path: str) -> bool:
    """Whether there is such a path; one that no file system takes is none."""
    try:
        return Path(path).exists()
    except OSError:
        return False


def check_device(name: str | None) -> str:
    """The device of that name; by default ``cuda`` where there is one, else ``cpu``.

    Raises:
        InputError: it is not available, or computes no values.
    """
    import torch

    chosen = name or ("cuda" if torch.cuda.is_available() else "cpu")
    if chosen.split(":")[0] == "meta":
        raise InputError("device 'meta' computes no values; take cpu, cuda, mps, ...")
    try:
        torch.zeros(1, device=chosen)
    except Exception as error:  # torch raises a different type for each backend that is missing
        raise InputError(f"device {chosen!r} is not available here: {str(error).splitlines()[0]}") from error
    return chosen


def check_devices(names: str | None) -> list[str]:
    """The devices that ``--devices`` names, at least one.

    Raises:
        InputError: it names none, or one that is not available.
    """
    if names is None:
        return [check_device(None)]
    if not split_names(names):
        raise InputError(f"--devices {names!r} names no device; say cpu, cuda, cuda:0,cuda:1, ...")
    return [check_device(name) for name in split_names(names)]


def split_names(text: str) -> list[str]:
    """Names that are separated by commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def whole_number(text: str) -> int:
    """A whole number of at least 0.

    Raises:
        InputError: ``text`` is something else.
    """
    if not text.isdecimal():
        raise InputError(f"a whole number was expected, got {text!r}")
    return int(text)
