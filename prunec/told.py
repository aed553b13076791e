"""What a pruning by data tells a person: agreement on held-out samples, and warnings.

Owns the joining of reports only; measures are agreement.py's, labels labelled.py's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from prunec.agreement import agreement
from prunec.check.comparison import Run
from prunec.passes.selection.select import Facts
from prunec.reconstruct import Reconstruction
from prunec.report.findings import Agreement, PruneReport

_TOO_FEW = (
    "there are too few samples to hold any out: nothing tells how the result does on inputs that it was not fitted on"
)


def with_agreement(
    report: PruneReport, facts: Facts, data: Reconstruction, runs: Sequence[Run], names: Sequence[str]
) -> PruneReport:
    """Return the report with what held-out samples say, and what the data are short of."""
    notes = (*report.notes, *data.short_of_data(facts))
    split = data.data
    if not split.held_out:
        return replace(report, agreement=Agreement(0), notes=(*notes, _TOO_FEW))
    found = agreement(runs[0], runs[1], names, split.held_out, split.labels_held_out)
    return replace(report, agreement=found, notes=notes)
