"""A surgeon for Olive's pass of ``"type": "GraphSurgeries"``: ``"surgeries": [{"surgeon": "PruneChannels"}]``.

Owns that class. Olive finds surgeons by their name among the subclasses that are loaded, so importing this module is
all that a workflow needs; set OLIVE_DISABLE_TELEMETRY=1 where its reports are not wanted.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from olive.passes.onnx.graph_surgeries import Surgeon

from prunec.toolchain.models import prune_model


class PruneChannels(Surgeon):  # type: ignore[misc]  # Olive has no types
    """Remove channels from the model of a workflow.

    Args:
        options: as for ``prunec.prune_model``, beside the surgeon's name in the workflow's file.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def call_ir(self, model: ir.Model) -> ir.Model:
        """Return the pruned model."""
        smaller: ir.Model = prune_model(model, **self.options).model
        return smaller
