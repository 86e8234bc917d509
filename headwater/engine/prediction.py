"""A network's own predictions, whatever it returns and however it ends, for what runs it many times."""

from __future__ import annotations

from torch import Tensor, nn
from torch.utils import _pytree

from headwater.engine.copies import shared_copy
from headwater.engine.graph import Activation
from headwater.engine.guards.modes import computing
from headwater.engine.heads import activation_of, logits_before, returned_probabilities
from headwater.engine.inputs import Inputs, NetworkInput
from headwater.engine.interpreter import output_of
from headwater.engine.outputs import Output
from headwater.engine.traces import traced
from headwater.engine.weights import live_tensors


class Predictor:
    """Runs a network in eval mode, without gradients and without changing it.

    Which of several outputs is meant and whether it ends with a softmax or sigmoid is known from its trace, as for
    :class:`headwater.LRP`.

    Args:
        model: the network.
        x: inputs of the size that it is to be run on.
        output: which output is meant, as for :class:`headwater.LRP`.
        activation: what makes probabilities of its logits, likewise.

    Raises:
        InputError: the network fails on such inputs.
        TraceError: it cannot be traced.
    """

    def __init__(
        self, model: nn.Module, x: NetworkInput | Inputs, output: Output = None, activation: Activation | None = None
    ) -> None:
        self.graph = traced(model, x, output)
        self.activation = activation_of(self.graph.head, activation)
        self._model = model
        self._network = shared_copy(model, to_run=True)

    def returned(self, x: NetworkInput | Inputs) -> Tensor:
        """What the network returns at that output, the classes in dimension 1."""
        inputs = Inputs.of(x)
        args, kwargs = inputs.cloned().arguments
        with computing(inputs.floating):
            result = _pytree.tree_leaves(self._network(*args, **kwargs))[self.graph.returned]
        return result.movedim(-1, 1) if self.graph.classes_last else result

    def logits(self, x: NetworkInput | Inputs) -> Tensor:
        """The logits ``(N, K, ...)``, as :class:`headwater.LRP` has them."""
        if self.graph.head in (None, "probabilities", "chances"):
            output = self.returned(x)
        else:  # what enters the softmax or sigmoid
            inputs = Inputs.of(x)
            with computing(inputs.floating):
                output = output_of(self.graph, live_tensors(self._model, self.graph.weights), inputs)
        return logits_before(output[:, None] if output.ndim == 1 else output, self.graph.head)

    def probabilities(self, x: NetworkInput | Inputs) -> Tensor:
        """The probability of each class, ``(N, K, ...)``."""
        output = self.returned(x)
        output = output[:, None] if output.ndim == 1 else output
        return returned_probabilities(output, self.graph.head, self.activation)

    def probability(self, x: NetworkInput | Inputs, classes: Tensor) -> Tensor:
        """The probability of one class for each example, ``(N,)``."""
        return self.probabilities(x).gather(1, classes[:, None])[:, 0]

    def predicted(self, x: NetworkInput | Inputs) -> Tensor:
        """The most probable class of each example, long ``(N,)``."""
        return self.logits(x).argmax(1)
