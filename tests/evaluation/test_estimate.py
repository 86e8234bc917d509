"""The estimate of an evaluation's time: what it counts, and that it does not take long itself."""

from __future__ import annotations

import time

import pytest
import torch
from command import headwater
from helpers import TinyResidual, settle

import headwater as hw
from headwater.evaluation import Estimate, Settings, estimate
from headwater.methods import load_method


def test_forward_passes_are_those_of_both_protocols():
    model, told = settle(TinyResidual()), {}
    model.card = hw.ModelCard("tiny-residual", "random", hw.Preprocessing(16, 16))
    settings = Settings(("random", "otsuki2024"), 10, step=30)
    found = estimate(model, settings)
    x, heatmap = torch.rand(1, 3, 16, 16), torch.rand(1, 16, 16)
    for protocol in settings.protocols:
        hw.insertion_deletion(
            model, x, heatmap, 0, protocol, 30, progress=lambda _, total, p=protocol: told.update({p: total})
        )
    assert found.passes == 2 * sum(told.values()), "two methods"
    assert found.maps == {} and 0 < found.per_image < 1


def test_a_long_run_is_estimated_from_a_part_of_each_map(monkeypatch):
    monkeypatch.setattr("headwater.evaluation.time_estimate._SOON", 0.0)
    monkeypatch.setattr("headwater.evaluation.time_estimate._PATIENCE", 0.2)
    model = hw.load_model("tiny20")
    began = time.monotonic()
    found = estimate(model, Settings(("otsuki2024", "otsuki2024+hq", "rise", "scorecam"), 1000))
    assert time.monotonic() - began < 60
    assert list(found.maps) == ["otsuki2024", "rise", "scorecam"]
    assert found.maps["rise"] > found.maps["otsuki2024"] > 0
    assert found.per_image == pytest.approx(found.curves + sum(found.maps.values()))


def test_score_cam_tells_its_progress():
    told = []
    load_method("scorecam", hw.load_model("tiny20"))(
        torch.rand(1, 3, 64, 64), progress=lambda done, total: told.append((done, total))
    )
    assert len(told) > 1 and [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1][0] == told[-1][1] and len({total for _, total in told}) == 1


def test_what_it_says():
    line = Estimate(2.0, {"rise": 1.0, "random": 0.0}, 300).line(1000, devices=2)
    assert line == "about 25 min for 1000 images: 2 s each for 300 forward passes, 1 s for maps (rise 1 s)"
    assert Estimate(0.5, {}, 10).line(4) == "about 2 s for 4 images: 0.5 s each for 10 forward passes"


def test_it_is_for_the_images_that_are_left(tmp_path, shared):
    data, model, told = str(shared / "data" / "tiny20"), hw.load_model("tiny20"), []
    settings = Settings(("random",), 3, step=2048, batch_size=1, labels="predicted")

    def measure(**options):
        hw.evaluate(
            model, data, settings, tmp_path, expected=lambda found, left: told.append((left, found.passes)), **options
        )

    measure()
    (tmp_path / "rows" / "000001.parquet").unlink()
    measure(devices=["cpu", "cpu"])
    measure()
    assert told == [(3, 8), (1, 8)], "2 steps, 2 curves, 2 protocols; the third run has nothing to do"


def test_an_engine_is_not_estimated(tmp_path, shared):
    class Here:
        def run(self, make, chunks, todo):
            worker = make("cpu")
            yield from ((k, worker.rows(chunks[k])) for k in todo)

    def refused(*_):
        raise AssertionError("the workers are other machines")

    settings = Settings(("random",), 2, step=2048, labels="predicted")
    table = hw.evaluate(
        hw.load_model("tiny20"), str(shared / "data" / "tiny20"), settings, tmp_path, engine=Here(), expected=refused
    )
    assert len(table) == 2


def test_the_commands_say_it(tmp_path, shared):
    data = ("--data", str(shared / "data" / "tiny20"), "--labels", "predicted", "--samples", "2", "--step", "2048")
    measure = ("evaluate", *data, "--model", "tiny20", "--methods", "random", "--out", str(tmp_path / "run"))
    table = ("reproduce", "otsuki2024-table3", *data, "--model", "tiny20", "--out", str(tmp_path / "table"))
    for words, said in ((measure, True), (measure, False), (table, True)):
        done = headwater(*words)
        assert done.returncode == 0, done.stderr
        assert ("estimated: about " in done.stderr) is said, done.stderr  # nothing is left the second time
