"""The report of a pruning, with calibration and size.

Owns the step from a Job to a PruneReport; the counting is prunec/report/analysis.py's.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunec.passes.selection.select import EXACT
from prunec.pipeline.planning import PROVABLE, SHOWN, Job
from prunec.report.analysis import prune_report
from prunec.report.findings import CalibrationReport, PruneReport

if TYPE_CHECKING:
    from prunec.data.calibration import Calibration, Observed
    from prunec.frontends.onnx.frontend import OnnxSource


def report_of(job: Job[Any], name: str, calibration: Calibration | None, observed: Observed | None) -> PruneReport:
    """Return the report of a job, with the share of the calibration data in it."""
    report = prune_report(job.facts, job.selection, job.plan, name)
    if not report.removed_channels and not job.plan.reason.startswith((PROVABLE, SHOWN)):
        report = replace(report, message="nothing was removed: the network is within the budget as it is")
    if calibration is None or observed is None:
        return report
    before = report
    if job.proven is not None:
        before = prune_report(job.proven.facts, job.proven.selection, job.proven.plan, name)
    return replace(
        report,
        exact_on_data=job.plan.exact or holds_on_data(job),
        calibration=CalibrationReport(
            data=calibration.name,
            tolerance=calibration.tolerance,
            samples=observed.samples,
            held_out=observed.held_out,
            constant_channels=observed.constant,
            contradicted_channels=observed.contradicted,
            removed_channels=report.removed_channels - before.removed_channels,
        ),
    )


def no_larger(source: OnnxSource, staged: Path, report: PruneReport) -> PruneReport:
    """Write the original instead of a result that takes more bytes, since new tensors can outweigh what was removed."""
    if not report.removed_channels:
        return report
    from prunec.backends.onnx.save import stored_bytes, write_onnx
    from prunec.frontends.onnx.frontend import load_onnx

    sizes = stored_bytes(source), stored_bytes(load_onnx(staged))  # without padding of external data
    if sizes[1] <= sizes[0]:
        return report
    write_onnx(source, staged)
    return replace(
        report,
        after=report.before,
        removed_channels=0,
        layers=tuple(replace(layer, after=layer.before) for layer in report.layers),
        carriers=0,
        expanded=(),
        gates=(),
        branches=(),
        message=f"nothing was removed: without {report.removed_channels} channels the file would be larger "
        f"({sizes[1]:,} bytes instead of {sizes[0]:,}), because of what replaces them; it is written unchanged",
    )


def holds_on_data(job: Job[Any]) -> bool:
    """Tell whether a plan promises the same function on the data: no criterion, and exact borders."""
    return job.by_data and job.plan.reason == SHOWN and job.selection.border == EXACT
