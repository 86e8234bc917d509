"""Settings of an evaluation: what its table depends on besides the network and the images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from headwater.errors import InputError
from headwater.methods import list_methods, split_name, unknown_method
from headwater.metrics.insertion_deletion import Protocol, published_step

LABELS = ("names", "positions", "predicted")
"""Sources of labels, besides a file."""


@dataclass(frozen=True)
class Settings:
    """Settings of an evaluation.

    Attributes:
        methods: names, see :func:`headwater.list_methods`; ``NAME+hq`` is the method's map after heat quantization as
            published, ``NAME+hq-equation`` as its equation is printed.
        samples: images, balanced over the classes.
        protocols: of insertion and deletion.
        split: of the data set.
        seed: of the sample and of ties.
        step: pixels between two points; ``None`` for 500 of 224 x 224, in proportion for other sizes.
        batch_size: images at a time; also per chunk.
        labels: where labels come from: ``"names"``: the data's classes, found among the network's by name or WordNet
            number; ``"positions"``: the data's k-th class is the network's k-th; ``"predicted"``: the network's own
            predictions; or a CSV file with a column ``image`` (a path in the data folder) or ``folder`` (one of the
            data's classes) and a column ``label`` (a class's name, WordNet number or index).
    """

    methods: tuple[str, ...]
    samples: int = 1000
    protocols: tuple[Protocol, ...] = ("published", "budget")
    split: str = "val"
    seed: int = 42
    step: int | None = None
    batch_size: int = 16
    labels: str = "names"

    def __post_init__(self) -> None:
        if not self.methods or len(set(self.methods)) != len(self.methods):
            raise InputError(f"methods must be different names, got {', '.join(self.methods) or 'none'}")
        known = list_methods()
        for name in self.methods:
            if split_name(name)[0] not in known:
                raise unknown_method(split_name(name)[0])
        wrong = [p for p in self.protocols if p not in get_args(Protocol)]
        if wrong or not self.protocols:
            raise InputError(f"protocols must be of {', '.join(get_args(Protocol))}, got {self.protocols}")
        for name in ("samples", "batch_size", "step"):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
            if not whole and not (name == "step" and value is None):
                raise InputError(f"{name} must be a whole number of at least 1, got {value!r}")
        if self.labels not in LABELS and not (self.labels.lower().endswith(".csv") or Path(self.labels).is_file()):
            raise InputError(f"labels must be one of {', '.join(LABELS)}, or a CSV file; there is no {self.labels!r}")
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**63:
            raise InputError(f"seed must be a whole number from 0 to 2**63 - 1, got {self.seed!r}")

    def step_for(self, pixels: int) -> int:
        """Pixels between two points for an image of ``pixels`` pixels.

        Raises:
            InputError: one step would be the whole image.
        """
        if self.step is not None and self.step >= pixels:
            raise InputError(f"a step of {self.step} pixels leaves no curve on images of {pixels} pixels; take fewer")
        return self.step or published_step(pixels)
