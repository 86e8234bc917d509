"""RISE: random parts of an image are shown, and each pixel gets the mean class probability with it visible."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from headwater.engine.axes import map_names
from headwater.engine.explanation import Explanation
from headwater.engine.graph import GraphInput
from headwater.engine.guards.checks import check_module
from headwater.engine.guards.modes import computing
from headwater.engine.inputs import Inputs, NetworkInput
from headwater.engine.prediction import Predictor
from headwater.engine.seed import Target, check_target
from headwater.errors import InputError
from headwater.methods.method import Checkpoints, Progress, check_kind, check_no_modules

_SMOOTH = {1: "linear", 2: "bilinear", 3: "trilinear"}
"""How masks are enlarged, by the number of axes."""
_REFUSES = {"ids": "it masks values, and token ids have none", "several": "it masks one input"}


class Rise:
    r"""RISE for one model.

    Source: Petsiuk et al. 2018. Random masks of cells are enlarged bilinearly and shifted at random; the map is the
    mean of the masks, each weighted by the class probability of the masked image:

    .. math:: S_i = \frac{1}{N p} \sum_{k=1}^{N} f(x \odot M_k)\, M_{k,i}

    5,000 masks, 9 cells and 0.3 are the defaults of the code of Otsuki et al. (``visualize.py``, lines 536 to 540);
    neither paper prints them, and :class:`RisePublished` draws the masks as that code does. Doublet et al. compare with
    RISE and say nothing about its masks.

    Hidden parts are 0 in the network's own normalisation. All images see the same masks, so they do not influence
    each other, and the same seed gives the same map. Masks are drawn batch by batch: memory does not grow with their
    number.

    Args:
        model: maps images to logits ``(N, K)``; it is not changed, and runs as in eval mode.
        masks: number of masks.
        cells: of a mask, along each side.
        keep: probability p that a cell is shown, in (0, 1].
        batch_size: masked images at a time.
        seed: of the masks.

    Raises:
        InputError: a number is out of range.

    >>> import torch, headwater as hw
    >>> Rise(hw.load_model("tiny20"), masks=64)(torch.rand(2, 3, 64, 64)).heatmap.shape
    torch.Size([2, 64, 64])
    """

    def __init__(
        self,
        model: nn.Module,
        masks: int = 5000,
        cells: int = 9,
        keep: float = 0.3,
        batch_size: int = 64,
        seed: int = 42,
    ) -> None:
        check_module(model)
        if masks < 1 or cells < 1 or batch_size < 1 or not 0 < keep <= 1:
            raise InputError(
                "masks, cells and batch_size must be at least 1 and keep in (0, 1]; "
                f"got {masks}, {cells}, {batch_size}, {keep}"
            )
        self.model, self.masks, self.cells, self.keep = model, masks, cells, keep
        self.batch_size, self.seed = batch_size, seed

    def __call__(
        self, x: NetworkInput, target: Target = None, *, checkpoints: Checkpoints = (), progress: Progress | None = None
    ) -> Explanation:
        """Explain images, see :class:`~headwater.methods.method.Method`; progress counts masks.

        Raises:
            InputError: the images, the target or the checkpoints do not fit.
        """
        inputs = Inputs.of(x)
        check_no_modules(checkpoints)
        network = Predictor(self.model, inputs)
        check_kind("rise", network.graph, inputs, _REFUSES)
        (given,) = network.graph.sources
        if given.channels is None or not 3 <= inputs.floating.ndim <= 5:
            raise InputError(
                f"rise cannot explain inputs of shape {tuple(inputs.floating.shape)}: it masks neighbouring places of "
                "signals, images and volumes together; the LRP composites can"
            )
        with computing(inputs.floating):
            return self._explain(network, inputs.floating.detach(), given, target, progress)

    def _explain(
        self, network: Predictor, x: Tensor, given: GraphInput, target: Target, progress: Progress | None
    ) -> Explanation:
        logits = network.logits(x)
        if logits.ndim != 2:
            raise InputError(f"the network returns {tuple(logits.shape)}; logits (N, K) are needed")
        classes = check_target(target, logits)
        assert given.channels is not None
        pixels = x.movedim(given.channels, -1).contiguous()  # channels last, as the masked inputs are built
        size = tuple(pixels.shape[1:-1])
        heatmap, done = x.new_zeros((len(x), math.prod(size))), 0
        for masks in self.draw(size, x):
            scores = x.new_empty((len(x), len(masks)))
            jobs = torch.arange(scores.numel(), device=x.device)
            for part in jobs.split(self.batch_size):
                owner, mask = part // len(masks), part % len(masks)
                shown = pixels[owner].mul_(masks[mask][..., None]).movedim(-1, given.channels)
                scores.view(-1)[part] = network.probability(shown, classes[owner])
            heatmap.addmm_(scores, masks.flatten(1))
            done += len(masks)
            if progress is not None:
                progress(done, self.masks)
        heatmap = self._scaled(heatmap.view(len(x), *size) / (self.masks * self.keep))
        return Explanation(
            heatmap,
            logits,
            network.probability(x, classes),
            classes,
            axes=map_names(given, heatmap.shape),
            head=network.graph.head,
            activation=network.activation,
        )

    def draw(self, size: tuple[int, ...], like: Tensor) -> Iterator[Tensor]:
        """The masks for inputs of ``size``, in [0, 1], in batches ``(B, *size)`` on the device of ``like``."""
        generator = torch.Generator().manual_seed(self.seed)
        cell = [math.ceil(side / self.cells) for side in size]
        enlarged = [(self.cells + 1) * c for c in cell]
        for start in range(0, self.masks, self.batch_size):
            count = min(self.batch_size, self.masks - start)
            grid = self._grid(count, len(size), generator)[:, None].to(like)
            smooth = functional.interpolate(grid, enlarged, mode=_SMOOTH[len(size)], align_corners=False)[:, 0]
            shifts = torch.stack([torch.randint(0, c, (count,), generator=generator) for c in cell], 1).tolist()
            windows = [tuple(slice(s, s + n) for s, n in zip(shift, size, strict=True)) for shift in shifts]
            yield torch.stack([mask[window] for mask, window in zip(smooth, windows, strict=True)])

    def _grid(self, count: int, axes: int, generator: torch.Generator) -> Tensor:
        """Which cells are shown, ``(count, rows, columns)``; one more than a side has, since the mask is shifted."""
        sides = [self.cells + 1] * axes
        return torch.rand((count, 1, *sides), generator=generator, dtype=torch.float32)[:, 0] < self.keep

    def _scaled(self, heatmap: Tensor) -> Tensor:
        """The maps in the method's scale."""
        return heatmap


class RisePublished(Rise):
    """RISE as the code of Otsuki et al. computes it (``models/rise.py``, lines 31 to 100).

    A cell is shown where a *normal* number is below 0.3, which is true of 62 % of the cells, not of 30 %; a grid of
    9 x 9 cells is enlarged to the size of 10 x 10; and each map is scaled to [0, 1].

    Their ``visualize.py`` (line 64) takes the map of the image's *label*, where all other methods there explain the
    predicted class. Here it is the class that is asked for, as in every method.
    """

    def _grid(self, count: int, axes: int, generator: torch.Generator) -> Tensor:
        drawn = torch.randn((count, *[self.cells] * axes), generator=generator, dtype=torch.float32)
        return drawn < self.keep

    def _scaled(self, heatmap: Tensor) -> Tensor:
        return to_unit_range(heatmap)


def to_unit_range(maps: Tensor) -> Tensor:
    """Each map ``(N, H, W)`` from its smallest to its largest value as 0 to 1; a constant map becomes 0."""
    places = tuple(range(1, maps.ndim))
    low, high = maps.amin(places, keepdim=True), maps.amax(places, keepdim=True)
    return torch.where(high > low, (maps - low) / (high - low), 0)
