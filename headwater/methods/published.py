"""The baselines as the code of Otsuki et al. computes them; docs/methods.md has the lines and what differs.

That code measures ``attention[0]`` of each of Captum's results ``(3, H, W)``, which is the red channel alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from headwater.engine.graph import Graph
from headwater.methods.abn import AttentionMap
from headwater.methods.baselines import Baseline, Captum, CaptumLRP
from headwater.methods.method import Method
from headwater.methods.rebuilt import Rebuilt
from headwater.methods.rise import RisePublished, to_unit_range


class CaptumPublished(Captum):
    """One of Captum's attribution methods; the map is its first channel, the red one."""

    def explain(self, network: Rebuilt, x: Tensor, classes: Tensor) -> tuple[Tensor, Tensor | None]:
        _, relevance = super().explain(network, x, classes)
        assert relevance is not None
        return relevance[:, 0], relevance


class CaptumLRPPublished(CaptumLRP):
    """Captum's LRP of a network as it is written; the map is its first channel, the red one.

    Captum's rules are for modules, and torchvision's residual blocks add by ``+=``, which is none. So an addition hands
    *all* relevance to the block and all of it to the skip, and what arrives at an input of two layers is multiplied by
    that input once for both.
    """

    def _rebuilt(self, graph: Graph) -> Rebuilt:
        return Rebuilt(graph, self.model, functions=True)

    def explain(self, network: Rebuilt, x: Tensor, classes: Tensor) -> tuple[Tensor, Tensor | None]:
        _, relevance = super().explain(network, x, classes)
        assert relevance is not None
        return relevance[:, 0], relevance


class ScoreCAMPublished(Baseline):
    r"""Score-CAM of the last feature map A, in the variant of the code of Otsuki et al.

    .. math:: S = \mathrm{ReLU} \sum_k f(x \odot \hat{A}_k) \, A_k

    where :math:`A_k` is a channel enlarged bilinearly to the image, :math:`\hat{A}_k` the same from its smallest to its
    largest value as 0 to 1, and f the softmax probability of the class. Channels that are constant are left out; the
    map is scaled to [0, 1]. (Wang et al. 2020 weight by a softmax over the channels' scores.)

    Args:
        model: the network.
        batch_size: masked images at a time.
    """

    def __init__(self, model: nn.Module, batch_size: int = 32) -> None:
        super().__init__(model)
        self.batch_size = batch_size

    def explain(self, network: Rebuilt, x: Tensor, classes: Tensor) -> tuple[Tensor, Tensor | None]:
        module, channels = network.feature_map()
        kept: list[Tensor] = []
        hook = module.register_forward_hook(lambda _module, _inputs, output: kept.append(output))
        with torch.no_grad():
            network(x)
            hook.remove()
            features = kept[0].movedim(channels, 1)
            maps = [self._map(network, *one) for one in zip(x, features, classes.tolist(), strict=True)]
        return to_unit_range(torch.stack(maps)), None

    def _map(self, network: nn.Module, image: Tensor, features: Tensor, index: int) -> Tensor:
        heatmap = torch.zeros_like(image[0])
        for part in features.split(self.batch_size):
            enlarged = functional.interpolate(part[None], image.shape[1:], mode="bilinear", align_corners=False)[0]
            low, high = enlarged.amin((1, 2)), enlarged.amax((1, 2))
            enlarged = enlarged[high > low]
            if len(enlarged):
                shown = to_unit_range(enlarged)
                score = network(image * shown[:, None]).softmax(1)[:, index]
                heatmap += torch.einsum("k,khw->hw", score, enlarged)
        return heatmap.relu()


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
