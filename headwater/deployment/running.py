"""Running an exported graph, and how far its results are from those of :class:`headwater.LRP`."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headwater.engine.explanation import Explanation
from headwater.errors import InputError, MissingDependencyError

OUTPUTS = ("logits", "map", "conservation")


@dataclass(frozen=True)
class Agreement:
    """The largest differences between a graph's results and those of :class:`headwater.LRP`, over some images.

    Attributes:
        map: relative to the largest absolute value of the image's map.
        conservation: of the seed and of the map's sum, relative to the seed.
        logits: relative to the image's largest absolute logit.
    """

    map: float
    conservation: float
    logits: float

    @property
    def worst(self) -> float:
        """The largest of them."""
        return max(self.map, self.conservation, self.logits)


def run_exported(path: str | Path, image: np.ndarray, target: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Run a graph that :func:`headwater.export` wrote, on the CPU.

    Args:
        path: the ``.onnx`` or ``.pt2`` file.
        image: ``(N, C, H, W)``, of the dtype and size that it was exported for.
        target: class of each image, int64 ``(N,)``, for a graph that takes it.

    Returns:
        ``logits``, ``map`` and ``conservation``.
    """
    given = {"image": image} if target is None else {"image": image, "target": target}
    return run_bytes(Path(path).read_bytes(), Path(path).suffix, given)


def run_bytes(content: bytes, suffix: str, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """As :func:`run_exported`, for what would be in the file."""
    results: list[Any]
    if suffix == ".onnx":
        session = onnx_runtime().InferenceSession(content, providers=["CPUExecutionProvider"])
        results = session.run(list(OUTPUTS), given)
    elif suffix == ".pt2":
        module = torch.export.load(io.BytesIO(content)).module()
        with torch.no_grad():
            results = [tensor.cpu().numpy() for tensor in module(*map(torch.from_numpy, given.values()))]
    else:
        raise InputError(f"an exported graph is an .onnx or a .pt2 file, got {suffix!r}")
    return dict(zip(OUTPUTS, results, strict=True))


def onnx_runtime() -> Any:
    """The package ``onnxruntime``.

    Raises:
        MissingDependencyError: it is not installed, or what writes ONNX is not.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            f"ONNX needs onnx, onnxscript and onnxruntime ({error.name} is missing): pip install 'headwater[onnx]'"
        ) from error
    return onnxruntime


def agreement(results: dict[str, np.ndarray], e: Explanation) -> Agreement:
    """How far the results of a graph are from an explanation of the same images."""
    assert e.conservation is not None
    seed = e.conservation.seed.double().cpu().numpy()
    account = np.stack([seed, e.conservation.input.double().cpu().numpy()], 1)
    smallest = float(np.finfo(np.float64).tiny)
    return Agreement(
        _difference(results["map"], e.heatmap),
        float((np.abs(results["conservation"] - account) / np.maximum(np.abs(seed)[:, None], smallest)).max()),
        _difference(results["logits"], e.logits),
    )


def _difference(given: np.ndarray, expected: Tensor) -> float:
    """The largest, relative to the largest value of each image."""
    ours = expected.double().cpu().flatten(1)
    theirs = torch.from_numpy(given).double().flatten(1)
    smallest = torch.finfo(torch.float64).tiny
    return float(((theirs - ours).abs().amax(1) / ours.abs().amax(1).clamp(min=smallest)).nan_to_num(torch.inf).max())
