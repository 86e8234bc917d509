"""What explanations of one image and of one text have in common: the network, the classes, and how files are named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headwater.engine.explanation import Explanation
from headwater.errors import InputError
from headwater.files import safe_name, write_bytes, write_record
from headwater.methods import explains_against
from headwater.methods.method import Method
from headwater.models import ModelCard

MADE_FROM = "made_from"
"""Key of a result's JSON that says what the result was made from; results that differ in it never share a file name."""


@dataclass(frozen=True, kw_only=True, repr=False)
class SingleExplanation(Explanation):
    """The explanation of one input by a network whose card is known; tensors have a batch of one.

    Attributes:
        card: what belongs to the model.
        method: name of the method.
        predicted: the predicted class.
        weights_digest: of the network's weights as they were; tells apart networks of one name.
    """

    card: ModelCard
    method: str
    predicted: int
    weights_digest: str

    @property
    def explained(self) -> str:
        """The class, and the one that it is explained against."""
        name = self.card.class_name(int(self.target))
        return name if self.against is None else f"{name}, not {self.card.class_name(int(self.against))}"

    def class_summary(self, index: int) -> dict[str, Any]:
        """A class in values that JSON can hold."""
        return {
            "index": index,
            "name": self.card.class_name(index),
            "probability": self.probabilities[0, index].item(),
        }

    def outcome(self, source: Mapping[str, Any]) -> dict[str, Any]:
        """Model, classes and account in values that JSON can hold.

        Args:
            source: what was explained, for :data:`MADE_FROM`.
        """
        target, account = int(self.target), self.conservation
        other = None if self.against is None else int(self.against)
        return {
            MADE_FROM: {
                **source,
                "model": self.card.name,
                "weights": self.card.weights,
                "weights_digest": self.weights_digest,
                "method": self.method,
                "target": target,
                "against": other,
            },
            "model": self.card.name,
            "weights": self.card.weights,
            "method": self.method,
            "target": {"index": target, "name": self.card.class_name(target), "probability": self.probability.item()},
            "against": None if other is None else {"index": other, "name": self.card.class_name(other)},
            "predicted": self.class_summary(self.predicted),
            "conservation": None
            if account is None
            else {"seed": account.seed.item(), "input": account.input.item(), "relative_error": account.error.item()},
            "flow": None if self.flow is None else self.flow.as_rows(),
        }

    def prediction_note(self) -> str:
        """Which class is predicted, where that is another than the explained one; else nothing."""
        if int(self.target) == self.predicted:
            return ""
        return f"  Predicted: {self.card.class_name(self.predicted)} {self.probabilities[0, self.predicted].item():.1%}"


def write_files(
    out: str | Path, stem: str | None, usual: str, record: Mapping[str, Any], contents: Mapping[str, bytes]
) -> list[Path]:
    """Write a result's files, ``STEM`` and each suffix, and ``STEM.json``; see :func:`headwater.files.write_record`.

    Args:
        out: the folder, created if need be.
        stem: the files' name, instead of the ``usual`` one.
        usual: likewise.
        record: content of ``STEM.json``.
        contents: of the other files, by suffix.

    Raises:
        OutputError: a file cannot be written.
        InputError: ``stem`` is not a file name.
    """
    if stem is not None and (stem in ("", ".", "..") or Path(stem).name != stem):
        raise InputError(f"stem must be a file name without a folder, got {stem!r}; the folder is given as out")
    name = write_record(Path(out), stem or usual, record, MADE_FROM, tuple(contents))
    written = [write_bytes(Path(out) / f"{name}{suffix}", content) for suffix, content in contents.items()]
    return [*written, Path(out) / f"{name}.json"]


def stem_of(first: str, card: ModelCard, method: str, target: str) -> str:
    """``FIRST.MODEL.METHOD.TARGET`` as a file name; a model loaded from a file is called by the end of its path."""
    model = "/".join(Path(card.name).parts[-2:])
    return ".".join([safe_name(first), safe_name(model, 40), safe_name(method, 40), safe_name(target, 40)])


def contrast(explainer: Method, method: str, card: ModelCard, chosen: int | None, against: int | str) -> dict[str, Any]:
    """Arguments of a method that is to explain one class against another.

    Raises:
        InputError: the method explains one class alone, there is no such class, or it is the target.
    """
    if not explains_against(explainer):
        raise InputError(f"method {method!r} explains one class; against takes headwater or a composite of LRP")
    other = card.class_index(against)
    if chosen is not None and chosen == other:
        raise InputError(
            f"target and against are the same class, {card.class_name(chosen)}; a map of why one class and not "
            "another needs two"
        )
    return {"against": other, "start": "logit"}


def predicted_classes(logits: Tensor, card: ModelCard) -> Sequence[int]:
    """The predicted class of each input.

    Raises:
        InputError: the network has more than one output of each class.
    """
    if logits.ndim != 2:
        raise InputError(
            f"{card.name} returns {tuple(logits.shape)}, several values of each class; one call explains classifiers. "
            "For others: headwater.LRP(model)(x, target, region=...)"
        )
    return torch.Tensor.tolist(logits.argmax(1))
