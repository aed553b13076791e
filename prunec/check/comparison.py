"""The outputs of two models on the same inputs: how far apart they are, and what of that is rounding.

Owns the verdict. Which models run, on which inputs, and how long they take is validate.py's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from prunec.errors import BadInput, PrunecError, ValidationFailed
from prunec.report.findings import Validation
from prunec.runtime.probes import Array, Feed, nudged
from prunec.runtime.sessions import first_line

DATA = "data"
"""The family of inputs that the user gives."""

_TINY = 1e-30

# A float16 number has 11 bits: two orders of summation in a deep network differ by about this much.
_HALF_TOLERANCE = 1e-2
# Integer outputs (argmax, indices) may flip at a tie; more than one in a thousand is no tie.
_FLIPS_ALLOWED = 1e-3
_ROUNDING_FACTOR = 4.0
"""A difference of so many times the first model's own rounding is still rounding."""

_VANISHING = 1e-2
"""An output is measured against its magnitude, and at least this fraction of its largest for any input: a
detector that finds nothing writes the rounding of its sigmoid, which no two programs share."""


Run = Callable[[Feed], list[Array]]
"""A model: inputs by name to its outputs in order."""


@dataclass(slots=True)
class Comparison:
    """What has been seen so far; lives inside one call."""

    max_abs: float = 0.0
    max_rel: float = 0.0
    passed: bool = True
    families: dict[str, float] = field(default_factory=dict)
    silent: list[str] = field(default_factory=list)
    num_outputs: int = 0
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def judge(
        self,
        gaps: Sequence[tuple[str, int, Gap, bool]],
        names: Sequence[str],
        tolerance: float,
        in_half: Callable[[], bool],
        half_tolerance: float,
    ) -> None:
        """Take (family, output, gap, whether it is the first model's own rounding) of all inputs together."""
        largest: dict[int, float] = {}
        for _, index, found, _ in gaps:
            largest[index] = max(largest.get(index, 0.0), found.magnitude)
        for family, index, found, is_rounding in gaps:
            relative = found.over(_VANISHING * largest[index])
            passes = relative <= found.allowed(tolerance)
            if not passes and found.dtype.kind == "f" and relative <= half_tolerance and in_half():
                self.note(f"the model computes in half precision: a relative error of {half_tolerance:.2g} passes")
                passes = True
            if not passes and is_rounding:
                self.note(
                    f"output {labels_of(names, index)} differs no more than the first model does from itself when its "
                    f"graph is optimised, or the last bits of its input change: that is rounding"
                )
            self.max_abs = max(self.max_abs, found.absolute)
            self.max_rel = max(self.max_rel, relative)
            self.families[family] = max(self.families.get(family, 0.0), relative)
            self.passed = self.passed and (passes or is_rounding)

    def verdict(
        self,
        tolerance: float,
        *,
        asked: str,
        ran: str,
        latency: tuple[float, float] | tuple[None, None] = (None, None),
    ) -> Validation:
        vacuous = self.num_outputs > 0 and len(self.silent) == self.num_outputs
        if self.silent:
            which = "no output" if vacuous else f"output {', '.join(self.silent[:4])} never"
            self.notes.append(f"{which} changed with the input: agreement there says nothing")
        return Validation(
            max_abs_error=self.max_abs,
            max_rel_error=self.max_rel,
            tolerance=tolerance,
            families=dict(self.families),
            vacuous=vacuous,
            latency_a_ms=latency[0],
            latency_b_ms=latency[1],
            provider_asked=asked,
            provider_ran=ran,
            passed=self.passed,
            notes=tuple(self.notes),
        )


def compare(
    run_a: Run,
    run_b: Run,
    names: Sequence[str],
    feeds: Iterable[tuple[str, Feed]],
    tolerance: float,
    again: Sequence[Run] = (),
    in_half: Callable[[], bool] = lambda: False,
    half_tolerance: float = _HALF_TOLERANCE,
) -> Comparison:
    """Run both on every feed; outputs are compared by position.

    Args:
        again: the first model with its arithmetic in another order. Asked only where a comparison fails, as is
            the first model itself on inputs that differ in their last bits: what differs no more than the
            model differs from itself is rounding (a saturated sigmoid, a deep network that amplifies). Each is
            run at most once per feed: a detector has many outputs.
        in_half: tells whether the first model computes in half precision. Asked only there, too.
        half_tolerance: largest relative error that passes then.
    """
    seen = Comparison()
    reruns = (*again, lambda values: run_a(nudged(values)))
    reference: list[Array] = []
    varies: list[bool] = []
    gaps: list[tuple[str, int, Gap, bool]] = []
    count = 0
    for family, values in feeds:
        outputs_a = _outputs_of_first(run_a, family, values, seen)
        if outputs_a is None:
            continue
        count += 1
        try:
            outputs_b = run_b(values)
        except Exception as error:  # onnxruntime and user modules raise anything
            raise ValidationFailed(
                f"the second model does not run on an input that the first takes ({_describe(values)})",
                why=first_line(error),
            ) from error
        _check_outputs(outputs_a, outputs_b, names)
        if not reference:
            reference, varies = outputs_a, [False] * len(outputs_a)
        anew = [functools.cache(functools.partial(_outputs_anew, rerun, values)) for rerun in reruns]
        for index, (x, y) in enumerate(zip(outputs_a, outputs_b, strict=True)):
            found = gap(x, y)
            fails = found.over() > found.allowed(tolerance)
            allowed = (_ROUNDING_FACTOR * _rounding(others(), index, x) for others in anew)
            gaps.append((family, index, found, fails and any(found.absolute <= most for most in allowed)))
            varies[index] = varies[index] or _changed(reference[index], x)
    if not count:
        raise BadInput(
            "no input was found that the first model takes",
            why="; ".join(seen.notes),
            do="give inputs that it takes: --inputs FOLDER",
        )
    seen.judge(gaps, names, tolerance, in_half, half_tolerance)
    seen.num_outputs = len(reference)
    labels = names or [str(index) for index in range(len(reference))]
    # A single feed leaves nothing to compare an output with.
    seen.silent = [label for label, moved in zip(labels, varies, strict=True) if not moved and count > 1]
    if any(output.dtype == np.float16 for output in reference):
        seen.notes.append(f"float16 outputs: a relative error of {_HALF_TOLERANCE:g} passes")
    return seen


