"""Check a pruned network against its original, and refuse it if it differs although it must not.

Owns what a plan promises and what happens if that does not hold; the comparison itself is prunec.check's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunec.check.clock import Tell
from prunec.check.validate import RUNS, validate_modules, validate_onnx
from prunec.data.calibration import Calibration
from prunec.data.samples import Samples
from prunec.errors import ValidationFailed
from prunec.pipeline.planning import PROVABLE, Job
from prunec.pipeline.reporting import holds_on_data
from prunec.report.findings import PruneReport, Validation
from prunec.runtime.probes import Feed

if TYPE_CHECKING:
    from torch import fx, nn


def checked_files(
    original: str | Path,
    pruned: Path,
    input_shapes: Mapping[str, Sequence[int]] | None,
    job: Job[Any],
    report: PruneReport,
    tolerance: float,
    feeds: Iterable[Feed] | None,
    seed: int,
    budget: tuple[float, Tell | None],
) -> PruneReport:
    """Compare a staged file's outputs with the original file's; a plan that keeps the function must agree."""
    result = validate_onnx(
        Path(original),
        pruned,
        provider="cpu",
        tolerance=tolerance,
        # An unchanged network is as fast; with a budget of time, its share has been measured more carefully already.
        runs=RUNS if report.removed_channels and report.latency is None else 0,
        input_shapes=input_shapes,
        inputs=feeds,
        seed=seed,
        check_time=budget[0],
        progress=budget[1],
    )
    _refuse_difference(job, result, tolerance)
    return replace(report, validation=result, border_error=_border_error(job, report, result))


def checked_module(
    module: nn.Module,
    pruned: fx.GraphModule,
    example_inputs: Sequence[Any],
    job: Job[Any],
    report: PruneReport,
    tolerance: float,
    samples: Samples | None,
    budget: tuple[float, Tell | None],
) -> PruneReport:
    """Compare the outputs with the original's; a plan that keeps the function must agree."""
    from prunec.frontends.fx.running.arguments import named_tensors

    places = [name for name, _ in named_tensors(example_inputs)]
    feeds = None
    if samples is not None:
        feeds = _Renamed(samples, dict(zip((slot.name for slot in samples.slots), places, strict=True)))
    result = validate_modules(
        module,
        pruned,
        tuple(example_inputs),
        tolerance=tolerance,
        inputs=feeds,
        check_time=budget[0],
        progress=budget[1],
    )
    _refuse_difference(job, result, tolerance)
    return replace(report, validation=result, border_error=_border_error(job, report, result))


@dataclass(frozen=True, slots=True, eq=False)
class _Renamed:
    """Samples under other input names; read again each time it is iterated."""

    samples: Samples
    names: Mapping[str, str]

    def __iter__(self) -> Iterator[Feed]:
        return ({self.names[key]: value for key, value in feed.items()} for feed in self.samples)


def allowed_error(job: Job[Any], tolerance: float, calibration: Calibration | None) -> float:
    """Return the largest relative error that passes: outputs may err as much as the user allowed for activations."""
    return max(tolerance, calibration.tolerance) if calibration is not None and job.by_data else tolerance


def _border_error(job: Job[Any], report: PruneReport, result: Validation) -> float | None:
    """Return the measured error, if errors at borders are all that the plan accepts."""
    return None if job.plan.exact or not report.reason.startswith(PROVABLE) else result.max_rel_error


def _not_exact(result: Validation, tolerance: float) -> ValidationFailed:
    differ = f"the pruned network's outputs differ by {result.max_rel_error:.2e} (relative), allowed is {tolerance:.0e}"
    if result.double_rel_error is None:
        return ValidationFailed(
            differ,
            why="; ".join(result.notes) or "double precision, which tells a mistake from rounding, was not tried",
            do="this may be rounding: try your data (--inputs FOLDER); --no-validate writes the result anyway",
        )
    return ValidationFailed(
        differ,
        why=f"by {result.double_rel_error:.2e} in double precision, which hardly rounds",
        do="please report this with the model; --no-validate writes the result anyway",
    )


def _refuse_difference(job: Job[Any], result: Validation, tolerance: float) -> None:
    if result.passed:
        return
    if job.plan.exact:
        raise _not_exact(result, tolerance)
    if holds_on_data(job):
        raise ValidationFailed(
            f"on the data the pruned network's outputs differ by {result.max_rel_error:.2e} (relative), "
            f"allowed is {tolerance:.0e}",
            why="channels that are nearly constant add up",
            do="lower --tolerance; --no-validate writes the result anyway",
        )
