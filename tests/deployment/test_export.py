from __future__ import annotations

import copy
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from command import headwater
from PIL import Image
from torch import nn

import headwater as hw
from headwater.composites import Type
from headwater.deployment import run_exported
from headwater.engine.seed import class_scores
from headwater.errors import ExportError, InputError, MissingDependencyError, OutputError
from headwater.models import card_of

ROOT = Path(__file__).resolve().parents[2]


class Mixed(nn.Module):
    """Operations whose way back ONNX has under no name: a gate, pooling of each kind, both interpolations, a token."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.gate = nn.Linear(4, 4)
        self.average = nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False)
        self.bilinear = nn.Upsample(scale_factor=2, mode="bilinear")
        self.nearest = nn.Upsample(scale_factor=2)
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.pool(self.stem(x).relu())
        x = x * self.gate(x.mean((2, 3))).sigmoid()[:, :, None, None]
        x = x + self.depthwise(x)
        y = self.average(x)
        rows, columns = x.shape[2:]
        x = x + self.bilinear(y)[:, :, :rows, :columns] + self.nearest(y)[:, :, :rows, :columns]
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), x.flatten(2).transpose(1, 2)], 1)
        return self.head(tokens.mean(1))


@pytest.fixture(scope="module")
def mixed() -> nn.Module:
    torch.manual_seed(0)
    return Mixed().eval()


def noise(count: int, rows: int = 18, columns: int = 22) -> torch.Tensor:
    return torch.randn(count, 3, rows, columns, generator=torch.Generator().manual_seed(3))


def assert_same(path, lrp, x, target=None):
    found, e = run_exported(path, x.numpy(), None if target is None else target.numpy()), lrp(x, target)
    for given, expected in ((found["map"], e.heatmap), (found["logits"], e.logits)):
        np.testing.assert_allclose(given, expected.numpy(), rtol=0, atol=1e-4 * expected.abs().max().item())
    account = torch.stack([e.conservation.seed, e.conservation.input], 1).numpy()
    np.testing.assert_allclose(found["conservation"], account, rtol=1e-5)


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_the_graph_gives_the_same_map_for_any_number_of_images(mixed, suffix, tmp_path):
    done = hw.export(mixed, "otsuki2024", tmp_path / f"explainer{suffix}", noise(2))
    assert done.agreement.worst < 1e-5
    for count in (1, 3):
        assert_same(done.path, hw.LRP(mixed), noise(count))
    about = json.loads((tmp_path / "explainer.json").read_text())
    assert about["input"] == {"image": ["N", 3, 18, 22]} and about["output"]["map"] == ["N", 18, 22]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["explainer.json", f"explainer{suffix}"]


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_a_first_layer_of_few_channels_and_a_large_kernel(suffix, tmp_path):
    torch.manual_seed(0)
    stem = nn.Conv2d(3, 16, 7, stride=2, padding=3)
    model = nn.Sequential(stem, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3)).eval()
    path = hw.export(model, "otsuki2024", tmp_path / f"explainer{suffix}", noise(2)).path
    for count in (1, 3):
        assert_same(path, hw.LRP(model), noise(count))


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_attention(transformer, suffix, tmp_path):
    path = hw.export(transformer, "otsuki2024", tmp_path / f"explainer{suffix}", noise(2, 16, 16)).path
    for count in (1, 3):
        assert_same(path, hw.LRP(transformer), noise(count, 16, 16))


def test_the_class_may_be_an_input(tiny, images, tmp_path):
    path = tmp_path / "explainer.onnx"
    hw.export(tiny, "otsuki2024-ii", path, images, target="input")
    assert_same(path, hw.LRP(tiny, "otsuki2024-ii"), images, torch.tensor([0, 3, 4]))
    kept = json.loads(next(p.value for p in onnx.load(path).metadata_props if p.key == "headwater"))
    assert kept["composite"] == "otsuki2024-ii" and list(kept["input"]) == ["image", "target"]


def test_a_fixed_class_and_pixels_that_the_graph_normalises(tiny, images, tmp_path):
    tiny.card = hw.ModelCard("tiny", "random", hw.Preprocessing(16, 12))
    done = hw.export(tiny, "otsuki2024", tmp_path / "explainer.pt2", target=2, pixels=True)
    pixels = torch.rand(2, 3, 12, 12)
    mean, std = (torch.tensor(v)[:, None, None] for v in (tiny.card.preprocessing.mean, tiny.card.preprocessing.std))
    found, e = run_exported(done.path, pixels.numpy()), hw.LRP(tiny)((pixels - mean) / std, 2)
    np.testing.assert_allclose(found["map"], e.heatmap.numpy(), rtol=0, atol=1e-4 * e.heatmap.abs().max().item())


def test_an_operation_that_cannot_be_exported_is_named(images, tmp_path):
    class Sampled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, x):
            return torch.special.i0(self.conv(x)).mean((2, 3))

    hw.register_rule("special_i0", hw.rules.Pass())
    try:
        with pytest.raises(ExportError, match="i0"):
            hw.export(Sampled().eval(), "otsuki2024", tmp_path / "explainer.onnx", images)
    finally:
        hw.unregister_rule("special_i0")
    assert not list(tmp_path.iterdir())


class Untraceable(hw.rules.Pass):
    """Asks for a value, which no program knows beforehand."""

    def __call__(self, layer, prepared, inputs, relevance):
        assert relevance.sum().item() > -1
        return super().__call__(layer, prepared, inputs, relevance)


def test_a_rule_that_cannot_be_exported_is_named_with_its_operation(tiny, images, tmp_path):
    composite = hw.load_composite("otsuki2024").prepend((Type("relu"), Untraceable()))
    with pytest.raises(ExportError, match=r"operation 'relu' in module 'block2.relu', rule .*Untraceable"):
        hw.export(tiny, composite, tmp_path / "explainer.pt2", images)
    assert not list(tmp_path.iterdir())


def test_what_cannot_run_is_not_written(tiny, images, tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("Could not find an implementation for Conv(11)")

    monkeypatch.setattr(sys.modules["headwater.deployment.export"], "run_bytes", broken)
    with pytest.raises(ExportError, match=r"does not run: .*Conv\(11\)"):
        hw.export(tiny, "otsuki2024", tmp_path / "explainer.pt2", images)
    assert not list(tmp_path.iterdir())


def test_the_command(tmp_path):
    path = tmp_path / "explainer.pt2"
    done = headwater(*("export", "--model", "tiny20", "--pixels", "--target", "tabby", "--out", str(path)))
    assert done.returncode == 0, done.stderr
    assert "tiny20, otsuki2024: images ('N', 3, 64, 64)" in done.stdout
    about = json.loads(path.with_suffix(".json").read_text())
    assert about["classes"][about["target"]] == "tabby" and about["agreement"]["map"] < 1e-4
    refused = headwater("export", "--model", "tiny20", "--target", "nonsense", "--out", str(tmp_path / "other.pt2"))
    assert refused.returncode != 0 and "'nonsense'" in refused.stderr and "Traceback" not in refused.stderr
    strict = headwater("export", "--model", "tiny20", "--tolerance", "1e-12", "--out", str(tmp_path / "other.pt2"))
    assert strict.returncode != 0 and "tolerance of 1e-12" in strict.stderr and not (tmp_path / "other.pt2").exists()


def test_what_does_not_fit_is_said_before_any_work(tiny, images, tmp_path, monkeypatch):
    tiny_in_double = copy.deepcopy(tiny).double()
    cases = (
        ("explainer.tflite", {}, "an .onnx or a .pt2 file"),
        ("explainer.onnx", {"target": 7}, "classes 0 to 4"),
        ("explainer.onnx", {"target": "tabby"}, "None, a class or 'input'"),
        ("explainer.onnx", {"pixels": True}, "this model has none"),
        ("explainer.onnx", {"x": images.half()}, "move one to the other"),
        ("explainer.onnx", {"model": tiny_in_double, "x": images.double()}, "convolves in float32"),
    )
    for name, options, message in cases:
        with pytest.raises(InputError, match=message):
            hw.export(**{"model": tiny, "composite": "otsuki2024", "path": tmp_path / name, "x": images, **options})
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(MissingDependencyError, match=r"headwater\[onnx\]"):
        hw.export(tiny, "otsuki2024", tmp_path / "explainer.onnx", images)


@pytest.fixture(scope="module")
def example():
    module = importlib.util.spec_from_file_location("exported", ROOT / "examples" / "exported.py")
    loaded = importlib.util.module_from_spec(module)
    module.loader.exec_module(loaded)
    return loaded


@pytest.mark.parametrize(("asked", "given"), [("other", None), ("input", "other"), (None, None)])
def test_the_example_names_the_class_that_is_explained(mixed, example, asked, given, tmp_path, capsys):
    graph, photo, drawn = (str(tmp_path / name) for name in ("explainer.onnx", "photo.png", "map.png"))
    noisy = Image.fromarray(np.random.default_rng(0).integers(0, 255, (18, 22, 3), dtype=np.uint8))
    noisy.resize((300, 260)).save(photo)
    prepare = card_of(mixed).preprocessing
    image = np.array(example.centre(Image.open(photo), prepare.resize, 18, 22), dtype=np.float32)
    x = torch.from_numpy(image / 255 - prepare.mean).div(torch.tensor(prepare.std)).permute(2, 0, 1)[None].float()
    predicted = hw.LRP(mixed)(x).target.item()
    other = (predicted + 1) % 3
    hw.export(mixed, "otsuki2024", graph, noise(2), target=other if asked == "other" else asked)
    example.main(graph, photo, drawn, str(other) if given else None)
    named, seed = capsys.readouterr().out.split(";")[0].split(": ")
    expected = hw.LRP(mixed)(x, predicted if asked is None else other)
    assert int(named) == expected.target.item() and float(seed) == pytest.approx(expected.probability.item(), abs=1e-3)
    assert Image.open(drawn).size == (4 * 22, 4 * 18)
    with pytest.raises(SystemExit, match="name its number last" if given else "it takes no class"):
        example.main(graph, photo, drawn, None if given else "0")


def test_the_example_predicts_as_lrp_does(example):
    for shape in ((5,), (3, 4, 6), (1,)):
        logits = 3 * torch.randn(shape, generator=torch.Generator().manual_seed(1))
        assert example.predicted(logits.numpy()) == class_scores(logits[None], None).argmax().item()


def test_the_description_of_another_graph_is_not_replaced(tiny, images, tmp_path):
    done = hw.export(tiny, "otsuki2024", tmp_path / "explainer.pt2", images)
    (tmp_path / "explainer.pt2").rename(tmp_path / "explainer.onnx")
    hw.export(tiny, "otsuki2024", tmp_path / "explainer.pt2", images)  # the same in the other format
    (tmp_path / "explainer.pt2").unlink()
    with pytest.raises(InputError, match=r"explainer.json says what explainer.onnx is.*differing: composite"):
        hw.export(tiny, "otsuki2024-ii", tmp_path / "explainer.pt2", images)
    assert json.loads((tmp_path / "explainer.json").read_text())["composite"] == done.about["composite"]
    assert not (tmp_path / "explainer.pt2").exists()


def test_other_results_are_not_written(tiny, images, tmp_path):
    with pytest.raises(ExportError, match="other results than LRP"):
        hw.export(tiny, "otsuki2024", tmp_path / "explainer.pt2", images, tolerance=-1)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written(tiny, images, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        hw.export(tiny, "otsuki2024", tmp_path / "file" / "explainer.pt2", images)