def _outputs_of_first(run: Run, family: str, values: Feed, seen: Comparison) -> list[Array] | None:
    """Return the first model's outputs; None, and a note, for random inputs that it does not take (other tokens)."""
    try:
        return run(values)
    except PrunecError:
        raise
    except Exception as error:  # onnxruntime and user modules raise anything
        if family == DATA:
            raise BadInput("the first model does not run on the given inputs", why=first_line(error)) from error
        seen.note(f"the first model takes no inputs of the family {family!r}: {first_line(error)}")
        return None


def labels_of(names: Sequence[str], index: int) -> str:
    """Return an output's name, or its place where it has none."""
    return names[index] if index < len(names) else str(index)


def _outputs_anew(again: Run, values: Feed) -> list[Array]:
    """Return the first model's outputs with its arithmetic in another order; none where it does not run so."""
    try:
        return again(values)
    except Exception:  # noqa: BLE001 - an optimiser's own failure says nothing about the comparison
        return []


def _rounding(others: Sequence[Array], index: int, output: Array) -> float:
    """Return how far one output of the first model is from itself; 0 where that cannot be told."""
    other = others[index] if index < len(others) else None
    if other is None or other.shape != output.shape or output.dtype.kind != "f":
        return 0.0
    return gap(output, other).absolute


@dataclass(frozen=True, slots=True)
class Gap:
    """How far apart two models' values of one output are.

    Args:
        absolute: the largest difference of two elements, infinite where one is not finite and the other is
            something else; of integers and booleans, which have no magnitude, the share that differs.
        magnitude: the largest of the first model's finite elements; 1 for integers and booleans.
        dtype: of the output.
    """

    absolute: float
    magnitude: float
    dtype: np.dtype[Any]

    def over(self, least: float = 0.0) -> float:
        """Return the relative error: over the magnitude, or over ``least`` where that is more."""
        return self.absolute / max(self.magnitude, least, _TINY)

    def allowed(self, tolerance: float) -> float:
        """Return the largest relative error that passes."""
        if self.dtype.kind not in "fc":
            return _FLIPS_ALLOWED
        return max(tolerance, _HALF_TOLERANCE) if self.dtype == np.float16 else tolerance


def gap(a: Array, b: Array) -> Gap:
    """Compare one output of two models; shapes are the same."""
    if a.size == 0:
        return Gap(0.0, 0.0, a.dtype)
    if a.dtype.kind not in "fc":
        return Gap(float(np.mean(a != b)), 1.0, a.dtype)
    x, y = a.astype(np.float64), b.astype(np.float64)
    same = (x == y) | (np.isnan(x) & np.isnan(y))
    with np.errstate(invalid="ignore"):
        gaps = np.where(same, 0.0, np.abs(x - y))
    gaps = np.where(np.isnan(gaps), np.inf, gaps)
    return Gap(float(gaps.max()), float(np.abs(np.where(np.isfinite(x), x, 0.0)).max()), a.dtype)


def _changed(a: Array, b: Array) -> bool:
    """Tell whether an output follows the input at all."""
    if a.shape != b.shape:
        return a.size > 0 and b.size > 0 and float(np.ptp(b)) > 0 if a.dtype.kind != "b" else True
    return gap(a, b).over() > 1e-6


def _check_outputs(a: Sequence[Array], b: Sequence[Array], names: Sequence[str]) -> None:
    if len(a) != len(b):
        raise ValidationFailed(f"the second model has {len(b)} outputs, the first {len(a)}")
    for index, (x, y) in enumerate(zip(a, b, strict=True)):
        if x.shape != y.shape:
            name = names[index] if names else str(index)
            raise ValidationFailed(f"output {name} has another shape", why=f"{x.shape} against {y.shape}")


def _describe(values: Feed) -> str:
    return ", ".join(f"{name}: {'x'.join(map(str, value.shape))}" for name, value in values.items())
