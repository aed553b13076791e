"""The table PROFILE_RULES: what each op makes of channels that are multiples of maps.

Contractions are not followed here: passes/profiles.py compares their weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from prunec.ir.ops import BINARY, CONTRACTIONS, UNARY
from prunec.passes.rules.profiles.at import Rule
from prunec.passes.rules.profiles.elementwise import (
    add,
    div,
    elementwise,
    extremum,
    mul,
    neg,
    nothing,
    prelu,
    same,
    unary,
)
from prunec.passes.rules.profiles.moves import concat, moves, reshape, transpose
from prunec.passes.rules.profiles.normalisations import batch_norm, instance_norm
from prunec.passes.rules.profiles.spatial import mixed, pad, reduce, spatial

PROFILE_RULES: Mapping[str, Rule] = MappingProxyType(
    {
        **dict.fromkeys(CONTRACTIONS, nothing),
        "batch_norm": batch_norm,
        "instance_norm": instance_norm,
        **dict.fromkeys(("group_norm", "layer_norm", "lrn"), nothing),
        **dict.fromkeys(UNARY, unary),
        "identity": same,
        "cast": same,
        "neg": neg,
        **dict.fromkeys(BINARY, elementwise),
        **dict.fromkeys(("add", "sub", "rsub"), add),
        **dict.fromkeys(("minimum", "maximum"), extremum),
        "mul": mul,
        "div": div,
        "prelu": prelu,
        "where": elementwise,
        "reshape": reshape,
        "transpose": transpose,
        **dict.fromkeys(("slice", "split", "gather", "expand", "tile"), moves),
        "concat": concat,
        "pad": pad,
        **dict.fromkeys(("depth_to_space", "space_to_depth", "im2col", "scatter_slice", "full"), nothing),
        **dict.fromkeys(("max_pool", "avg_pool", "resize"), spatial),
        **dict.fromkeys(("max_unpool", "sample", "linear"), nothing),
        **dict.fromkeys(("quantize", "dequantize", "dynamic_quantize"), nothing),
        "reduce": reduce,
        "along": mixed,
        **dict.fromkeys(("arg_reduce", "shape_of", "opaque"), nothing),
    }
)
