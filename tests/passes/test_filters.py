"""Rows of weights that are multiples of one another are found, and only these."""

from __future__ import annotations

import numpy as np
import pytest

from prunec.passes import filters
from prunec.passes.filters import families, may_have_families, same_within

SINGLE = same_within("float32")


def rows(*shape: int, seed: int = 0, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def found(taps: np.ndarray, within: float = SINGLE) -> list[int]:
    groups, outs = taps.shape[:2]
    return families(taps, np.repeat(np.arange(groups), outs), within)[0].tolist()


def test_ordinary_weights_have_no_families_and_are_hardly_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    taps = rows(1, 2048, 512, 9)
    assert not may_have_families(taps)
    monkeypatch.setattr(filters, "_split", None)  # nothing is compared in full
    assert set(found(taps)) == {-1}


@pytest.mark.parametrize("factor", [1.0, 0.1, -3.0, 1e-4, 700.0])
def test_a_multiple_is_found_with_its_factor(factor: float) -> None:
    taps = rows(1, 6, 5, 9)
    taps[0, 4] = np.float32(factor) * taps[0, 1]
    first, factors = families(taps, np.zeros(6, dtype=np.int64), SINGLE)
    assert first.tolist() == [-1, 1, -1, -1, 1, -1]
    assert factors[1] == 1
    assert factors[4] == pytest.approx(factor, rel=1e-6)
    assert may_have_families(taps)


def test_rows_whose_first_elements_are_zero_are_compared_by_the_others() -> None:
    taps = rows(1, 6, 5, 9)
    taps[0, :, :2] = 0
    taps[0, 5] = 2 * taps[0, 0]
    assert found(taps) == [0, -1, -1, -1, -1, 0]


def test_rows_that_begin_alike_are_told_apart_by_the_rest() -> None:
    taps = rows(1, 6, 5, 9)
    taps[0, 1:] = taps[0, 0]
    taps[0, 3, 4, 8] *= 1.001
    taps[0, 4, 4, 8] *= 1.001
    assert found(taps) == [0, 0, 0, 3, 3, 0]


def test_zero_rows_are_no_multiples() -> None:
    taps = rows(1, 4, 3, 1)
    taps[0, 1:3] = 0
    assert found(taps) == [-1, -1, -1, -1]


def test_groups_are_apart() -> None:
    taps = rows(2, 3, 4, 9)
    taps[1] = taps[0]
    assert found(taps) == [-1] * 6
    taps[1, 2] = taps[1, 0]
    assert found(taps) == [-1, -1, -1, 3, -1, 3]


def test_rows_that_are_left_out_are_compared_with_none() -> None:
    taps = rows(1, 4, 3, 9)
    taps[0, 1:] = taps[0, 0]
    assert families(taps, np.array([0, -1, 0, -1]), SINGLE)[0].tolist() == [0, -1, 0, -1]


@pytest.mark.parametrize(("dtype", "within"), [("float32", 2.0**-21), ("float16", 2.0**-21), ("float64", 2.0**-44)])
def test_how_much_may_be_rounding(dtype: str, within: float) -> None:
    """Half precision gets no more than single: its products are multiples only where nothing is rounded."""
    assert same_within(dtype) == within
    taps = rows(1, 3, 4, 9, dtype=dtype)
    taps[0, 2] = (taps[0, 0].astype(np.float64) * (2.0 if dtype == "float16" else 0.3)).astype(dtype)
    assert found(taps, within) == [0, -1, 0]
    taps[0, 2, 3, 8] *= 1 + 4 * max(within, float(np.finfo(dtype).eps))
    assert found(taps, within) == [-1, -1, -1]
    taps[0, 2] = (taps[0, 0].astype(np.float64) * 0.3).astype(dtype)
    assert found(taps, within) == ([-1, -1, -1] if dtype == "float16" else [0, -1, 0])


def test_weights_that_lie_the_other_way_round() -> None:
    stored = rows(5, 40)
    stored[:, 30] = 2 * stored[:, 3]
    first = found(stored.T[None, :, :, None])
    assert [at for at, row in enumerate(first) if row >= 0] == [3, 30]
