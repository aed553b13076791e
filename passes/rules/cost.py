"""How many multiply-accumulates each op needs: the table COST_RULES. Only contractions have any; PARTS says what of
these scales with the channels that they make, and what with those that they read.

A rule gets sizes, not shapes: an open dimension counts as 1. It knows no other op; what is summed
over the graph, and shared out among channels, is in passes/cost.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from prunec.ir.graph import Node
from prunec.ir.ops import CONTRACTIONS, OPS

Sizes = tuple[int, ...]
Rule = Callable[[Node, Sequence[Sizes], Sequence[Sizes]], int]
"""(node, sizes per input, sizes per output) -> MACs of one run; absent inputs have no sizes."""


def none(_: Node, __: Sequence[Sizes], ___: Sequence[Sizes]) -> int:
    """Elementwise work, pooling and moves are not counted."""
    return 0


def conv(_: Node, ins: Sequence[Sizes], outs: Sequence[Sizes]) -> int:
    """Each weight element is used once per output position: the weight [C_out, C_in/g, *k] has the groups in it."""
    return math.prod(ins[1]) * math.prod(outs[0][:1]) * math.prod(outs[0][2:])


def conv_transpose(_: Node, ins: Sequence[Sizes], __: Sequence[Sizes]) -> int:
    """Each weight element is used once per input position."""
    return math.prod(ins[1]) * math.prod(ins[0][:1]) * math.prod(ins[0][2:])


def matmul(node: Node, ins: Sequence[Sizes], outs: Sequence[Sizes]) -> int:
    """One per element of the output and of the contracted axis."""
    if not ins[0]:
        return 0
    axis = -2 if node.attrs.get("transpose_a") and len(ins[0]) > 1 else -1
    return math.prod(outs[0]) * ins[0][axis]


def attention(_: Node, ins: Sequence[Sizes], __: Sequence[Sizes]) -> int:
    """q·kᵀ and weights·v; grouped key and value heads are used by several query heads."""
    query, key, value = ins[:3]
    if len(query) < 2 or len(key) < 2 or len(value) < 2:
        return 0
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def rnn(_: Node, ins: Sequence[Sizes], __: Sequence[Sizes]) -> int:
    """Each element of the input and recurrent weights is used once per step and sample."""
    return math.prod(ins[0][:-1]) * sum(math.prod(sizes) for sizes in ins[1:3] if len(sizes) > 1)


COST_RULES: Mapping[str, Rule] = MappingProxyType(
    {
        **dict.fromkeys(OPS, none),
        "conv": conv,
        "conv_transpose": conv_transpose,
        "matmul": matmul,
        "attention": attention,
        "rnn": rnn,
    }
)

Part = Callable[[float, Sequence[Sizes]], tuple[float, float]]
"""(MACs, sizes per input) -> the MACs that scale with the channels made, and those that do with the channels read."""


def all_of_it(macs: float, _: Sequence[Sizes]) -> tuple[float, float]:
    """Each MAC is of one channel that is made and of one that is read."""
    return macs, macs


def attention_parts(macs: float, ins: Sequence[Sizes]) -> tuple[float, float]:
    """q·kᵀ scales with what is read, weights·v with what is made."""
    query, value = math.prod(ins[0][-1:]), math.prod(ins[2][-1:])
    return macs * value / (query + value), macs * query / (query + value)


def rnn_parts(macs: float, ins: Sequence[Sizes]) -> tuple[float, float]:
    """The recurrent weights read what the layer itself has made."""
    sizes = [math.prod(weight) for weight in ins[1:3]]
    return macs, macs * sizes[0] / max(1, sum(sizes))


PARTS: Mapping[str, Part] = MappingProxyType(
    {**dict.fromkeys(CONTRACTIONS, all_of_it), "attention": attention_parts, "rnn": rnn_parts}
)
