"""Layer-wise relevance propagation: trace, run forward, seed, walk back, one rule a step."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from headwater.composites import Composite, load_composite
from headwater.errors import InputError, TraceError
from headwater.explanation import Conservation, Explanation
from headwater.graph import trace
from headwater.plan import Plan
from headwater.weights import WeightStore

Start = Literal["probability", "logit", "one"]
Target = int | Tensor | None

_PLANS = 8  # picture sizes for which the list of operations is kept


class LRP:
    """Explains what a network saw, pixel by pixel, by layer-wise relevance propagation.

    The network is never changed: it is read through ``torch.export``, its weights are looked up at each call, and it
    is explained as in eval mode whatever mode it is in. Forward hooks are not part of the explained network.

    Args:
        model: any module that maps pictures ``(N, C, H, W)`` to logits ``(N, K)``.
        composite: which rule goes where: a name (see :func:`list_composites`) or a :class:`Composite`.

    >>> import torch, headwater as hw
    >>> model = hw.load_model("tiny20")
    >>> x = torch.rand(2, 3, 64, 64)
    >>> e = hw.LRP(model)(x)
    >>> e.relevance.shape, e.heatmap.shape
    (torch.Size([2, 3, 64, 64]), torch.Size([2, 64, 64]))
    >>> bool((e.conservation.error < 1e-5).all())
    True
    """

    def __init__(self, model: nn.Module, composite: str | Composite = "otsuki2024") -> None:
        if not isinstance(model, nn.Module):
            raise InputError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        self.model = model
        self.composite = load_composite(composite) if isinstance(composite, str) else composite
        if not isinstance(self.composite, Composite):
            raise InputError(f"composite must be a name or a Composite, got {type(composite).__name__}")
        self._plans: OrderedDict[tuple[object, ...], Plan] = OrderedDict()

    def __call__(
        self, x: Tensor, target: Target = None, start: Start = "probability", checkpoints: Sequence[str] = ()
    ) -> Explanation:
        """Explain pictures.

        Args:
            x: pictures ``(N, C, H, W)``, floating point, normalised as the network expects.
            target: class to explain: ``None`` for the predicted one, an int for all pictures, or long ``(N,)``.
            start: relevance to begin with: the softmax ``"probability"`` of the target, its ``"logit"``, or ``"one"``.
            checkpoints: module names; the relevance at each module's input is returned too.

        Returns:
            An :class:`Explanation`; its tensors are on the device and of the dtype of ``x``.

        Raises:
            InputError: ``x``, ``target``, ``start``, a checkpoint or a weight does not fit, or is not finite.
            TraceError: the network cannot be traced.
            UnsupportedOperationError: the network has an operation without a rule.
        """
        self._check(x, start)
        plan = self._plan(x)
        places = {module: plan.input_of(module) for module in checkpoints}
        with torch.no_grad(), _exact_kernels(x):
            plan.weights.refresh()
            laid_out = x.detach().contiguous(memory_format=torch.channels_last)
            logits, values, shapes = plan.forward(laid_out)
            if logits.ndim != 2 or len(logits) != len(x):
                raise TraceError(
                    f"the network returns {tuple(logits.shape)} for {len(x)} pictures; logits (N, K) are supported. "
                    "Wrap it in a module that returns those to explain."
                )
            classes = check_target(target, logits)
            probability = logits.softmax(1).gather(1, classes[:, None])[:, 0]
            beginning = {
                "probability": probability,
                "logit": logits.gather(1, classes[:, None])[:, 0],
                "one": torch.ones_like(probability),
            }[start]
            seed = torch.zeros_like(logits).scatter(1, classes[:, None], beginning[:, None])
            relevance, kept = plan.backward(seed, values, shapes, tuple(places.values()))
        relevances = {module: kept[name] for module, name in places.items()}
        return Explanation(
            heatmap=relevance.sum(1),
            logits=logits,
            probability=probability,
            target=classes,
            relevance=relevance.contiguous(),
            checkpoints=relevances,
            conservation=Conservation.measure(beginning, relevance, relevances),
        )

    def attribute(self, inputs: Tensor, target: Target = None) -> Tensor:
        """Captum's convention: the relevance of each input value, shaped as ``inputs``."""
        relevance = self(inputs, target).relevance
        assert relevance is not None
        return relevance

    def _plan(self, x: Tensor) -> Plan:
        """The plan for pictures of this size, made on first sight."""
        key: tuple[object, ...] = (*x.shape[1:], x.dtype, x.device)
        for known in (key, (*key, len(x))):
            if known in self._plans:
                self._plans.move_to_end(known)
                return self._plans[known]
        graph = trace(self.model, x)
        weights = WeightStore(self.model, (name for operation in graph.operations for name in operation.weights))
        plan = Plan(graph, self.composite, weights)
        self._plans[key if graph.batch is None else (*key, graph.batch)] = plan
        while len(self._plans) > _PLANS:
            self._plans.popitem(last=False)
        return plan

    def _check(self, x: Tensor, start: str) -> None:
        if not isinstance(x, Tensor) or x.ndim != 4 or 0 in x.shape:
            given = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise InputError(f"pictures must be a tensor (N, C, H, W) with at least one picture, got {given}")
        if not x.is_floating_point():
            raise InputError(f"pictures must be floating point and normalised as the network expects, got {x.dtype}")
        if not x.isfinite().all():
            raise InputError("pictures hold NaN or infinity")
        if start not in get_args(Start):
            raise InputError(f"start must be one of {', '.join(get_args(Start))}, got {start!r}")
        parameter = next((p for p in self.model.parameters() if p.is_floating_point()), None)
        if parameter is not None and (parameter.device != x.device or parameter.dtype != x.dtype):
            raise InputError(
                f"the model is {parameter.dtype} on {parameter.device}, the pictures are {x.dtype} on {x.device}; "
                "move one to the other"
            )
        first = next((m for m in self.model.modules() if isinstance(m, nn.Conv2d)), None)
        if first is not None and first.in_channels != x.shape[1]:
            raise InputError(f"the network takes pictures of {first.in_channels} channels, got {x.shape[1]}")


def check_target(target: Target, logits: Tensor) -> Tensor:
    """The explained class of each picture, long ``(N,)``.

    Raises:
        InputError: wrong type, shape or range.
    """
    count, classes = logits.shape
    if target is None:
        return logits.argmax(1)
    if isinstance(target, bool) or not isinstance(target, (int, Tensor)):
        raise InputError(f"target must be None, an int or a long tensor (N,), got {type(target).__name__}")
    if isinstance(target, Tensor) and (target.is_floating_point() or target.dtype == torch.bool):
        raise InputError(f"target must hold integers, got {target.dtype}")
    chosen = torch.as_tensor(target, device=logits.device).long()
    if chosen.ndim > 1 or (chosen.ndim == 1 and len(chosen) != count):
        raise InputError(f"target must be one class or one a picture ({count}), got shape {tuple(chosen.shape)}")
    if ((chosen < 0) | (chosen >= classes)).any():
        raise InputError(f"target {chosen.tolist()} is out of range; the network has classes 0 to {classes - 1}")
    return chosen.expand(count)


@contextmanager
def _exact_kernels(x: Tensor) -> Iterator[None]:
    """On CUDA, no TF32 and no kernel whose result depends on scheduling: the account must add up, twice the same."""
    if x.device.type != "cuda":
        yield
        return
    matmul = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = matmul
