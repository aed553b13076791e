"""What each op does with channel ids: the table CHANNEL_RULES, read top to bottom.

The first word of each rule's docstring says which of four things it does: move, unify, contract or
refuse. A rule sees labels and attributes only; it knows no framework and no other op. To teach prunec
an op: name it in prunec/ir/ops.py, map it in a frontend, and give it a row in each table of passes/rules/.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from prunec.ir.ops import BINARY, UNARY
from prunec.passes.rules.channels.contractions import attention, conv, conv_transpose, matmul, rnn
from prunec.passes.rules.channels.elementwise import elementwise, prelu, unary
from prunec.passes.rules.channels.label_tools import Rule
from prunec.passes.rules.channels.moves import (
    concat,
    depth_to_space,
    expand,
    full,
    gather,
    moves,
    pad,
    reshape,
    scatter_slice,
)
from prunec.passes.rules.channels.normalisations import (
    batch_norm,
    dynamic_quantize,
    group_norm,
    instance_norm,
    layer_norm,
    per_channel,
)
from prunec.passes.rules.channels.refusals import mixes, opaque, reduces, shape_of
from prunec.passes.rules.channels.spatial import channelwise, linear, max_unpool, sample

RANKLESS = frozenset({"conv", "conv_transpose", "shape_of", "opaque"})
"""Ops whose rules take values of unknown rank; of the others ``unranked`` is asked there."""

CHANNEL_RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "conv": conv,
        "conv_transpose": conv_transpose,
        "matmul": matmul,
        "attention": attention,
        "rnn": rnn,
        "batch_norm": batch_norm,
        "instance_norm": instance_norm,
        "group_norm": group_norm,
        "layer_norm": layer_norm,
        "lrn": mixes,
        **dict.fromkeys(UNARY, unary),
        **dict.fromkeys(BINARY, elementwise),
        "prelu": prelu,
        "where": elementwise,
        "reshape": reshape,
        "transpose": moves,
        "slice": moves,
        "split": moves,
        "concat": concat,
        "gather": gather,
        "expand": expand,
        "tile": expand,
        "pad": pad,
        "depth_to_space": depth_to_space,
        "space_to_depth": moves,
        "im2col": moves,
        "scatter_slice": scatter_slice,
        "full": full,
        **dict.fromkeys(("max_pool", "avg_pool", "resize"), channelwise),
        "sample": sample,
        "max_unpool": max_unpool,
        "linear": linear,
        "quantize": per_channel,
        "dequantize": per_channel,
        "dynamic_quantize": dynamic_quantize,
        "reduce": reduces,
        "arg_reduce": reduces,
        "along": mixes,
        "shape_of": shape_of,
        "opaque": opaque,
    }
)
