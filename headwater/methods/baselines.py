"""The methods that LRP is compared with: Captum's and a CAM library's, under one interface.

Every baseline explains the logit of the class, works on a copy of the network (see :mod:`headwater.methods.rebuilt`),
and returns a map of the image's size; ``conservation`` is ``None``.
"""

from __future__ import annotations

import contextlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from headwater.engine.axes import map_names, maps_of, structured
from headwater.engine.explanation import Explanation
from headwater.engine.graph import Graph
from headwater.engine.guards.checks import check_module
from headwater.engine.guards.modes import computing, detached
from headwater.engine.heads import activation_of, logits_before, probabilities
from headwater.engine.inputs import Inputs, NetworkInput
from headwater.engine.seed import Target, check_target
from headwater.engine.structure import Structure, layers_of
from headwater.engine.traces import traced
from headwater.errors import MissingDependencyError, TraceError
from headwater.methods.method import Checkpoints, Progress, check_kind, check_no_modules
from headwater.methods.rebuilt import Rebuilt


class Baseline(ABC):
    """A method for one model: ``method(x, target=None)`` returns an :class:`Explanation`."""

    has_steps: ClassVar[bool] = False
    """Whether :meth:`explain` tells its progress itself."""
    refuses: ClassVar[Mapping[str, str]] = {"ids": "token ids have no gradient; explain their embeddings"}
    """Kinds of inputs that the method is not for, and why: ``"ids"``, ``"several"``, ``"not images"``."""

    def __init__(self, model: nn.Module) -> None:
        check_module(model)
        self.model = model

    def __call__(
        self, x: NetworkInput, target: Target = None, *, checkpoints: Checkpoints = (), progress: Progress | None = None
    ) -> Explanation:
        """Explain inputs, see :class:`~headwater.methods.method.Method`; the whole batch is one step of progress unless
        the class says otherwise.

        Raises:
            InputError: the inputs, the target or the checkpoints do not fit, or the method is not for such inputs.
            TraceError: the network cannot be traced, or does not return logits ``(N, K)``.
        """
        inputs = Inputs.of(x)
        check_no_modules(checkpoints)
        graph = traced(self.model, inputs)
        check_kind(type(self).__name__, graph, inputs, self.refuses)
        activation = activation_of(graph.head, None)
        with computing(inputs.floating, gradients=True), _quietly():
            inputs = inputs.map(detached)
            network = self._rebuilt(graph)
            with torch.no_grad():
                logits = network(*network.ordered(inputs.tensors))
            logits = logits_before(logits[:, None] if logits.ndim == 1 else logits, graph.head)
            if logits.ndim != 2:
                raise TraceError(f"the network returns {tuple(logits.shape)}; logits (N, K) are needed")
            classes = check_target(target, logits)
            found = self.explain(network, inputs, classes, progress or (lambda done, total: None))
        if progress is not None and not self.has_steps:
            progress(1, 1)
        maps, values = found
        several = len(maps) > 1
        (first, *_), shape = graph.sources, maps[0].shape
        return Explanation(
            heatmap=structured(graph, inputs, maps) if several else maps[0],
            logits=logits,
            probability=probabilities(logits, activation).gather(1, classes[:, None])[:, 0],
            target=classes,
            relevance=None if values is None else structured(graph, inputs, values),
            axes=() if several else map_names(first, shape),
            head=graph.head,
            activation=activation,
        )

    @abstractmethod
    def explain(self, network: Rebuilt, inputs: Inputs, classes: Tensor, progress: Progress) -> Found:
        """The map of each input that has relevance, and the attribution of its values where the method has one.

        ``progress`` is to be called after each step by a method that has steps.
        """

    def _rebuilt(self, graph: Graph) -> Rebuilt:
        """The network in modules, as the method needs it."""
        return Rebuilt(graph, self.model)


class Captum(Baseline):
    """One of Captum's attribution methods; the map is the sum over channels.

    Args:
        model: the network.
        algorithm: name of the class in ``captum.attr``.
        options: for its ``attribute``.
    """

    def __init__(self, model: nn.Module, algorithm: str, **options: Any) -> None:
        super().__init__(model)
        self.algorithm = getattr(library("captum.attr", "captum"), algorithm)
        self.options = options

    def explain(self, network: Rebuilt, inputs: Inputs, classes: Tensor, progress: Progress) -> Found:
        tensors = network.ordered(inputs.tensors)
        count = len(network.graph.sources)
        given = tuple(t.clone().requires_grad_() for t in tensors[:count])
        beside = {"additional_forward_args": tuple(tensors[count:])} if len(tensors) > count else {}
        target = classes if network.has_classes else None
        values = self.algorithm(network).attribute(given, target=target, **beside, **self.options)
        values = [v.detach() for v in values]
        return maps_of(network.graph, values), values


