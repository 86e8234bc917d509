"""Maps and measures: quantization, regions and curves against plain loops, and arguments of the wrong kind."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

import headwater as hw
from fuzz.case import Draw, must
from fuzz.subjects import same
from headwater.errors import HeadwaterError
from headwater.metrics import gini, pointing_game, rank_correlation, relevance_mass, relevance_rank

_DTYPES = (torch.float32, torch.float32, torch.float64, torch.float16, torch.bfloat16)


def measures(draw: Draw) -> None:
    """One measure or operation on maps, on a valid or an invalid input."""
    draw.one((_quantization, _regions, _curves, _curves, _objects, _invalid))(draw)


def _maps(draw: Draw, most: int = 12) -> Tensor:
    """Maps of many kinds: noise, few values, constant, zero, tiny and huge values."""
    shape = (draw.whole(1, 3), draw.whole(1, most), draw.whole(1, most))
    dtype = draw.one(_DTYPES)
    kind = draw.one(("noise", "noise", "positive", "few values", "constant", "zero", "one pixel", "tiny", "huge"))
    draw.note(f"{kind} {tuple(shape)} {str(dtype).removeprefix('torch.')}")
    values = torch.randn(shape, dtype=torch.float64)
    if kind == "positive":
        values = values.abs()
    elif kind == "few values":
        values = values.round()
    elif kind in ("constant", "zero"):
        values = torch.full(shape, 0.0 if kind == "zero" else draw.one((0.1, -3.0, 1e-3)), dtype=torch.float64)
    elif kind == "one pixel":
        values = torch.zeros(shape, dtype=torch.float64)
        values[:, draw.whole(0, shape[1] - 1), draw.whole(0, shape[2] - 1)] = 1
    elif kind in ("tiny", "huge"):
        values = values * (1e-30 if kind == "tiny" else 1e30)
    return values.to(dtype).nan_to_num(0.0, 6e4, -6e4)


def _quantization(draw: Draw) -> None:
    maps, levels = _maps(draw), draw.one((2, 3, 5, 8, 8, 64, 1000))
    draw.note(f"quantized to {levels}")
    before = maps.clone()
    quantized = hw.heat_quantization(maps, levels)
    must(same(maps, before), "the argument was changed")
    must(quantized.shape == maps.shape and quantized.dtype == maps.dtype, f"{quantized.dtype} {quantized.shape}")
    must(quantized.isfinite().all(), "a quantized map is not finite")
    for one, original in zip(quantized.double(), maps.double(), strict=True):
        low, high = float(original.min()), float(original.max())
        must(len(one.unique()) <= levels, f"{len(one.unique())} values of {levels} levels")
        # Steps are made in the map's own precision: products and sums of numbers up to the largest of its range.
        rounding = 4 * torch.finfo(maps.dtype).eps * max(abs(low), abs(high), high - low) + torch.finfo(maps.dtype).tiny
        width = (high - low) / (levels - 1)
        must((one <= original + rounding).all(), "a pixel rose")
        must((one >= original - width - rounding).all(), "a pixel fell by more than one level")
        must(one.max() == original.max(), "the largest value changed")
        order = original.flatten().argsort()
        must((one.flatten()[order].diff() >= 0).all(), "the order of pixels changed")
    draw.maps += len(maps)


def _regions(draw: Draw) -> None:
    """Regions of maps, compared with a flood fill where the map is not reduced first."""
    maps = _maps(draw)
    square = draw.chance(0.6)
    if square:
        side = min(maps.shape[1:])
        maps = maps[:, :side, :side]
    size = maps.shape[1] if square else draw.one((1, 2, 5, 28))
    threshold = draw.one((None, None, 0.0, 0.5, 1e9, -1e9))
    name = draw.one(("c3", "c1c"))
    enlarge = draw.chance(0.5)
    draw.note(f"{name} size={size} threshold={threshold} enlarge={enlarge}")
    region: Callable[..., Tensor] = {"c3": hw.c3, "c1c": hw.c1c}[name]
    got = region(maps, size, threshold, enlarge)
    must(got.shape == (maps.shape if enlarge else (len(maps), size, size)), f"shape {tuple(got.shape)}")
    must(got.dtype == maps.dtype, f"dtype {got.dtype}")
    must(got.isfinite().all() or maps.dtype == torch.float16 or bool((maps.abs() > 1e29).any()), "not finite")
    if not square:
        return
    draw.maps += len(maps)
    for one, original in zip(got, maps, strict=True):
        values = original.to(torch.promote_types(maps.dtype, torch.float32)).numpy()
        wanted = torch.from_numpy(_region(values, threshold, name)).to(maps)
        must(torch.equal(one, wanted), f"{name} keeps {int((one != 0).sum())} pixels, not {int((wanted != 0).sum())}")


def _region(values: np.ndarray, threshold: float | None, name: str) -> np.ndarray:
    above = values > (values.mean() if threshold is None else threshold)
    if threshold is None and values.min() == values.max():
        above[:] = False
    components = _components(above, diagonal=True)
    if name == "c1c":
        strongest = np.unravel_index(values.argmax(), values.shape)
        kept = next((c for c in components if c[strongest]), np.zeros_like(above))
        return 3 * values * kept
    if not components:
        return values * above
    largest = max(components, key=lambda c: int(c.sum()))  # of equals the first, from the top left
    return values * (largest & max((_filled(c) for c in components), key=lambda c: int(c.sum())))


def _filled(component: np.ndarray) -> np.ndarray:
    outside = _components(~np.pad(component, 1), diagonal=False)
    return ~next(c for c in outside if c[0, 0])[1:-1, 1:-1]


def _components(above: np.ndarray, diagonal: bool) -> list[np.ndarray]:
    """Connected parts in the order of their first pixels, by flood fill."""
    left, parts = above.copy(), []
    steps = [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if (a or b) and (diagonal or not (a and b))]
    for start in zip(*np.nonzero(above), strict=True):
        if not left[start]:
            continue
        part, front = np.zeros_like(above), [start]
        left[start] = False
        while front:
            row, column = front.pop()
            part[row, column] = True
            for a, b in steps:
                place = (row + a, column + b)
                if 0 <= place[0] < above.shape[0] and 0 <= place[1] < above.shape[1] and left[place]:
                    left[place] = False
                    front.append(place)
        parts.append(part)
    return parts


class _Small(nn.Module):
    """A classifier in float64 of very few operations."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(4, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).relu().mean((2, 3)))


