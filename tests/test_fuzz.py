"""The fuzzer itself: it runs, it repeats, and it distinguishes a wrong result from a refusal."""

from __future__ import annotations

import pytest

from fuzz import report, runner
from fuzz.case import WrongError, draw_for, run_area
from headwater.errors import InputError

pytest.importorskip("pandas")
SEED = 1


@pytest.fixture(scope="module")
def results():
    return list(runner.run(runner.plan(60), SEED, workers=1))


def test_sixty_inputs_of_all_kinds_give_a_correct_result_or_one_clear_error(results):
    assert {case.area for case, _ in results} == set(runner.areas())
    assert [report.line(case, outcome, SEED) for case, outcome in results if outcome.failed] == []
    assert sum(outcome.maps for _, outcome in results) > 10


def test_a_case_is_the_same_when_it_is_run_again(results, tmp_path):
    case, outcome = next(r for r in results if r[0] == runner.Case("images", 7))
    again = runner.run_case(case, SEED, tmp_path)
    assert (again.kind, again.what, again.maps) == (outcome.kind, outcome.what, outcome.maps)


def test_the_report_counts_every_input_and_lists_failures_with_the_command_that_replays_them(results):
    page = report.markdown(results, SEED, 12.0, 1)
    assert f"60 inputs, seed {SEED}" in page
    assert "None." in page
    failed = [(runner.Case("images", 3), runner.Outcome("wrong", "a b", "off by 1"))]
    assert "`python -m fuzz --area images --case 3 --seed 1`: wrong" in report.markdown(failed, SEED, 12.0, 1)


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (None, "ok"),
        (InputError("levels must be at least 2"), "refused"),
        (InputError("first line\nsecond line"), "wrong"),
        (InputError(""), "wrong"),
        (WrongError("off by 1"), "wrong"),
        (ZeroDivisionError("division by zero"), "traceback"),
    ],
)
def test_the_outcome_of_a_case(tmp_path, raised, kind):
    def area(draw):
        if raised is not None:
            raise raised

    assert run_area(area, draw_for(0, "images", 0, tmp_path)).kind == kind


def test_a_hang_or_a_crash_is_a_failure_and_the_run_goes_on(monkeypatch):
    cases = [runner.Case("no such area", 0), runner.Case("images", 0)]
    kinds = [outcome.kind for _, outcome in runner.run(cases, 0, workers=1)]
    assert kinds == ["crash", "ok"] or kinds == ["crash", "refused"]
    (hung,) = [outcome for _, outcome in runner.run([runner.Case("networks", 1)], 0, workers=1, limit=0.0)]
    assert hung.kind == "hang"
