"""A map is the same whatever modes of torch the caller has switched on, and whatever other threads do."""

from __future__ import annotations

import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch
import torchvision
from helpers import TinyResidual, settle
from torch.nn.utils import prune

import headwater as hw
from headwater.engine.guards import modes
from headwater.errors import TraceError
from headwater.methods.rise import Rise, RisePublished
from headwater.models.abn import AttentionBranchNetwork


@contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


MODES = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "double by default": lambda: default_dtype(torch.float64),
}
METHODS = [name for name in hw.list_methods() if name.removesuffix("-published") not in ("rise", "abn")]


def made(name, model):
    made_small = {"rise": Rise, "rise-published": RisePublished}.get(name)
    return made_small(model, masks=20, cells=4) if made_small else hw.load_method(name, model)


@pytest.mark.parametrize("name", [*METHODS, "rise", "rise-published"])
def test_the_callers_modes_change_nothing(tiny, images, name):
    expected = made(name, tiny)(images, 1)
    for mode, entered in MODES.items():
        if (name, mode) == ("scorecam", "double by default"):
            continue  # the library's own scores are of the default dtype
        with entered():
            e = made(name, tiny)(images, 1)
            assert torch.is_inference_mode_enabled() == (mode == "inference mode")
            assert torch.is_autocast_enabled("cpu") == (mode == "autocast")
        assert torch.equal(e.heatmap, expected.heatmap), mode


def test_nor_do_they_change_an_attention_map():
    torch.manual_seed(0)
    model = AttentionBranchNetwork(torchvision.models.resnet18(num_classes=3)).eval()
    x = torch.rand(2, 3, 64, 64)
    expected = hw.load_method("abn", model)(x).heatmap
    for mode in MODES.values():
        with mode():
            assert torch.equal(hw.load_method("abn", model)(x).heatmap, expected)


@pytest.mark.parametrize("name", METHODS)
def test_images_made_in_inference_mode(tiny, images, name):
    with torch.inference_mode():
        inferred = images.clone()
    method = hw.load_method(name, tiny)
    assert torch.equal(method(inferred, 1).heatmap, method(images, 1).heatmap)


def test_a_model_made_in_inference_mode_says_so(images):
    with torch.inference_mode():
        model = settle(TinyResidual())
    for name in ("otsuki2024", "gradcam"):
        with pytest.raises(TraceError, match=r"made in torch\.inference_mode"):
            hw.load_method(name, model)(images)


def test_threads_that_trace_at_the_same_time_give_the_same_bits(tiny):
    x = torch.rand(2, 3, 64, 64)
    expected = hw.LRP(tiny)(x).heatmap
    with ThreadPoolExecutor(4) as pool:
        for e in pool.map(lambda _: hw.LRP(tiny)(x), range(8)):
            assert torch.equal(e.heatmap, expected)


def test_threads_may_share_an_lrp_and_bring_batches_of_any_size():
    class Tokens(torch.nn.Module):
        """Its shapes, and a token for each image, are computed from the number of images."""

        def __init__(self):
            super().__init__()
            self.patches, self.token = torch.nn.Conv2d(3, 4, 4, 4), torch.nn.Parameter(torch.rand(1, 1, 4))
            self.head = torch.nn.Linear(4, 3)

        def forward(self, x):
            h = self.patches(x).flatten(2).mT
            h = torch.cat([self.token.expand(x.shape[0], -1, -1), h], 1).reshape(x.shape[0] * 17, 4).relu()
            return self.head(h.view(x.shape[0], 17, 4).mean(1))

    torch.manual_seed(0)
    lrp, x = hw.LRP(Tokens()), torch.rand(16, 3, 16, 16)
    expected = lrp(x, 1).relevance
    sizes = [1, 3, 16, 2, 5, 8] * 20
    with ThreadPoolExecutor(4) as pool:
        for size, e in zip(sizes, pool.map(lambda size: lrp(x[:size], 1), sizes), strict=True):
            torch.testing.assert_close(e.relevance, expected[:size])


def test_tracing_waits_for_sweeps_and_sweeps_for_tracing(images):
    order, swept, entered = [], threading.Event(), threading.Event()

    def trace():
        with modes.tracing(images):
            order.append("traced")

    def sweep():
        with modes.computing(images):
            entered.set()
            swept.wait(10)
            order.append("swept")

    first, second = threading.Thread(target=sweep), threading.Thread(target=trace)
    first.start()
    assert entered.wait(10)
    second.start()
    second.join(0.1)
    assert second.is_alive() and order == []
    with modes.computing(images):  # another sweep is not kept waiting
        swept.set()
        first.join(10)
    second.join(10)
    assert order == ["swept", "traced"]


@pytest.mark.parametrize("precision", ["none", "tf32", "ieee"])
def test_exact_kernels_are_on_while_any_sweep_runs_and_put_back_after_the_last(precision):
    def kernels():
        return [getattr(owner, name) for owner, name, _ in modes._EXACT_KERNELS]

    turns, exact = modes.ReadWriteLock(), [value for _, _, value in modes._EXACT_KERNELS]
    started_with = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = precision
    try:
        before = kernels()
        assert before[0] == precision
        with turns.beside(exact_kernels=False):
            assert kernels() == before
        first, second = turns.beside(exact_kernels=True), turns.beside(exact_kernels=True)
        first.__enter__()
        second.__enter__()
        assert kernels() == exact
        first.__exit__(None, None, None)
        assert kernels() == exact
        second.__exit__(None, None, None)
        assert kernels() == before
    finally:
        torch.backends.cuda.matmul.fp32_precision = started_with


def test_copies_and_pickles_explain_alike(tiny, images):
    lrp = hw.LRP(tiny)
    expected = lrp(images).heatmap
    for copied in (copy.deepcopy(lrp), pickle.loads(pickle.dumps(lrp))):
        assert torch.equal(copied(images).heatmap, expected)


def test_a_pruned_network_is_explained_and_left_as_it_was(tiny, images):
    prune.l1_unstructured(tiny.block1.conv1, "weight", 0.5)
    made_by_pruning = tiny.block1.conv1.weight
    e = hw.LRP(tiny)(images)
    assert tiny.block1.conv1.weight is made_by_pruning
    torch.testing.assert_close(e.logits, tiny(images).detach())
    prune.remove(tiny.block1.conv1, "weight")
    torch.testing.assert_close(hw.LRP(tiny)(images).heatmap, e.heatmap)
