"""How the papers trained their networks, and the split of the images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headwater.data.labelled import LabelledImage, LabelledImages
from headwater.data.preprocessing import PIPELINES, Preprocessing, with_pipeline
from headwater.errors import DataError, InputError
from headwater.models.abn import FUKUI, Variant


@dataclass(frozen=True)
class Recipe:
    """Every number that shapes the weights.

    Attributes:
        name: the paper whose recipe it is.
        arch: the network.
        attention_after: the stage that an attention branch follows; ``None`` for a network without one.
        attention_variant: the kind of branch, see :class:`~headwater.models.abn.AttentionBranchNetwork`.
        start: weights to begin with, as :func:`headwater.load_model` takes them: ``"v1"``, ``"v2"``, a file, or
            ``"none"`` for random ones.
        validation: images cut from the training set, as many of each class as possible.
        size: side of the images, in pixels.
        pipeline: from image to input. ``"stretch"``, as the texts say: both sides to ``size``; for training to 8/7 of
            it, and a random part of ``size`` is cut out. ``"crop"``, as the code of Otsuki et al. does: the short side
            to 8/7 of ``size``, and the centre is cut out; for training a random part of 8 % to 100 % of the area and an
            aspect from 3/4 to 4/3, brought to ``size`` (torchvision's ``RandomResizedCrop``).
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
    start: str = "v1"
    validation: int = 600
    size: int = 224
    pipeline: str = "stretch"
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

    def __post_init__(self) -> None:
        """Check the pipeline.

        Raises:
            InputError: it is unknown.
        """
        if self.pipeline not in PIPELINES:
            raise InputError(f"pipeline must be one of {', '.join(PIPELINES)}, got {self.pipeline!r}")

    @property
    def resize(self) -> int:
        """Side of an image before a part of ``size`` is cut out; 256 for 224."""
        return int(self.size / 0.875)

    @property
    def preprocessing(self) -> Preprocessing:
        """How images are prepared for validation, testing and explaining."""
        return with_pipeline(Preprocessing(self.size, self.size), self.pipeline)


RECIPES = {
    "otsuki2024": Recipe("otsuki2024"),
    "otsuki2024-published": Recipe("otsuki2024-published", pipeline="crop", decay_every=None),
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
"""By paper. Otsuki et al., Table A: 5,394 / 600 / 5,794 images of CUB. ``-published`` is what their code does: it crops
(``data/__init__.py``, lines 134 to 154), and its learning rate stays as it is, since its schedule is given the
validation loss in place of the epoch (``train.py``, line 392). Doublet et al.: 5,794 / 200 / 5,794, cut from the
official 5,994 / 5,794; it names SGD and the learning rate alone, so there is no momentum, decay or schedule. By how
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
