"""prunec as a pass of onnx_ir, in one pipeline with onnxscript's optimiser.

Run it with `python examples/toolchains/onnxscript_pipeline.py`.
"""

from __future__ import annotations

import digits
import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer

from prunec.toolchain.ir_pass import PruneChannels


def main() -> None:
    """Print what pruning and folding leave, in either order."""
    data = digits.trained()
    model = digits.exported(data)
    expected = digits.run(model, data.test)
    for order in ("prune, then optimise", "optimise, then prune"):
        work = ir.from_proto(model)
        if order.startswith("optimise"):
            optimizer.optimize_ir(work)
        result = ir.passes.Sequential(PruneChannels(), common.RemoveUnusedNodesPass())(work)
        optimizer.optimize_ir(result.model)
        proto = ir.to_proto(result.model)
        error = np.abs(digits.run(proto, data.test) - expected).max()
        print(f"{order}: {proto.ByteSize():,} bytes (was {model.ByteSize():,}), largest difference {error:.1e}")


if __name__ == "__main__":
    main()
