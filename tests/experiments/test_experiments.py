"""The papers' tables and figures as experiments: which numbers are printed, what is measured, what is written."""

from __future__ import annotations

import copy
import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from command import headwater
from helpers import EXAMPLES, TinyResidual, settle
from PIL import Image

import headwater as hw
from headwater.data.labelled import LabelledImages, load_labelled
from headwater.errors import InputError
from headwater.evaluation import Settings
from headwater.experiments import grid, list_experiments, registry, reproduce
from headwater.experiments.conservation import block_inputs, cut_sums
from headwater.experiments.failures import analyse_errors
from headwater.experiments.grid import find_classes
from headwater.experiments.networks import networks_for
from headwater.experiments.published import CUB, GRIDS, IMAGENET, TABLES
from headwater.methods.rise import Rise
from headwater.models.abn import AttentionBranchNetwork

FOLDERS = ("class0", "class1", "class2", "class3")
METHOD_MD = Path(__file__).resolve().parents[3] / "shared" / "method.md"
SETTINGS = Settings(("otsuki2024",), samples=8, step=60, batch_size=4)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    network = settle(TinyResidual(classes=4))
    network.card = hw.ModelCard("tiny-residual", "random", hw.Preprocessing(16, 16), FOLDERS)
    return network


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    for k in range(4):
        for i in range(3):
            path = root / f"class{k}" / f"{i}.png"
            path.parent.mkdir(exist_ok=True)
            values = np.random.RandomState(10 * k + i).randint(0, 255, (20, 24, 3))
            Image.fromarray(values.astype(np.uint8)).save(path)
    return root


def test_every_name_of_the_issue_is_there():
    names = [*(f"otsuki2024-table{t}" for t in "123BCD"), *(f"otsuki2024-fig{f}" for f in "57ABCDEF")]
    names += ["doublet2024-table1", "doublet2024-table2", "doublet2024-fig4"]
    names += ["otsuki2024-timing", "doublet2024-cost"]
    assert set(names) <= set(list_experiments())


def test_published_numbers_add_up_and_methods_exist():
    known = hw.list_methods()
    for table in TABLES.values():
        for row in table.rows:
            assert row.method.removesuffix("+hq") in known
            for numbers in row.published.values():
                assert numbers.insertion - numbers.deletion == pytest.approx(numbers.id, abs=0.21)
    for figure in GRIDS.values():
        assert {name.removesuffix("+hq") for name in figure.methods | figure.ours} <= set(known)


def test_published_numbers_are_those_of_the_method_text(shared):
    """Table B of Otsuki et al. as ../shared/method.md has it, row by row."""
    lines = [line for line in METHOD_MD.read_text().splitlines() if line.startswith("|") and line.count("|") == 8]
    rows = {}
    for line in lines:
        cells = [cell.strip(" *") for cell in line.strip("|").split("|")]
        if cells[1].replace(".", "").isdigit():
            rows[cells[0]] = [float(cell) for cell in cells[1:]]
    assert len(rows) == 7
    measured = [row for row in TABLES["otsuki2024-tableB"].rows if row.published]
    for row, numbers in zip(measured, rows.values(), strict=True):
        cub, imagenet = row.published[CUB], row.published[IMAGENET]
        mine = [cub.insertion, cub.deletion, cub.id, imagenet.insertion, imagenet.deletion, imagenet.id]
        assert mine == numbers, row.label


def test_a_table_stands_beside_the_published_one(model, folder, tmp_path):
    done = reproduce("otsuki2024-table3", folder, [model], tmp_path, SETTINGS)
    line = next(line for line in done.report.splitlines() if line.startswith("| with |"))
    assert "54.3 / 3.3 / **51.0**" in line
    table = hw.evaluate(model, folder, Settings(("otsuki2024",), 8, step=60, batch_size=4), tmp_path / "again")
    mine = next(line for line in done.report.splitlines() if line.startswith("| the method, without |"))
    assert f"**{100 * table['id_published'].mean():.1f}**" in mine
    assert f"**{100 * table['id_budget'].mean():.1f}**" in mine
    assert "tiny-residual (weights: random)" in done.report and "8 of folders, split 'val', 12 images" in done.report
    assert "published and budget; 60 pixels per step" in done.report
    assert done.files[0].read_text() == done.report
    assert json.loads((tmp_path / "report.json").read_text())["experiment"] == "otsuki2024-table3"