def _curves(draw: Draw) -> None:
    """Insertion and deletion against a plain loop over pixels, points and images."""
    count, height, width = draw.whole(1, 3), draw.whole(1, 7), draw.whole(1, 7)
    classes = draw.whole(1, 5)
    model = _Small(classes).double()
    x = torch.randn(count, 3, height, width, dtype=torch.float64)
    kind = draw.one(("noise", "noise", "ties", "constant"))
    maps = torch.randn(count, height, width, dtype=draw.one((torch.float64, torch.float32)))
    maps = {"noise": maps, "ties": maps.round(), "constant": torch.full_like(maps, 0.1)}[kind]
    protocols: tuple[Literal["published", "budget"], ...] = ("published", "budget")
    protocol = draw.one(protocols)
    step = draw.one((1, 1, 2, 3, height * width - 1, height * width, height * width + 1, 10_000, 0, -1))
    labels = torch.from_numpy(draw.rng.integers(0, classes + (1 if draw.chance(0.1) else 0), count))
    label: int | Tensor = int(labels[0]) if draw.chance(0.3) else labels
    labels = torch.full_like(labels, label) if isinstance(label, int) else labels
    baseline: Any = draw.one(("black", "mean", "noise"))
    batch = draw.one((1, 2, 5, 32))
    draw.note(
        f"{protocol} {kind} {count}x{height}x{width} step={step} labels={labels.tolist()} of {classes} {baseline}"
    )
    missing = torch.randn_like(x) if baseline == "noise" else torch.zeros_like(x)
    if baseline == "black":
        mean = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64)
        missing = -(mean / torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64)).view(1, 3, 1, 1).expand_as(x)
    given = missing if baseline == "noise" else baseline
    try:
        got = hw.insertion_deletion(model, x, maps, label, protocol, step, baseline=given, batch_size=batch)
    except HeadwaterError as error:
        fits = 1 <= step < height * width and int(labels.max()) < classes
        must(not fits, f"a valid input was refused: {error}")
        raise
    must(step >= 1, f"a step of {step} was accepted")
    must(int(labels.max()) < classes, "a label out of range was accepted")
    wanted = _by_loops(model, x, maps, labels, protocol, step, missing)
    for name, values in wanted.items():
        mine = getattr(got, name)
        must(mine.shape == values.shape, f"{name} is {tuple(mine.shape)}, not {tuple(values.shape)}")
        must(mine.isfinite().all(), f"{name} is not finite")
        # A mean over a few hundred products in float64, and the normalisation's constants.
        must(torch.allclose(mine, values, atol=1e-9, rtol=0), f"{name} is off by {(mine - values).abs().max():.1e}")
    draw.maps += count


