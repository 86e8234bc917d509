"""How long an evaluation will take, before it begins: from some forward passes and a part of each method's map."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import nn

from headwater.data.preprocessing import Preprocessing
from headwater.engine.prediction import Predictor
from headwater.evaluation.settings import Settings
from headwater.methods import Method, load_method, split_name
from headwater.models import card_of, network_input

_SOON = 60.0
"""Seconds: a run that the curves alone do not make longer is not worth more measuring."""
_PATIENCE = 3.0
"""Seconds that a method has for its map, of which the rest is extrapolated from its progress."""


@dataclass(frozen=True)
class Estimate:
    """The time of an evaluation on one device.

    Attributes:
        curves: seconds per image for insertion and deletion of all methods.
        maps: seconds per image for each method's map; empty where the curves make it plain that the run is short.
        passes: forward passes per image for the curves.
    """

    curves: float
    maps: dict[str, float]
    passes: int

    @property
    def per_image(self) -> float:
        """Seconds."""
        return self.curves + sum(self.maps.values())

    def line(self, images: int, devices: int = 1) -> str:
        """For so many images, as a sentence.

        >>> Estimate(2.0, {"rise": 1.0}, 300).line(1000)
        'about 50 min for 1000 images: 2 s each for 300 forward passes, 1 s for maps (rise 1 s)'
        """
        slowest = max(self.maps, key=self.maps.__getitem__, default="")
        maps = f", {_said(sum(self.maps.values()))} for maps ({slowest} {_said(self.maps[slowest])})" if slowest else ""
        return (
            f"about {_said(images * self.per_image / devices)} for {images} images: {_said(self.curves)} each for "
            f"{self.passes} forward passes{maps}"
        )


def estimate(model: nn.Module, settings: Settings, preprocessing: Preprocessing | None = None) -> Estimate:
    """Estimate the time of :func:`~headwater.evaluation.evaluate` on the device of the model.

    It takes two batches of forward passes, and where the run is not short, at most some seconds for each method. The
    images are noise; reading files is not counted. Methods whose time depends on the image, such as Score-CAM, which
    leaves constant channels out, take another time on photographs.

    Args:
        model: the network.
        settings: what is measured.
        preprocessing: for a model of your own that has no card.

    >>> import headwater as hw
    >>> from headwater.evaluation import Settings, estimate
    >>> found = estimate(hw.load_model("tiny20"), Settings(("otsuki2024", "random"), samples=20))
    >>> found.passes, found.per_image < 60
    (800, True)
    """
    prepare = card_of(model, preprocessing).preprocessing
    (height, width), batch = prepare.size, max(32, settings.batch_size)
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))
    noise = network_input(model, [photo] * batch, preprocessing)
    points = math.ceil(height * width / settings.step_for(height * width))
    passes = 2 * points * len(settings.protocols) * len(settings.methods)  # both ends are shared by the two curves
    network = Predictor(model, noise)
    network.logits(noise)
    began = time.perf_counter()
    network.logits(noise).sum().item()  # waits for the device
    curves = passes * (time.perf_counter() - began) / batch
    maps = dict[str, float]()
    if curves * settings.samples > _SOON:
        for name in dict.fromkeys(split_name(name)[0] for name in settings.methods):
            maps[name] = _time_of_map(load_method(name, model), noise[:1])
    return Estimate(curves, maps, passes)


class _Enough(Exception):  # noqa: N818  it is no error
    """A method has used its time."""


def _time_of_map(method: Method, x: torch.Tensor) -> float:
    """Seconds for the map of one image, the second that the method makes, or what its progress says it would take."""
    seconds = 0.0
    for _ in range(2):
        began = time.perf_counter()

        def watch(done: int, total: int, began: float = began) -> None:
            nonlocal seconds
            seconds = (time.perf_counter() - began) * total / done
            if done < total and time.perf_counter() - began > _PATIENCE:
                raise _Enough

        try:
            method(x, progress=watch).heatmap.sum().item()
        except _Enough:
            return seconds
        seconds = time.perf_counter() - began
        if seconds > _PATIENCE:
            return seconds
    return seconds


def _said(seconds: float) -> str:
    """A time as one says it.

    >>> [_said(s) for s in (0.012, 3.4, 75, 4000, 200000)]
    ['0.012 s', '3.4 s', '75 s', '67 min', '56 h']
    """
    if seconds < 10:
        return f"{seconds:.2g} s"
    for limit, size, unit in ((120, 1, "s"), (7200, 60, "min")):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 3600:.0f} h"
