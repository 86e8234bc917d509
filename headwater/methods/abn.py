"""The attention map that an attention branch network makes by itself, as a method."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from headwater.engine.explanation import Explanation
from headwater.engine.guards.checks import check_images
from headwater.engine.guards.modes import computing
from headwater.engine.seed import Target, check_target
from headwater.engine.trace import shared_copy
from headwater.errors import InputError


def has_attention(model: nn.Module) -> bool:
    """Whether the model makes an attention map of its own: it has ``attend(x)``."""
    return callable(getattr(model, "attend", None))


class AttentionMap:
    """The attention map of a :class:`headwater.models.abn.AttentionBranchNetwork`, enlarged bilinearly to the image.

    Source: Fukui et al. 2019. The map is the same whatever class is asked; ``target`` only chooses the probability.

    Args:
        model: a network with ``attend(x)``; it is not changed, and runs as in eval mode.

    Raises:
        InputError: the network has no attention branch.
    """

    def __init__(self, model: nn.Module) -> None:
        if not has_attention(model):
            raise InputError(
                f"method 'abn' shows a network's own attention map, and {type(model).__name__} has no such branch; "
                "train one with headwater train cub-abn, or wrap a ResNet in headwater.models.abn"
            )
        self.model = model

    def __call__(self, x: Tensor, target: Target = None) -> Explanation:
        """Explain images ``(N, C, H, W)``.

        Raises:
            InputError: the images or the target do not fit.
        """
        check_images(x, self.model)
        with computing(x):
            said = shared_copy(self.model).attend(x)  # type: ignore[operator]
            attention = functional.interpolate(
                said.attention[:, None], x.shape[2:], mode="bilinear", align_corners=False
            )
        classes = check_target(target, said.logits)
        return Explanation(
            heatmap=attention[:, 0],
            logits=said.logits,
            probability=said.logits.softmax(1).gather(1, classes[:, None])[:, 0],
            target=classes,
        )