def test_several_networks_give_means_over_networks(folder, tmp_path):
    networks = []
    for seed in range(3):
        torch.manual_seed(seed)
        networks.append(settle(TinyResidual(classes=4), seed))
        networks[-1].card = hw.ModelCard(f"run-{seed}", "random", hw.Preprocessing(16, 16), FOLDERS)
    done = reproduce("doublet2024-table2", folder, networks, tmp_path, SETTINGS)
    assert "Mean ± standard deviation over 3 networks" in done.report
    with (tmp_path / "summary.csv").open() as file:
        rows = {(row["method"], row["measure"]): row for row in csv.DictReader(file)}
    alone = []
    for number, network in enumerate(networks):
        settings = Settings(("c3-lrp",), 8, step=60, batch_size=4)
        alone.append(hw.evaluate(network, folder, settings, tmp_path / f"alone-{number}")["id_budget"].mean())
    mine = rows["c3-lrp", "id_budget"]
    assert float(mine["mean"]) == pytest.approx(np.mean(alone), abs=1e-6)
    assert float(mine["deviation"]) == pytest.approx(np.std(alone, ddof=1), abs=1e-6)
    assert mine["count"] == "3"


def test_attention_branch_networks_serve_abn_and_the_others_the_rest(model):
    branch = AttentionBranchNetwork(torchvision.models.resnet18(num_classes=4))
    assert networks_for("abn", [model, branch]) == (branch,)
    assert networks_for("rise", [model, branch]) == (model,)
    assert networks_for("rise", [branch]) == (branch,)
    assert networks_for("abn", [model]) == ()


def test_a_row_without_a_network_says_so(model, folder, tmp_path):
    hw.register_method("rise", lambda m: Rise(m, masks=8))
    try:
        done = reproduce("doublet2024-table1", folder, [model], tmp_path, SETTINGS)
    finally:
        hw.register_method("rise", Rise, hw.methods.describe_method("rise"))
    line = next(line for line in done.report.splitlines() if line.startswith("| ABN |"))
    assert "28.2 ± 5.2 / 7.5 ± 1.1 / **20.7 ± 5.4**" in line and "64.2 ± 0.9" in line and "no network given" in line


