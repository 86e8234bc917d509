from __future__ import annotations

import hashlib
import pickle
import re
import sys
import urllib.error
import urllib.request

import pytest
import torch
import torchvision
from helpers import EXAMPLES
from safetensors.torch import save_file

import headwater as hw
from headwater.errors import CheckpointError, DownloadError, InputError, MissingDependencyError
from headwater.models import card_of
from headwater.models import weights as weights_module
from headwater.models.weights import weights_in_file


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """No network, and an empty cache."""

    def refuse(*_, **__):
        raise urllib.error.URLError("no network here")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(torch.hub, "urlopen", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_list_has_every_torchvision_resnet():
    families = ("resnet", "resnext", "wide_resnet")
    expected = [n for n in torchvision.models.list_models(module=torchvision.models) if n.startswith(families)]
    assert set(expected) < set(hw.list_models())
    assert "tiny20" in hw.list_models()


@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d", "wide_resnet50_2"])
def test_random_weights_by_name(name):
    model = hw.load_model(name, weights="none")
    assert not model.training
    assert card_of(model).weights == "random"


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(InputError, match="did you mean resnet50"):
        hw.load_model("resnet500")
    with pytest.raises(InputError, match=r"no weights 'V9'.*IMAGENET1K_V1"):
        hw.load_model("resnet50", weights="V9")
    with pytest.raises(InputError, match="goes with a checkpoint file"):
        hw.load_model("resnet50", arch="resnet50")


def test_a_failed_download_says_what_to_do(offline):
    with pytest.raises(DownloadError, match=r"no network here.*put it at .*resnet18.*tiny20"):
        hw.load_model("resnet18")


def test_cached_weights_are_used_with_their_classes_and_preprocessing(offline, monkeypatch):
    weights = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    state = torchvision.models.resnet18(weights=None).state_dict()
    place = offline / "checkpoints" / weights.url.rsplit("/", 1)[-1]
    place.parent.mkdir(parents=True)
    torch.save(state, place)
    model = hw.load_model("resnet18", weights="IMAGENET1K_V1")
    assert torch.equal(model.conv1.weight, state["conv1.weight"])
    assert model.card.class_name(281) == "tabby"
    assert (model.card.preprocessing.resize, model.card.preprocessing.crop) == (256, 224)


@pytest.mark.parametrize(
    ("weights", "version", "resize"), [(None, "V1", 256), ("v1", "V1", 256), ("V2", "V2", 232), ("DEFAULT", "V2", 232)]
)
def test_the_papers_weights_unless_others_are_asked_for(monkeypatch, weights, version, resize):
    asked = []

    def load(url, *_, **__):
        asked.append(url)
        return torchvision.models.resnet50(weights=None).state_dict()

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", load)
    card = hw.load_model("resnet50", weights).card
    assert asked == [torchvision.models.ResNet50_Weights[f"IMAGENET1K_{version}"].url]
    assert card.version == card.weights == f"ResNet50_Weights.IMAGENET1K_{version}"
    assert card.preprocessing.resize == resize


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_a_file_downloaded_elsewhere_is_a_networks_weights(tmp_path, offline, zipped):
    network = torchvision.models.resnet18(weights=None)
    torch.save(network.state_dict(), path := tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    model = hw.load_model("resnet18", weights=path)
    assert torch.equal(model.fc.weight, network.fc.weight)
    assert (model.card.name, model.card.weights, model.card.version) == ("resnet18", str(path), None)
    assert model.card.preprocessing == hw.Preprocessing(256, 224) and model.card.class_name(281) == "tabby"
    with pytest.raises(CheckpointError, match="does not exist"):
        hw.load_model("resnet18", weights=tmp_path / "absent.pth")
    with pytest.raises(CheckpointError, match="does not fit resnet50"):
        hw.load_model("resnet50", weights=path)


def test_a_file_of_torchvisions_is_recognised_by_its_content(tmp_path, monkeypatch):
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), path := tmp_path / "renamed.pth")
    published = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    monkeypatch.setattr(weights_module, "_HASH", re.compile(r"-(f37072fd)\.pth$"))
    assert weights_in_file(path, "resnet18") is None
    monkeypatch.setattr(published.value, "url", f"https://host/resnet18-{digest}.pth")
    monkeypatch.setattr(weights_module, "_HASH", re.compile(r"-([0-9a-f]{8})\.pth$"))
    card = hw.load_model(path, arch="resnet18").card
    assert (card.version, card.weights) == (str(published), f"{published} ({path})")
    assert card.class_name(281) == "tabby"


def test_a_checkpoints_classes_are_not_guessed_from_their_number(tmp_path):
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), path := tmp_path / "own.pth")
    card = hw.load_model(path, arch="resnet18").card
    assert card.classes is None and card.wnids is None and card.class_name(281) == "class 281"
    with pytest.raises(InputError, match=r"class names of .*own\.pth are not known; give the class by its number"):
        card.class_index("tabby")
    assert hw.load_model("resnet18", weights=path).card.class_name(281) == "tabby"


