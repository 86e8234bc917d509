"""What is done with a chunk on which workers die, without a cluster: an attempt that does not end is a death."""

from __future__ import annotations

import pickle
from dataclasses import dataclass

import pytest

from headwater.cluster import LOST
from headwater.cluster.journal import Journal
from headwater.cluster.ray_engine import _Actor
from headwater.errors import ClusterError, DataError


@dataclass(frozen=True)
class Named:
    name: str


class DeadError(BaseException):
    """Stands for the end of a worker's process."""


class Sums:
    """Rows that say who was measured with whom."""

    def __init__(self, deadly=(), error=None):
        self.deadly, self.error, self.calls = set(deadly), error, []

    def rows(self, images, given_up):
        names = [image.name for image in images if image.name not in given_up]
        self.calls.append(names)
        if any(deadly <= set(names) for deadly in self.deadly):
            raise self.error or DeadError
        beside = "".join(names)
        return [{"image": i.name, "error": given_up.get(i.name), "beside": beside} for i in images]


class Alone(_Actor):
    """A worker whose journal is in this process."""

    def __init__(self, journal, worker):
        super().__init__(lambda device: worker, "none", journal, None)
        self.refused = self.failure
        self.worker, self.failure = worker, None

    def _asked(self, question, *arguments):
        return getattr(self.journal, question)(*arguments)


def measured(worker, names="abc", patience=100, deaths=50):
    """The rows of one chunk, with a new process whenever one has died; and how many have."""
    journal = Journal(patience)
    for died in range(deaths):
        actor = Alone(journal, worker)
        try:
            result = actor({"work": pickle.dumps((7, tuple(map(Named, names))))})
        except DeadError:
            continue
        assert result["chunk"] == 7
        if result["failure"]:
            raise pickle.loads(result["failure"])
        return pickle.loads(result["rows"]), died, journal
    raise AssertionError("the chunk was never ended")


def test_a_chunk_is_measured_together():
    rows, died, journal = measured(Sums())
    assert died == 0 and [row["beside"] for row in rows] == ["abc"] * 3
    assert not journal._records


def test_a_worker_that_dies_once_for_a_reason_of_its_own_changes_nothing():
    worker = Sums()
    journal = Journal(10)
    journal.next(7, ["a", "b", "c"])  # begun by a worker that was killed
    actor = Alone(journal, worker)
    rows = pickle.loads(actor({"work": pickle.dumps((7, tuple(map(Named, "abc"))))})["rows"])
    assert worker.calls == [["a", "b", "c"]] and all(row["error"] is None for row in rows)


def test_the_image_on_which_workers_die_is_left_out_and_the_others_are_measured_as_if_it_could_not_be_read():
    worker = Sums([frozenset("b")])
    rows, died, _ = measured(worker)
    assert died == 4, "twice together, twice alone"
    assert [row["image"] for row in rows] == ["a", "b", "c"]
    assert [row["error"] is None for row in rows] == [True, False, True]
    assert rows[1]["error"].startswith(f"{LOST} 2 times")
    assert {row["beside"] for row in rows} == {"ac"}


def test_every_image_may_be_deadly():
    rows, died, _ = measured(Sums([frozenset("a"), frozenset("b")]), "ab")
    assert died == 6 and all(row["error"].startswith(LOST) for row in rows)


def test_images_that_are_deadly_together_only_are_measured_alone():
    """Too little memory for the batch, say."""
    rows, died, _ = measured(Sums([frozenset("ac"), frozenset("b")]))
    assert died == 5
    assert [row["beside"] for row in rows] == ["a", "", "c"]
    assert [row["error"] is None for row in rows] == [True, False, True]


def test_a_run_in_which_nothing_ever_ends_is_given_up_with_the_reason():
    journal = Journal(12)
    for chunk in range(12):
        journal.next(chunk, ["a"])
    journal.failed(3, "node-1: OutOfMemoryError: 70 GB")
    actor = Alone(journal, Sums())
    told = actor({"work": pickle.dumps((3, (Named("a"),)))})["failure"]
    assert isinstance(pickle.loads(told), ClusterError)
    assert "12 attempts in a row ended in the death of a worker (node-1: OutOfMemoryError: 70 GB)" in str(
        pickle.loads(told)
    )


def test_bad_images_that_lie_together_do_not_end_the_run():
    """One worker, as with one GPU, and a folder of files on which a decoder crashes."""
    names = "abcdefgh"
    rows, died, _ = measured(Sums([frozenset(name) for name in names]), names, patience=13)
    assert died == 18 and all(row["error"].startswith(LOST) for row in rows)


def test_workers_that_die_while_they_load_the_network_end_the_run():
    journal = Journal(3)
    assert [journal.starts() for _ in range(5)] == [0, 0, 0, 3, 4]
    journal.started()
    assert journal.starts() == 0
    journal = Journal(0)
    journal.starts()
    assert "1 workers in a row died while they loaded the network" in str(Alone(journal, Sums()).refused)


def test_deaths_between_which_something_ends_do_not_count():
    journal = Journal(2)
    for chunk in range(10):
        assert not journal.next(chunk, ["a"]).stop
        journal.done(chunk)


def test_a_journal_that_began_anew_takes_what_it_is_told():
    journal = Journal(10)
    journal.survived(1, "a", b"rows")
    journal.failed(2, "unknown")
    journal.done(3)
    assert journal.next(1, ["a"]).alone is None


def test_an_error_of_our_own_is_told_and_any_other_ends_the_process_with_its_reason(monkeypatch):
    with pytest.raises(DataError, match="out of range"):
        measured(Sums([frozenset("a")], DataError("label 9 is out of range")))

    def leave(status):
        raise DeadError

    monkeypatch.setattr("os._exit", leave)
    rows, _, _ = measured(Sums([frozenset("a")], RuntimeError("CUDA error: device-side assert\nmore")))
    assert "RuntimeError: CUDA error: device-side assert)" in rows[0]["error"]
