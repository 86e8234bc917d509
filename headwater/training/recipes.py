"""How the papers trained their networks, and the split of the images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headwater.data.labelled import LabelledImage, LabelledImages
from headwater.errors import DataError
from headwater.models.abn import FUKUI, Variant


@dataclass(frozen=True)
class Recipe:
    """Every number that shapes the weights.

    Attributes:
        name: the paper whose recipe it is.
        arch: the network.
        attention_after: the stage that an attention branch follows; ``None`` for a network without one.
        attention_variant: the kind of branch, see :class:`~headwater.models.abn.AttentionBranchNetwork`.
        start: weights to begin with: a member of torchvision's weights enum, ``"none"`` for random ones, or a file.
        validation: images cut from the training set, as many of each class as possible.
        size: side of the images, in pixels; they are stretched to it.
        batch_size: images per step.
        epochs: maximum number.
        lr: learning rate of SGD.
        momentum: of SGD.
        weight_decay: of SGD.
        decay_every: epochs after which the learning rate is divided by ten; ``None`` for never.
        patience: epochs without a better validation loss after which training stops.
        rotation: of the augmentation, degrees to either side.
        brightness: of the augmentation, part to either side.
        seed: of every random choice: split, order, augmentation, new layers.
    """

    name: str
    arch: str = "resnet50"
    attention_after: str | None = None
    attention_variant: Variant = FUKUI
    start: str = "DEFAULT"
    validation: int = 600
    size: int = 224
    batch_size: int = 32
    epochs: int = 300
    lr: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 1e-4
    decay_every: int | None = 30
    patience: int = 6
    rotation: float = 0.0
    brightness: float = 0.0
    seed: int = 0


RECIPES = {
    "otsuki2024": Recipe("otsuki2024"),
    "doublet2024": Recipe(
        "doublet2024",
        validation=200,
        momentum=0.0,
        weight_decay=0.0,
        decay_every=None,
        rotation=15.0,
        brightness=0.2,
    ),
}
"""By paper. Otsuki et al., Table A: 5,394 / 600 / 5,794 images of CUB. Doublet et al.: 5,794 / 200 / 5,794, cut from
the official 5,994 / 5,794; it names SGD and the learning rate alone, so there is no momentum, decay or schedule. By how
much it rotates and brightens is not printed; those two numbers are ours."""


@dataclass(frozen=True)
class Split:
    """Images for training, validation and testing; no image is in two of them."""

    train: tuple[LabelledImage, ...]
    validation: tuple[LabelledImage, ...]
    test: tuple[LabelledImage, ...]

    def names(self) -> dict[str, list[str]]:
        """Names of the images, in their order, for the record."""
        return {part: [image.name for image in getattr(self, part)] for part in ("train", "validation", "test")}


def split_images(train: LabelledImages, test: LabelledImages, validation: int, seed: int) -> Split:
    """Cut ``validation`` images from the official training set, as many of each class as possible.

    Raises:
        DataError: there are too few images, or a class too few for its share.
    """
    if not 1 <= validation < len(train.images):
        raise DataError(f"{validation} validation images were asked for, of {len(train.images)} for training")
    held_out = {image.name for image in train.sample(validation, seed)}

    def chosen(images: Sequence[LabelledImage], held: bool) -> tuple[LabelledImage, ...]:
        return tuple(image for image in images if (image.name in held_out) == held)

    return Split(chosen(train.images, False), chosen(train.images, True), test.images)
