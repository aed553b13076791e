"""The outputs of two models on the same inputs: how far apart they are, and what that means.

Owns the verdict: within the tolerance, the same in double precision (check/referee.py decides that), or different.
validate.py runs the models, chooses the inputs and measures the time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from prunec.check.clock import Budget
from prunec.errors import BadInput, PrunecError, ValidationFailed
from prunec.ir.arrays import Array
from prunec.report.findings import Validation
from prunec.runtime.probes import Feed
from prunec.runtime.sessions import first_line

DATA = "data"
"""The family of inputs that the user gives."""

CLEAR = 1e-5
"""Outputs this close agree; others are compared again without the runtime's optimisations."""

_TINY = 1e-30

_HALF_TOLERANCES = {"float16": 1e-2, "bfloat16": 8e-2}
"""Ten times the last bit of each: two orders of summation in a deep network differ by about this much."""
# Integer outputs (argmax, indices) may flip at a tie; more than one in a thousand is no tie.
_FLIPS_ALLOWED = 1e-3

_VANISHING = 1e-2
"""Errors are relative to an output's magnitude, but to no less than this fraction of its largest over all inputs: a
detector that finds nothing returns the rounding of its sigmoid, which differs from program to program."""

_MOST_KEPT = 8
"""Inputs that are kept for the referee; a user's own may be many, and large."""


Run = Callable[[Feed], list[Array]]
"""A model: inputs by name to its outputs in order."""

Feeds = Iterable[tuple[str, Callable[[], Feed]]]
"""Family, and a function that makes the input, since making millions of numbers takes as long as running them."""


class Ruling(NamedTuple):
    """What double precision says of one output: the relative error there, and whether that is the same function."""

    relative: float
    passes: bool


Referee = Callable[[Feed, Sequence[float]], Sequence[Ruling]]
"""An input, and per output the least magnitude to measure against, to a ruling per output."""


@dataclass(frozen=True, slots=True)
class Gap:
    """How far apart two models' values of one output are.

    Args:
        absolute: the largest difference of two elements, infinite where one is not finite and the other is
            something else; of integers and booleans, which have no magnitude, the share that differs.
        average: the root of the mean square of the differences; the same share.
        magnitude: the largest of the first model's finite elements; 1 for integers and booleans.
        dtype: of the output.
    """

    absolute: float
    average: float
    magnitude: float
    dtype: np.dtype[Any]

    def over(self, least: float = 0.0) -> float:
        """Return the relative error: over the magnitude, or over ``least`` if that is larger."""
        return self.absolute / max(self.magnitude, least, _TINY)

    def allowed(self, tolerance: float) -> float:
        """Return the largest relative error that passes."""
        if not _has_magnitude(self.dtype):
            return _FLIPS_ALLOWED
        return max(tolerance, _HALF_TOLERANCES.get(self.dtype.name, 0.0))


def gap(a: Array, b: Array) -> Gap:
    """Compare one output of two models; shapes are the same."""
    if a.size == 0:
        return Gap(0.0, 0.0, 0.0, a.dtype)
    if not _has_magnitude(a.dtype):
        share = float(np.mean(a != b))
        return Gap(share, share, 1.0, a.dtype)
    wide = np.complex128 if a.dtype.kind == "c" else np.float64
    x, y = a.astype(wide), b.astype(wide)
    same = (x == y) | (np.isnan(x) & np.isnan(y))
    with np.errstate(invalid="ignore", over="ignore"):
        gaps = np.where(same, 0.0, np.abs(x - y))
        gaps = np.where(np.isnan(gaps), np.inf, gaps)
        average = float(np.sqrt(np.mean(np.square(gaps))))
    return Gap(float(gaps.max()), average, float(np.abs(np.where(np.isfinite(x), x, 0.0)).max()), a.dtype)


def _has_magnitude(dtype: np.dtype[Any]) -> bool:
    return dtype.kind in "fc" or dtype.name == "bfloat16"


@dataclass(slots=True)
class _Case:
    """One input that both models ran on."""

    family: str
    make: Callable[[], Feed] | None
    gaps: list[Gap]


