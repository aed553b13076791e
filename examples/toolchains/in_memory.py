"""Prune ONNX models that are in memory: ModelProto, onnx_ir.Model and onnx_graphsurgeon.Graph, the same kind out.

Run it with `python examples/toolchains/in_memory.py`.
"""

from __future__ import annotations

import digits
import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnx_ir as ir

import prunec


def main() -> None:
    """Print what each kind loses, and how far its outputs are from the original's."""
    data = digits.trained()
    model = digits.exported(data)
    expected = digits.run(model, data.test)
    for given in (model, ir.from_proto(model), gs.import_onnx(model)):
        pruned = prunec.prune_model(given)
        error = np.abs(digits.run(as_proto(pruned.model), data.test) - expected).max()
        before, after = pruned.report.before.params, pruned.report.after.params
        kind = type(given).__name__
        print(f"{kind:<10} {before:,} -> {after:,} parameters, largest difference of a score {error:.1e}")
        assert type(pruned.model) is type(given)


def as_proto(model: onnx.ModelProto | ir.Model | gs.Graph) -> onnx.ModelProto:
    """Return a model as ONNX Runtime takes it."""
    if isinstance(model, ir.Model):
        return ir.to_proto(model)
    return gs.export_onnx(model) if isinstance(model, gs.Graph) else model


if __name__ == "__main__":
    main()
