"""Other outputs than logits: a class a pixel, one value per image, several tensors."""

from __future__ import annotations

import warnings

import pytest
import torch
import torchvision
from helpers import settle
from torch import nn

import headwater as hw
from headwater.errors import InputError, TraceError


class Segmenter(nn.Module):
    """per-pixel logits from 3x3 windows, enlarged, beside an auxiliary output."""

    def __init__(self, several=True):
        super().__init__()
        self.stem, self.head, self.several = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 4, 1), several

    def forward(self, x):
        h = self.head(nn.functional.max_pool2d(self.stem(x).relu(), 2))
        out = nn.functional.interpolate(h, x.shape[2:], mode="bilinear")
        return {"out": out, "aux": h} if self.several else out


@pytest.fixture
def segmenter():
    torch.manual_seed(0)
    return Segmenter().eval()


@pytest.fixture
def x():
    return torch.randn(2, 3, 12, 16, generator=torch.Generator().manual_seed(0))


def test_a_pixel_is_explained_by_what_it_sees(segmenter, x):
    e = hw.LRP(segmenter, output="out")(x, target=2, region=(3, 4))
    p = segmenter(x)["out"].softmax(1)[:, 2, 3, 4]
    torch.testing.assert_close(e.probability, p)
    torch.testing.assert_close(e.relevance.sum((1, 2, 3)), p)
    assert e.logits.shape == (2, 4, 12, 16)
    assert e.target.tolist() == [2, 2]
    assert (e.heatmap[:, :, 10:] == 0).all()
    assert (e.heatmap[:, 9:] == 0).all()


def test_a_region_is_the_mean_of_its_pixels(segmenter, x):
    lrp = hw.LRP(segmenter, output="out")
    mask = torch.zeros(12, 16)
    mask[2:4, 5:7] = 1
    region = lrp(x, target=1, region=mask)
    pixels = [lrp(x, target=1, region=(r, c)).relevance for r in (2, 3) for c in (5, 6)]
    torch.testing.assert_close(region.relevance, sum(pixels) / 4)
    each = lrp(x, target=1, region=mask.bool().expand(2, 12, 16))
    torch.testing.assert_close(each.relevance, region.relevance)


def test_without_a_region_it_is_where_the_class_is_predicted(segmenter, x):
    lrp = hw.LRP(segmenter, output="out")
    e = lrp(x)
    predicted = segmenter(x)["out"].argmax(1) == e.target[:, None, None]
    torch.testing.assert_close(lrp(x, target=e.target, region=predicted).relevance, e.relevance)
    mean = segmenter(x)["out"].softmax(1).flatten(2).mean(2)
    assert torch.equal(e.target, mean.argmax(1))


def test_a_class_that_is_predicted_nowhere_is_explained_everywhere(segmenter, x):
    with torch.no_grad():
        segmenter.head.bias[3] = -50
    lrp = hw.LRP(segmenter, output="out")
    everywhere = lrp(x, target=3, start="logit", region=torch.ones(12, 16))
    torch.testing.assert_close(lrp(x, target=3, start="logit").relevance, everywhere.relevance)


@pytest.mark.parametrize(
    ("region", "message"),
    [
        ((12, 0), r"outside the output of 12 x 16"),
        (torch.ones(5, 5), r"mask of \(12, 16\) or \(2, 12, 16\), got \(5, 5\)"),
        (torch.zeros(12, 16), "empty"),
        ("all", "got str"),
    ],
)
def test_bad_regions(segmenter, x, region, message):
    with pytest.raises(InputError, match=message):
        hw.LRP(segmenter, output="out")(x, region=region)


def test_a_region_needs_an_output_a_pixel(tiny, images):
    with pytest.raises(InputError, match="per-pixel outputs"):
        hw.LRP(tiny)(images, region=(0, 0))


