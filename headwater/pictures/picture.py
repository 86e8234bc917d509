"""The picture of an explanation, whatever its input is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from headwater.engine.explanation import Explanation
from headwater.engine.inputs import NetworkInput
from headwater.errors import InputError
from headwater.pictures.features import features_figure
from headwater.pictures.signal import signal_figure
from headwater.pictures.tokens import tokens_figure
from headwater.pictures.video import video_figure
from headwater.pictures.volume import volume_figure
from headwater.report.images import Labels, Style, figure


def picture(
    e: Explanation,
    x: NetworkInput | None = None,
    index: int = 0,
    *,
    names: Sequence[str] | None = None,
    classes: Sequence[str] | Mapping[int, str] | None = None,
    sampling_rate: float | None = None,
    spacing: tuple[float, float, float] | None = None,
    style: Style | None = None,
) -> bytes:
    """One example's relevance as PNG, drawn as what its input is.

    An image has its map and the map over the image; a signal is a line coloured by relevance; a volume is three slices
    through its strongest voxel; a video is a strip of frames; a text has coloured tokens; features are bars.

    Args:
        e: the explanation of a batch, of which one input has relevance.
        x: what was explained. Without it, the relevance is drawn alone.
        index: which example of the batch.
        names: the tokens of a text, the channels of a signal or the names of features.
        classes: names of the classes, by number.
        sampling_rate: of a signal, per second.
        spacing: size of a voxel along depth, rows and columns; the same if not given.
        style: colours.

    Raises:
        InputError: there is no such example, several inputs have relevance, or something has another size.

    >>> import torch, headwater as hw
    >>> network = torch.nn.Sequential(torch.nn.Linear(4, 3))
    >>> rows = torch.rand(2, 4)
    >>> hw.picture(hw.LRP(network)(rows), rows, names=["age", "height", "weight", "pulse"])[1:4]
    b'PNG'
    """
    if not isinstance(e.heatmap, Tensor):
        raise InputError("several inputs have relevance; draw each by headwater.pictures, from e.heatmap[...]")
    if not 0 <= index < len(e.heatmap):
        raise InputError(f"index must be from 0 to {len(e.heatmap) - 1}, got {index}")
    for option, given, axes in (("sampling_rate", sampling_rate, ("sample",)), ("spacing", spacing, _VOLUME)):
        if given is not None and e.axes != axes:
            raise InputError(f"{option} is for maps of {', '.join(axes)}; this one has {', '.join(e.axes)}")
    heatmap = e.heatmap[index].detach().float().cpu().numpy()
    values = None if x is None else _values(e, x, index)
    target = int(e.target[index])
    label = f"class {target}" if classes is None else str(classes[target])
    title = f"{label}: {e.probability[index].item():.1%}"
    note = _note(e, index)
    if e.axes == ("token",):
        return tokens_figure(
            names or [str(k) for k in range(len(heatmap))], heatmap, title=title, note=note, style=style
        )
    if e.axes == ("feature",):
        chosen = names or [f"feature {k}" for k in range(len(heatmap))]
        return features_figure(chosen, heatmap, values, title=title, note=note, style=style)
    if e.axes == ("sample",):
        line = np.zeros((1, len(heatmap)), np.float32) if values is None else values.reshape(-1, len(heatmap))
        return signal_figure(
            line, heatmap, channel_names=names, sampling_rate=sampling_rate, title=title, note=note, style=style
        )
    if e.axes == ("frame", "row", "column") or _is_video(e, values):
        return video_figure(_frames(values, heatmap), heatmap, title=title, note=note, style=style)
    if len(e.axes) == 3:
        grey = np.zeros_like(heatmap) if values is None else values.mean(0) if values.ndim == 4 else values
        return volume_figure(grey, heatmap, spacing=spacing or (1.0, 1.0, 1.0), title=title, note=note, style=style)
    if len(e.axes) == 2:
        photo = Image.fromarray(_frames(values, heatmap[None])[0])
        labels = Labels(title, "", "", "", "", "relevance", note)
        return figure(photo, heatmap, labels, style)
    raise InputError(f"there is no picture of a map with the dimensions {', '.join(e.axes)}")


_VOLUME = ("depth", "row", "column")


def _note(e: Explanation, index: int) -> str:
    account = e.conservation
    if account is None:
        return "This method's values do not sum to the probability."
    return f"The values sum to {{sum}}; the relevance that the sweep began with is {account.seed[index].item():.4g}."


def _values(e: Explanation, x: NetworkInput, index: int) -> np.ndarray | None:
    """The values of the explained input, channels first; ``None`` for token ids."""
    tensors = [x] if isinstance(x, Tensor) else list(x.values() if isinstance(x, Mapping) else x)
    size = e.heatmap.shape[1:]
    for tensor in tensors:
        if not tensor.is_floating_point():
            continue
        example: Any = tensor[index].detach().float().cpu()
        if example.shape == size:
            return example.numpy()
        for channels in range(example.ndim):
            if (*example.shape[:channels], *example.shape[channels + 1 :]) == tuple(size):
                return example.movedim(channels, 0).numpy()
    if any(tensor.is_floating_point() for tensor in tensors):
        raise InputError(f"no input of x has the size of the map, {tuple(size)}; give what was explained")
    return None


def _is_video(e: Explanation, values: np.ndarray | None) -> bool:
    """Whether three axes are frames, rows and columns: their values have colours."""
    return len(e.axes) == 3 and values is not None and values.ndim == 4 and len(values) == 3


def _frames(values: np.ndarray | None, heatmap: np.ndarray) -> np.ndarray:
    """Values ``(C, [T,] H, W)`` as RGB frames ``(T, H, W, 3)``, from their smallest to their largest as 0 to 255."""
    if values is None:
        return np.full((*heatmap.shape, 3), 128, np.uint8)
    stacked = values if values.ndim >= 3 and len(values) in (1, 3) else values.mean(0, keepdims=True)
    stacked = stacked.reshape(len(stacked), *heatmap.shape)
    low, high = float(stacked.min()), float(stacked.max())
    scaled = (stacked - low) / (high - low) if high > low else np.zeros_like(stacked)
    colours = np.moveaxis(np.broadcast_to(scaled, (3, *heatmap.shape)), 0, -1)
    return (255 * colours).round().astype(np.uint8)