def test_conservation_at_three_cuts(model, folder, tmp_path):
    x = torch.zeros(2, 3, 16, 16)
    graph = hw.LRP(model).graph(x)
    first, last = block_inputs(graph)
    images = load_labelled(folder).images[:5]
    exact, published = cut_sums(model, ["otsuki2024", "otsuki2024-published"], images, batch_size=2)
    assert (exact.kept - 1).abs().max() < 1e-5
    assert published.kept[:, 0].min() < 0.9999
    e = hw.LRP(model)(torch.stack([model.card.preprocessing(p.open()) for p in images]), checkpoints=["block2"])
    torch.testing.assert_close(exact.sums[:, 2], e.conservation.checkpoints["block2"])
    assert graph.cuts().index(first) < graph.cuts().index(last)
    done = reproduce("otsuki2024-fig7", folder, [model], tmp_path, SETTINGS)
    assert (tmp_path / "otsuki2024-fig7.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "conservation.csv").read_text().count("\n") == 1 + 2 * 8
    assert "| `otsuki2024` | 1.0000 | 1.0000 | 1.0000 |" in done.report
    with pytest.raises(InputError, match="no residual block"):
        block_inputs(hw.LRP(torch.nn.Sequential(torch.nn.Conv2d(3, 2, 16), torch.nn.Flatten())).graph(x))


def test_a_figure_of_the_papers_classes(shared, tmp_path):
    done = reproduce("otsuki2024-figB", shared / "data" / "tiny20", [hw.load_model("tiny20")], tmp_path)
    with Image.open(tmp_path / "otsuki2024-figB.png") as image:
        width, height = image.size
    assert width > 2 * height, "an image and two maps in a row"
    assert "1 of the paper's 1 classes" in done.report


def test_a_figure_of_classes_drawn_at_random(model, folder, tmp_path):
    done = reproduce("otsuki2024-figE", folder, [model], tmp_path)
    with Image.open(tmp_path / "otsuki2024-figE.png") as image:
        width, height = image.size
    assert width < 2 * height, "four images over four methods each"
    assert "classes drawn at random" in done.report


def test_the_papers_classes_are_found_by_name(folder):
    card = hw.ModelCard("m", "random", hw.Preprocessing(16, 16), ("Sock", "bee", "ping-pong ball", "ram"))
    data = load_labelled(folder)
    found = find_classes(data, card, ("Ping Pong Ball", "Brandt Cormorant", "Bee"))
    assert [p.label for p in found] == [2, 1]
    flat = LabelledImages("flat", tuple(p for p in data.images), ("n1", "n2", "n3", "n4"))
    assert find_classes(flat, hw.ModelCard("m", "r", hw.Preprocessing(16, 16)), ("Sock",)) == []


def test_error_analysis_with_and_without_boxes(model, folder, tmp_path):
    settings = Settings(("otsuki2024+hq",), 12, ("published",), step=60, batch_size=4)
    table = hw.evaluate(model, folder, settings, tmp_path / "rows")
    data = load_labelled(folder)
    threshold = float(table["id_published"].median())
    analysis = analyse_errors(model, "otsuki2024+hq", table, data.images, threshold, count=4)
    assert (analysis.failed, analysis.of, len(analysis.worst)) == (6, 12, 4)
    assert [w.id for w in analysis.worst] == sorted(table["id_published"])[:4]
    assert all(w.kind is None for w in analysis.worst) and "yours to sort" in analysis.markdown()
    rows = list(csv.DictReader(io.StringIO(analysis.csv())))
    assert [row["kind"] for row in rows] == [""] * 4
    assert analysis.sheet().startswith(b"\x89PNG")
    with pytest.raises(InputError, match="has a box"):
        analysis.examples()
    boxed = tuple(
        type(p)(p.name, p.label, p.source, boxes=(hw.data.preprocessing.Box(4, 4, 20, 16),)) for p in data.images
    )
    sorted_ = analyse_errors(model, "otsuki2024+hq", table, boxed, threshold, count=4)
    assert {w.kind for w in sorted_.worst} <= {"IA", "OA", "WA"}
    assert "| IA: area too small | 40 |" in sorted_.markdown()
    assert sorted_.examples().startswith(b"\x89PNG")


def test_table_d_is_written(model, folder, tmp_path):
    done = reproduce("otsuki2024-tableD", folder, [model], tmp_path, SETTINGS, threshold=2.0, worst=3)
    assert "| failed: ID not above 2.0 | 311 of 1000 | 8 of 8 |" in done.report
    assert {"failures.csv", "worst.png", "report.md"} <= {path.name for path in done.files}


@pytest.fixture
def checkpoint(tmp_path):
    """A file of V1's format: what torchvision's file of ResNet-50 holds, with random values."""
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet50().state_dict(), path := tmp_path / "resnet50-of-a-colleague.pth")
    return path


@pytest.fixture
def imagenet(tmp_path):
    """Two classes laid out as ImageNet's validation images are."""
    for wnid, photo in (("n02123045", "tabby"), ("n07920052", "espresso")):
        path = tmp_path / "imagenet" / "val" / wnid / "ILSVRC2012_val_00000001.JPEG"
        path.parent.mkdir(parents=True)
        path.write_bytes((EXAMPLES / f"{photo}.jpg").read_bytes())
    return tmp_path / "imagenet" / "val"


def test_table_1_runs_offline_on_a_checkpoint_file(checkpoint, imagenet, tmp_path, monkeypatch):
    """The baselines, which take minutes on a network of this size, are replaced; the next test has all of them."""
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", None)
    for row in TABLES["otsuki2024-table1"].rows:
        if hw.methods.is_baseline(row.method):
            name = row.method.removesuffix("+hq")
            monkeypatch.setitem(hw.methods._METHODS, name, hw.methods._METHODS["random"])
    model = hw.load_model("resnet50", weights=checkpoint)
    settings = Settings(("otsuki2024",), 1, ("published",), step=25088, batch_size=1)
    done = reproduce("otsuki2024-table1", imagenet, [model], tmp_path / "out", settings)
    assert done.report.startswith("# otsuki2024-table1, NOT with the paper's weights\n")
    assert f"NOT so: resnet50 ({checkpoint})" in done.report and "short side to 256, centre 224 x 224" in done.report
    assert "| Grad-CAM | `gradcam` | 49.7 / 12.6 / **37.1** | 50.8 ± 1.5 / 5.5 ± 0.4 / **45.3 ± 1.1** |" in done.report
    record = json.loads((tmp_path / "out" / "report.json").read_text())
    assert record["weights"][0]["weights"] == str(checkpoint) and record["weights"][0]["version"] is None
    identity = json.loads((tmp_path / "out" / "network-0" / "settings.json").read_text())
    assert identity["weights"] == f"{checkpoint} ({record['weights'][0]['digest']})"
    assert f"Weights: resnet50: {checkpoint}." in (tmp_path / "out" / "network-0" / "summary.md").read_text()


