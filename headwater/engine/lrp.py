"""Layer-wise relevance propagation: trace, run forward, seed, walk back, one rule per step."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from headwater.engine.account import Account
from headwater.engine.axes import map_names, maps_of, structured
from headwater.engine.compiled import compiled_sweep
from headwater.engine.composites import Composite
from headwater.engine.explanation import Explanation, warn_if_lost
from headwater.engine.graph import Activation, Graph
from headwater.engine.guards.checks import check_module
from headwater.engine.guards.modes import computing
from headwater.engine.heads import activation_of
from headwater.engine.inputs import Inputs, NetworkInput
from headwater.engine.outputs import Output
from headwater.engine.plan import Plan, make_plan
from headwater.engine.presets import load_composite
from headwater.engine.registrations import registry_version
from headwater.engine.scales import Layout
from headwater.engine.seed import Region, Seed, Start, Target, check_start, make_seed
from headwater.engine.sweep import sweep
from headwater.engine.traces import forget, is_current, traced
from headwater.engine.weights import WeightStore
from headwater.errors import CompileError, CompileWarning, InputError

_PLANS = 8  # that are kept, for as many input sizes
Recompute = bool | Literal["weights"]
"""What :class:`LRP` computes again to save memory."""


class LRP:
    """Explains what a network saw, pixel by pixel or token by token, by layer-wise relevance propagation.

    The network is never changed: it is read through ``torch.export``, its weights are looked up at each call, and it
    is explained as in eval mode whatever mode it is in. Forward hooks are not part of the explained network.

    A softmax, log-softmax or sigmoid at the network's end is recognised: what enters it are the logits, and the
    explained probability is the network's own.

    Args:
        model: any module that maps inputs with the batch first to logits ``(N, K)``, to one value per example ``(N,)``,
            or to logits for each pixel or token ``(N, K, ...)``, or to probabilities made of one of these.
        composite: which rule goes where: a name (see :func:`list_composites`) or a :class:`Composite`.
        output: which output to explain, if the model returns several: a key, a position, or a path such as
            ``"decoder.logits"``. Without it: the only one; ``logits`` or ``out`` by name; of a pair of probabilities
            and logits the logits.
        activation: what makes probabilities of the logits that the model returns: ``"softmax"``, the default, or
            ``"sigmoid"`` for labels that do not exclude each other. Not for a model that ends with one itself.
        compile: run the sweep as one program of ``torch.compile``. The first call for an image size compiles it, and
            one more for the next number of images, which takes from seconds to minutes (docs/export.md). Maps differ
            by rounding. ``"if possible"``: a sweep that cannot be compiled runs as it is, with a warning.
        recompute: what is computed again to save memory; the map is the same. ``"weights"``: what is derived from the
            weights, at each use, which costs time where images are few. ``True``: that, and the network's values: one
            is kept for each of some segments of the network, and the others of a segment are computed again when
            relevance arrives there, for one more forward pass. For large images and deep networks.

    Raises:
        InputError: ``model`` is no module, or an option does not fit; ``recompute`` is not for compiled sweeps.

    Changes of the model between two calls are noticed: of its weights, modules and their attributes. A variable outside
    of it that its ``forward`` reads is not watched; call :meth:`retrace` after changing one.

    >>> import torch, headwater as hw
    >>> model = hw.load_model("tiny20")
    >>> x = torch.rand(2, 3, 64, 64)
    >>> e = hw.LRP(model)(x)
    >>> e.relevance.shape, e.heatmap.shape
    (torch.Size([2, 3, 64, 64]), torch.Size([2, 64, 64]))
    >>> bool((e.conservation.error < 1e-5).all())
    True
    """

    def __init__(
        self,
        model: nn.Module,
        composite: str | Composite = "otsuki2024",
        output: Output = None,
        compile: bool | Literal["if possible"] = False,
        recompute: Recompute = False,
        activation: Activation | None = None,
    ) -> None:
        check_module(model)
        if activation not in (None, "softmax", "sigmoid"):
            raise InputError(f"activation must be 'softmax' or 'sigmoid', got {activation!r}")
        if not isinstance(output, (str, int, tuple, list, type(None))):
            raise InputError(f"output must be a key, a position or a path of them, got {output!r}")
        if not isinstance(compile, bool) and compile != "if possible":
            raise InputError(f"compile must be False, True or 'if possible', got {compile!r}")
        if not isinstance(recompute, bool) and recompute != "weights":
            raise InputError(f"recompute must be False, True or 'weights', got {recompute!r}")
        if compile and recompute:
            raise InputError("a compiled sweep keeps what it needs by itself; choose compile or recompute")
        self.recompute = recompute
        self.compile = compile
        self.model = model
        self.output = output
        self.activation = activation
        self.composite = composite  # the setter takes a name too

    @property
    def composite(self) -> Composite:
        """Which rule goes where; another one may be set, by name or as a :class:`Composite`."""
        return self._composite

    @composite.setter
    def composite(self, composite: str | Composite) -> None:
        chosen = load_composite(composite) if isinstance(composite, str) else composite
        if not isinstance(chosen, Composite):
            raise InputError(f"composite must be a name or a Composite, got {type(composite).__name__}")
        self._composite = chosen
        self._plans: OrderedDict[tuple[object, ...], Plan] = OrderedDict()

    def __call__(
        self,
        x: NetworkInput,
        target: Target = None,
        start: Start = "probability",
        checkpoints: Sequence[str] | Literal["cuts"] | None = (),
        region: Region = None,
        progress: Callable[[int, int], None] | None = None,
        *,
        against: Target = None,
        scales: bool = True,
    ) -> Explanation:
        """Explain inputs: images, signals, volumes, videos, texts, rows of features.

        Args:
            x: what the network takes, the batch first: one tensor, floating point ``(N, C, H, W)``, ``(N, C, L)``,
                ``(N, F)`` and so on, normalised as the network expects, or token ids ``(N, L)``; several by position in
                a tuple, or by keyword in a mapping, as tokenizers and processors return them. Masks, segment and
                position ids get no relevance of their own.
            target: class to explain: ``None`` for the predicted one, an int for all images, or long ``(N,)``.
            start: relevance to begin with: the softmax ``"probability"`` of the target, its ``"logit"``, or ``"one"``.
                For a regression, ``"logit"`` is the predicted value.
            checkpoints: module names, or ``None`` for none; the relevance at each module's input is returned too. Or
                ``"cuts"``: relevance is added up at every value that all paths from image to output cross, see
                :meth:`Graph.cuts`.
            region: for a network with per-pixel (or per-token) outputs, which of them to explain: ``(row, column)``, or
                a mask ``(H, W)`` or ``(N, H, W)`` of the output's size; ``None`` for those where the target is
                predicted. The sweep begins with the mean over the region.
            progress: called with (1, 1) once the batch is done: it is one step.
            against: explain why the target and not this class, an int for all images or long ``(N,)``: the sweep begins
                with the start of the target less that of this class. With ``start="logit"`` that is the difference of
                the logits, the log of the ratio of the two probabilities. The map has both signs. Take a composite with
                a signed rule at the classifier, such as ``"headwater"``; z+ alone hardly tells classes apart.
            scales: note the relevance at cuts, so that :attr:`Explanation.scales` has more than the input.

        Returns:
            An :class:`Explanation`; its tensors are on the device of ``x``, and of its dtype or float32 if that is a
            half: the network runs in half precision then, and relevance is passed on in single.

        The first call for a size of the inputs traces the network, which takes a second or a few; later calls do not.

        Raises:
            InputError: ``x``, the target, start, a checkpoint, the region or a weight does not fit or is not finite, or
                ``against`` is the target.
            TraceError: the network cannot be traced.
            UnsupportedOperationError: the network has an operation without a rule.
            CompileError: with ``compile=True``, an operation cannot be compiled.

        Warns:
            CompileWarning: likewise with ``compile="if possible"``; the map is that of the sweep as it is.
            ConservationWarning: a map does not sum to the relevance that the sweep began with, though the composite is
                not one of the presets that are known to lose some.
        """
        inputs = Inputs.of(x)
        check_start(start)
        plan = self.plan(inputs)
        activation = activation_of(plan.graph.head, self.activation)
        count = len(inputs)
        account = self._account(plan, count, checkpoints, plan.layouts if scales else {})

        def plain(inputs: Inputs) -> tuple[Seed, tuple[Tensor, ...]]:
            return sweep(
                plan,
                inputs,
                lambda output: make_seed(
                    output, count, target, start, region, against, plan.contrast, activation, plan.graph.head
                ),
                account,
                self.recompute is True,
            )

        def run(
            wanted: Callable[[Inputs], tuple[Seed, tuple[Tensor, ...]]],
        ) -> tuple[Seed, tuple[Tensor, ...]]:
            with computing(inputs.floating):
                prepared = inputs.prepared()
                plan.weights.refresh(count)
                plan.bindings.compute(prepared)
                return wanted(prepared)

        if not self.compile:
            seed, relevance = run(plain)
        else:
            try:
                seed, relevance = run(compiled_sweep(plan, inputs, target, start, region, against, account, activation))
            except CompileError as error:
                if self.compile is True:
                    raise
                warnings.warn(f"{error}; the sweep runs uncompiled", CompileWarning, stacklevel=2)
                self.compile = False  # it would fail again
                seed, relevance = run(plain)
        conservation = account.conservation(seed.total, relevance, seed.size)
        warn_if_lost(conservation, self.composite.name, seed.total.dtype)
        if progress is not None:
            progress(1, 1)
        maps = maps_of(plan.graph, relevance)
        alone = maps[0] if len(maps) == 1 else None
        return Explanation(
            heatmap=structured(plan.graph, inputs, maps) if alone is None else alone,
            logits=seed.logits,
            probability=seed.probability,
            target=seed.target,
            relevance=structured(plan.graph, inputs, [r.contiguous() for r in relevance]),
            checkpoints=account.checkpoints(),
            conservation=conservation,
            flow=account.flow(),
            coarse=account.coarse(),
            against=seed.against,
            axes=() if alone is None else map_names(plan.graph.sources[0], alone.shape),
            finest=alone,
            head=plan.graph.head,
            activation=activation,
        )

    def plan(self, x: NetworkInput | Inputs) -> Plan:
        """How inputs of this size are explained: ``print`` it for every operation, its module, its rule and why.

        >>> import torch, headwater as hw
        >>> print(hw.LRP(hw.load_model("tiny20")).plan(torch.zeros(1, 3, 64, 64)))  # doctest: +ELLIPSIS
        module  operation  rule  why
        conv1   conv2d     WPlus(eps=0.0, fallback=True)  first linear operation
        bn1     batch_norm Pass() type 'elementwise'
        ...
        """
        graph = traced(self.model, x, self.output)
        if graph.head is not None and self.activation is not None:
            raise InputError(
                f"the network ends with a {graph.head} itself, so its output needs no activation; leave "
                f"activation={self.activation!r} out"
            )
        key = (id(graph), registry_version(), self.recompute)
        plan = self._plans.get(key)
        if plan is None or plan.graph is not graph:
            kept = list(self._plans.items())
            weights = WeightStore(self.model, graph.weights, graph.constants(), cache=not self.recompute)
            plan = make_plan(graph, self.composite, weights)
            current = [(k, p) for k, p in kept if is_current(self.model, p.graph)][-(_PLANS - 1) :]
            self._plans = OrderedDict([*current, (key, plan)])
        return plan

    def graph(self, x: NetworkInput | Inputs) -> Graph:
        """The list of operations that inputs of this size go through."""
        return traced(self.model, x, self.output)

    def retrace(self) -> None:
        """Trace the model anew at the next call.

        Needed after a change that the model's module tree does not show: a global, an enclosing variable, a default
        argument, or a function outside of the modules' classes that ``forward`` calls.
        """
        forget(self.model)
        self._plans = OrderedDict()

    def attribute(self, inputs: NetworkInput, target: Target = None) -> Any:
        """Captum's convention: the relevance of each input value, shaped as ``inputs``."""
        return self(inputs, target).relevance

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles without the plans, which are made again at the first call."""
        return {**self.__dict__, "_plans": OrderedDict()}

    @staticmethod
    def _account(
        plan: Plan, count: int, checkpoints: Sequence[str] | Literal["cuts"] | None, layouts: Mapping[str, Layout]
    ) -> Account:
        """Where the sweep is to note what arrives."""
        if checkpoints == "cuts":
            return Account(plan, count, {name: name for name in plan.graph.cuts()}, False, layouts)
        checkpoints = () if checkpoints is None else checkpoints
        if isinstance(checkpoints, str) or not isinstance(checkpoints, Collection):
            raise InputError(f"checkpoints must be a list of module names or 'cuts', got {checkpoints!r}")
        return Account(plan, count, {module: plan.input_of(module) for module in checkpoints}, True, layouts)
