"""What a network returns: which output is meant, and whether it ends with a softmax or sigmoid."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import headwater as hw
from headwater.engine.prediction import Predictor
from headwater.errors import InputError, TraceError

X = torch.randn(4, 10, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """What ``end`` makes of logits."""

    def __init__(self, end, classes: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.out, self.end = nn.Linear(10, 20), nn.Linear(20, classes), end

    def logits(self, x: Tensor) -> Tensor:
        return self.out(self.hidden(x).relu())

    def forward(self, x: Tensor):
        return self.end(self.logits(x))


HEADS = {
    "softmax": (lambda z: z.softmax(1), 3, "softmax"),
    "softmax of the last dimension": (lambda z: torch.softmax(z, -1), 3, "softmax"),
    "log_softmax": (lambda z: z.log_softmax(1), 3, "log_softmax"),
    "sigmoid": (lambda z: z.sigmoid(), 3, "sigmoid"),
    "sigmoid of one value": (lambda z: z.sigmoid(), 1, "sigmoid"),
    "sigmoid, squeezed": (lambda z: z.sigmoid().squeeze(1), 1, "sigmoid"),
}


@pytest.mark.parametrize(("end", "classes", "head"), HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("name", ["otsuki2024", "headwater"])
def test_the_probability_is_the_models_own(end, classes, head, name):
    net = Net(end, classes).eval()
    lrp = hw.LRP(net, name)
    e = lrp(X)
    own = net(X).exp() if head == "log_softmax" else net(X)
    own = own[:, None] if own.ndim == 1 else own
    torch.testing.assert_close(e.probability, own.gather(1, e.target[:, None])[:, 0])
    torch.testing.assert_close(e.probabilities, own)
    torch.testing.assert_close(e.logits, net.logits(X))
    torch.testing.assert_close(e.heatmap.sum(1), e.probability, rtol=1e-5, atol=1e-6)
    assert e.head == head
    assert e.activation == ("sigmoid" if head == "sigmoid" else "softmax")
    assert head in str(lrp.plan(X))


@pytest.mark.parametrize(("end", "classes", "head"), HEADS.values(), ids=HEADS)
def test_measures_and_baselines_follow_the_models_own_probability(end, classes, head):
    net = Net(end, classes).eval()
    own = net(X).exp() if head == "log_softmax" else net(X)
    own = (own[:, None] if own.ndim == 1 else own)[:, 0]
    for name in ("gradient-x-input", "random"):
        torch.testing.assert_close(hw.load_method(name, net)(X, 0).probability, own)
    result = hw.insertion_deletion(net, X, torch.rand(4, 10), 0, "budget", step=5)
    torch.testing.assert_close(result.insertion_curve[:, -1], own)
    torch.testing.assert_close(Predictor(net, X).probability(X, torch.zeros(4, dtype=torch.long)), own)


PROBABILITIES = {
    "an average": lambda z: (z.softmax(1) + (2 * z).softmax(1)) / 2,
    "clamped": lambda z: z.softmax(1).clamp(1e-6, 1),
    "normalised by hand": lambda z: z.exp() / z.exp().sum(1, keepdim=True),
    "of one class": lambda z: z.softmax(1)[:, 1],
    "a sigmoid by hand": lambda z: 1 / (1 + (-z).exp()),
    "half of a tanh": lambda z: (z.tanh() + 1) / 2,
    "a softmax in double precision": lambda z: z.softmax(1, dtype=torch.float64),
    "a hard sigmoid": lambda z: nn.functional.hardsigmoid(z),
    "labels, averaged": lambda z: (z.sigmoid() + (3 * z).sigmoid()) / 2,
}


@pytest.mark.parametrize("end", PROBABILITIES.values(), ids=PROBABILITIES)
@pytest.mark.parametrize("name", ["otsuki2024", "gradient-x-input", "random"])
def test_probabilities_that_are_made_otherwise_are_not_made_once_more(end, name):
    net = Net(end).eval()
    own = net(X)[:, None] if net(X).ndim == 1 else net(X)
    e = hw.load_method(name, net)(X, 0)
    own = own.float()
    torch.testing.assert_close(e.probability.float(), own[:, 0])
    torch.testing.assert_close(e.probabilities.float(), own, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(Predictor(net, X).probabilities(X).float(), own)


def test_a_class_for_each_token_by_a_softmax_over_the_last_dimension():
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.head = nn.Embedding(9, 6), nn.Linear(6, 4)

        def forward(self, ids):
            return self.head(self.words(ids)).softmax(-1)

    net, ids = Tokens().eval(), torch.tensor([[1, 2, 3], [4, 5, 6]])
    e = hw.LRP(net)(ids, target=2, region=(1,))
    assert e.logits.shape == (2, 4, 3)
    torch.testing.assert_close(e.probability, net(ids)[:, 1, 2])
    torch.testing.assert_close(e.heatmap.sum(1), e.probability, rtol=1e-5, atol=1e-6)


def test_a_value_that_is_in_the_unit_interval_by_chance_is_no_probability():
    net = Net(lambda z: 5 * z[:, 0].sigmoid(), 1).eval()
    for scale in (0.0, 10.0):  # below 1 for the first, above for the second
        assert hw.LRP(net)(scale * X).head is None


@pytest.mark.parametrize("dim", [1, -1])
def test_a_segmentation_may_have_its_classes_first_or_last(dim):
    class Segmented(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x):
            h = self.conv(x)
            return h.softmax(1) if dim == 1 else h.permute(0, 2, 3, 1).softmax(-1)

    net, x = Segmented().eval(), torch.rand(2, 3, 5, 6)
    e = hw.LRP(net)(x, target=2, region=(1, 3))
    assert e.logits.shape == (2, 4, 5, 6)
    own = net(x)[:, 2, 1, 3] if dim == 1 else net(x)[:, 1, 3, 2]
    torch.testing.assert_close(e.probability, own)


def test_a_softmax_inside_the_network_is_no_head():
    net = Net(lambda z: z.softmax(1) @ torch.tensor([[2.0, 0, 1], [0, 3, 1], [1, 1, 5]])).eval()
    e = hw.LRP(net)(X)
    assert e.head is None
    torch.testing.assert_close(e.probabilities, net(X).softmax(1))


def test_a_forward_that_writes_its_own_buffers_and_weights_leaves_the_users_as_they_are():
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))
            self.words, self.head = nn.Embedding(9, 6, max_norm=0.1), nn.Linear(6, 3)

        def forward(self, ids):
            self.calls.add_(1)
            return self.head(self.words(ids).mean(1))

    net, ids = Counting().eval(), torch.tensor([[1, 2, 3], [4, 5, 6]])
    before = {name: value.clone() for name, value in net.state_dict().items()}
    for name in ("otsuki2024", "random"):
        hw.load_method(name, net)(ids)
    hw.insertion_deletion(net, ids, torch.rand(2, 3), 0, "budget", step=1, baseline=0)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_softmax_over_pixels_is_no_head():
    conv = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Softmax(2)).eval()
    e = hw.LRP(conv)(torch.rand(1, 3, 5, 5), target=2)
    assert e.head == "chances"  # each pixel's value as it is
    assert (e.conservation.error < 1e-5).all()
    assert hw.LRP(nn.Sequential(conv[0], nn.Softmax(1)).eval())(torch.rand(1, 3, 5, 5)).head == "softmax"


def test_labels_that_do_not_exclude_each_other():
    net = Net(lambda z: z).eval()
    e = hw.LRP(net, activation="sigmoid")(X, target=1)
    torch.testing.assert_close(e.probability, net(X).sigmoid()[:, 1])
    torch.testing.assert_close(e.heatmap.sum(1), e.probability, rtol=1e-5, atol=1e-6)
    assert e.activation == "sigmoid"
    with pytest.raises(InputError, match="must be 'softmax' or 'sigmoid'"):
        hw.LRP(net, activation="relu")
    with pytest.raises(InputError, match="ends with a softmax itself"):
        hw.LRP(Net(lambda z: z.softmax(1)).eval(), activation="sigmoid")(X)


# -- which output ------------------------------------------------------------------------------------------------------


@dataclass
class Found:
    scores: Tensor
    note: str = "no tensor"


SINGLE = {
    "dict": lambda z: {"scores": z},
    "tuple": lambda z: (z,),
    "nested": lambda z: {"a": [{"b": z}]},
    "dataclass": lambda z: Found(z),
    "beside whole numbers": lambda z: {"scores": z, "classes": z.argmax(1)},
}


@pytest.mark.parametrize("end", SINGLE.values(), ids=SINGLE)
def test_one_output_is_that_one(end):
    net = Net(end).eval()
    torch.testing.assert_close(hw.LRP(net)(X).logits, net.logits(X))


MEANT = {
    "logits by name": lambda z: {"hidden": z * 2, "logits": z},
    "out by name": lambda z: {"out": z, "aux": z * 2},
    "probabilities first": lambda z: (z.softmax(1), z),
    "logits first": lambda z: (z, z.sigmoid()),
}


@pytest.mark.parametrize("end", MEANT.values(), ids=MEANT)
def test_of_several_outputs_the_one_that_is_meant(end):
    net = Net(end).eval()
    torch.testing.assert_close(hw.LRP(net)(X).logits, net.logits(X))


def test_otherwise_names_shapes_and_the_call_are_told():
    net = Net(lambda z: {"a": z, "b": {"c": [z * 2, z[:, :1]]}}).eval()
    with pytest.raises(TraceError, match=r"They are a \(4, 3\), b.c.0 \(4, 3\), b.c.1 \(4, 1\)\. .*output='a'\)"):
        hw.LRP(net)(X)
    torch.testing.assert_close(hw.LRP(net, output="b.c.0")(X).logits, 2 * net.logits(X))
    torch.testing.assert_close(hw.LRP(net, output=("b", "c", 1))(X).logits, net.logits(X)[:, :1])
    with pytest.raises(TraceError, match=r"returns no tensor at 'b\.d'"):
        hw.LRP(net, output="b.d")(X)