@pytest.mark.full
def test_the_command_for_table_1_runs_offline_on_a_checkpoint_file(checkpoint, imagenet, tmp_path):
    """As the README has it; ``--samples`` and ``--step`` make it short."""
    options = ["--data", str(imagenet), "--weights", str(checkpoint), "--samples", "1", "--step", "25088"]
    options += ["--out", str(tmp_path / "out")]
    # Both Score-CAMs run the network once for each of 2,048 channels.
    done = headwater("reproduce", "otsuki2024-table1", *options, seconds=1800, HTTPS_PROXY="x://")
    assert done.returncode == 0, done.stderr
    assert "# otsuki2024-table1, NOT with the paper's weights" in done.stdout


def test_with_the_papers_weights_the_heading_is_the_experiments(model, folder, tmp_path):
    network = copy.deepcopy(model)
    network.card = replace(model.card, version="ResNet50_Weights.IMAGENET1K_V1")
    done = reproduce("doublet2024-table2", folder, [network], tmp_path, SETTINGS)
    assert done.report.startswith("# doublet2024-table2\n") and "NOT" not in done.report
    both = reproduce("doublet2024-table2", folder, [network, model], tmp_path / "both", SETTINGS)
    assert "NOT so: tiny-residual (random)" in both.report, "one of two is enough"


@pytest.fixture
def two_sets(tmp_path):
    """Birds and things by the names of Fig. 5's classes, and a network for each."""
    random, sets, models = np.random.RandomState(0), {}, {}
    for name, classes in (
        ("cub", ("Rock Wren", "Brandt Cormorant", "Geococcyx")),
        ("imagenet", ("bee", "sock", "wombat")),
    ):
        for k, label in enumerate(classes):
            values = random.randint(0, 255, (20, 24, 3)).astype(np.uint8)
            path = tmp_path / name / f"{k}_{label}" / "0.png"
            path.parent.mkdir(parents=True)
            Image.fromarray(values).save(path)
        sets[name] = LabelledImages(
            name, tuple(replace(p, label=k) for k, p in enumerate(load_labelled(tmp_path / name).images))
        )
        torch.manual_seed(len(models))
        network = settle(TinyResidual(classes=3))
        network.card = hw.ModelCard(f"{name}-net", f"{name}-weights", hw.Preprocessing(16, 16), classes)
        models[name] = [network]
    return sets, models


def test_a_figure_mixes_data_sets_each_with_its_network(two_sets, tmp_path, monkeypatch):
    data, models = two_sets
    drawn = []
    sheet = grid.contact_sheet

    def recording(images, titles, columns, caption):
        drawn.append((titles, columns, caption))
        return sheet(images, titles, columns, caption=caption)

    monkeypatch.setattr(grid, "contact_sheet", recording)
    cheap = {"lrp-epsilon": "LRP", "otsuki2024-published+hq": "ours"}
    for name in ("otsuki2024-fig5", "otsuki2024-figF"):
        experiment = registry.EXPERIMENTS[name]
        monkeypatch.setitem(
            registry.EXPERIMENTS, name, replace(experiment, grid=replace(experiment.grid, methods=cheap))
        )
    done = reproduce("otsuki2024-fig5", data, models, tmp_path / "fig5")
    titles, columns, caption = drawn[0]
    assert columns == 3 and titles[::3] == ["Brandt Cormorant", "sock", "bee"]
    assert "Images of 3 of the paper's 5 classes" in done.report
    for part in (
        "otsuki2024-published+hq",
        "quantized to 8 levels",
        "positive part, jet",
        "cub-weights",
        "imagenet-net",
    ):
        assert part in caption.replace("\n", " ")
    reproduce("otsuki2024-figF", data, models, tmp_path / "figF")
    assert drawn[1][0][:3] == ["wombat", "Rock Wren", "Geococcyx"], "the paper's order, images in columns"
    one = reproduce("otsuki2024-figF", {"cub": data["cub"]}, models["cub"], tmp_path / "one")
    assert "Images of 2 of the paper's 3 classes" in one.report


