"""Maps at every cut: they sum to the seed, lie where the relevance lies, and cost no second sweep."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import pytest
import torch
import torchvision
from torch import Tensor, nn

import headwater as hw
from headwater.composites import Classifier, First, LastBlocks
from headwater.engine.scales import enlarge, mean_of_scales
from headwater.errors import InputError
from headwater.methods import AllScales
from headwater.rules import AlphaBeta, Epsilon, WPlus


def errors(e: hw.Explanation) -> float:
    """The worst relative error of a scale, in the unit of the conservation error."""
    account = e.conservation
    sums = torch.stack([maps.double().sum((1, 2)) for maps in e.scales.values()])
    return float(((sums - account.seed).abs() / account.begun).max())


@pytest.mark.parametrize("cells", [(1, 1), (1, 5), (4, 4), (7, 7), (3, 9), (56, 40), (300, 200)])
def test_enlarging_keeps_every_cells_value_and_a_constant_map(cells):
    size = (97, 121)
    places = torch.linspace(0, cells[0] * cells[1] - 1, 20).long()
    one = nn.functional.one_hot(places, cells[0] * cells[1]).double().view(-1, *cells)
    assert torch.allclose(enlarge(one, size).sum((1, 2)), torch.ones(20, dtype=torch.float64))
    constant = enlarge(torch.ones(1, *cells, dtype=torch.float64), size)
    assert torch.allclose(constant, torch.full_like(constant, cells[0] * cells[1] / (97 * 121)))
    assert enlarge(torch.rand(1, *cells), size).min() >= 0


def test_enlarging_puts_cells_where_they_lie_and_signed_maps_keep_a_sum_near_zero():
    corner = torch.zeros(1, 4, 4)
    corner[0, 0, 3] = 1
    large = enlarge(corner, (64, 64))[0]
    assert large[:32, 32:].sum() > 0.95 and large.argmax() % 64 >= 48
    signed = torch.randn(3, 6, 5, dtype=torch.float64)
    signed -= signed.mean((1, 2), keepdim=True)
    assert enlarge(signed, (64, 48)).sum((1, 2)).abs().max() < 1e-12
    same = torch.rand(2, 8, 8)
    assert enlarge(same, (8, 8)) is same


@pytest.mark.parametrize("composite", ["otsuki2024", "headwater"])
def test_every_scale_sums_to_the_seed_image_by_image(tiny, images, composite):
    lrp = hw.LRP(tiny, composite)
    e = lrp(images)
    assert errors(e) <= 1e-5
    assert list(e.scales) == [*e.coarse, "image"]
    assert [maps.shape[1:] for maps in e.coarse.values()] == [(8, 6), (8, 6), (16, 12)]
    assert torch.equal(e.scales["image"], e.heatmap)
    for k in range(len(images)):
        alone, chosen = lrp(images[k : k + 1]), e.select(k)
        for name, maps in alone.scales.items():
            assert torch.allclose(maps, e.scales[name][k : k + 1], rtol=1e-4, atol=1e-7)
            assert torch.equal(chosen.scales[name], e.scales[name][k : k + 1])


def test_scales_are_noted_in_the_one_sweep_and_can_be_left_out(tiny, images):
    lrp = hw.LRP(tiny)
    with_them, without = lrp(images), lrp(images, scales=False)
    assert torch.equal(with_them.relevance, without.relevance)
    assert list(without.scales) == ["image"] and not without.coarse
    assert torch.equal(pickle.loads(pickle.dumps(with_them)).scales["image"], with_them.heatmap)


@pytest.mark.parametrize(
    ("name", "size", "grids"),
    [
        ("resnet18", (64, 96), {(2, 3), (4, 6), (8, 12), (16, 24), (32, 48)}),
        ("squeezenet1_1", (64, 64), {(3, 3), (7, 7), (15, 15), (31, 31)}),
        ("vit_b_16", (64, 64), {(4, 4)}),
        ("swin_t", (64, 64), {(2, 2), (4, 4), (8, 8), (16, 16)}),
    ],
)
def test_grids_of_convolutions_tokens_and_windows(name, size, grids):
    torch.manual_seed(0)
    if name == "vit_b_16":
        model = torchvision.models.VisionTransformer(64, 16, 2, 2, 32, 64, num_classes=5)
    else:
        model = torchvision.models.get_model(name, weights=None, num_classes=5)
    e = hw.LRP(model.eval(), "headwater")(torch.randn(2, 3, *size))
    assert {tuple(maps.shape[1:]) for maps in e.coarse.values()} == grids
    assert errors(e) <= 1e-5 and float(e.conservation.error.max()) <= 1e-5


def test_a_cuts_map_is_where_its_relevance_is():
    """A network that looks at one corner only, by convolutions and by tokens."""

    class Corner(nn.Module):
        def __init__(self, tokens: bool) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, 8, 8, 8)
            self.mix = nn.Linear(8, 8)
            self.head = nn.Linear(8, 3)
            self.tokens = tokens
            self.token = nn.Parameter(torch.zeros(1, 1, 8))

        def forward(self, x: Tensor) -> Tensor:
            h = self.patches(x).relu()
            if self.tokens:
                h = h.flatten(2).transpose(1, 2)
                h = torch.cat([self.token.expand(len(h), -1, -1), h], 1)
                return self.head((self.mix(h)).relu()[:, 4])  # row 0, column 3 of 4 x 4
            return self.head(h[:, :, 0, 3])

    x = torch.randn(2, 3, 32, 32)
    for tokens in (False, True):
        torch.manual_seed(0)
        e = hw.LRP(Corner(tokens))(x)
        assert e.coarse
        for maps in e.scales.values():
            assert torch.allclose(maps[:, :12, 20:].sum((1, 2)), e.probability, rtol=1e-4)


def test_a_network_without_cuts_has_the_image_alone_and_says_so():
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 4))
    with pytest.warns(UserWarning, match="no cut with rows and columns"):
        e = AllScales(model)(torch.rand(2, 3, 4, 4))
    assert list(e.scales) == ["image"]
    assert torch.equal(e.heatmap, e.scales["image"])


def test_the_map_is_the_mean_over_the_resolutions_of_the_image_and_the_cuts(tiny, images):
    e = AllScales(tiny)(images)
    coarse = [e.scales[name] for name in e.coarse]
    assert [maps.shape[1:] for maps in e.coarse.values()] == [(8, 6), (8, 6), (16, 12)]
    expected = ((coarse[0] + coarse[1]) / 2 + (coarse[2] + e.scales["image"]) / 2) / 2
    torch.testing.assert_close(e.heatmap, expected.to(e.heatmap), rtol=1e-5, atol=1e-7)
    assert torch.equal(e.scales["image"], e.relevance.sum(1))


def test_values_with_padding_reach_beyond_the_image_and_are_no_scale():
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.ZeroPad2d(2), nn.Conv2d(4, 4, 5), nn.ReLU())
    model = nn.Sequential(*layers, nn.ZeroPad2d(0), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    e = hw.LRP(model)(torch.rand(2, 3, 16, 12))
    assert {tuple(maps.shape[1:]) for maps in e.coarse.values()} == {(8, 6)}


def test_the_mean_counts_every_resolution_once():
    coarse = {"a": torch.full((1, 2, 2), 1.0), "b": torch.full((1, 2, 2), 3.0), "c": torch.full((1, 4, 4), 0.5)}
    mean = mean_of_scales(coarse, (4, 4))
    assert torch.allclose(mean, torch.full((1, 4, 4), (0.5 + 0.5) / 2))
    assert mean_of_scales({}, (4, 4)) is None


# -- the classifier ---------------------------------------------------------------------------------------------------


class Head(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.fc1, self.fc2 = nn.Linear(8, 8), nn.Linear(8, 4)
        self.score = nn.Conv2d(8, 4, 1)
        self.token = nn.Parameter(torch.ones(1, 1, 8))

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x).relu()
        if self.kind == "convolution":
            return self.score(h).mean((2, 3))
        if self.kind == "convolution after pooling":
            return self.score(h.mean((2, 3), keepdim=True)).flatten(1)
        if self.kind == "joined":
            v = h.mean((2, 3))
            return self.fc2((v + self.fc1(v)).relu())
        if self.kind == "token":
            v = torch.cat([self.token.expand(len(h), -1, -1), h.flatten(2).transpose(1, 2)], 1)[:, 1]
        else:
            v = h.mean((2, 3))
        return self.fc2(self.fc1(v).relu())


@pytest.mark.parametrize(
    ("kind", "modules"),
    [
        ("several", ["fc1", "fc2"]),
        ("token", ["fc1", "fc2"]),
        ("convolution", ["score"]),
        ("convolution after pooling", ["score"]),
        ("joined", ["fc2"]),
    ],
)
def test_the_classifier_is_found(kind, modules):
    torch.manual_seed(0)
    lrp, x = hw.LRP(Head(kind), "headwater"), torch.rand(2, 3, 16, 16)
    found = [
        step.layer.operation.module for step in lrp.plan(x).steps if step.why in ("last linear operation", "classifier")
    ]
    assert found == modules
    assert float(lrp(x).conservation.error.max()) <= 1e-5


def test_a_network_without_a_classifier_is_an_error_that_says_how_to_name_one():
    with pytest.raises(InputError, match=r"last linear operation reaches nothing.*prepend"):
        hw.LRP(nn.Sequential(nn.AvgPool2d(4), nn.Flatten()), "headwater")(torch.rand(1, 3, 4, 4))


def test_the_last_blocks_are_a_part_of_the_joins(tiny, images):
    for part, blocks in ((0.5, {"block2"}), (0.0, {"block2"})):
        composite = hw.load_composite("otsuki2024").prepend((Classifier(), Epsilon()), (LastBlocks(part), AlphaBeta()))
        plan = hw.LRP(tiny, composite).plan(images)
        convolutions = [s for s in plan.steps if isinstance(s.rule, AlphaBeta) and s.layer.operation.kind == "conv2d"]
        assert {step.layer.operation.module.split(".")[0] for step in convolutions} == blocks


# -- against another class --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("composite", ["otsuki2024", "headwater"])
@pytest.mark.parametrize("start", ["probability", "logit"])
def test_against_is_the_difference_of_two_maps_and_sums_to_what_it_starts_from(tiny, images, composite, start):
    lrp = hw.LRP(tiny, composite)
    e = lrp(images, target=1, against=torch.tensor([0, 2, 3]), start=start, checkpoints="cuts")
    values = e.logits if start == "logit" else e.logits.softmax(1)
    difference = values[:, 1] - values[torch.arange(3), torch.tensor([0, 2, 3])]
    assert torch.allclose(e.conservation.seed.float(), difference, atol=1e-6)
    assert float(e.conservation.error.max()) <= 1e-5 and errors(e) <= 1e-5
    assert all(float(error.max()) <= 1e-5 for error in e.conservation.checkpoint_errors.values())
    each = hw.LRP(tiny, replace(lrp.composite, contrast=0.0))
    first, second = each(images, target=1, start=start), each(images, target=torch.tensor([0, 2, 3]), start=start)
    assert torch.allclose(e.relevance, first.relevance - second.relevance, atol=1e-5 * first.relevance.abs().max())
    back = lrp(images, target=torch.tensor([0, 2, 3]), against=1, start=start)
    assert torch.allclose(back.heatmap, -e.heatmap, atol=1e-6)
    assert e.select(1).against.tolist() == [2] and e.select(1).conservation.size is not None


@pytest.mark.parametrize("start", ["probability", "logit", "one"])
def test_contrast_weighs_the_target_against_the_others_by_their_probability(tiny, images, start):
    """The rules are linear in relevance, so the map is that of the target less those of the others."""
    plain, contrast = replace(hw.load_composite("headwater"), contrast=0.0), 0.5
    lrp = hw.LRP(tiny, replace(plain, contrast=contrast))
    e = lrp(images, target=2, start=start, checkpoints="cuts")
    of_class = [hw.LRP(tiny, plain)(images, target=k, start="one").heatmap for k in range(5)]
    p, begun = e.logits.softmax(1), e.conservation.seed.float()[:, None, None]
    q = p / (1 - p[:, 2:3])
    others = sum(q[:, k, None, None] * of_class[k] for k in (0, 1, 3, 4))
    expected = begun * ((1 + contrast) * of_class[2] - contrast * others)
    torch.testing.assert_close(e.heatmap, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    first = {"probability": p, "logit": e.logits, "one": torch.ones_like(p)}[start][:, 2]
    assert torch.allclose(begun[:, 0, 0], first, atol=1e-6)
    assert all(float(error.max()) <= 1e-5 for error in e.conservation.checkpoint_errors.values())


def test_contrast_where_there_are_no_other_classes_and_per_pixel(images):
    torch.manual_seed(0)
    with_contrast = replace(hw.load_composite("otsuki2024"), contrast=1.0)
    regression = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1))
    found = [
        hw.LRP(regression, composite)(images, start="logit").heatmap for composite in (with_contrast, "otsuki2024")
    ]
    assert torch.equal(*found)
    segment = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 1)).eval()
    e = hw.LRP(segment, with_contrast)(images, target=0, region=(2, 3))
    assert torch.allclose(e.conservation.seed.float(), e.logits.softmax(1)[:, 0, 2, 3], atol=1e-6)
    assert float(e.conservation.error.max()) <= 1e-5 and (e.heatmap < 0).any()


@pytest.mark.parametrize("contrast", [-0.1, float("nan"), float("inf")])
def test_contrast_must_be_a_number_of_zero_or_more(contrast):
    with pytest.raises(InputError, match="contrast must be"):
        hw.Composite("mine", [], contrast=contrast)


def test_contrast_stays_with_what_is_made_of_a_composite():
    assert hw.load_composite("headwater").prepend((First(), WPlus())).contrast == 1
    assert str(hw.load_composite("headwater")).startswith("headwater, contrast 1")


def test_against_needs_another_class(tiny, images):
    lrp = hw.LRP(tiny)
    with pytest.raises(InputError, match=r"same class, 2, for images \[0, 1, 2\]"):
        lrp(images, target=2, against=2)
    predicted = lrp(images).target
    with pytest.raises(InputError, match="same class"):
        lrp(images, against=int(predicted[0]))
    with pytest.raises(InputError, match=r"against .* out of range"):
        lrp(images, target=2, against=5)


def test_against_for_networks_with_per_pixel_outputs(images):
    torch.manual_seed(0)
    segment = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 1)).eval()
    e = hw.LRP(segment)(images, target=0, against=3, region=(2, 3), start="logit")
    assert torch.allclose(e.conservation.seed.float(), (e.logits[:, 0] - e.logits[:, 3])[:, 2, 3], atol=1e-6)
    assert float(e.conservation.error.max()) <= 1e-5


def test_the_method_conserves_and_can_be_copied(tiny, images):
    method = copy.deepcopy(hw.load_method("headwater", tiny))
    e = method(images, against=4, target=1, start="logit")
    assert ((e.heatmap.double().sum((1, 2)) - e.conservation.seed).abs() <= 1e-5 * e.conservation.size).all()
    assert (e.heatmap < 0).any() and e.heatmap.shape == (3, 16, 12)
