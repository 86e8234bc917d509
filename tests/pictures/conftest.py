"""What more than one test of the pictures takes."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def decoded() -> Callable[[bytes], np.ndarray]:
    """A PNG as RGB, ``(H, W, 3)``, decoded whole."""

    def decode(png: bytes) -> np.ndarray:
        image = Image.open(io.BytesIO(png))
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))

    return decode