def _by_loops(
    model: nn.Module, x: Tensor, maps: Tensor, labels: Tensor, protocol: str, step: int, missing: Tensor
) -> dict[str, Tensor]:
    """The definition of both protocols, pixel by pixel."""
    pixels = maps[0].numel()
    points = math.ceil(pixels / step)
    order = torch.randperm(pixels, generator=torch.Generator().manual_seed(42)).tolist()
    result: dict[str, list[Any]] = {n: [] for n in ("insertion", "deletion", "insertion_curve", "deletion_curve")}
    for image, other, heatmap, label in zip(x, missing, maps.flatten(1).tolist(), labels.tolist(), strict=True):
        sets: list[list[int]] = []
        if protocol == "budget":
            ranked = sorted(order, key=lambda p: -heatmap[p])
            sets = [ranked[: min(k * step, pixels)] for k in range(points + 1)]
        else:
            falling = sorted(heatmap, reverse=True)
            for k in range(points):
                least = falling[min(step * (k + 1), pixels - 1)]
                sets.append([p for p in range(pixels) if heatmap[p] >= least])
        for name, full, empty in (("insertion", image, other), ("deletion", other, image)):
            curve = []
            for entered in sets:
                mixed = empty.flatten(1).clone()
                mixed[:, entered] = full.flatten(1)[:, entered]
                with torch.no_grad():
                    curve.append(model(mixed.view_as(image)[None]).softmax(1)[0, label].item())
            at = [len(s) / pixels for s in sets] if protocol == "budget" else _evenly(len(sets))
            area = sum((b - a) * (p + q) / 2 for a, b, p, q in zip(at, at[1:], curve, curve[1:], strict=False))
            result[f"{name}_curve"].append(curve)
            result[name].append(area)
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in result.items()}


def _evenly(points: int) -> list[float]:
    return [k / (points - 1) for k in range(points)] if points > 1 else [0.0]


