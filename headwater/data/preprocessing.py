"""From a picture to the tensor that a network takes, and back to the picture's own coordinates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as transforms


@dataclass(frozen=True)
class Box:
    """A rectangle in a picture, in pixels from its top left corner; fractions are meant."""

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True)
class Preprocessing:
    """Resize with antialiasing, crop the centre, scale to [0, 1], normalise by channel.

    Attributes:
        resize: short side after resizing, in pixels.
        crop: side of the square cut from the centre.
        mean, std: of each channel, for pictures in [0, 1].
        interpolation: ``"bilinear"`` or ``"bicubic"``.
        stretch: resize both sides to ``resize`` whatever the picture's shape, as the papers do on CUB.

    >>> from PIL import Image
    >>> Preprocessing(256, 224)(Image.new("RGB", (640, 480))).shape
    torch.Size([3, 224, 224])
    """

    resize: int
    crop: int
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"
    stretch: bool = False

    def __call__(self, picture: Image.Image) -> Tensor:
        """The picture (RGB) as float32 ``(3, crop, crop)``, normalised."""
        mode = InterpolationMode(self.interpolation)
        size = [self.resize] * (2 if self.stretch else 1)
        resized = transforms.resize(picture, size, interpolation=mode, antialias=True)
        tensor = transforms.to_tensor(transforms.center_crop(resized, [self.crop]))
        return transforms.normalize(tensor, list(self.mean), list(self.std))

    def box(self, width: int, height: int) -> Box:
        """The part of a ``width`` x ``height`` picture that the network sees."""
        short = min(width, height)
        resized_width = self.resize if width <= height or self.stretch else int(self.resize * width / short)
        resized_height = self.resize if height <= width or self.stretch else int(self.resize * height / short)
        # The crop's corner is on the resized picture's pixel grid, as torchvision rounds it.
        left = round((resized_width - self.crop) / 2)
        top = round((resized_height - self.crop) / 2)
        across, down = width / resized_width, height / resized_height
        return Box(left * across, top * down, (left + self.crop) * across, (top + self.crop) * down)


def to_picture(heatmap: Tensor, box: Box, width: int, height: int) -> np.ndarray:
    """A map ``(H, W)`` laid over its picture: float32 ``(height, width)``, NaN outside ``box``.

    Each picture pixel takes the map's value at its own centre, bilinearly, so nothing is shifted by half a pixel.
    """
    rows, columns = heatmap.shape
    across = (torch.arange(width) + 0.5 - box.left) / (box.right - box.left)
    down = (torch.arange(height) + 0.5 - box.top) / (box.bottom - box.top)
    inside = ((down >= 0) & (down <= 1))[:, None] & ((across >= 0) & (across <= 1))[None, :]
    grid = torch.stack(torch.broadcast_tensors(2 * across[None, :] - 1, 2 * down[:, None] - 1), dim=-1)
    source = heatmap.detach().to("cpu", torch.float32).reshape(1, 1, rows, columns)
    laid = functional.grid_sample(
        source, grid[None].float(), mode="bilinear", padding_mode="border", align_corners=False
    )
    return np.where(inside.numpy(), laid[0, 0].numpy(), np.nan).astype(np.float32)
