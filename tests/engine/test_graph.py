from __future__ import annotations

import pytest
import torch
from torch import nn

from headwater.engine.graph import Value
from headwater.engine.trace import trace
from headwater.errors import TraceError

X = torch.zeros(1, 3, 8, 8)


class Lambda(nn.Module):
    def __init__(self, function, *modules):
        super().__init__()
        self.function, self.children_ = function, nn.ModuleList(modules)

    def forward(self, x):
        return self.function(x, *self.children_)


def test_operations_know_their_modules(tiny):
    graph = trace(tiny, torch.zeros(1, 3, 16, 12))
    places = {operation.module: operation.kind for operation in graph.operations}
    assert places["block1.conv2"] == "conv2d"
    assert places["block1"] == "add"
    assert places["dropout"] == "dropout"
    assert graph.batch is None


def test_in_place_operations_are_replaced_and_their_results_taken_by_later_readers():
    def forward(x, conv):
        y = conv(x)
        y.relu_()
        return (y * 2).add_(y).flatten(1)

    graph = trace(Lambda(forward, nn.Conv2d(3, 4, 1)), X)
    relu = next(operation for operation in graph.operations if operation.kind == "relu")
    assert "relu_" not in str(relu.target)
    mul, add = graph.operations[2], graph.operations[3]
    assert mul.inputs == (relu.name,)
    assert add.inputs == (mul.name, relu.name)


def test_writes_into_views_are_made_functional():
    def forward(x, conv):
        y = conv(x)
        y[:, :1].mul_(2.0)
        return y.flatten(1)

    graph = trace(Lambda(forward, nn.Conv2d(3, 4, 1)), X)
    values = {"x": torch.randn(2, 3, 8, 8)}
    model = Lambda(forward, nn.Conv2d(3, 4, 1))
    weights = {"children_.0.weight": model.children_[0].weight, "children_.0.bias": model.children_[0].bias}
    for operation in graph.operations:
        args, kwargs = operation.bind(
            lambda leaf: (
                values[leaf.name] if isinstance(leaf, Value) else weights.get(getattr(leaf, "name", None), leaf)
            )
        )
        values[operation.name] = operation.target(*args, **kwargs)
    torch.testing.assert_close(values[graph.output], model(values["x"]))


def test_tracing_runs_no_hooks_and_changes_no_mode(tiny):
    seen = []
    tiny.train()
    tiny.block1.eval()
    tiny.block1.conv1.register_forward_hook(lambda *_: seen.append("forward"))
    tiny.register_forward_pre_hook(lambda *_: seen.append("pre"))
    modes = {name: module.training for name, module in tiny.named_modules()}
    trace(tiny, torch.zeros(1, 3, 16, 12))
    assert seen == []
    assert {name: module.training for name, module in tiny.named_modules()} == modes
    assert len(tiny.block1.conv1._forward_hooks) == 1


def test_weight_norm_is_part_of_the_network():
    conv = torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 1))
    graph = trace(nn.Sequential(conv, nn.Flatten()), X)
    assert any("parametrizations" in name for operation in graph.operations for name in operation.weights)


def test_data_dependent_control_flow_is_a_clear_error():
    with pytest.raises(TraceError, match="could not be traced"):
        trace(Lambda(lambda x: x.flatten(1) if x.sum() > 0 else x.flatten(1) * 2), X)


def test_several_outputs_are_a_clear_error():
    with pytest.raises(TraceError, match="returns 2 values"):
        trace(Lambda(lambda x: (x.flatten(1), x)), X)


def test_an_output_that_ignores_the_image_is_a_clear_error():
    with pytest.raises(TraceError, match=r"does not depend on the input|could not be traced"):
        trace(Lambda(lambda x, f: f.weight * 2, nn.Linear(3, 3)), X)
