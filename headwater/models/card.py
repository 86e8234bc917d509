"""What belongs to a model besides its weights: preprocessing, class names, WordNet numbers, a processor."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
import torchvision
from PIL import Image
from torch import Tensor, nn

from headwater.data.preprocessing import NoImages, Preprocessing
from headwater.errors import InputError

Takes = Literal["images", "text", "audio", "video"]
_IMAGENET_CLASSES = 1000
_WRITTEN_OTHERWISE = 10
"""Names of ImageNet's classes that other lists may write differently: there are two cranes, two maillots and so on."""
_IMAGENET_WNIDS = "385e0240499426c022b773be1ae4da780f057b89c9694c7f47199f62746b6edd"
"""SHA-256 of the sorted WordNet numbers of ImageNet's classes, one per line."""


@dataclass(frozen=True)
class ModelCard:
    """What belongs to a model besides its weights.

    Attributes:
        name: the name it was loaded by.
        weights: where the weights come from.
        preprocessing: from an image to the network's input.
        classes: class names in the order of the logits; ``None`` where they are not known.
        wnids: the classes' WordNet numbers (``n02123045``), likewise.
        version: the weights as torchvision calls them (``"ResNet50_Weights.IMAGENET1K_V1"``): those that it has, or
            that its training began with; ``None`` for others.
        takes: what the network's inputs are.
        processor: of ``transformers``: the image processor, tokenizer or feature extractor that came with the network.
    """

    name: str
    weights: str
    preprocessing: Preprocessing
    classes: tuple[str, ...] | None = None
    wnids: tuple[str, ...] | None = None
    version: str | None = None
    takes: Takes = "images"
    processor: Any = field(default=None, repr=False, compare=False)

    def class_name(self, index: int) -> str:
        """Name of a class, or its number where names are not known."""
        return self.classes[index] if self.classes is not None and index < len(self.classes) else f"class {index}"

    def class_index(self, name: str | int) -> int:
        """Index of a class given by its number or its name; case does not matter.

        A name that lists synonyms, as ImageNet's ``"tabby, tabby cat"``, may be given by one that no other class has.

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
        found = found or [index for index, c in enumerate(lowered) if text.lower() in c.split(", ")]
        if len(found) == 1:
            return found[0]
        if len(found) > 1:
            raise InputError(f"{self.name} has {len(found)} classes called {text!r}: {found}; give the number")
        near = get_close_matches(text.lower(), lowered, n=5, cutoff=0.5)
        near += [c for c in lowered if text.lower() in c and c not in near][: 5 - len(near)]
        hint = f"; did you mean {', '.join(self.classes[lowered.index(c)] for c in near)}?" if near else ""
        raise InputError(f"{self.name} has no class {text!r}{hint}")


_CARDS: WeakKeyDictionary[nn.Module, ModelCard] = WeakKeyDictionary()
"""Of networks that came without one, as they are found."""


def card_of(model: nn.Module, preprocessing: Any = None) -> ModelCard:
    """The card of a model that :func:`load_model` returned, or a default one for a model of your own.

    A network of ``transformers`` has the class names of its configuration, and the processor of the folder that it was
    loaded from.

    Args:
        model: the model.
        preprocessing: replaces the card's: a :class:`Preprocessing`, or an image processor of ``transformers``; by
            default the card's, or ``Preprocessing(256, 224)`` without a card.

    Raises:
        InputError: ``preprocessing`` is something else.
    """
    card = getattr(model, "card", None)
    if not isinstance(card, ModelCard):
        card = _CARDS.get(model)
    if card is None:
        from headwater.models.huggingface import card_of_given

        default = ModelCard(type(model).__name__, "given", Preprocessing(256, 224))
        card = _CARDS[model] = card_of_given(model) or default
    return card if preprocessing is None else with_preprocessing(card, preprocessing)


def with_preprocessing(card: ModelCard, preprocessing: Any) -> ModelCard:
    """The card with another preprocessing, which may be an image processor of ``transformers``.

    Raises:
        InputError: it is neither.
    """
    if not isinstance(preprocessing, Preprocessing):
        from headwater.models.processors import from_processor

        if not hasattr(preprocessing, "save_pretrained"):  # as every processor of transformers has
            raise InputError(
                "preprocessing must be a headwater.Preprocessing or an image processor of transformers, got "
                f"{type(preprocessing).__name__}"
            )
        preprocessing = from_processor(preprocessing)
    return replace(card, preprocessing=preprocessing)


def weights_digest(model: nn.Module) -> str:
    """The first 12 hexadecimal digits of a SHA-256 over all parameters and buffers and their names."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


def check_takes_images(card: ModelCard) -> None:
    """Check that images can be prepared for a network.

    Raises:
        InputError: they cannot; the message says what the network takes, or lacks.
    """
    if isinstance(card.preprocessing, NoImages):
        raise InputError(card.preprocessing.reason)


def network_input(
    model: nn.Module, images: Sequence[Image.Image], preprocessing: Preprocessing | None = None
) -> Tensor:
    """Images as the model takes them, ``(N, C, H, W)``, on its device and in its dtype.

    Raises:
        InputError: the model takes no images, or several are prepared in different sizes.
    """
    prepare = card_of(model, preprocessing).preprocessing
    reference = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    prepared = [prepare(image) for image in images]
    sizes = {tuple(x.shape[1:]) for x in prepared}
    if len(sizes) > 1:
        raise InputError(f"images of different shapes become inputs of sizes {sorted(sizes)}; give one at a time")
    return torch.stack(prepared).to(reference.device, reference.dtype)


def imagenet_wnids(categories: Sequence[str]) -> tuple[str, ...] | None:
    """WordNet numbers of ImageNet's 1,000 classes, which timm knows where it is installed; ``None`` for others."""
    if not _are_imagenets(categories):
        return None
    try:
        from timm.data.imagenet_info import ImageNetInfo
    except ImportError:
        return None
    info = ImageNetInfo("imagenet-1k")
    return tuple(info.index_to_label_name(k) for k in range(_IMAGENET_CLASSES))


def _are_imagenets(categories: Sequence[str]) -> bool:
    """Whether these are the names of ImageNet's 1,000 classes in their order; a few may be written in another way."""
    names = torchvision.models.ResNet18_Weights.DEFAULT.meta["categories"]
    same = sum(ours.split(", ")[0] == theirs for ours, theirs in zip(categories, names, strict=False))
    return len(categories) == len(names) and same >= _IMAGENET_CLASSES - _WRITTEN_OTHERWISE


def wnids_among(names: Sequence[str], card: ModelCard, count: int) -> tuple[str, ...] | None:
    """WordNet numbers of a network's classes: its card's, or ImageNet's where the data have all 1,000 of them.

    ImageNet's classes are in the order of their numbers, so a data set that has them all tells which is which, also
    without timm. On such data, a network of 1,000 classes without names is taken for one of ImageNet.

    Args:
        names: of the data's classes.
        card: of the network.
        count: of its classes.
    """
    numbers = sorted({name.split("_")[0] for name in names})
    complete = hashlib.sha256("\n".join(numbers).encode()).hexdigest() == _IMAGENET_WNIDS
    imagenet = count == _IMAGENET_CLASSES if card.classes is None else _are_imagenets(card.classes)
    return tuple(numbers) if card.wnids is None and complete and imagenet else card.wnids
