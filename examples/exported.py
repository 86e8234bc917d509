"""Run a network with its relevance map by ONNX Runtime alone; neither Headwater nor PyTorch is needed.

    headwater export --model tiny20 --pixels --out explainer.onnx
    python examples/exported.py explainer.onnx examples/tabby.jpg map.png [CLASS]

CLASS is the number of the class to explain, for a graph that was exported with ``--target input``.

Needs numpy, pillow and onnxruntime. Prints the class, its probability, and the account: what the map sums to.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image


def main(graph: str, photo: str, out: str, target: str | None = None) -> None:
    """Explain one photograph and draw its map."""
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    about = json.loads(session.get_modelmeta().custom_metadata_map["headwater"])
    _, _, height, width = about["input"]["image"]
    image = centre(Image.open(photo).convert("RGB"), about["resize"], height, width)
    pixels = np.asarray(image, dtype=np.float32).transpose(2, 0, 1)[None] / 255
    if about["values"] == "normalised":
        mean, std = (np.array(about[name], dtype=np.float32)[:, None, None] for name in ("mean", "std"))
        pixels = (pixels - mean) / std
    given = {"image": pixels}
    if ("target" in about["input"]) != (target is not None):
        raise SystemExit("the graph takes a class: name its number last" if target is None else "it takes no class")
    if target is not None:
        given["target"] = np.array([int(target)])
    logits, heatmap, account = session.run(["logits", "map", "conservation"], given)
    explained = about["target"] if target is None else int(target)  # None: the predicted class
    index = predicted(logits[0]) if explained is None else explained
    seed, arrived = account[0]
    print(f"{about['classes'][index] if about['classes'] else index}: {seed:.4f}; the map sums to {arrived:.4f}")
    strength = np.clip(heatmap[0] / max(heatmap.max(), 1e-30), 0, 1)
    faded = np.asarray(image) * (0.25 + 0.75 * strength[..., None])
    Image.fromarray(faded.astype(np.uint8)).resize((4 * width, 4 * height)).save(Path(out))


def predicted(logits: np.ndarray) -> int:
    """The most probable class; of logits per pixel, that of the largest mean probability."""
    logits = logits.reshape(len(logits), -1)
    weights = np.exp(logits - logits.max(0))
    return int((weights / weights.sum(0)).mean(1).argmax())


def centre(image: Image.Image, short: int, height: int, width: int) -> Image.Image:
    """The image's centre, after its short side was made ``short`` pixels long."""
    scale = max(short, height, width) / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


if __name__ == "__main__":
    main(*sys.argv[1:5])
