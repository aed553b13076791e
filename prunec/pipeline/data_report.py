"""The report of a pruning by data: agreement on held-out samples, and warnings.

Only joins reports; measures are agreement.py's, labels labelled.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from prunec.check.agreement import agreement, num_classes
from prunec.check.comparison import Run
from prunec.data.calibration import Calibration
from prunec.data.labelled import labels_of
from prunec.data.samples import Samples
from prunec.errors import BadInput
from prunec.fitting.reconstruct import Reconstruction
from prunec.pipeline.planning import Job
from prunec.report.findings import Agreement, PruneReport

_TOO_FEW = "there are too few samples to hold any out, so it is not known how the result does on other inputs"


def labelled(calibration: Calibration, run: Run) -> Callable[[Samples, int], tuple[int, ...]] | None:
    """Return a function that finds the classes of samples; None if no labels are given.

    Args:
        run: the original, whose scores show the number of classes.
    """
    if calibration.labels is None:
        return None
    given = calibration.labels

    def found(samples: Samples, count: int) -> tuple[int, ...]:
        classes = num_classes(run(samples.first()))
        if classes is None:
            raise BadInput(
                "labels are for classifiers",
                why="no output of the network has a number per class",
                do="leave --labels out: errors and the overlap of masks do not need them",
            )
        return labels_of(samples, given, count, classes)

    return found


class Runs(NamedTuple):
    """Two networks on the same inputs, and the names of their outputs."""

    original: Run
    pruned: Run
    names: Sequence[str] = ()


def with_agreement(report: PruneReport, job: Job[Any], data: Reconstruction, runs: Runs) -> PruneReport:
    """Return the report with the agreement on held-out samples, and warnings: too few samples, NaN."""
    notes = (*report.notes, *(data.short_of_data(job.facts) if job.plan.refits else ()))
    split = data.data
    if not split.held_out:
        return replace(report, agreement=Agreement(0), notes=(*notes, _TOO_FEW))
    found = agreement(runs.original, runs.pruned, runs.names, split.held_out, split.labels_held_out)
    lost = [f"{output.not_finite:.1%} of {output.name}" for output in found.outputs if output.not_finite]
    if lost:
        notes = (*notes, f"the pruned network gives NaN or infinity where the original does not, in {', '.join(lost)}")
    return replace(report, agreement=found, notes=notes)