@dataclass(slots=True)
class Comparison:
    """What has been seen so far; lives inside one call."""

    names: Sequence[str]
    tolerance: float
    max_abs: float = 0.0
    max_rel: float = 0.0
    in_double: float | None = None
    passed: bool = True
    families: dict[str, float] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    silent: list[str] = field(default_factory=list)
    count: int = 0
    num_outputs: int = 0
    seconds: float = 0.0
    """Seconds of both models on the slowest input."""
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def judge(self, cases: Sequence[_Case], referee: Referee | None, budget: Budget) -> None:
        """Judge all inputs together; those that fail in the models' own precision go to the referee."""
        least = [_VANISHING * max(case.gaps[i].magnitude for case in cases) for i in range(self.num_outputs)]
        failing: list[tuple[float, _Case]] = []
        for case in cases:
            errors = [found.over(floor) for found, floor in zip(case.gaps, least, strict=True)]
            worst = max(errors, default=0.0)
            self.max_abs = max(self.max_abs, *(found.absolute for found in case.gaps), 0.0)
            self.max_rel = max(self.max_rel, worst)
            self.families[case.family] = max(self.families.get(case.family, 0.0), worst)
            beyond = [e for e, found in zip(errors, case.gaps, strict=True) if not e <= found.allowed(self.tolerance)]
            if beyond:
                failing.append((max(beyond), case))
        if failing:
            self.passed = False
            failing.sort(key=lambda item: -item[0])
            self._appeal([(worst, case) for worst, case in failing if case.make is not None], least, referee, budget)

    def _appeal(
        self, failing: Sequence[tuple[float, _Case]], least: Sequence[float], referee: Referee | None, budget: Budget
    ) -> None:
        """Ask the referee about the inputs with the largest errors, as many as time allows but at least one."""
        if referee is None:
            return
        decided, longest = 0, 0.0
        for _, case in failing:
            if decided and budget.left < longest:
                break
            budget.now(f"double precision decides about the {case.family} inputs")
            assert case.make is not None
            started = time.perf_counter()
            try:
                rulings = referee(case.make(), least)
            except Exception as error:  # noqa: BLE001 - a model that does not run in double may raise anything
                self.note(f"double precision cannot decide, for the models do not run in it: {first_line(error)}")
                return
            longest = max(longest, time.perf_counter() - started)
            decided += 1
            self.in_double = max(self.in_double or 0.0, *(ruling.relative for ruling in rulings))
            wrong = [index for index, ruling in enumerate(rulings) if not ruling.passes]
            if wrong:
                labels = ", ".join(labels_of(self.names, index) for index in wrong[:4])
                self.note(
                    f"output {labels} differs by {max(rulings[i].relative for i in wrong):.1e} (relative) in double "
                    f"precision too, on {case.family} inputs: that is no rounding"
                )
                return
        if not decided:
            return
        self.passed = True
        of_all = f" ({decided} of {len(failing)} such inputs were tried)" if decided < len(failing) else ""
        self.note(
            f"the outputs differ by {failing[0][0]:.1e} (relative) in the models' own precision and by "
            f"{self.in_double:.1e} in double{of_all}: that is rounding, and both compute the same"
        )

    def verdict(
        self,
        *,
        asked: str,
        ran: str,
        seconds: float = 0.0,
        latency: tuple[float, float] | tuple[None, None] = (None, None),
        timed_runs: int = 0,
    ) -> Validation:
        vacuous = self.num_outputs > 0 and len(self.silent) == self.num_outputs
        if self.silent:
            which = "no output" if vacuous else f"output {', '.join(self.silent[:4])} never"
            self.notes.append(f"{which} changed with the input, so agreement there proves nothing")
        return Validation(
            max_abs_error=self.max_abs,
            max_rel_error=self.max_rel,
            double_rel_error=self.in_double,
            tolerance=self.tolerance,
            families=dict(self.families),
            left_out=tuple(dict.fromkeys(self.left_out)),
            inputs=self.count,
            seconds=seconds,
            vacuous=vacuous,
            latency_a_ms=latency[0],
            latency_b_ms=latency[1],
            timed_runs=timed_runs,
            provider_asked=asked,
            provider_ran=ran,
            passed=self.passed,
            notes=tuple(self.notes),
        )


