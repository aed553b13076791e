"""Which values do not depend on the network's input: the table CONSTANT_RULES, read top to bottom.

A rule gets what is known of a node's inputs (``Call``) and returns what is then known of its outputs:
float64 abstract arrays (passes/rules/arrays.py) with NaN where the value is unknown, or None where
nothing is known. Unknown is never wrong: a rule that cannot tell says so. Knows no other op and no
framework; the numbers are in passes/rules/numeric.py, the sweep over the graph in passes/constants.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from prunec.ir.ops import BINARY, UNARY
from prunec.passes.rules.constants.call import Rule, nothing
from prunec.passes.rules.constants.contractions import attention, conv, conv_transpose, matmul
from prunec.passes.rules.constants.elementwise import binary, prelu, unary, where
from prunec.passes.rules.constants.moves import depth_to_space, full, gather, im2col, moves, pad, scatter_slice
from prunec.passes.rules.constants.normalisations import batch_norm, group_norm, instance_norm, layer_norm, lrn
from prunec.passes.rules.constants.quantised import dequantize, quantize
from prunec.passes.rules.constants.spatial import avg_pool, channelwise, linear, max_unpool, reduce, resize, sample

CONSTANT_RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "conv": conv,
        "conv_transpose": conv_transpose,
        "matmul": matmul,
        "attention": attention,
        "rnn": nothing,
        "batch_norm": batch_norm,
        "instance_norm": instance_norm,
        "group_norm": group_norm,
        "layer_norm": layer_norm,
        "lrn": lrn,
        **dict.fromkeys(UNARY, unary),
        **dict.fromkeys(BINARY, binary),
        "prelu": prelu,
        "where": where,
        **dict.fromkeys(("reshape", "transpose", "slice", "split", "concat", "expand", "tile"), moves),
        "space_to_depth": moves,
        "scatter_slice": scatter_slice,
        "gather": gather,
        "pad": pad,
        "depth_to_space": depth_to_space,
        "im2col": im2col,
        "full": full,
        "max_pool": channelwise,
        "max_unpool": max_unpool,
        "linear": linear,
        "avg_pool": avg_pool,
        "resize": resize,
        "sample": sample,
        "quantize": quantize,
        "dequantize": dequantize,
        "dynamic_quantize": lrn,
        "reduce": reduce,
        "along": nothing,
        "arg_reduce": nothing,
        # A size is known, but pruning may change it: what is computed from it must not be folded.
        "shape_of": nothing,
        "opaque": nothing,
    }
)
