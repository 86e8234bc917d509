"""One call draws whatever was explained, and a notebook shows it."""

from __future__ import annotations

import io

import pytest
import torch
from PIL import Image
from torch import nn

import headwater as hw
from headwater.errors import InputError

CASES = {
    "features": (nn.Sequential(nn.Linear(5, 3)), (5,)),
    "signal": (nn.Sequential(nn.Conv1d(2, 4, 5), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)), (2, 40)),
    "volume": (nn.Sequential(nn.Conv3d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)), (1, 6, 8, 8)),
    "video": (nn.Sequential(nn.Conv3d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)), (3, 6, 8, 8)),
    "image": (nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)), (3, 8, 8)),
}


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request):
    network, shape = request.param
    torch.manual_seed(0)
    x = torch.randn(2, *shape)
    network(x)
    return hw.LRP(network.eval())(x), x


def test_a_picture_with_and_without_the_input(case):
    e, x = case
    for given in (x, None):
        drawn = Image.open(io.BytesIO(hw.picture(e, given, 1, classes=["a", "b", "c"])))
        assert min(drawn.size) > 100


def test_a_notebook_shows_each_example_and_the_account(case):
    e, _ = case
    html = e._repr_html_()
    assert "relative error" in html
    assert html.count("<img") >= 1
    assert e._repr_png_()[1:4] == b"PNG"


class Text(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(9, 4), nn.Linear(4, 2)

    def forward(self, input_ids):
        return self.head(self.words(input_ids).mean(1))


def test_a_text():
    torch.manual_seed(0)
    e = hw.LRP(Text().eval())(torch.tensor([[1, 2, 3]]))
    assert hw.picture(e, names=["a", "##b", "<c>"])[1:4] == b"PNG"
    assert "background: rgba" in e._repr_html_()


def test_what_cannot_be_drawn(case):
    e, x = case
    with pytest.raises(InputError, match="index must be from 0 to 1, got 2"):
        hw.picture(e, x, 2)
    with pytest.raises(InputError, match="no input of x has the size of the map"):
        hw.picture(e, torch.zeros(2, 7, 7, 7))
