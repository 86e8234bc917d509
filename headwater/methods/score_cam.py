"""Score-CAM: every channel of the last feature map masks the image, and the class's score weights the channel."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from headwater.engine.inputs import Inputs
from headwater.engine.prediction import Predictor
from headwater.methods.baselines import Baseline, Found, GradCAM, library
from headwater.methods.method import Progress
from headwater.methods.rebuilt import Rebuilt
from headwater.methods.rise import to_unit_range

_MEMORY = 2**28
"""Bytes for what is held at once: masked images with the network's largest values."""
_LARGEST_BATCH = 64


class MaskingChannels(Baseline):
    """Base of both variants: the score of the image behind each channel of the last feature map.

    The channels of all images of a batch are evaluated together. A channel that is constant hides everything: its
    masked image is the blank one (0 in normalised space), which is evaluated once for all of them. Progress counts the
    others.

    Args:
        model: the network.
        batch_size: masked images at a time; by default as many as fit in 256 MB, at most 64.
    """

    has_steps = True
    refuses = GradCAM.refuses
    align_corners: ClassVar[bool]
    """How channels are enlarged to the image."""

    def __init__(self, model: nn.Module, batch_size: int | None = None) -> None:
        super().__init__(model)
        self.batch_size = batch_size

    def explain(self, network: Rebuilt, inputs: Inputs, classes: Tensor, progress: Progress) -> Found:
        (x,) = inputs.tensors
        with torch.no_grad():
            features = network.features(x)
            varying, scores = self._scores(network, x, features.flatten(0, 1), classes, progress)
            shape = features.shape[:2]
            return [self._map(x, features, varying.view(shape), scores.view(shape))], None

    def _scores(
        self, network: Rebuilt, x: Tensor, channels: Tensor, classes: Tensor, progress: Progress
    ) -> tuple[Tensor, Tensor]:
        """Which of the channels ``(N * K, h, w)`` vary, and the score of the image behind each."""
        size, per_image = tuple(x.shape[2:]), len(channels) // len(x)
        at_once = self.batch_size or _batch_size(network, x)
        bounds = [self._enlarged(part, size).flatten(1).aminmax(dim=1) for part in channels.split(at_once)]
        varying = torch.cat([high > low for low, high in bounds])
        plain = Predictor(self.model, x)
        blank = self._score(plain, torch.zeros_like(x[:1]), classes)
        scores = blank.repeat_interleave(per_image)
        pixels = x.permute(0, 2, 3, 1).contiguous()  # channels last, as the masked images are built
        kept, done = varying.nonzero()[:, 0], 0
        for part in kept.split(at_once):
            owner = part // per_image
            shown = self._unit_range(self._enlarged(channels[part], size))
            masked = pixels[owner].mul_(shown[..., None]).permute(0, 3, 1, 2)
            scores[part] = self._score(plain, masked, classes[owner])
            done += len(part)
            progress(done, len(kept))
        if not done:
            progress(1, 1)
        return varying, scores

    def _enlarged(self, channels: Tensor, size: tuple[int, ...]) -> Tensor:
        enlarged = functional.interpolate(channels[:, None], size, mode="bilinear", align_corners=self.align_corners)
        return enlarged[:, 0]

    @abstractmethod
    def _unit_range(self, enlarged: Tensor) -> Tensor:
        """Each mask from its smallest to its largest value as 0 to 1."""

    @abstractmethod
    def _score(self, network: Predictor, images: Tensor, classes: Tensor) -> Tensor:
        """Each image's score for its class, ``(B,)``; one image may stand for all."""

    @abstractmethod
    def _map(self, x: Tensor, features: Tensor, varying: Tensor, scores: Tensor) -> Tensor:
        """The maps ``(N, H, W)`` of the feature maps ``(N, K, h, w)`` with scores ``(N, K)``."""


class ScoreCAM(MaskingChannels):
    r"""Score-CAM of the last feature map A (Wang et al. 2020), with the scaling of pytorch-grad-cam, in [0, 1].

    .. math:: S = \mathrm{ReLU} \sum_k \alpha_k A_k, \quad \alpha = \mathrm{softmax}_k f(x \odot \hat{A}_k)

    where :math:`\hat{A}_k` is a channel enlarged to the image, scaled to [0, 1], and f the logit of the class. The
    softmax is over all channels, also the constant ones, which count with the logit of the blank image.
    """

    align_corners = True

    def __init__(self, model: nn.Module, batch_size: int | None = None) -> None:
        super().__init__(model, batch_size)
        self._scaled = library("pytorch_grad_cam.utils.image", "grad-cam").scale_cam_image

    def _unit_range(self, enlarged: Tensor) -> Tensor:
        low, high = enlarged.amin((1, 2), keepdim=True), enlarged.amax((1, 2), keepdim=True)
        return (enlarged - low) / (high - low + 1e-8)

    def _score(self, network: Predictor, images: Tensor, classes: Tensor) -> Tensor:
        return network.logits(images).expand(len(classes), -1).gather(1, classes[:, None])[:, 0]

    def _map(self, x: Tensor, features: Tensor, varying: Tensor, scores: Tensor) -> Tensor:
        maps = torch.einsum("nk,nkhw->nhw", scores.softmax(1), features).relu()
        height, width = x.shape[2:]
        scaled = self._scaled(self._scaled(maps.float().cpu().numpy(), (width, height)))
        return torch.from_numpy(scaled).to(x)


class ScoreCAMPublished(MaskingChannels):
    r"""Score-CAM of the last feature map A, in the variant of the code of Otsuki et al.

    .. math:: S = \mathrm{ReLU} \sum_k f(x \odot \hat{A}_k) \, A_k

    where :math:`A_k` is a channel enlarged bilinearly to the image, :math:`\hat{A}_k` the same from its smallest to its
    largest value as 0 to 1, and f the softmax probability of the class. Channels that are constant are left out; the
    map is scaled to [0, 1]. (Wang et al. 2020 weight by a softmax over the channels' scores.)
    """

    align_corners = False

    def _unit_range(self, enlarged: Tensor) -> Tensor:
        return to_unit_range(enlarged)

    def _score(self, network: Predictor, images: Tensor, classes: Tensor) -> Tensor:
        return network.probabilities(images).expand(len(classes), -1).gather(1, classes[:, None])[:, 0]

    def _map(self, x: Tensor, features: Tensor, varying: Tensor, scores: Tensor) -> Tensor:
        maps = torch.einsum("nk,nkhw->nhw", scores * varying, features)
        return to_unit_range(self._enlarged(maps, tuple(x.shape[2:])).relu())  # enlarging is linear


def _batch_size(network: Rebuilt, x: Tensor) -> int:
    """Masked images at a time, so that four of the network's largest values fit in the bound."""
    largest = max(math.prod(shape[1:]) for shape in network.value_shapes())
    return max(1, min(_LARGEST_BATCH, _MEMORY // (4 * largest * x.element_size())))
