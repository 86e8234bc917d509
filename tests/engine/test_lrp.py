from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from helpers import TinyResidual, settle
from torch import nn

import headwater as hw
from headwater.composites import Blocks
from headwater.engine.account import Account
from headwater.engine.inputs import Inputs
from headwater.engine.seed import Seed
from headwater.engine.sweep import sweep
from headwater.errors import InputError, TraceError, UnsupportedOperationError
from headwater.rules import Gradient

EXACT = ["otsuki2024", "otsuki2024-i", "otsuki2024-ii", "otsuki2024-iii"]
FAMILY = [name for name in hw.list_models() if name in torchvision.models.list_models()]


def blocks(model: nn.Module) -> list[str]:
    """Every residual block of a torchvision network."""
    return [name for name, module in model.named_modules() if type(module).__name__ in ("BasicBlock", "Bottleneck")]


# -- conservation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("composite", EXACT)
def test_relevance_is_conserved_at_every_cut(tiny, images, composite):
    e = hw.LRP(tiny, composite)(images, checkpoints=["", "norm", "block1", "block2", "head"])
    assert (e.conservation.error < 1e-6).all()
    for error in e.conservation.checkpoint_errors.values():
        assert (error < 1e-6).all()
    torch.testing.assert_close(e.checkpoints[""], e.relevance)


@pytest.mark.parametrize("composite", EXACT)
def test_double_precision_conserves_to_1e_10(tiny, images, composite):
    e = hw.LRP(tiny.double(), composite)(images.double(), checkpoints=["block1", "block2"])
    worst = max(error.max() for error in (e.conservation.error, *e.conservation.checkpoint_errors.values()))
    assert worst < 1e-10


QUICK = {*((composite, "resnet18") for composite in EXACT), ("otsuki2024", "resnext50_32x4d")}


