"""Abstract arrays: where nothing varies along an axis, and how little has to be compared to see that something does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from prunec.passes.rules import arrays
from prunec.passes.rules.arrays import narrow, same_along
from prunec.passes.rules.moves import shrink

NAN = float("nan")


@pytest.mark.parametrize(
    ("values", "same"),
    [
        ([1, 1, 1], True),
        ([1, 2, 1], False),
        ([1, 1, 2], False),
        ([NAN, NAN, NAN], True),
        ([NAN, 1, NAN], False),
        ([1, 1, NAN], False),
        ([4], True),
    ],
)
def test_nothing_varies_where_all_elements_are_alike_and_nan_is_like_nan(values: list[float], same: bool) -> None:
    array = np.stack([np.array(values, dtype=np.float64), np.zeros(len(values))])
    assert same_along(array, 1) is same


def test_axes_along_which_nothing_varies_are_dropped() -> None:
    array = np.broadcast_to(np.arange(3.0).reshape(3, 1), (2, 3, 4))
    assert narrow(array).tolist() == shrink(array, (0, 1, 2)).tolist() == [[[0], [1], [2]]]


def test_of_a_weight_that_varies_only_its_ends_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []
    equal = arrays.equal

    def counted(array: Any, head: Any) -> bool:
        compared.append(array.size)
        return equal(array, head)

    monkeypatch.setattr(arrays, "equal", counted)
    weight = np.random.default_rng(0).normal(size=(64, 32, 9))
    assert shrink(weight, (0, 1, 2)) is weight
    assert narrow(weight) is weight
    assert sum(compared) == 2 * (weight.size // 64 + weight.size // 32 + weight.size // 9)