def test_several_outputs_are_named_and_one_is_chosen(segmenter, x):
    assert torch.equal(hw.LRP(segmenter)(x).logits, hw.LRP(segmenter, output="out")(x).logits)  # aux is auxiliary
    with pytest.raises(
        TraceError, match=r"no tensor at 'nothing'. They are out \(2, 4, 12, 16\), aux .*output='out'\)"
    ):
        hw.LRP(segmenter, output="nothing")(x)
    assert hw.LRP(segmenter, output="aux")(x).logits.shape == (2, 4, 6, 8)
    with pytest.raises(TraceError, match="returns one tensor, so output must be None"):
        hw.LRP(Segmenter(several=False).eval(), output="out")(x)


def test_a_place_in_a_tuple(x):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            h = self.head(x).mean((2, 3))
            return h, h * 2

    net = Two().eval()
    torch.testing.assert_close(hw.LRP(net, output=1)(x).logits, net(x)[1])
    with pytest.raises(TraceError, match=r"They are 0 \(2, 4\), 1 \(2, 4\)\. Say which with LRP\(model, output=0\)"):
        hw.LRP(net)(x)


@pytest.mark.parametrize("flat", [True, False])
def test_a_regression_begins_with_the_predicted_value(x, flat):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 1)).eval()
    net = nn.Sequential(net, nn.Flatten(0)) if flat else net
    e = hw.LRP(net)(x, start="logit")
    torch.testing.assert_close(e.relevance.sum((1, 2, 3)), net(x).flatten())
    assert e.logits.shape == (2, 1)
    assert (e.conservation.error < 1e-6).all()


@pytest.mark.full
def test_fcn_resnet50_explains_a_class_at_a_pixel_and_over_a_region():
    torch.manual_seed(0)
    net = settle(torchvision.models.segmentation.fcn_resnet50(weights=None, weights_backbone=None, aux_loss=True))
    lrp = hw.LRP(net, output="out")
    x = torch.randn(1, 3, 96, 128)
    mask = torch.zeros(96, 128)
    mask[20:40, 30:60] = 1
    for region in ((50, 60), mask, None):
        e = lrp(x, target=7, region=region)
        assert (e.conservation.error < 1e-5).all()
        assert e.heatmap.shape == (1, 96, 128)


# -- models that cannot be explained say why --------------------------------------------------------------------------


def test_several_inputs(images):
    class Two(nn.Module):
        def forward(self, x, mask):
            return x * mask

    with pytest.raises(InputError, match=r"It takes x, mask: give a tuple of them by position, or a mapping"):
        hw.LRP(Two())(images)


def test_inputs_that_are_no_images(tiny):
    for given in (torch.zeros(2, 10), torch.zeros(2, 10, 5)):
        with pytest.raises(InputError, match=r"TinyResidual fails on inputs of shape \(2, 10"):
            hw.LRP(tiny)(given)
    with pytest.raises(InputError, match=r"a tensor \(N, ...\), a tuple of tensors or a mapping of them, got list"):
        hw.LRP(tiny)([1, 2])


def test_a_model_on_the_meta_device(tiny, images):
    with pytest.raises(InputError, match="meta device"):
        hw.LRP(tiny.to("meta"))(images)


def test_a_quantised_model(images):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao is on its way out
        model = torch.ao.quantization.quantize_dynamic(
            nn.Sequential(nn.Flatten(), nn.Linear(576, 3)).eval(), {nn.Linear}, dtype=torch.qint8
        )
    with pytest.raises(InputError, match="quantised"):
        hw.LRP(model)(images)


def test_data_dependent_control_flow(images):
    class Branching(nn.Module):
        def forward(self, x):
            return x.flatten(1) if x.sum() > 0 else -x.flatten(1)

    with pytest.raises(TraceError, match="run the same operations for every input"):
        hw.LRP(Branching())(images)


def test_a_model_that_fixes_the_batch_size_while_tracing_is_traced_for_each(images):
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3 * 16 * 12, 4)

        def forward(self, x):
            return self.head(x.reshape(len(x), -1))

    net = Fixed().eval()
    lrp = hw.LRP(net)
    for count in (3, 1, 2):
        e = lrp(images[:count])
        torch.testing.assert_close(e.logits, net(images[:count]))
        assert (e.conservation.error < 1e-6).all()
