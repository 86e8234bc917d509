"""The networks of the page, each with the methods that were asked of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import nn

import headwater as hw
from headwater.errors import InputError
from headwater.methods import DEFAULT_METHOD, describe_method, explains_against
from headwater.methods.method import Method, Progress
from headwater.models import card_of, check_takes_images, network_input, weights_digest

_FIRST = (DEFAULT_METHOD, "otsuki2024", "gradcam", "scorecam", "rise", "integrated-gradients", "c3-lrp")


def methods_on_offer() -> dict[str, str]:
    """Every method with its description, those that are compared most often first."""
    names = hw.list_methods()
    ordered = [*(name for name in _FIRST if name in names), *(name for name in names if name not in _FIRST)]
    return {name: describe_method(name) for name in ordered}


class Network:
    """A classifier and its methods, each made when it is first asked for.

    Args:
        model: as :func:`headwater.load_model` returns it; it takes images.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model, self.card = model, card_of(model)
        self._digest = weights_digest(model)
        self._methods: dict[str, Method] = {}

    def explain(
        self,
        photo: Image.Image,
        shown: Image.Image,
        path: Path,
        method: str,
        target: int | None,
        against: int | None,
        progress: Progress,
    ) -> hw.ImageExplanation:
        """Explain a photo.

        Args:
            photo: RGB, as it was uploaded.
            shown: the same, no larger than the page shows it; the explanation keeps this one.
            path: what the photo is called in figures; no file is read or written.
            method: name of the method.
            target: class to explain; ``None`` for the predicted one.
            against: explain why the target and not this class; ``None`` for the target alone.
            progress: called with the steps done and the steps in all.

        Raises:
            InputError: no such method or class, the method explains one class alone, or the network is no classifier.
            MissingDependencyError: the library that does the method's work is not installed.
        """
        if method not in self._methods:
            self._methods[method] = hw.load_method(method, self.model)
        explain, options = self._methods[method], dict[str, Any]()
        if against is not None:
            if not explains_against(explain):
                raise InputError("it explains one class; why one and not another: headwater or a composite of LRP")
            options = {"against": against, "start": "logit"}
        e = explain(network_input(self.model, [photo]), target, progress=progress, **options)
        if e.logits.ndim != 2:
            raise InputError(f"{self.card.name} has an output per pixel; the page explains classifiers")
        return hw.ImageExplanation(
            **vars(e),
            path=path,
            image=shown,
            box=self.card.preprocessing.box(*shown.size),
            card=self.card,
            method=method,
            predicted=int(e.logits.argmax(1)),
            weights_digest=self._digest,
        )

    def describe(self) -> dict[str, Any]:
        """What the page shows of the network, in values that JSON can hold."""
        return {"name": self.card.name, "weights": self.card.weights, "classes": self.card.classes or ()}


def by_name(models: Sequence[nn.Module]) -> dict[str, Network]:
    """The networks under their names, in their order.

    Raises:
        InputError: there is none, or one takes no images.
    """
    if not models:
        raise InputError("the page needs at least one network")
    networks = [Network(model) for model in models]
    for network in networks:
        check_takes_images(network.card)
    return {network.card.name: network for network in networks}