@pytest.mark.parametrize(
    ("composite", "arch"),
    [
        pytest.param(composite, arch, marks=[] if (composite, arch) in QUICK else pytest.mark.full)
        for composite in EXACT
        for arch in FAMILY
    ],
)
def test_every_torchvision_resnet_conserves_at_every_block(arch, composite):
    torch.manual_seed(0)
    model = settle(torchvision.models.get_model(arch, weights=None))
    deep = arch in ("resnet101", "resnet152", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet101_2")
    lrp = hw.LRP(model, composite)
    shapes = [(1, 3, 197, 233)] if deep else [(1, 3, 224, 224), (2, 3, 197, 233)]
    for shape in shapes if composite == "otsuki2024" else [(1, 3, 97, 133)]:
        e = lrp(torch.randn(shape), checkpoints=blocks(model))
        assert (e.conservation.error < 1e-5).all()
        assert all((error < 1e-5).all() for error in e.conservation.checkpoint_errors.values())
        assert e.relevance.isfinite().all()


@pytest.mark.full
@pytest.mark.parametrize("composite", ["otsuki2024", "otsuki2024-i"])
def test_a_batch_of_eight_conserves(composite):
    model = settle(torchvision.models.resnet50(weights=None))
    e = hw.LRP(model, composite)(torch.randn(8, 3, 224, 224), checkpoints=blocks(model))
    assert all((error < 1e-5).all() for error in e.conservation.checkpoint_errors.values())
    assert (e.conservation.error < 1e-5).all()


@pytest.mark.parametrize("composite", EXACT)
@pytest.mark.parametrize("value", [0.0, 1.0, -2.0])
def test_dead_channels_and_constant_images_lose_nothing(tiny, composite, value):
    with torch.no_grad():
        tiny.norm.weight[:3] = 0
        tiny.norm.bias[:3] = -1  # channels that are never active
        tiny.block1.conv1.weight[0] = -tiny.block1.conv1.weight[0].abs()  # a kernel without positive weight
        tiny.block2.conv2.weight[1] = 0
    e = hw.LRP(tiny, composite)(torch.full((2, 3, 16, 16), value), checkpoints=["block1", "block2"])
    assert e.relevance.isfinite().all()
    assert (e.conservation.error < 1e-6).all()
    assert all((error < 1e-6).all() for error in e.conservation.checkpoint_errors.values())


def test_a_network_that_is_dead_everywhere_still_adds_up(tiny, images):
    with torch.no_grad():
        for module in tiny.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.zero_()
                module.bias.fill_(-1)
    e = hw.LRP(tiny)(images)
    assert e.relevance.isfinite().all()
    assert (e.conservation.error < 1e-6).all()


HALVES = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("composite", EXACT)
@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_conserves_as_single_does_at_every_cut(tiny, images, composite, dtype):
    e = hw.LRP(tiny.to(dtype), composite)(images.to(dtype), checkpoints="cuts")
    assert {t.dtype for t in (e.relevance, e.heatmap, e.probability, e.logits)} == {torch.float32}
    assert (e.conservation.error < 1e-6).all()
    assert all((error < 1e-6).all() for error in e.conservation.checkpoint_errors.values())
    # The network itself runs in half precision, its kernels in another order: ten layers of half a unit each.
    torch.testing.assert_close(e.logits, tiny(images.to(dtype)).float(), rtol=0, atol=5 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("arch", ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5"])
@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_conserves_in_real_networks(arch, dtype):
    torch.manual_seed(0)
    model = settle(torchvision.models.get_model(arch, weights=None, num_classes=7)).to(dtype)
    e = hw.LRP(model)(torch.rand(1, 3, 64, 64).to(dtype), checkpoints="cuts")
    assert e.conservation.error < 1e-5
    assert all(error < 1e-5 for error in e.conservation.checkpoint_errors.values())


@pytest.mark.parametrize("composite", ["otsuki2024", "doublet2024", "otsuki2024-mixture"])
def test_half_precision_is_the_map_of_the_rounded_values(tiny, images, composite):
    """Ten layers differ from single precision by some of 2^-8 each, bfloat16's resolution: nearly the same maps."""
    half, single = tiny.bfloat16(), copy.deepcopy(tiny).float()
    images = images.bfloat16()
    ours = hw.LRP(half, composite)(images, 1, start="one").heatmap
    expected = hw.LRP(single, composite)(images.float(), 1, start="one").heatmap
    assert torch.corrcoef(torch.stack([ours.flatten(), expected.flatten()]))[0, 1] > 0.98


def test_autocast_inside_of_a_network_conserves(tiny, images):
    class Cast(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = tiny

        def forward(self, x):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return self.network(x)

    e = hw.LRP(Cast().eval())(images, checkpoints="cuts")
    assert e.relevance.dtype == torch.float32
    assert (e.conservation.error < 1e-5).all()
    assert all((error < 1e-5).all() for error in e.conservation.checkpoint_errors.values())


@pytest.mark.parametrize("start", ["probability", "logit", "one"])
def test_start(tiny, images, start):
    e = hw.LRP(tiny)(images, target=2, start=start)
    expected = {"probability": e.logits.softmax(1)[:, 2], "logit": e.logits[:, 2], "one": torch.ones(3)}[start]
    torch.testing.assert_close(e.relevance.sum((1, 2, 3)), expected)
    torch.testing.assert_close(e.heatmap, e.relevance.sum(1))


# -- equality with closed forms ---------------------------------------------------------------------------------------


def test_a_residual_network_of_dense_layers_equals_the_equations_written_out():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.branch, self.head = nn.Conv2d(1, 5, 1), nn.Linear(5, 5), nn.Linear(5, 3)

        def forward(self, x):
            h = self.first(x).flatten(1).relu()
            return self.head((h + self.branch(h)).relu())

    torch.manual_seed(5)
    net = Net().double().eval()
    x = torch.randn(4, 1, 1, 1, dtype=torch.float64)
    with torch.no_grad():
        h = net.first(x).flatten(1).relu()
        m = net.branch(h)
        joined = (h + m).relu()
        p = net.head(joined).softmax(1)

        def zplus(a, w, r):
            z = a[:, None, :] * w.clamp(min=0)[None]
            share = z / z.sum(2, keepdim=True)
            equal = torch.full_like(share, 1 / a.shape[1])
            return (torch.where(z.sum(2, keepdim=True) > 0, share, equal) * r[:, :, None]).sum(1)

        seed = torch.zeros_like(p)
        seed[:, 1] = p[:, 1]
        r = zplus(joined, net.head.weight, seed)
        total = h.abs() + m.abs()
        to_skip = torch.where(total > 0, r * h.abs() / total, r / 2)
        at_fork = to_skip + zplus(h, net.branch.weight, r - to_skip)
    lrp = hw.LRP(net)
    e = lrp(x, target=1, checkpoints=["branch"])
    torch.testing.assert_close(e.checkpoints["branch"], at_fork)
    torch.testing.assert_close(e.relevance.flatten(), at_fork.sum(1))


def test_logits_are_the_models_own(tiny, images):
    tiny, images = tiny.double(), images.double()
    expected = tiny(images)
    # The order of additions may differ: ten layers, 108 terms, u = 1.1e-16; a logit is half its absolute terms.
    assert (hw.LRP(tiny)(images).logits - expected).abs().max() <= 1e-12 * expected.abs().max()


def test_doublet2024_is_the_gradient_rule_on_whole_blocks(tiny, images):
    composite = hw.load_composite("doublet2024").prepend((Blocks("TinyBlock"), Gradient()))
    tiny, images = tiny.double(), images.double()
    e = hw.LRP(tiny, composite)(images, target=0, checkpoints=["block1", "block2"])
    h = images
    with torch.no_grad():
        for name in ("stem", "norm", "relu", "block1"):
            h = getattr(tiny, name)(h)
    h.requires_grad_()
    output = tiny.block2(h)
    pooled = output.mean((2, 3))
    weight = tiny.head.weight[0]
    p = tiny.head(pooled).softmax(1)[:, :1]
    z = pooled @ weight  # Eq. (2) has no bias
    at_head = pooled * weight * (p / (z + 1e-6 * z.sign())[:, None])
    back = at_head[:, :, None, None] / (pooled + torch.where(pooled < 0, -1e-6, 1e-6))[:, :, None, None]
    at_output = (output * back / output[0, 0].numel()).detach()
    quotient = (at_output / (output + torch.where(output < 0, -1e-6, 1e-6))).detach()
    (gradient,) = torch.autograd.grad((output * quotient).sum(), h)
    torch.testing.assert_close(e.checkpoints["block2"], (h * gradient).detach(), rtol=1e-6, atol=1e-12)


def test_doublet2024_is_gradient_times_input_up_to_one_factor_an_image(parity):
    """Eq. (1) divides by what the layer above multiplied by, so a chain of it telescopes."""
    network, x = parity.build("resnet18").double(), parity.inputs(2).double()
    e = hw.LRP(network, "doublet2024")(x, target=7, start="logit")
    given = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(network(given)[:, 7].sum(), given)
    plain = gradient * x
    cosine = torch.nn.functional.cosine_similarity(e.relevance.flatten(1), plain.flatten(1))
    assert (cosine.abs() > 0.999).all(), cosine


# -- batches, determinism ---------------------------------------------------------------------------------------------


POSITIVE = [*EXACT, "otsuki2024-published"]
"""Composites whose denominators are sums of terms of one sign."""
SIGNED = ["otsuki2024-mixture", "doublet2024"]
"""Composites that divide by sums of terms of both signs, which may cancel down to the stabiliser."""


@pytest.mark.parametrize("composite", [*POSITIVE, *SIGNED])
def test_images_do_not_influence_each_other(tiny, images, composite):
    # A kernel may add in another order when the batch is another. In double precision (u = 1.1e-16) some ten layers of
    # sums of at most 108 terms of one sign differ by less than 10 * 108 * u = 1.2e-13. A sum of both signs amplifies
    # that by its sum of absolute values over the stabiliser, here less than 10 / 1e-6.
    limit = 1e-12 if composite in POSITIVE else 1.2e-6
    lrp, images = hw.LRP(tiny.double(), composite), images.double()
    together = lrp(images, target=1).heatmap
    turned = lrp(images.flip(0), target=1).heatmap.flip(0)
    loud = lrp(torch.cat([images[:1], 100 * images[1:]]), target=1).heatmap[0]
    for k in range(3):
        alone = lrp(images[k : k + 1], target=1).heatmap[0]
        size = alone.abs().max()
        assert (together[k] - alone).abs().max() <= limit * size
        assert (turned[k] - alone).abs().max() <= limit * size
    assert (loud - together[0]).abs().max() <= limit * loud.abs().max()


def test_the_same_call_gives_the_same_bits(tiny, images):
    lrp = hw.LRP(tiny)
    first = lrp(images)
    assert torch.equal(first.relevance, lrp(images).relevance)
    assert torch.equal(first.relevance, hw.LRP(copy.deepcopy(tiny))(images).relevance)


def test_other_image_sizes_and_batch_sizes(tiny):
    lrp = hw.LRP(tiny)
    for shape in ((1, 3, 16, 16), (4, 3, 16, 16), (2, 3, 9, 31), (1, 3, 16, 16)):
        e = lrp(torch.randn(shape))
        assert e.relevance.shape == shape
        assert (e.conservation.error < 1e-6).all()


def test_layout_of_the_image_does_not_matter(tiny, images):
    lrp = hw.LRP(tiny)
    last = lrp(images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(last.relevance, lrp(images).relevance, rtol=0, atol=0)


def test_targets(tiny, images):
    lrp = hw.LRP(tiny)
    predicted = lrp(images)
    assert torch.equal(predicted.target, predicted.logits.argmax(1))
    mixed = lrp(images, target=torch.tensor([0, 3, 1]))
    for k, c in enumerate((0, 3, 1)):
        torch.testing.assert_close(mixed.heatmap[k], lrp(images, target=c).heatmap[k])
    assert torch.equal(lrp.attribute(images, 3), lrp(images, 3).relevance)


def test_the_sweep_has_no_data_dependent_python_and_compiles_whole(tiny, images):
    lrp = hw.LRP(tiny)
    expected = lrp(images, target=1)
    plan = lrp.plan(images)
    seed = torch.zeros(3, 5)
    seed[:, 1] = expected.probability

    def relevance(x):
        begin = Seed(seed, seed.sum(1), expected.logits, expected.target, expected.probability)
        return sweep(plan, Inputs((x,)), lambda _: begin, Account(plan, len(x), {}, keep=False))[1][0]

    with torch.no_grad():
        compiled = torch.compile(relevance, fullgraph=True, backend="eager")(images)
    torch.testing.assert_close(compiled, expected.relevance)


# -- the user's model -------------------------------------------------------------------------------------------------


def state(model: nn.Module) -> dict[str, object]:
    return {
        "tensors": {k: (v.clone(), v.data_ptr(), v._version) for k, v in model.state_dict(keep_vars=True).items()},
        "modes": {k: m.training for k, m in model.named_modules()},
        "hooks": {k: [len(v) for n, v in m.__dict__.items() if "hooks" in n and v] for k, m in model.named_modules()},
        "grads": {
            k: (p.requires_grad, None if p.grad is None else p.grad.clone()) for k, p in model.named_parameters()
        },
        "attributes": {k: sorted(m.__dict__) for k, m in model.named_modules()},
    }


def assert_same(before: dict, after: dict) -> None:
    for name, (value, pointer, version) in before["tensors"].items():
        now, now_pointer, now_version = after["tensors"][name]
        assert torch.equal(value, now), name
        assert (pointer, version) == (now_pointer, now_version), name
    assert {k: before[k] for k in ("modes", "hooks", "attributes")} == {
        k: after[k] for k in ("modes", "hooks", "attributes")
    }
    for name, (flag, grad) in before["grads"].items():
        now_flag, now_grad = after["grads"][name]
        assert flag == now_flag
        assert (grad is None) == (now_grad is None)
        assert grad is None or torch.equal(grad, now_grad)


def prepared(model: nn.Module, images: torch.Tensor) -> nn.Module:
    model.train()
    model.block2.eval()
    model.stem.weight.requires_grad_(False)
    model.head.register_forward_hook(lambda *_: None)
    model(images).sum().backward()
    return model


def test_the_model_is_untouched_and_train_mode_is_explained_as_eval(tiny, images):
    expected = hw.LRP(copy.deepcopy(tiny))(images).relevance
    statistics = copy.deepcopy(tiny.state_dict())
    model = prepared(tiny, images)
    model.load_state_dict(statistics)
    before, given = state(model), images.clone()
    assert torch.equal(hw.LRP(model)(images, checkpoints=["block1"]).relevance, expected)
    assert_same(before, state(model))
    assert torch.equal(given, images)
    assert model.training


def test_the_model_is_untouched_after_an_error_in_the_middle(tiny, images):
    from headwater.engine.rules import Pass

    class Fails(Pass):
        def __call__(self, *_):
            raise RuntimeError("in the middle")

    model = prepared(tiny, images)
    before = state(model)
    composite = hw.load_composite("otsuki2024").prepend(("block1.relu", Fails()))
    with pytest.raises(RuntimeError, match="in the middle"):
        hw.LRP(model, composite)(images)
    assert torch.is_grad_enabled()
    assert_same(before, state(model))


def test_gradient_mode_and_an_image_that_requires_grad_are_left_as_they_are(tiny, images):
    x = images.clone().requires_grad_()
    with torch.enable_grad():
        e = hw.LRP(tiny)(x)
        assert torch.is_grad_enabled()
    assert not e.relevance.requires_grad
    assert x.grad is None
    (tiny(x).sum() + e.relevance.sum()).backward()  # the result can take part in a user's own graph


@pytest.mark.parametrize("how", ["in place", "data", "load", "step"])
def test_changed_weights_are_noticed(tiny, images, how):
    lrp = hw.LRP(tiny)
    lrp(images)
    if how == "in place":
        with torch.no_grad():
            tiny.block1.conv1.weight.mul_(-1)
    elif how == "data":
        tiny.block1.conv1.weight.data.mul_(-1)
    elif how == "load":
        tiny.load_state_dict(settle(TinyResidual(), seed=7).state_dict())
    else:
        tiny(images).logsumexp(1).sum().backward()
        torch.optim.SGD(tiny.parameters(), lr=0.1).step()
    assert torch.equal(lrp(images).relevance, hw.LRP(tiny)(images).relevance)


# -- checkpoints ------------------------------------------------------------------------------------------------------


def test_checkpoints_are_the_relevance_at_a_modules_input(tiny, images):
    e = hw.LRP(tiny)(images, checkpoints=["block1", "block1.conv2", "block2", "head"])
    assert e.checkpoints["block1"].shape == (3, 6, 16, 12)
    assert e.checkpoints["block1.conv2"].shape == (3, 12, 8, 6)
    assert e.checkpoints["head"].shape == (3, 12)
    # conv2 of the branch sees only the branch's part
    assert (e.checkpoints["block1.conv2"].sum((1, 2, 3)) < e.probability).all()


def test_checkpoints_that_cannot_be_are_clear_errors(tiny, images):
    with pytest.raises(InputError, match=r"no module 'layer9'.*block1"):
        hw.LRP(tiny)(images, checkpoints=["layer9"])
    composite = hw.load_composite("doublet2024").prepend((Blocks("TinyBlock"), Gradient()))
    with pytest.raises(InputError, match="inside a block"):
        hw.LRP(tiny, composite)(images, checkpoints=["block1.conv2"])


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(3, 16, 16), r"fails on inputs of shape \(3, 16, 16\) .* The batch comes first"),
        (torch.zeros(0, 3, 16, 16), "at least one example"),
        (torch.zeros(1, 4, 16, 16), "3 channels, but got 4"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), r"fails on inputs of shape \(1, 3, 16, 16\) uint8"),
        (torch.full((1, 3, 16, 16), float("nan")), "NaN or infinity"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.float64), "the inputs are torch.float64"),
        ([1, 2], "got list"),
    ],
)
def test_bad_images(tiny, x, message):
    with pytest.raises(InputError, match=message):
        hw.LRP(tiny)(x)


