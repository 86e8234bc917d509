"""Score-CAM: the library's map, whatever the channels, the batch and the images beside."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import headwater as hw
from headwater.methods.score_cam import ScoreCAM


class Features(nn.Module):
    """A feature map of 12 channels: one is zero, one is 1 everywhere, every third of the others only in places."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Conv2d(3, 12, 3, 2)
        self.head = nn.Linear(12, 4)
        with torch.no_grad():
            self.features.weight[:2], self.features.bias[0], self.features.bias[1] = 0, -1.0, 1.0
            self.features.bias[2::3] -= 0.5

    def forward(self, x):
        return self.head(self.features(x).relu().mean((2, 3)))


@pytest.fixture
def model():
    return Features().eval()


def test_the_map_is_that_of_the_library(model):
    """Its softmax is over all channels; a constant one counts with the logit of the blank image."""
    cam, targets = pytest.importorskip("pytorch_grad_cam"), pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    x, classes = torch.rand(3, 3, 17, 21), [0, 2, 3]
    layer = nn.ReLU()
    network = nn.Sequential(model.features, layer, nn.AdaptiveAvgPool2d(1), nn.Flatten(), model.head)
    with cam.ScoreCAM(network, [layer]) as library:
        expected = np.concatenate(
            [library(x[k : k + 1], [targets.ClassifierOutputTarget(classes[k])]) for k in range(3)]
        )
    ours = hw.load_method("scorecam", model)(x, torch.tensor(classes)).heatmap
    # The library divides by the range of each map, which multiplies the rounding of a sum over 12 channels.
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-5)


def test_images_are_explained_together_as_alone_in_batches_of_any_size(model):
    x, classes = torch.rand(3, 3, 17, 21), torch.tensor([0, 2, 3])
    together = ScoreCAM(model)(x, classes).heatmap
    small = ScoreCAM(model, batch_size=5)(x, classes).heatmap
    torch.testing.assert_close(small, together, atol=1e-5, rtol=0)
    for k in range(3):
        alone = ScoreCAM(model)(x[k : k + 1], classes[k : k + 1]).heatmap[0]
        torch.testing.assert_close(alone, together[k], atol=1e-5, rtol=0)


def test_constant_channels_take_the_score_of_the_blank_image(model):
    class Counting(ScoreCAM):
        def _score(self, network, images, classes):
            seen.append(network.logits(images).expand(len(classes), -1))
            return super()._score(network, images, classes)

    x, seen = torch.rand(3, 3, 17, 21), []
    Counting(model)(x, 1)
    features = model.features(x).relu().flatten(2)
    varying = int((features.amax(2) > features.amin(2)).sum())
    blank, *masked = seen
    torch.testing.assert_close(blank, model(torch.zeros(1, 3, 17, 21)).expand(3, -1))
    assert sum(map(len, masked)) == varying <= 3 * 10