def _objects(draw: Draw) -> None:
    """Localisation and sparseness against their definitions."""
    maps = _maps(draw, 8).double()
    mask = torch.from_numpy(draw.rng.random(maps.shape) < draw.one((0.0, 0.1, 0.5, 1.0)))
    results = {f.__name__: f(maps, mask) for f in (pointing_game, relevance_mass, relevance_rank)}
    for k, (values, inside) in enumerate(zip(maps.flatten(1).tolist(), mask.flatten(1).tolist(), strict=True)):
        must(any(inside), "an empty mask was accepted")
        top = [i for v, i in zip(values, inside, strict=True) if v == max(values)]
        positive = sum(max(v, 0.0) for v in values)
        ranked = sorted(range(len(values)), key=lambda p: -values[p])[: sum(inside)]
        wanted = {
            "pointing_game": sum(top) / len(top),
            "relevance_mass": sum(max(v, 0.0) for v, i in zip(values, inside, strict=True) if i) / (positive or 1),
            "relevance_rank": sum(inside[p] for p in ranked) / len(ranked),
        }
        for name, value in wanted.items():
            must(abs(float(results[name][k]) - value) < 1e-6, f"{name} is {float(results[name][k])}, not {value}")
    index = gini(maps)
    must(((index > -1e-9) & (index < 1 + 1e-9)).all(), f"gini {index.tolist()}")
    correlation = rank_correlation(maps.flatten(1), maps.flatten(1))
    must(correlation.isfinite().all() and (correlation <= 1 + 1e-9).all(), f"correlation {correlation.tolist()}")
    draw.maps += len(maps)


_ODD: tuple[Any, ...] = (
    -1,
    0,
    1,
    3,
    2.0,
    1.5,
    1e30,
    2**70,
    math.nan,
    math.inf,
    True,
    "8",
    "",
    "²",
    None,
    (),
    (0, 0),
    (4, 4),
    (-1, 3),
    (1.5, 2),
    [1, 2],
    torch.tensor(1),
    torch.tensor([0, 1]),
    torch.tensor([0.5, 1.5]),
    torch.tensor([True, False]),
    torch.zeros(0),
    "published",
    "mean",
)


def _invalid(draw: Draw) -> None:
    """A valid call with one argument replaced: it must give a clear error or finite numbers."""
    model, x, maps = _Small(3), torch.randn(2, 3, 4, 4), torch.rand(2, 4, 4)
    mask = maps > 0.1
    if draw.chance(0.4):
        maps = _odd_maps(draw, maps)
    call, arguments = draw.one(
        (
            (hw.heat_quantization, {"heatmap": maps, "levels": 8, "variant": "published"}),
            (hw.c3, {"heatmap": maps, "size": 4, "threshold": None}),
            (hw.c1c, {"heatmap": maps, "size": 4, "threshold": None}),
            (
                hw.insertion_deletion,
                {
                    "model": model,
                    "x": x,
                    "heatmap": maps,
                    "label": 1,
                    "protocol": "budget",
                    "step": 4,
                    "baseline": "black",
                    "mean": (0.5, 0.5, 0.5),
                    "std": (0.2, 0.2, 0.2),
                    "resolution": None,
                    "batch_size": 8,
                    "seed": 1,
                },
            ),
            (pointing_game, {"heatmap": maps, "mask": mask}),
            (relevance_mass, {"heatmap": maps, "mask": mask}),
            (relevance_rank, {"heatmap": maps, "mask": mask}),
            (gini, {"heatmap": maps}),
        )
    )
    changed: dict[str, Any] = dict(cast("dict[str, Any]", arguments))
    name = draw.one(tuple(changed))
    changed[name] = draw.one(_ODD)
    draw.note(f"{call.__name__}({name}={str(changed[name])[:60]!r})")
    result = cast("Callable[..., Any]", call)(**changed)
    numbers = [result] if isinstance(result, Tensor) else [result.insertion, result.deletion]
    must(all(n.isfinite().all() for n in numbers), "the result is not finite")


def _odd_maps(draw: Draw, maps: Tensor) -> Tensor:
    way = draw.one(("nan", "integers", "bool", "complex", "sparse", "meta", "2d", "4d", "empty", "large", "gradient"))
    draw.note(f"maps: {way}")
    return {
        "nan": maps.index_fill(1, torch.tensor(0), math.nan),
        "integers": maps.long(),
        "bool": maps > 0.5,
        "complex": maps * 1j,
        "sparse": maps.to_sparse(),
        "meta": maps.to("meta"),
        "2d": maps[0],
        "4d": maps[None],
        "empty": maps[:0],
        "large": maps.repeat(1, 5, 5),
        "gradient": maps.clone().requires_grad_(),
    }[way]
