from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headwater.engine.quotients import finite_or
from headwater.engine.splitting import Ratio, Symmetric

EPS = torch.finfo(torch.float32).eps
numbers = st.floats(-1e6, 1e6, width=32)


@given(st.lists(st.tuples(numbers, numbers, st.floats(0, 1, width=32)), min_size=1, max_size=20))
def test_ratio_is_in_proportion_to_absolute_value_and_sums_up(rows):
    m, s, r = (torch.tensor(column, dtype=torch.float32) for column in zip(*rows, strict=True))
    to_m, to_s = Ratio()([m, s], r)
    m, s, exact = m.double(), s.double(), r.double()
    assert torch.isfinite(to_m).all()
    torch.testing.assert_close(to_m + to_s, r)
    size = m.abs() + s.abs()
    known = size > 0
    # The sum, the quotient, the product and the rest are rounded once each, by half an eps of float32; what is too
    # small for that is off by less than its smallest normal number.
    limit = 4 * EPS / 2 * exact + torch.finfo(torch.float32).smallest_normal
    assert ((to_s.double() - exact * s.abs() / size).abs() <= limit)[known].all()
    torch.testing.assert_close(to_s[~known], r[~known] / 2)


def test_ratio_of_three_terms():
    terms = [torch.tensor([1.0, 0.0]), torch.tensor([-2.0, 0.0]), torch.tensor([1.0, 0.0])]
    shares = Ratio()(terms, torch.tensor([8.0, 3.0]))
    assert torch.stack(shares).tolist() == [[2, 1], [4, 1], [2, 1]]


def test_what_is_no_number_is_replaced_alike_whether_traced_or_not(monkeypatch):
    q = torch.tensor([1.5, -2.0, 0.0, torch.inf, -torch.inf, torch.nan, torch.finfo(torch.float32).max])
    found = finite_or(q.clone(), 0.5)
    assert found.tolist() == [1.5, -2.0, 0.0, 0.5, 0.5, 0.5, torch.finfo(torch.float32).max]
    monkeypatch.setattr("headwater.engine.quotients.observed", lambda: True)
    assert torch.equal(finite_or(q, 0.5), found)


@pytest.mark.parametrize("splitting", [Ratio(), Symmetric()])
def test_splitting_leaves_its_arguments_alone_and_returns_tensors_of_their_own(splitting):
    terms, r = [torch.randn(4), torch.randn(4)], torch.rand(4)
    before = [t.clone() for t in (*terms, r)]
    shares = splitting(terms, r)
    for share in shares:
        share.zero_()
    assert all(torch.equal(a, b) for a, b in zip(before, (*terms, r), strict=True))
    assert len({t.data_ptr() for t in (*shares, *terms, r)}) == 5
