"""A pass for onnx_ir, and so for onnxscript's optimiser: an ir.Model in, a smaller one out.

Owns the form that ``onnx_ir.passes`` asks for; ``prunec.prune_model`` does the work.

    pipeline = ir.passes.Sequential(PruneChannels(), common_passes.RemoveUnusedNodesPass())
    smaller = pipeline(model).model
    onnxscript.optimizer.optimize_ir(smaller)
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from prunec.ir.plan import PrunePlan
from prunec.report.findings import PruneReport
from prunec.toolchain.models import prune_model


class PruneChannels(ir.passes.FunctionalPass):
    """Remove channels from a model; the given one does not change.

    Args:
        options: as for ``prunec.prune_model``; without any, only provably constant or dead channels are removed, and
            the function stays.

    After a call ``plan`` and ``report`` say what was done. An in-place pipeline takes
    ``ir.passes.functionalize`` the other way round: put this pass first, or run it by itself.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options
        self.plan: PrunePlan | None = None
        self.report: PruneReport | None = None

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Return the pruned model."""
        found = prune_model(model, **self.options)
        self.plan, self.report = found.plan, found.report
        return ir.passes.PassResult(found.model, bool(found.report.removed_channels))
