"""Generators of planted evidence: the mask covers what decides the class, and nothing else decides it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.planted.data import CLS, PAD, PAIRS, Examples, blobs, sequences, shapes, signals, volumes

Generator = Callable[[int, int], Examples]


@pytest.mark.parametrize("generate", [signals, volumes, sequences])
def test_examples_are_a_function_of_the_seed(generate: Generator) -> None:
    first, again, other = generate(5, 1), generate(5, 1), generate(5, 2)
    assert torch.equal(first.x, again.x) and torch.equal(first.mask, again.mask)
    assert not torch.equal(first.x, other.x)


@pytest.mark.parametrize("generate", [signals, volumes, sequences])
def test_planted_places_have_one_size_and_no_distractors(generate: Generator) -> None:
    e = generate(50, 1)
    assert e.mask.flatten(1).sum(1).unique().numel() == 1
    assert not (e.mask & e.others["distractors"]).any()


@pytest.mark.parametrize(("generate", "templates", "classes"), [(signals, shapes, 4), (volumes, blobs, 3)])
def test_class_can_be_read_from_the_masked_place_alone(
    generate: Generator, templates: Callable[[], Tensor], classes: int
) -> None:
    e = generate(200, 1)
    given = templates()[:classes].flatten(1)
    given = given - given.mean(1, keepdim=True)
    given = given / given.norm(dim=1, keepdim=True)

    def read(mask: Tensor) -> float:
        here = torch.stack([x[:, m].sub(x[:, m].mean(1, keepdim=True)) for x, m in zip(e.x, mask, strict=True)])
        fit = (here @ given.T).amax(1)
        return (fit.argmax(1) == e.labels).float().mean().item()

    assert read(e.mask) > 0.85
    assert read(e.mask.roll(7, 1)) < read(e.mask) - 0.2


def test_the_class_is_the_only_complete_pair_and_the_mask_is_that_pair() -> None:
    e = sequences(500, 1)
    present = (e.x[:, None, None] == PAIRS[:, :, None]).sum(3)
    complete = (present > 0).all(2)
    assert torch.equal(complete, torch.nn.functional.one_hot(e.labels, 4).bool())
    masked = e.x[e.mask].unflatten(0, (-1, 2)).sort(1)[0]
    assert torch.equal(masked, PAIRS[e.labels])


def test_single_members_occur_in_every_class_as_often_as_a_pair_does() -> None:
    e = sequences(500, 1)
    for token in PAIRS.flatten():
        with_it = (e.x == token).any(1)
        assert e.labels[with_it].unique().tolist() == [0, 1, 2, 3]
    of_pairs = (e.x[:, None, None] == PAIRS[:, :, None]).sum((2, 3))
    others = of_pairs[torch.nn.functional.one_hot(e.labels, 4) == 0]
    assert set(others.tolist()) == {1, 2}


def test_padding_is_behind_and_masked() -> None:
    e = sequences(100, 1)
    assert e.attention is not None
    assert (e.x[:, 0] == CLS).all()
    assert torch.equal(e.attention == 0, e.x == PAD)
    assert (e.attention.diff(dim=1) <= 0).all()
    assert not (e.mask & (e.attention == 0)).any()