class CaptumLRP(Baseline):
    """Captum's own LRP, the baseline of Otsuki et al.: the epsilon rule, and alpha-beta below the eighth join.

    Args:
        model: the network.
        mixture: alpha 1, beta 0 for convolutions before the eighth join, epsilon after it; else epsilon everywhere.
    """

    refuses: ClassVar[Mapping[str, str]] = {**Baseline.refuses, "several": "Captum's LRP takes one input"}

    def __init__(self, model: nn.Module, mixture: bool = False) -> None:
        super().__init__(model)
        self.mixture = mixture
        self.captum = library("captum.attr", "captum")
        self.rules = library("captum.attr._utils.lrp_rules", "captum")

    def _rebuilt(self, graph: Graph) -> Rebuilt:
        addition = library("captum.attr._utils.custom_modules", "captum").Addition_Module
        return Rebuilt(graph, self.model, cast("Callable[[], nn.Module]", addition))

    def explain(self, network: Rebuilt, inputs: Inputs, classes: Tensor, progress: Progress) -> Found:
        before = Structure(network.graph, layers_of(network.graph)).joins_before if self.mixture else {}
        for operation in (o for o in network.graph.operations if o.name in network.calls):
            module = network.calls[operation.name]
            if not _CAPTUM_KNOWS.intersection(type(c).__name__ for c in [module]):
                # Captum demands a rule for every module; operations without parameters pass their gradient.
                module.rule = self.rules.IdentityRule() if _elementwise(operation.kind) else self.rules.EpsilonRule()
            elif self.mixture and before[operation.name] < 8 and isinstance(module, nn.Conv2d):
                module.rule = self.rules.Alpha1_Beta0_Rule()
        (x,) = inputs.tensors
        relevance = self.captum.LRP(network).attribute(x.clone().requires_grad_(), target=classes).detach()
        return maps_of(network.graph, [relevance]), [relevance]


_CAPTUM_KNOWS = frozenset(
    ("Conv2d", "Linear", "BatchNorm2d", "MaxPool2d", "AdaptiveAvgPool2d", "ReLU", "Dropout", "Tanh", "Addition_Module")
)


def _elementwise(kind: str) -> bool:
    return kind in ("sigmoid", "silu", "hardswish", "relu6", "hardtanh", "gelu", "leaky_relu", "elu")


class GradCAM(Baseline):
    """Grad-CAM of the last feature map, enlarged to the image, in [0, 1] (pytorch-grad-cam)."""

    refuses: ClassVar[Mapping[str, str]] = {"not images": "pytorch-grad-cam weighs feature maps of rows and columns"}

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.algorithm = library("pytorch_grad_cam", "grad-cam").GradCAM
        self.make_target = library("pytorch_grad_cam.utils.model_targets", "grad-cam").ClassifierOutputTarget

    def explain(self, network: Rebuilt, inputs: Inputs, classes: Tensor, progress: Progress) -> Found:
        (x,) = inputs.tensors
        targets = [self.make_target(index) for index in classes.tolist()]
        feature_map, channels = network.feature_map()
        with self.algorithm(network, [feature_map], lambda features: features.movedim(channels, 1)) as cam:
            cam.compute_input_gradient = True
            return [torch.from_numpy(cam(x, targets)).to(x)], None


class Random(Baseline):
    """Uniform random numbers in [0, 1), a function of the input's values: the level of chance.

    Args:
        model: the network.
        seed: of the random numbers.
    """

    refuses: ClassVar[Mapping[str, str]] = {}

    def __init__(self, model: nn.Module, seed: int = 0) -> None:
        super().__init__(model)
        self.seed = seed

    def explain(self, network: Rebuilt, inputs: Inputs, classes: Tensor, progress: Progress) -> Found:
        tensors = network.ordered(inputs.tensors)
        sources = zip(network.graph.sources, tensors, strict=False)
        return [self._map(tensor, source.channels).to(classes.device) for source, tensor in sources], None

    def _map(self, x: Tensor, channels: int | None) -> Tensor:
        maps = []
        for image in x.double().cpu():
            positions = torch.arange(1, image.numel() + 1, dtype=torch.float64)
            number = int((image.flatten() * positions.cos()).sum().mul(1e6).round().item())
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + number) % 2**63)
            shape = [size for d, size in enumerate(image.shape, 1) if d != channels]
            maps.append(torch.rand(shape, generator=generator, dtype=torch.float32))
        return torch.stack(maps).to(x.dtype if x.is_floating_point() else torch.float32)


Found = tuple[list[Tensor], list[Tensor] | None]
"""What a baseline returns: a map for each input that has relevance, and its values' attribution or ``None``."""


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Suppress the libraries' warnings about their own hooks."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(forward, backward|Setting|required_grads|non-full backward).*")
        yield


def library(module: str, distribution: str) -> Any:
    """A module of an optional distribution.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingDependencyError(f"this method needs {distribution}: pip install 'headwater[methods]'") from error


BASELINES: dict[str, Callable[[nn.Module], Baseline]] = {
    "gradient-x-input": lambda model: Captum(model, "InputXGradient"),
    "integrated-gradients": lambda model: Captum(model, "IntegratedGradients", n_steps=50, internal_batch_size=32),
    "guided-backprop": lambda model: Captum(model, "GuidedBackprop"),
    "deeplift": lambda model: Captum(model, "DeepLift"),
    "lrp-epsilon": CaptumLRP,
    "lrp-mixture": lambda model: CaptumLRP(model, mixture=True),
    "gradcam": GradCAM,
    "random": Random,
}
"""Makes each baseline for a model."""
