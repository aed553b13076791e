"""What a weight tells: sums of the taps of chosen rows and columns."""

from __future__ import annotations

import numpy as np
import pytest

from prunec.ir.arrays import Array
from prunec.passes.rules.weights import Weight


def _plain(taps: Array) -> Array:
    return taps


def _turned(taps: Array) -> Array:
    return np.ascontiguousarray(taps.swapaxes(1, 2)).swapaxes(1, 2)


def _unaligned(taps: Array) -> Array:
    return np.frombuffer(b"x" + taps.tobytes(), dtype=np.uint8)[1:].view(taps.dtype).reshape(taps.shape)


@pytest.mark.parametrize("laid", [_plain, _turned, _unaligned])
@pytest.mark.parametrize("rows", [[0, 1, 2, 3, 4], [1, 3]])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_total_is_the_sum_over_taps_and_constants(laid: object, rows: list[int], dtype: str) -> None:
    assert callable(laid)
    taps = laid(np.random.default_rng(0).standard_normal((1, 5, 6, 9)).astype(dtype))
    constants = np.array([0.0, 2.0, 0.0, -1.5, 3.0, 0.0])
    outputs = np.isin(np.arange(5), rows)
    expected = np.where(outputs, np.einsum("oit,i->o", taps[0].astype(np.float64), constants), 0.0)
    assert np.allclose(Weight(taps).total(outputs, constants), expected, rtol=1e-12)