def test_the_first_convolution_need_not_see_the_image_itself():
    model = nn.Sequential(nn.PixelUnshuffle(4), nn.Conv2d(48, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)).eval()
    assert (hw.LRP(model)(torch.rand(2, 3, 16, 16)).conservation.error < 1e-6).all()
    with pytest.raises(InputError, match="48 channels"):
        hw.LRP(model)(torch.rand(2, 4, 16, 16))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (5, "classes 0 to 4"),
        (-1, "classes 0 to 4"),
        (torch.tensor([0, 1]), "one per image"),
        (torch.tensor([0.5, 1, 2]), "got torch.float32"),
        (2**70, "target must be an int"),
        ("cat", "got str"),
        (True, "got bool"),
    ],
)
def test_bad_targets(tiny, images, target, message):
    with pytest.raises(InputError, match=message):
        hw.LRP(tiny)(images, target=target)


def test_an_output_that_overflows_is_refused(tiny, images):
    with torch.no_grad():
        tiny.head.weight[1] = torch.finfo(torch.float32).max
        tiny.head.bias[1] = torch.finfo(torch.float32).max
    for method in (hw.LRP(tiny), hw.load_method("gradient-x-input", tiny)):
        with pytest.raises(InputError, match=r"output holds NaN or infinity for images \[0, 1, 2\]"):
            method(images)


