"""The ops that constants and channels pass: PASSES, and those of which some only pass.

PASSES: constants and channels pass. ZERO_PASSES: channels pass, and of the constants only zero. DEAD_PASSES: channels
pass, constants do not.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnx_models.cases.moves import MOVES, overwritten
from onnx_models.cases.values import VALUES, depthwise, grid_sampled, squeeze_excite
from onnx_models.cases.writing import Build, elementwise

PASSES: Mapping[str, tuple[int, Build]] = {**VALUES, **MOVES}

ZERO_PASSES: Mapping[str, tuple[int, Build]] = {
    "depthwise": (17, depthwise),
    "squeeze-excite": (17, squeeze_excite),
}
"""Ops after which another constant than zero is no longer uniform: padding joins in, or a gate."""


DEAD_PASSES: Mapping[str, tuple[int, Build]] = {
    "overwritten-pixels": (16, overwritten(slice(None), slice(None), slice(1, 4), slice(None))),
    "lp-pool": (18, elementwise("LpPool", kernel_shape=[2, 2])),
    "softmax-over-space": (13, elementwise("Softmax", axis=-1)),
    "cumulative-sum": (14, lambda net, x: net.op("CumSum", x, net.const(3, np.int64))),
    "grid-sample": (
        16,
        grid_sampled,
    ),
    "top-k-over-space": (13, lambda net, x: net.op("TopK", x, net.ints(4), axis=-1, outputs=2)[0]),
    "cubic-resize": (13, lambda net, x: net.op("Resize", x, "", net.const([1, 1, 2, 2], np.float32), mode="cubic")),
}
