"""The map of all scales: the mean of relevance over the resolutions of the image and of every cut."""

from __future__ import annotations

import warnings
from dataclasses import replace

from torch import nn

from headwater.engine.composites import Composite
from headwater.engine.explanation import Explanation
from headwater.engine.graph import Activation
from headwater.engine.inputs import Inputs, NetworkInput
from headwater.engine.lrp import LRP, Recompute
from headwater.engine.outputs import Output
from headwater.engine.scales import mean_of_scales
from headwater.engine.seed import Region, Start, Target
from headwater.methods.method import Checkpoints, Progress

TEXT = "headwater-text"
"""The composite for token ids."""


class AllScales:
    r"""LRP whose map is the mean over the resolutions of the image and the cuts, in one sweep.

    All relevance passes a cut. So each cut's map sums to the seed, and so does any mean of them:

    .. math:: M = \frac{1}{|S|} \sum_{s \in S} \frac{1}{|C_s|} \sum_{c \in C_s} E(R^{(c)})

    with the resolutions S of the values that all relevance passes, the image among them, those values :math:`C_s` of
    each, and the enlargement E, which keeps every cell's sum (:func:`~headwater.engine.scales.enlarge`). In a network
    without such values between image and output it is the image's relevance alone; a warning says so.

    Texts have one resolution, and after the last attention all relevance is on one token: for token ids it is their own
    relevance, by the composite ``"headwater-text"``, whose rules count contributions with their signs
    (docs/results/planted.md).

    Args:
        model: as for :class:`~headwater.LRP`.
        composite: likewise.
        output: likewise.
        recompute: likewise.
        activation: likewise.

    >>> import torch, headwater as hw
    >>> e = AllScales(hw.load_model("tiny20"))(torch.rand(2, 3, 64, 64))
    >>> torch.allclose(e.heatmap.sum((1, 2)), e.conservation.seed.float())
    True
    """

    def __init__(
        self,
        model: nn.Module,
        composite: str | Composite = "headwater",
        output: Output = None,
        recompute: Recompute = False,
        activation: Activation | None = None,
    ) -> None:
        self.lrp = LRP(model, composite, output, recompute=recompute, activation=activation)
        self._text = None
        if composite == "headwater":
            self._text = LRP(model, TEXT, output, recompute=recompute, activation=activation)

    def __call__(
        self,
        x: NetworkInput,
        target: Target = None,
        start: Start = "probability",
        checkpoints: Checkpoints = (),
        region: Region = None,
        progress: Progress | None = None,
        *,
        against: Target = None,
    ) -> Explanation:
        """Explain inputs; arguments, errors and warnings are those of :meth:`headwater.LRP.__call__`.

        Returns:
            An :class:`Explanation` whose ``heatmap`` is the mean; ``relevance`` is that of the input alone. Features
            and several inputs have no scales: the map is their relevance.
        """
        inputs, lrp = Inputs.of(x), self.lrp
        whole = not all(tensor.is_floating_point() for tensor in inputs.tensors)
        of_text = whole and any(source.ids for source in lrp.graph(inputs).sources)
        if of_text and self._text is not None:
            lrp = self._text
        e = lrp(x, target, start, checkpoints, region, progress, against=against)
        if of_text:
            return e
        if not e.coarse or e.finest is None:
            if e.finest is not None and len(e.axes) > 1:
                warnings.warn(
                    "this network has no cut with rows and columns between image and output, so the map is the image's "
                    "relevance alone, without coarser scales",
                    stacklevel=2,
                )
            return e
        mean = mean_of_scales({**e.coarse, "image": e.finest}, e.finest.shape[1:])
        assert mean is not None
        return replace(e, heatmap=mean.to(e.finest.dtype))