def test_weights_for_models_that_have_their_own(tmp_path):
    model = hw.load_model("tiny20", weights="none")
    assert model.card.weights == "random" and model.card.preprocessing == hw.load_model("tiny20").card.preprocessing
    save_file(dict(model.state_dict()), path := tmp_path / "w.safetensors")
    again = hw.load_model("tiny20", weights=path)
    assert torch.equal(again.fc.weight, model.fc.weight) and again.card.class_name(5) == "tabby"
    with pytest.raises(InputError, match="tiny20 comes with its weights"):
        hw.load_model("tiny20", weights="v2")
    with pytest.raises(InputError, match="has weights of its own"):
        hw.load_model(path, weights="v1", arch="tiny20")
    with pytest.raises(InputError, match="timm has its weights in the name"):
        hw.load_model("timm:resnet18", weights="v1")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("wrap", ["plain", "nested"])
def test_checkpoint_files(tmp_path, suffix, wrap):
    network = torchvision.models.resnet18(weights=None, num_classes=7)
    path = tmp_path / f"w{suffix}"
    state = network.state_dict()
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}} if wrap == "nested" else state, path)
    model = hw.load_model(path, arch="resnet18")
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(model(x), network.eval()(x))
    assert model.card.class_name(3) == "class 3"


class Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (exec, (f"import pathlib; pathlib.Path({str(self.marker)!r}).touch()",))


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_checkpoint_with_code_is_refused_and_nothing_is_run(tmp_path, how):
    path, marker = tmp_path / "evil.pth", tmp_path / "executed"
    if how == "torch":
        torch.save({"conv1.weight": torch.zeros(1), "x": Payload(marker)}, path)
    else:
        path.write_bytes(pickle.dumps(Payload(marker)))
    with pytest.raises(CheckpointError, match="code in a checkpoint is never run"):
        hw.load_model(path, arch="resnet18")
    assert not marker.exists()


def test_checkpoints_that_do_not_fit(tmp_path):
    path = tmp_path / "w.pth"
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), path)
    with pytest.raises(CheckpointError, match=r"does not fit resnet50; missing: .*layer1\.0\.conv3"):
        hw.load_model(path, arch="resnet50")
    with pytest.raises(CheckpointError, match="of another shape"):
        hw.load_model(path, arch="wide_resnet50_2")
    with pytest.raises(InputError, match="say which: arch="):
        hw.load_model(path)
    with pytest.raises(InputError, match="no architecture is called 'resnet9'"):
        hw.load_model(path, arch="resnet9")
    for content in (b"", b"rubbish", (tmp_path / "w.pth").read_bytes()[:1000]):
        broken = tmp_path / "broken.pth"
        broken.write_bytes(content)
        with pytest.raises(CheckpointError):
            hw.load_model(broken, arch="resnet18")
    (tmp_path / "broken.safetensors").write_bytes(b"rubbish")
    with pytest.raises(CheckpointError, match="safetensors"):
        hw.load_model(tmp_path / "broken.safetensors", arch="resnet18")
    torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match="no state dict"):
        hw.load_model(path, arch="resnet18")
    with pytest.raises(CheckpointError, match="does not exist"):
        hw.load_model(tmp_path / "none.pth", arch="resnet18")


def test_class_names():
    card = hw.load_model("tiny20").card
    assert card.class_index("TABBY") == card.class_index(5) == card.class_index("5") == 5
    with pytest.raises(InputError, match="did you mean tabby"):
        card.class_index("tabbi")
    with pytest.raises(InputError, match="king penguin"):
        card.class_index("penguin")


def test_timm_missing_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingDependencyError, match=r"headwater\[timm\]"):
        hw.load_model("timm:resnet18")


def test_explain_from_python(tmp_path):
    e = hw.explain(EXAMPLES / "tabby.jpg", model="tiny20", target="lion", quantize=8)
    assert e.target.item() == 6
    assert e.summary()["target"]["name"] == "lion"
    assert e.conservation.error.item() < 1e-5
    written = e.save(tmp_path)
    assert sorted(p.suffix for p in written) == [".json", ".npy", ".png", ".png"]


def test_explain_a_users_module(tiny):
    e = hw.explain(EXAMPLES / "tabby.jpg", model=tiny, preprocessing=hw.Preprocessing(40, 32))
    assert e.heatmap.shape == (1, 32, 32)
    assert e.card.class_name(1) == "class 1"


def test_explain_errors_are_raised():
    with pytest.raises(hw.errors.ImageError):
        hw.explain("none.jpg", model="tiny20")
    with pytest.raises(InputError, match="did you mean otsuki2024"):
        hw.explain(EXAMPLES / "tabby.jpg", model="tiny20", method="otsuki2042")
    with pytest.raises(InputError, match="at least 2 levels"):
        hw.explain(EXAMPLES / "tabby.jpg", model="tiny20", quantize=1)
    with pytest.raises(InputError, match="out of range"):
        hw.explain(EXAMPLES / "tabby.jpg", model="tiny20", target=20)
