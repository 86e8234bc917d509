"""The baselines as the code of Otsuki et al. computes them; docs/methods.md has the lines and what differs.

That code measures ``attention[0]`` of each of Captum's results ``(3, H, W)``, which is the red channel alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from headwater.engine.graph import Graph
from headwater.engine.inputs import Inputs
from headwater.methods.abn import AttentionMap
from headwater.methods.baselines import Captum, CaptumLRP, Found
from headwater.methods.method import Method, Progress
from headwater.methods.rebuilt import Rebuilt
from headwater.methods.rise import RisePublished
from headwater.methods.score_cam import ScoreCAMPublished


class CaptumPublished(Captum):
    """One of Captum's attribution methods; the map is its first channel, the red one."""

    refuses: ClassVar[Mapping[str, str]] = {"not images": "it is for the red channel of an image"}

    def explain(self, network: Rebuilt, inputs: Inputs, classes: Tensor, progress: Progress) -> Found:
        return _first_channel(super().explain(network, inputs, classes, progress))


class CaptumLRPPublished(CaptumLRP):
    """Captum's LRP of a network as it is written; the map is its first channel, the red one.

    Captum's rules are for modules, and torchvision's residual blocks add by ``+=``, which is none. So an addition hands
    *all* relevance to the block and all of it to the skip, and what arrives at an input of two layers is multiplied by
    that input once for both.
    """

    refuses: ClassVar[Mapping[str, str]] = CaptumPublished.refuses

    def _rebuilt(self, graph: Graph) -> Rebuilt:
        return Rebuilt(graph, self.model, functions=True)

    def explain(self, network: Rebuilt, inputs: Inputs, classes: Tensor, progress: Progress) -> Found:
        return _first_channel(super().explain(network, inputs, classes, progress))


def _first_channel(found: Found) -> Found:
    _, values = found
    assert values is not None
    return [relevance[:, 0] for relevance in values], values


def _captum(algorithm: str, **options: Any) -> Callable[[nn.Module], Method]:
    return lambda model: CaptumPublished(model, algorithm, **options)


PUBLISHED: dict[str, Callable[[nn.Module], Method]] = {
    "integrated-gradients-published": _captum("IntegratedGradients", n_steps=50, internal_batch_size=32),
    "guided-backprop-published": _captum("GuidedBackprop"),
    "deeplift-published": _captum("DeepLift"),
    "lrp-epsilon-published": CaptumLRPPublished,
    "lrp-mixture-published": lambda model: CaptumLRPPublished(model, mixture=True),
    "scorecam-published": ScoreCAMPublished,
    "rise-published": RisePublished,
    "abn-published": lambda model: AttentionMap(model, "published"),
}
"""Makes each baseline for a model."""