def test_data_sets_that_a_figure_does_not_know(two_sets, tmp_path):
    data, models = two_sets
    with pytest.raises(InputError, match="otsuki2024-fig5 knows no data set called 'birds'; it knows cub and imagenet"):
        reproduce("otsuki2024-fig5", {"birds": data["cub"]}, models["cub"], tmp_path)
    with pytest.raises(InputError, match="otsuki2024-table1 knows no data set called 'cub'; it takes one"):
        reproduce("otsuki2024-table1", {"cub": data["cub"]}, models["cub"], tmp_path)
    with pytest.raises(InputError, match="say which network is for which of cub, imagenet"):
        reproduce("otsuki2024-fig5", data, models["cub"], tmp_path)
    with pytest.raises(InputError, match="there is none for 'imagenet'"):
        reproduce("otsuki2024-fig5", data, {"cub": models["cub"]}, tmp_path)
    with pytest.raises(InputError, match="no style is called 'nice'; there are published, headwater"):
        reproduce("otsuki2024-fig5", data, models, tmp_path, style="nice")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--data birds=x", "it knows cub and imagenet"),
        ("--data x --data y", "need different names"),
        ("--data cub=x --data y", "y needs a name as the other data have"),
        ("--data cub=x --model imagenet=tiny20", "--model imagenet=tiny20 has no data; --data imagenet=DIR"),
        ("--data cub=x --data imagenet=y --model tiny20", "--model NAME=tiny20 says for which data it is"),
        ("--data x --model tiny20 --weights v2", "tiny20 comes with its weights"),
    ],
)
def test_names_on_the_command_line(tmp_path, arguments, message):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
    done = headwater("reproduce", "otsuki2024-fig5", *arguments.split(), "--out", str(tmp_path / "out"), cwd=tmp_path)
    assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr


def test_a_figure_on_the_command_line_takes_data_and_networks_by_name(shared, tmp_path):
    places = ["--data", f"imagenet={shared / 'data' / 'tiny20'}", "--model", "imagenet=tiny20"]
    done = headwater("reproduce", "otsuki2024-figB", *places, "--style", "headwater", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "Maps of otsuki2024-ii, otsuki2024; positive and negative" in done.stdout
    assert "networks: imagenet: tiny20" in done.stdout


def test_fig_7_and_table_d_use_every_network(model, folder, tmp_path):
    torch.manual_seed(1)
    other = settle(TinyResidual(classes=4), 1)
    other.card = replace(model.card, name="second")
    done = reproduce("otsuki2024-fig7", folder, [model, other], tmp_path / "7", SETTINGS)
    rows = [line for line in done.report.splitlines() if line.startswith("| `otsuki2024` |")]
    assert [row.rsplit("|", 2)[1].strip() for row in rows] == ["tiny-residual", "second"]
    assert (tmp_path / "7" / "conservation.csv").read_text().count("second,") == 2 * 8
    done = reproduce("otsuki2024-tableD", folder, [model, other], tmp_path / "D", SETTINGS, threshold=2.0, worst=2)
    assert "## tiny-residual" in done.report and "## second" in done.report
    assert {path.parent.name for path in done.files if path.name == "worst.png"} == {"network-0", "network-1"}


def test_unknown_experiments_and_no_networks(model, folder, tmp_path):
    with pytest.raises(InputError, match="did you mean otsuki2024-table"):
        reproduce("otsuki2024-table7", folder, [model], tmp_path)
    with pytest.raises(InputError, match="at least one network"):
        reproduce("otsuki2024-table2", folder, [], tmp_path)


def test_the_commands(shared, tmp_path):
    listed = headwater("experiments")
    assert "otsuki2024-table2" in listed.stdout
    options = ["--model", "tiny20", "--samples", "4", "--step", "1024", "--out", str(tmp_path)]
    done = headwater("reproduce", "otsuki2024-table2", "--data", str(shared / "data" / "tiny20"), *options)
    assert done.returncode == 0, done.stderr
    assert "| (iv) ratio, in: the method | `otsuki2024-published+hq` | 56.3 / 1.8 / **54.5** |" in done.stdout
    other = headwater("reproduce", "otsuki2024-table2", "--data", str(tmp_path), "--model", "tiny20", "--out", "x")
    assert other.returncode == 1
