"""The attention map of an attention branch network, as a method."""

from __future__ import annotations

from torch import nn
from torch.nn import functional

from headwater.engine.copies import shared_copy
from headwater.engine.explanation import Explanation
from headwater.engine.guards.checks import check_values
from headwater.engine.guards.modes import computing
from headwater.engine.inputs import Inputs, NetworkInput
from headwater.engine.seed import Target, check_target
from headwater.errors import InputError
from headwater.methods.method import Checkpoints, Progress, check_no_modules
from headwater.models.abn import FUKUI, Variant

ATTENTION: dict[str, Variant] = {"abn": FUKUI, "abn-published": "published"}
"""The methods that show a network's own attention map, and the kind of branch that each is about."""


def has_attention(model: nn.Module) -> bool:
    """Whether the model has an attention branch: a method ``attend(x)``."""
    return callable(getattr(model, "attend", None))


def branch_of(model: nn.Module) -> Variant:
    """The kind of a network's attention branch; one of the user's own counts as Fukui's."""
    return getattr(model, "variant", FUKUI)


class AttentionMap:
    """The attention map of a :class:`headwater.models.abn.AttentionBranchNetwork`, enlarged bilinearly to the image.

    Source: Fukui et al. 2019. The map is the same for every class; ``target`` only selects the probability.

    Args:
        model: a network with ``attend(x)``; it is not changed, and runs as in eval mode.
        variant: the kind of branch that the network must have; ``None`` for any.

    Raises:
        InputError: the network has no attention branch, or one of another kind.
    """

    def __init__(self, model: nn.Module, variant: Variant | None = None) -> None:
        if not has_attention(model):
            raise InputError(
                f"method 'abn' shows a network's own attention map, and {type(model).__name__} has no such branch; "
                "train one with headwater train cub-abn, or wrap a ResNet in headwater.models.abn"
            )
        if variant is not None and branch_of(model) != variant:
            raise InputError(
                f"this method shows the map of an attention branch of the kind {variant!r}, and this network's is "
                f"{branch_of(model)!r}; train one with headwater train cub-abn-{variant}, or take method 'abn'"
            )
        self.model = model

    def __call__(
        self, x: NetworkInput, target: Target = None, *, checkpoints: Checkpoints = (), progress: Progress | None = None
    ) -> Explanation:
        """Explain images, see :class:`~headwater.methods.method.Method`; the whole batch is one step of progress.

        Raises:
            InputError: the images, the target or the checkpoints do not fit.
        """
        inputs = Inputs.of(x)
        check_values(inputs)
        check_no_modules(checkpoints)
        (x,) = inputs.tensors
        with computing(x):
            said = shared_copy(self.model).attend(x)  # type: ignore[operator]
            attention = functional.interpolate(
                said.attention[:, None], x.shape[2:], mode="bilinear", align_corners=False
            )
        classes = check_target(target, said.logits)
        if progress is not None:
            progress(1, 1)
        probability = said.logits.softmax(1).gather(1, classes[:, None])[:, 0]
        return Explanation(attention[:, 0], said.logits, probability, classes)