def test_other_bad_arguments(tiny, images):
    with pytest.raises(InputError, match="start must be one of"):
        hw.LRP(tiny)(images, start="two")
    with pytest.raises(InputError, match=r"torch\.nn\.Module"):
        hw.LRP("resnet50")
    with pytest.raises(InputError, match="no composite"):
        hw.LRP(tiny, "nothing")
    with pytest.raises(InputError, match="name or a Composite"):
        hw.LRP(tiny, 3)


def test_weights_that_are_not_finite(tiny, images):
    with torch.no_grad():
        tiny.block1.conv1.weight[0, 0] = float("inf")
    with pytest.raises(InputError, match=r"'block1\.conv1\.weight' holds NaN or infinity"):
        hw.LRP(tiny)(images)


def test_networks_that_do_not_return_logits(images):
    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 1)

        def forward(self, x):
            return self.conv(x).mean((2, 3)).T

    with pytest.raises(TraceError, match=r"logits \(N, K\)"):
        hw.LRP(Turned())(images)


def test_an_unknown_operation_is_named(images):
    class Net(nn.Module):
        def forward(self, x):
            return torch.logcumsumexp(x, 1).flatten(1)

    with pytest.raises(UnsupportedOperationError, match="'logcumsumexp'"):
        hw.LRP(Net())(images)


def test_a_layer_that_was_removed_is_named(tiny, images):
    lrp = hw.LRP(tiny)
    lrp(images)
    del tiny.block2
    with pytest.raises(InputError, match=r"no attribute 'block2'"):
        lrp(images)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_cpu(tiny, images):
    expected = hw.LRP(tiny)(images)
    e = hw.LRP(tiny.cuda())(images.cuda())
    assert e.relevance.is_cuda
    assert (e.conservation.error < 1e-5).all()
    torch.testing.assert_close(e.relevance.cpu(), expected.relevance, rtol=1e-3, atol=1e-6)
    assert torch.equal(e.relevance, hw.LRP(tiny)(images.cuda()).relevance)
