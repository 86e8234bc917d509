"""What cannot be explained is refused in one clear line."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import headwater as hw
from headwater.errors import InputError

X = torch.rand(2, 3, 8, 8)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 3)).eval()


@pytest.mark.parametrize("method", ["otsuki2024", "gradient-x-input", "rise"])
def test_torchscript_is_refused(network, method):
    with pytest.raises(InputError, match="the model is compiled by TorchScript"):
        hw.load_method(method, torch.jit.trace(network, X))
    mixed = nn.Sequential(torch.jit.script(nn.Conv2d(3, 3, 1)), network)
    with pytest.raises(InputError, match="module '0' of the model is compiled by TorchScript"):
        hw.load_method(method, mixed)


@pytest.mark.parametrize("method", ["otsuki2024", "gradient-x-input", "rise"])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (X.to_sparse(), "dense .* got a sparse_coo one"),
        (X.to_sparse(2), "dense .* got a sparse_coo one"),
        (torch.nested.nested_tensor([X[0], X[1]]), "dense .* got a nested one"),
        (X.to("meta"), "on the meta device and has no values"),
    ],
    ids=["sparse", "hybrid", "nested", "meta"],
)
def test_images_without_values_of_their_own_are_refused(network, method, given, message):
    with pytest.raises(InputError, match=message):
        hw.load_method(method, network)(given)


def test_no_checkpoints_may_be_none(network):
    e = hw.LRP(network)(X, checkpoints=None)
    assert e.checkpoints == {}
    assert torch.equal(e.relevance, hw.LRP(network)(X).relevance)


@pytest.mark.parametrize("given", [3, "0", 1.5, object()])
def test_checkpoints_that_are_no_list_are_refused(network, given):
    with pytest.raises(InputError, match="checkpoints must be a list of module names or 'cuts'"):
        hw.LRP(network)(X, checkpoints=given)