def compare(
    run_a: Run,
    run_b: Run,
    names: Sequence[str],
    feeds: Feeds,
    tolerance: float,
    *,
    plain: tuple[Run, Run] | None = None,
    referee: Referee | None = None,
    budget: Budget | None = None,
    timed: bool = False,
    same_types: bool = True,
) -> Comparison:
    """Run both on every feed; outputs are compared by position.

    Args:
        run_a: the first model, whose outputs are the reference.
        run_b: the second.
        names: of the outputs; may be empty.
        feeds: what to run on.
        tolerance: largest relative error that passes.
        plain: both models without the runtime's optimisations, which change the rounding. Run only if the
            others differ by more than ``CLEAR``; their result then counts.
        referee: decides about outputs that fail.
        budget: when to leave further feeds out.
        timed: keep time for one more run of both, to measure it.
        same_types: whether outputs must have the same types.
    """
    budget = budget or Budget()
    seen = Comparison(names, tolerance)
    reference: list[Array] = []
    varies: list[bool] = []
    cases: list[_Case] = []
    for family, make in feeds:
        if cases and budget.left < (2 if timed else 1) * seen.seconds:
            seen.left_out.append(family)
            if family == DATA:
                break  # there may be a million of them
            continue
        budget.now(f"both models on {family} inputs")
        started = time.perf_counter()
        values = make()
        outputs_a = _outputs_of_first(run_a, family, values, seen)
        if outputs_a is None:
            continue
        outputs_b = _outputs_of_second(run_b, values)
        _check_outputs(outputs_a, outputs_b, names, same_types)
        gaps = [gap(x, y) for x, y in zip(outputs_a, outputs_b, strict=True)]
        if plain is not None and any(found.over() > min(tolerance, CLEAR) for found in gaps):
            outputs_a, outputs_b = plain[0](values), _outputs_of_second(plain[1], values)
            gaps = [gap(x, y) for x, y in zip(outputs_a, outputs_b, strict=True)]
        seen.seconds = max(seen.seconds, time.perf_counter() - started)
        if not reference:
            reference, varies = outputs_a, [False] * len(outputs_a)
        varies = [moved or _changed(old, new) for moved, old, new in zip(varies, reference, outputs_a, strict=True)]
        doubtful = any(not found.over() <= found.allowed(tolerance) for found in gaps)
        kept = doubtful and sum(case.make is not None for case in cases) < _MOST_KEPT
        cases.append(_Case(family, make if kept else None, gaps))
    if not cases:
        raise BadInput(
            "no input was found that the first model accepts",
            why="; ".join(seen.notes),
            do="give inputs that it accepts: --inputs FOLDER",
        )
    seen.count, seen.num_outputs = len(cases), len(reference)
    seen.judge(cases, referee, budget)
    _tell_left_out(seen, budget)
    labels = names or [str(index) for index in range(len(reference))]
    # A single feed leaves nothing to compare an output with.
    seen.silent = [label for label, moved in zip(labels, varies, strict=True) if not moved and len(cases) > 1]
    for kind in sorted({output.dtype.name for output in reference} & _HALF_TOLERANCES.keys()):
        seen.notes.append(f"{kind} outputs: a relative error of {_HALF_TOLERANCES[kind]:g} passes")
    return seen


def _tell_left_out(seen: Comparison, budget: Budget) -> None:
    if not seen.left_out:
        return
    kinds = f"inputs of the kinds {', '.join(seen.left_out)} were"
    what = "further inputs were" if DATA in seen.left_out else kinds
    seen.note(
        f"{what} left out for lack of time: {seen.count} compared, up to {seen.seconds:.1f} s each, "
        f"within {budget.seconds:g} s (--check-time)"
    )


def _outputs_of_first(run: Run, family: str, values: Feed, seen: Comparison) -> list[Array] | None:
    """Return the first model's outputs; None, and a note, for random inputs that it rejects (unknown tokens)."""
    try:
        return run(values)
    except PrunecError:
        raise
    except Exception as error:  # onnxruntime and user modules raise anything
        if family == DATA:
            raise BadInput("the first model does not run on the given inputs", why=first_line(error)) from error
        seen.note(f"the first model rejects inputs of the family {family!r}: {first_line(error)}")
        return None


def _outputs_of_second(run: Run, values: Feed) -> list[Array]:
    try:
        return run(values)
    except Exception as error:  # onnxruntime and user modules raise anything
        raise ValidationFailed(
            f"the second model does not run on an input that the first accepts ({_describe(values)})",
            why=first_line(error),
        ) from error


def labels_of(names: Sequence[str], index: int) -> str:
    """Return an output's name, or its position if it has none."""
    return names[index] if index < len(names) else str(index)


def _changed(a: Array, b: Array) -> bool:
    """Tell whether an output depends on the input at all."""
    if a.shape != b.shape:
        return a.size > 0 and b.size > 0 and float(np.ptp(b)) > 0 if a.dtype.kind != "b" else True
    return gap(a, b).over() > 1e-6


def _check_outputs(a: Sequence[Array], b: Sequence[Array], names: Sequence[str], same_types: bool) -> None:
    if len(a) != len(b):
        raise ValidationFailed(f"the second model has {len(b)} outputs, the first {len(a)}")
    for index, (x, y) in enumerate(zip(a, b, strict=True)):
        if x.shape != y.shape:
            raise ValidationFailed(
                f"output {labels_of(names, index)} has another shape", why=f"{x.shape} against {y.shape}"
            )
        if same_types and x.dtype != y.dtype:
            raise ValidationFailed(
                f"output {labels_of(names, index)} has another type", why=f"{x.dtype} against {y.dtype}"
            )


def _describe(values: Feed) -> str:
    return ", ".join(f"{name}: {'x'.join(map(str, value.shape))}" for name, value in values.items())
