"""Settings of every test run, and fixtures that more than one file takes."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from helpers import SHARED, TinyResidual, settle
from hypothesis import settings
from torch import Tensor, nn


def pytest_configure() -> None:
    """``HEADWATER_ONEDNN=0``: torch's own kernels, which round otherwise, as on processors that oneDNN is not for."""
    if os.environ.get("HEADWATER_ONEDNN") == "0":
        torch.backends.mkldnn.set_flags(False)
    settings.register_profile("gate", deadline=None, derandomize=True)  # the same on busy machines and in every run
    settings.load_profile("gate")


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("needs ../shared (data beside the project), which a user's clone does not have")
    return SHARED


@pytest.fixture(scope="session")
def parity(shared: Path) -> Any:
    """The module that rebuilds the parity networks, with the reference arrays as ``reference``."""
    sys.path.insert(0, str(shared / "parity"))
    import parity_models

    parity_models.reference = np.load(shared / "parity" / "parity.npz")
    return parity_models


@pytest.fixture
def tiny() -> nn.Module:
    torch.manual_seed(0)
    return settle(TinyResidual())


@pytest.fixture
def transformer() -> nn.Module:
    """A vision transformer for images of 16 x 16."""
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(16, 8, 1, 2, 8, 16, num_classes=3).eval()
    nn.init.normal_(model.heads.head.weight)
    return model


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 16, 12, generator=torch.Generator().manual_seed(1))
