"""Tables as printed: deviations, tests of one family, the accuracy that the paper's column means."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import TinyResidual, settle
from PIL import Image
from scipy import stats

import headwater as hw
from headwater.errors import InputError
from headwater.evaluation import Settings, split_accuracy
from headwater.experiments import reproduce
from headwater.experiments.published import CUB, TABLES
from headwater.experiments.tables import measure_table
from headwater.report.tables import SummaryTable

pd = pytest.importorskip("pandas")
FOLDERS = ("class0", "class1", "class2", "class3")
SETTINGS = Settings(("otsuki2024",), samples=8, protocols=("published", "budget"), step=60, batch_size=4)
RNG = np.random.default_rng(0)


def network(seed=0):
    torch.manual_seed(seed)
    model = settle(TinyResidual(classes=4), seed)
    model.card = hw.ModelCard(f"run-{seed}", "random", hw.Preprocessing(16, 16), FOLDERS)
    return model


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


def rows(methods, images=12):
    """A table as :func:`headwater.evaluate` returns it, with measures that differ by method."""
    table = []
    for image in range(images):
        for shift, method in enumerate(methods):
            insertion, deletion = RNG.normal(0.3 + 0.1 * shift, 0.1), RNG.normal(0.2, 0.1)
            measures = {"insertion_budget": insertion, "deletion_budget": deletion, "id_budget": insertion - deletion}
            table.append({"image": f"{image}", "method": method, "error": None, "gini": RNG.random(), **measures})
    return pd.DataFrame(table)


def test_insertion_and_deletion_are_tested_in_one_family_with_id():
    methods = ("a", "b", "c")
    table = rows(methods)
    summary = SummaryTable.of(table, ["b", "c"])
    assert set(summary.comparisons) == {(m, c) for c in summary.measures if c != "gini" for m in methods} - {
        (c.against, measure) for (_, measure), c in summary.comparisons.items()
    }
    best = {"insertion_budget": "max", "deletion_budget": "min", "id_budget": "max"}
    raw = {}
    for measure, choose in best.items():
        wide = table.pivot(index="image", columns="method", values=measure)
        reference = getattr(wide[["b", "c"]].mean(), f"idx{choose}")()
        for method in set(methods) - {reference}:
            assert summary.comparisons[method, measure].against == reference
            raw[method, measure] = stats.ttest_rel(wide[method], wide[reference]).pvalue
            difference = wide[method].mean() - wide[reference].mean()
            assert summary.comparisons[method, measure].difference == pytest.approx(difference, rel=1e-9)
    largest = 0.0
    for place, key in enumerate(sorted(raw, key=raw.__getitem__)):
        largest = max(largest, min(1.0, raw[key] * (6 - place)))
        assert summary.comparisons[key].p == pytest.approx(largest, rel=1e-9)
    assert "6 of one family, Holm" in summary.note()


def test_every_p_value_of_a_page_is_the_commands_own():
    summary = SummaryTable.of(rows(("a", "b", "c")), ["b", "c"])
    written = {(row["method"], row["measure"]): row for row in csv.DictReader(io.StringIO(summary.csv()))}
    for key, comparison in summary.comparisons.items():
        assert float(written[key]["p_value"]) == comparison.p and written[key]["against"] == comparison.against
        star = comparison.p < 0.05
        assert summary.is_significant(*key) is star
        shown = f"p = {comparison.p:.2g}"
        line = next(x for x in summary.tests().splitlines() if x.startswith(f"| `{key[0]}` | `{comparison.against}` |"))
        assert (f"**{shown}**" if star else shown) in line
    assert written["a", "gini"]["p_value"] == ""


def test_ablations_are_tested_against_the_full_method():
    summary = SummaryTable.of(rows(("a", "b", "full")), ["b"], {"a": "full", "b": "full"})
    assert {c.against for c in summary.comparisons.values()} == {"full"}
    assert not any(method == "full" for method, _ in summary.comparisons)
    with pytest.raises(InputError, match="no rows of other to compare"):
        SummaryTable.of(rows(("a", "b")), [], {"a": "other"})
    assert SummaryTable.of(rows(("a", "b")), []).comparisons == {}


@pytest.mark.parametrize("name", ["otsuki2024-table2", "otsuki2024-table3", "otsuki2024-tableC", "doublet2024-table2"])
def test_every_row_of_an_ablation_has_a_full_method_in_the_table(name):
    table = TABLES[name].rows
    methods = {row.method for row in table}
    full = {row.against for row in table if row.against}
    assert full and full <= methods
    assert {row.method for row in table if not row.against} <= full, "only a full method is not tested"


def test_a_report_has_its_tests(folder, tmp_path):
    done = reproduce("doublet2024-table2", folder, [network()], tmp_path, SETTINGS)
    head, tests = done.report.split("## Tests")
    assert tests.count("| `doublet2024` | `c3-lrp` |") == 1 and tests.count("| `c1c-lrp` | `c3-lrp` |") == 1
    assert "| 25.0 ± 1.7 / 1.8 ± 0.1 / **23.2 ± 1.7** |" in head
    assert "Printed deviations: over five trainings." in head and "Not computed as printed:" in head
    assert "| | method | printed, CUB-200-2011 | measured" in head, "no column for an accuracy that is not printed"
    assert "The network is right on" in head
    assert "12 of one family" in head and "12 of one family" in tests
    written = (tmp_path / "network-0" / "tests.md").read_text()
    assert "doublet2024" not in written.split("\n\n")[0], "no baseline among the methods, so nothing is tested there"


def test_every_number_on_cub_has_its_printed_deviation():
    for table in TABLES.values():
        for row in table.rows:
            assert CUB not in row.published or row.published[CUB].deviations, f"{table.name}, {row.label}"


def test_accuracy_is_that_of_the_whole_split(folder, tmp_path):
    table = TABLES["doublet2024-table1"]
    few = replace(table, rows=tuple(row for row in table.rows if row.method == "c3-lrp"))
    models = [network(seed) for seed in range(2)]
    shares = [split_accuracy(model, folder, SETTINGS) for model in models]
    assert [share.count for share in shares] == [12, 12]
    predicted = [
        model(torch.stack([model.card.preprocessing(Image.open(p)) for p in sorted(folder.glob("*/*.png"))])).argmax(1)
        for model in models
    ]
    labels = torch.arange(4).repeat_interleave(3)
    assert [share.right for share in shares] == [int((p == labels).sum()) for p in predicted]
    measured = measure_table(few, models, folder, SETTINGS, tmp_path)
    assert measured.accuracy["c3-lrp"].mean == pytest.approx(np.mean([s.share for s in shares]))
    line = next(line for line in measured.markdown().splitlines() if line.startswith("| C3-LRP |"))
    mean, deviation = (100 * f([s.share for s in shares]) for f in (np.mean, lambda v: np.std(v, ddof=1)))
    assert line.endswith(f"| 81.5 ± 0.1 | {mean:.1f} ± {deviation:.1f} |")
    assert "of 8 sampled images" in measured.labels or "of 8 images" in measured.labels


def test_unreadable_images_do_not_count_for_accuracy(folder, tmp_path):
    broken = tmp_path / "images"
    for k in range(4):
        (broken / f"class{k}").mkdir(parents=True)
        (broken / f"class{k}" / "0.png").write_bytes((folder / f"class{k}" / "0.png").read_bytes())
    (broken / "class0" / "1.png").write_bytes(b"no image")
    found = split_accuracy(network(), broken, SETTINGS)
    assert found.count == 4 and not math.isnan(found.share)
