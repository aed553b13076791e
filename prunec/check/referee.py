"""The referee: a check that fails in single precision is decided in double.

Single precision cannot tell a wrong plan from an ill-conditioned network. In double the arithmetic hardly rounds;
only the weights are still rounded, since both models store them in their own precision. So two models count as
the same function if in double they differ no more than the first model does from itself when the last bits of its
weights change.

Owns that judgement. double_onnx.py and double_module.py run models in double; prunec/check/comparison.py asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from prunec.check.comparison import Gap, Ruling, gap
from prunec.ir.arrays import Array
from prunec.runtime.probes import Feed

_FACTOR = 4.0
"""A difference up to this many times the effect of the weights' last bits is rounding: folds round sums again."""


class DoubleRun(Protocol):
    """A model that runs in double precision; ``nudged``: with the last bits of its weights changed, at random."""

    def __call__(self, feed: Feed, /, *, nudged: bool = False) -> list[Array]: ...


def decide(a: DoubleRun, b: DoubleRun, feed: Feed, tolerance: float, least: Sequence[float]) -> list[Ruling]:
    """Say for each output whether two models compute the same on one input.

    Args:
        a: the reference.
        b: the model to check.
        feed: the input.
        tolerance: largest relative error that passes.
        least: per output, the least magnitude to which differences are relative.

    Raises:
        Exception: whatever the runs raise.
    """
    outputs = a(feed)
    gaps = [gap(x, y) for x, y in zip(outputs, b(feed), strict=True)]
    within = [found.over(floor) <= found.allowed(tolerance) for found, floor in zip(gaps, least, strict=True)]
    own: list[Gap | None] = [None] * len(gaps)
    if not all(within):
        own = [gap(x, y) for x, y in zip(outputs, a(feed, nudged=True), strict=True)]
    return [
        Ruling(found.over(floor), fits or _is_rounding(found, rounding))
        for found, floor, fits, rounding in zip(gaps, least, within, own, strict=True)
    ]


def _is_rounding(found: Gap, own: Gap | None) -> bool:
    """Tell whether a difference is as small as that of rounded weights, at its largest and on average."""
    return own is not None and found.absolute <= _FACTOR * own.absolute and found.average <= _FACTOR * own.average


def of_onnx(model: Any) -> DoubleRun:
    """Return an ONNX model (a path or bytes) as it runs in double precision."""
    from prunec.check.double_onnx import DoubleOnnx

    return DoubleOnnx(model)
