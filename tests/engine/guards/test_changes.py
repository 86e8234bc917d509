"""Whatever changes between two calls, the next map is the one that a fresh explainer would make, bit for bit."""

from __future__ import annotations

import enum
import functools
import gc
import math
import random
import threading
import types
import weakref

import numpy as np
import pytest
import torch
from helpers import TinyResidual, settle
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize, prune

import headwater as hw
from headwater.engine.guards.checksum import checksum, same
from headwater.engine.guards.signature import signature
from headwater.errors import InputError, TraceError, UnsupportedOperationError
from headwater.methods.rise import Rise

X = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) - 0.3


class Mode(enum.Enum):
    DOUBLE = 2.0
    TRIPLE = 3.0


class Options:
    def __init__(self) -> None:
        self.scale = {"by": [1.0, 2.0]}


class Net(nn.Module):
    """Reads attributes of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv2, self.pool = nn.Conv2d(6, 6, 3, padding=1), nn.MaxPool2d(2)
        self.head = nn.Linear(6, 4)
        self.times, self.residual, self.kind, self.none = 1, True, "relu", None
        self.sides, self.options, self.mode = (2, 3), Options(), Mode.DOUBLE
        self.shift, self.table = torch.full((6, 1, 1), 0.5), np.ones((6, 1, 1), np.float32)
        self.act = functional.relu
        self.extra = [nn.Conv2d(6, 6, 1)]
        self.seen: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.conv1(x))
        for _ in range(self.times):
            h = self.act(self.conv2(h)) + (h if self.residual else 0)
        h = h.tanh() if self.kind == "tanh" else h
        h = h + self.shift * torch.from_numpy(self.table) if self.none is None else h
        h = self.extra[0](self.pool(h)) * self.options.scale["by"][1] * self.mode.value
        self.seen = h
        return self.head(h.mean(self.sides)) * GLOBAL["factor"]


GLOBAL = {"factor": 1.0}


@pytest.fixture
def net():
    torch.manual_seed(0)
    return settle(Net())


def assert_noticed(model, change, x=X, method="otsuki2024"):
    """After ``change(model)`` a method that has explained before makes the map that a fresh one makes."""
    old = hw.load_method(method, model)
    before = old(x, 1)
    old(x, 1)
    change(model)
    after, fresh = old(x, 1), hw.load_method(method, model)(x, 1)
    assert torch.equal(after.heatmap, fresh.heatmap)
    assert torch.equal(after.logits, fresh.logits)
    assert not torch.equal(before.logits, after.logits), "the change changes nothing, so this shows nothing"


def swap(model):
    flat = model.conv1.weight.data.view(-1)
    flat[[5, 77]] = flat[[77, 5]]


def numpy_view(model):
    model.conv2.weight.detach().numpy()[1, 2, 1, 1] += 3


def untracked(model):
    model.conv1.weight.data[1, 1, 1, 1] += 3


def zeroed_filter(model):
    model.conv1.weight.data[2] = 0


def negated(model):
    model.conv2.weight.data.neg_()


def halved(model):
    model.conv2.weight.data.mul_(0.5)


WEIGHTS = {
    "one value through .data": untracked,
    "a numpy view": numpy_view,
    "a filter zeroed": zeroed_filter,
    "two values swapped": swap,
    "all signs": negated,
    "all exponents": halved,
    "in place": lambda m: m.conv1.weight.requires_grad_(False).mul_(1.5),
    "an optimiser's step": lambda m: torch.optim.SGD(m.parameters(), 0.1).step(
        lambda: functional.cross_entropy(m(X), torch.tensor([0, 1])).backward()
    ),
    "another parameter": lambda m: setattr(m.conv2, "weight", nn.Parameter(m.conv2.weight.detach() * 2)),
    "a bias": lambda m: m.head.bias.data.add_(1),
    "running mean": lambda m: m.norm.running_mean.numpy().__iadd__(1),
    "running variance": lambda m: m.norm.running_var.data.mul_(2),
    "a constant": lambda m: m.shift.numpy().__imul__(3),
    "an array": lambda m: m.table.__imul__(3),
    "a hidden module's weight": lambda m: m.extra[0].weight.data.mul_(-1),
}


@pytest.mark.parametrize("change", WEIGHTS.values(), ids=WEIGHTS)
def test_changed_values_are_noticed(net, change):
    assert_noticed(net, change)


@pytest.mark.parametrize("name", ["two values swapped", "a constant", "a hidden module's weight"])
@pytest.mark.parametrize("method", ["gradient-x-input", "gradcam", "c3-lrp"])
def test_baselines_notice_changed_values(net, method, name):
    assert_noticed(net, WEIGHTS[name], method=method)


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def replace_forward(model):
    def forward(self, x):
        return self.head(self.conv1(x).relu().mean((2, 3)))

    model.forward = types.MethodType(forward, model)


def smaller_kernel(model):
    model.conv2.weight = nn.Parameter(model.conv2.weight[..., 1:2, 1:2].detach().clone())
    model.conv2.padding = (0, 0)


def gain(module):
    module.parametrizations.weight.original0.data.mul_(2)


STRUCTURE = {
    "pruning": lambda m: prune.l1_unstructured(m.conv1, "weight", 0.5),
    "parametrizing": lambda m: parametrize.register_parametrization(m.conv2, "weight", Doubled()),
    "weight norm and its gain": lambda m: gain(parametrizations.weight_norm(m.conv2)),
    "spectral norm": lambda m: parametrizations.spectral_norm(m.conv2),
    "old weight norm": lambda m: nn.utils.weight_norm(m.conv2).weight_g.data.mul_(2),
    "old spectral norm": lambda m: nn.utils.spectral_norm(m.conv2),
    "another module": lambda m: setattr(m, "norm", nn.InstanceNorm2d(6)),
    "a module appended": lambda m: setattr(m, "pool", nn.Sequential(m.pool, nn.Sigmoid())),
    "padding": lambda m: setattr(m.conv1, "padding", (0, 0)),
    "padding mode": lambda m: (
        setattr(m.conv1, "padding_mode", "circular"),
        setattr(m.conv1, "_reversed_padding_repeated_twice", [1, 1, 1, 1]),
    ),
    "stride": lambda m: setattr(m.conv2, "stride", (2, 2)) or setattr(m, "residual", False),
    "eps": lambda m: setattr(m.norm, "eps", 0.7),
    "an int": lambda m: setattr(m, "times", 2),
    "a bool": lambda m: setattr(m, "residual", False),
    "a str": lambda m: setattr(m, "kind", "tanh"),
    "None": lambda m: setattr(m, "none", 0),
    "a tuple": lambda m: (setattr(m, "sides", (3,)), setattr(m, "head", nn.Sequential(nn.Flatten(), nn.Linear(24, 4)))),
    "a list in a dict in an object": lambda m: m.options.scale["by"].__setitem__(1, 5.0),
    "an enum": lambda m: setattr(m, "mode", Mode.TRIPLE),
    "another tensor": lambda m: setattr(m, "shift", torch.ones(6, 1, 1)),
    "a function": lambda m: setattr(m, "act", functional.silu),
    "a partial": lambda m: setattr(m, "act", functools.partial(functional.leaky_relu, negative_slope=0.3)),
    "forward of the instance": replace_forward,
    "a weight of another shape": smaller_kernel,
    "a shared weight": lambda m: setattr(m.extra[0], "bias", m.conv2.bias) or setattr(m.conv1, "bias", m.conv2.bias),
}


@pytest.mark.parametrize("change", STRUCTURE.values(), ids=STRUCTURE)
def test_changed_structure_is_noticed(net, change):
    torch.manual_seed(1)
    assert_noticed(net, change)


@pytest.mark.parametrize("name", ["pruning", "padding", "eps", "an int", "forward of the instance"])
@pytest.mark.parametrize("method", ["gradient-x-input", "gradcam", "c3-lrp"])
def test_baselines_notice_changed_structure(net, method, name):
    assert_noticed(net, STRUCTURE[name], method=method)


def test_pruning_can_be_made_permanent_and_parametrizations_removed(net):
    prune.l1_unstructured(net.conv1, "weight", 0.5)
    parametrize.register_parametrization(net.conv2, "weight", Doubled())
    assert_noticed(net, lambda m: m.conv1.weight_mask.zero_())
    prune.remove(net.conv1, "weight")
    assert_noticed(net, lambda m: parametrize.remove_parametrizations(m.conv2, "weight", leave_parametrized=False))


def test_a_weight_untied_from_another_is_noticed(net):
    net.extra[0].weight = nn.Parameter(torch.rand(6, 6, 1, 1))
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Flatten())
    model[1].weight = model[0].weight
    assert_noticed(model, lambda m: setattr(m[1], "weight", nn.Parameter(torch.rand(3, 3, 1, 1))))


def test_code_outside_the_modules_is_read_anew_by_retrace(net, monkeypatch):
    helper = {"slope": 0.1}

    def act(h: Tensor, by: float = 1.0) -> Tensor:
        return functional.leaky_relu(h, helper["slope"]) * by

    net.act = act
    lrp = hw.LRP(net)
    for change in (
        lambda: monkeypatch.setitem(GLOBAL, "factor", 3.0),
        lambda: helper.update(slope=0.9),
        lambda: setattr(act, "__defaults__", (2.0,)),
    ):
        before = lrp(X, 1).logits
        change()
        assert torch.equal(lrp(X, 1).logits, before)  # not seen: nothing of the module tree has changed
        lrp.retrace()
        assert torch.allclose(lrp(X, 1).logits, net.eval()(X), atol=1e-5)
        assert not torch.equal(lrp(X, 1).logits, before)


def test_a_replaced_forward_of_the_class_is_noticed(net, monkeypatch):
    forward = Net.forward
    assert_noticed(net, lambda m: monkeypatch.setattr(Net, "forward", lambda self, x: forward(self, x.relu())))


def test_a_model_of_another_dtype_is_noticed(tiny):
    lrp, x = hw.LRP(tiny), torch.rand(1, 3, 16, 12)
    lrp(x)
    tiny.double()
    assert torch.equal(lrp(x.double()).relevance, hw.LRP(tiny)(x.double()).relevance)
    tiny.float()
    assert torch.equal(lrp(x).relevance, hw.LRP(tiny)(x).relevance)


def test_what_does_not_change_the_map_does_not_cost_a_trace(net, monkeypatch):
    prune.l1_unstructured(net.conv1, "weight", 0.5)
    lrp = hw.LRP(net)
    expected = lrp(X)
    monkeypatch.setattr("headwater.engine.traces.trace_of", lambda *_: pytest.fail("traced again"))
    net.train()
    net.requires_grad_(False)
    net.eval()(X)  # which writes ``self.seen``
    net.conv2.register_forward_hook(lambda *_: None)
    net.requires_grad_(True)
    net.conv2.weight.grad = torch.ones_like(net.conv2.weight)
    assert torch.equal(lrp(X).relevance, expected.relevance)
    assert torch.equal(hw.LRP(net, "headwater")(X).logits, expected.logits)  # all composites share one trace


def test_a_signature_reads_no_source_and_no_other_package(net, monkeypatch):
    """The configuration of a transformers network, say, is compared by its values, its package by identity."""
    net.package = torch
    net.helper = Options()
    before = signature(net)
    monkeypatch.setattr(torch, "_a_new_name_in_the_package", 1, raising=False)
    assert signature(net) == before
    net.helper.scale["by"].append(3.0)
    assert signature(net) != before


def test_a_module_in_a_list_and_a_namespace_are_looked_into():
    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks, self.options = [nn.Conv2d(3, 4, 1)], types.SimpleNamespace(k=1.0, deep=[[torch.ones(2000)]])

        def forward(self, x):
            return self.blocks[0](x).relu().mean((2, 3)) * self.options.k * self.options.deep[0][0].sum()

    torch.manual_seed(0)
    for change in (
        lambda m: m.blocks.__setitem__(0, nn.Conv2d(3, 4, 1)),
        lambda m: setattr(m.blocks[0], "weight", nn.Parameter(torch.rand(4, 3, 1, 1))),
        lambda m: setattr(m.options, "k", 3.0),
        lambda m: m.options.deep[0][0].mul_(2),
    ):
        assert_noticed(Listed(), change)


def test_an_attribute_that_cannot_be_copied_is_told():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten())
    model.lock = threading.Lock()
    with pytest.raises(InputError, match="cannot be copied, since an attribute of its modules cannot"):
        hw.LRP(model)(X)


class Callable:
    def __init__(self):
        self.slope = 0.1

    def __call__(self, h):
        return functional.leaky_relu(h, self.slope)


class Slotted:
    __slots__ = ("scale",)

    def __init__(self):
        self.scale = 1.0


class Scaled(nn.Module):
    gain = 1.0

    def __init__(self):
        super().__init__()
        self.conv, self.act, self.options = nn.Conv2d(3, 4, 3), Callable(), Slotted()

    def extra(self, h):
        return h

    def forward(self, x):
        return (self.extra(self.act(self.conv(x))) * self.options.scale * self.gain).mean((2, 3))


def test_objects_that_are_called_slots_and_attributes_and_functions_of_the_class_are_noticed(monkeypatch):
    torch.manual_seed(0)
    for change in (
        lambda m: setattr(m.act, "slope", 0.9),
        lambda m: setattr(m.options, "scale", 3.0),
        lambda m: monkeypatch.setattr(Scaled, "gain", 2.0),
        lambda m: monkeypatch.setattr(Scaled, "extra", lambda self, h: h * 5),
    ):
        assert_noticed(Scaled(), change)


def test_what_forward_writes_hides_no_change_of_the_rest():
    class Writing(nn.Module):
        def __init__(self):
            super().__init__()
            self.kept, self.a, self.b = None, nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 3)

        def forward(self, x):
            h = self.a(x).relu().mean((2, 3))
            self.kept = [h.shape[1], "written"]
            return self.b(h)

    torch.manual_seed(0)
    model = Writing().eval()
    model(X)
    assert_noticed(model, lambda m: setattr(m.a, "weight", nn.Parameter(torch.rand(4, 3, 1, 1))))
    model = Writing().train()
    lrp = hw.LRP(model)
    lrp(X)
    model(X).sum().backward()
    lrp(X)  # whatever that has written


def test_a_model_with_traces_is_freed_with_its_last_reference():
    class Bound(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.act = self._act

        def _act(self, h):
            return h.relu()

        def forward(self, x):
            return self.act(self.conv(x)).mean((2, 3))

    model = Bound().eval()
    reference = weakref.ref(model)
    hw.LRP(model)(X)
    del model
    gc.collect()
    assert reference() is None


def test_threads_that_begin_together_share_one_trace(net, monkeypatch):
    from headwater.engine import traces

    made, trace_of = [], traces.trace_of
    monkeypatch.setattr(traces, "trace_of", lambda *given: made.append(1) or trace_of(*given))
    threads = [threading.Thread(target=hw.LRP(net), args=(X,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1


@pytest.mark.parametrize("method", ["otsuki2024", "gradient-x-input", "random", "rise"])
def test_a_forward_that_writes_over_its_input_leaves_the_users_as_it_is(method):
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            x -= 0.5
            return self.conv(nn.functional.relu_(x)).mean((2, 3))

    torch.manual_seed(0)
    x = X.clone()
    explain = Rise(InPlace().eval(), masks=4) if method == "rise" else hw.load_method(method, InPlace().eval())
    assert torch.isfinite(explain(x).heatmap).all()
    assert torch.equal(x, X)


def test_a_trace_that_differs_from_the_network_is_refused():
    class Sides(nn.Module):
        """Takes another way once it is traced."""

        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            return self.head(x) * (2 if torch.compiler.is_exporting() else 1)

    with pytest.raises(TraceError, match=r"the trace of Sides returns .* where the network itself returns"):
        hw.LRP(Sides())(torch.rand(2, 4))


def test_an_lrp_may_be_used_while_the_model_learns(tiny):
    lrp, x = hw.LRP(tiny), torch.rand(4, 3, 16, 12)
    optimiser = torch.optim.SGD(tiny.parameters(), 0.1)
    for _ in range(3):
        tiny.train()
        functional.cross_entropy(tiny(x), torch.arange(4)).backward()
        optimiser.step()
        assert torch.equal(lrp(x).relevance, hw.LRP(tiny)(x).relevance)


def test_a_tensor_that_became_a_size_is_noticed():
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.count = torch.tensor(2)

        def forward(self, h: Tensor) -> Tensor:
            return h[:, : int(self.count)]

    torch.manual_seed(0)
    assert_noticed(nn.Sequential(nn.Conv2d(3, 4, 3), Cut(), nn.Flatten()), lambda m: m[1].count.numpy().fill(3))


def test_attributes_whose_names_are_computed_are_noticed():
    class Computed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.scale_0, self.scale_1 = nn.Conv2d(3, 4, 3), 1.0, 2.0

        def forward(self, x: Tensor) -> Tensor:
            h = self.conv(x)
            for k in range(2):
                h = h * getattr(self, f"scale_{k}")
            return h.flatten(1)

    torch.manual_seed(0)
    assert_noticed(Computed(), lambda m: setattr(m, "scale_1", 5.0))


# -- the checksum ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bit", [0, 15, 23, 30, 31])
@pytest.mark.parametrize("place", [0, 1, 700_000, 1_000_002])
def test_one_flipped_bit_of_a_million_values_changes_the_checksum(place, bit):
    tensor = torch.randn(1_000_003)
    before = checksum([tensor])
    tensor.view(torch.int32)[place] ^= -(2**31) if bit == 31 else 2**bit
    assert not same(before, checksum([tensor]))


def test_changes_that_a_plain_sum_would_lose_change_the_checksum():
    tensor = torch.randn(64, 64, 3, 3)
    before = checksum([tensor])
    for changed in (-tensor, tensor * 2, tensor.flip(0), tensor.roll(1, 0), tensor.roll(2, 3), tensor.mT.contiguous()):
        assert not same(before, checksum([changed]))
    for k in range(0, tensor.numel(), 997):
        flat = tensor.clone().view(-1)
        flat[[0, k]] = -flat[[k, 0]]
        assert not same(before, checksum([flat]))
    pair = tensor.clone().view(-1)
    pair[[1, 3]] *= -1  # the top bits of two words
    assert not same(before, checksum([pair]))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(5, 7, 3, 3).contiguous(memory_format=torch.channels_last),
        torch.randn(9, 11).T,
        torch.randn(1, 9).expand(7, 9),
        torch.randn(31)[3:],
        torch.randn(40, 40)[3:30, 5:20],
        torch.randn(77).double(),
        torch.randn(77).half(),
        torch.randn(77).bfloat16(),
        torch.randn(77).to(torch.float8_e4m3fn),
        torch.randint(0, 2, (33,)).bool(),
        torch.randint(-5, 5, (33,), dtype=torch.int8),
        torch.randn(13, dtype=torch.complex64).conj(),
        torch.tensor(3),
        torch.tensor(math.nan),
    ],
    ids=lambda t: f"{t.dtype}{tuple(t.stride())}",
)
def test_every_layout_and_dtype_has_a_checksum(tensor):
    before = checksum([tensor])
    assert same(before, checksum([tensor]))
    storage = tensor.untyped_storage()
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    for element in (0, last):
        byte = (tensor.storage_offset() + element) * tensor.itemsize
        storage[byte] ^= 1
        assert not same(before, checksum([tensor]))
        storage[byte] ^= 1
    assert same(before, checksum([tensor]))


def test_the_checksum_does_not_depend_on_threads():
    tensor, threads = torch.randn(3_000_001), torch.get_num_threads()
    expected = checksum([tensor])
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert same(expected, checksum([tensor]))
    finally:
        torch.set_num_threads(threads)


# -- networks that are random, or in which images change each other ----------------------------------------------------


class With(nn.Module):
    def __init__(self, act) -> None:
        super().__init__()
        self.conv, self.head, self.act = nn.Conv2d(3, 4, 3), nn.Linear(4, 3), act

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.conv(x)).mean((2, 3)))


RANDOM = {
    "dropout": lambda h: functional.dropout(h, 0.5, training=True),
    "dropout2d": lambda h: functional.dropout2d(h, 0.5, training=True),
    "alpha_dropout": lambda h: functional.alpha_dropout(h, 0.5, training=True),
    "rrelu": lambda h: functional.rrelu(h, training=True),
    "bernoulli": lambda h: h * torch.bernoulli(torch.full_like(h, 0.5)),
    "randn_like": lambda h: h + torch.randn_like(h),
    "rand": lambda h: h * torch.rand(1),
    "randperm": lambda h: h[:, torch.randperm(4)],
    "attention": lambda h: functional.scaled_dot_product_attention(h, h, h, dropout_p=0.5),
    "python": lambda h: h * random.random(),
    "numpy": lambda h: h * float(np.random.rand()),
    "python's choice": lambda h: h if random.randint(0, 10**6) % 3 else h.relu(),
}


@pytest.mark.parametrize("act", RANDOM.values(), ids=RANDOM)
def test_a_network_that_is_random_is_refused(act):
    random.seed(3)
    with pytest.raises(TraceError, match="random in eval mode too"):
        hw.LRP(With(act))(X)


@pytest.mark.parametrize("method", ["gradient-x-input", "gradcam"])
def test_baselines_refuse_a_random_network(method):
    with pytest.raises(TraceError, match=r"operation 'dropout' in module .* is random"):
        hw.load_method(method, With(RANDOM["dropout"]))(X)


@pytest.mark.parametrize("act", [nn.Dropout(0.5), nn.AlphaDropout(0.2), nn.Dropout2d(0.5)])
def test_what_is_random_in_training_alone_is_explained(act):
    assert hw.LRP(With(act).train())(X).conservation.error.max() < 1e-5


COUPLED = {
    "mean": lambda h: h - h.mean(0, keepdim=True),
    "mean of all": lambda h: h - h.mean(),
    "softmax": lambda h: h.softmax(0),
    "flip": lambda h: h + h.flip(0),
    "roll": lambda h: h + h.roll(1, 0),
    "the first image": lambda h: h - h[:1],
    "the last image": lambda h: h - h[-1:],
    "std": lambda h: h / (1 + h.std()),
    "similarity": lambda h: h * (h.flatten(1) @ h.flatten(1).T).amax(1)[:, None, None, None],
}


@pytest.mark.parametrize("act", COUPLED.values(), ids=COUPLED)
def test_a_network_that_couples_its_batch_is_refused(act):
    torch.manual_seed(0)
    for method in ("otsuki2024", "gradient-x-input"):
        with pytest.raises(UnsupportedOperationError, match=r"operation '\w+' in .* change each other's"):
            hw.load_method(method, With(act))(X)


@pytest.mark.parametrize("method", ["otsuki2024", "gradient-x-input"])
def test_normalisation_over_the_batch_is_refused(method):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten())
    with pytest.raises(UnsupportedOperationError, match="change each other's results"):
        hw.load_method(method, model)(X)


@pytest.mark.parametrize(
    "act",
    [
        lambda h: h.permute(2, 3, 0, 1).softmax(0).permute(2, 3, 0, 1),
        lambda h: torch.cat([h, -h], 0).view(2, -1, *h.shape[1:]).sum(0),
        lambda h: h.transpose(0, 1).flip(0).transpose(0, 1),
        lambda h: torch.stack([h, h.relu()]).amax(0),
    ],
)
def test_a_network_that_keeps_images_apart_in_its_own_way_is_explained(act):
    torch.manual_seed(0)
    lrp = hw.LRP(With(act))
    assert torch.isfinite(lrp(X, 1).relevance).all()


def test_a_kernel_that_batch_normalisation_standardises_keeps_images_apart():
    class Standardised(nn.Conv2d):  # as in BiT
        def forward(self, x: Tensor) -> Tensor:
            flat = self.weight.reshape(1, self.out_channels, -1)
            weight = functional.batch_norm(flat, None, None, training=True).reshape_as(self.weight)
            return functional.conv2d(x, weight, self.bias)

    torch.manual_seed(0)
    assert hw.LRP(With(Standardised(4, 4, 1)))(X).conservation.error.max() < 1e-5


def test_a_tiny_residual_network_needs_no_trial_run(monkeypatch):
    monkeypatch.setattr("headwater.engine.guards.coupling.live_tensors", lambda *_: pytest.fail("a trial run"))
    hw.LRP(settle(TinyResidual()))(torch.rand(1, 3, 16, 12))


# -- another composite, the batch size --------------------------------------------------------------------------------


def test_another_composite_counts_from_the_next_call(tiny, images):
    lrp = hw.LRP(tiny)
    lrp(images)
    lrp.composite = "otsuki2024-ii"
    assert torch.equal(lrp(images).relevance, hw.LRP(tiny, "otsuki2024-ii")(images).relevance)
    with pytest.raises(InputError, match="must be a name or a Composite"):
        lrp.composite = 3


def test_a_network_that_computes_with_the_batch_size_is_refused(images):
    class Times(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.conv(x).mean((2, 3))) * len(x)

    with pytest.raises(UnsupportedOperationError, match="other results in a batch than alone"):
        hw.LRP(Times().eval())(images)
