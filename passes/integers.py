"""Integer contractions: what an int32 bias can take of the constants that removed channels leave.

Owns the question in which steps such a bias counts. Where both operands of a contraction are dequantised
integers, runtimes add their products up in int32, and the sum that removed constant channels leave is a whole
number of steps (one step: the product of both scales): folded into the int32 bias it changes no bit of the
result. A carrier would change int8 weights, which is not exact, so borders keep their channels.
passes/reads.py asks here; passes/lowering/bias_folds.py rounds to whole steps.
"""

from __future__ import annotations

import numpy as np

from prunec.ir.arrays import Floats
from prunec.ir.contractions import bias_of
from prunec.ir.graph import Graph, Node, summed_axis
from prunec.passes.constants import Constants

SAME = 1e-5
"""Relative difference up to which a stored bias scale is the product of the operands' scales, rounded to float32."""


def is_integer(graph: Graph, node: Node) -> bool:
    """Tell whether both operands of a contraction are dequantised: runtimes compute it with integers."""
    makers = [graph.producer(name) for name in node.inputs[:2]]
    return all(maker is not None and maker.op == "dequantize" for maker in makers)


def bias_step(graph: Graph, node: Node, known: Constants) -> Floats | None:
    """Return float64[1] or [C_out]: what one unit of the int32 bias of an integer contraction stands for.

    None where constants cannot be folded: no place for a bias, one that is not stored in whole steps, or scales
    that are computed.
    """
    scales = [_scale(graph, name, known) for name in node.inputs[:2]]
    if scales[0] is None or scales[1] is None or scales[0].size != 1:
        return None
    step = scales[0] * scales[1]
    bias = bias_of(node)
    if not bias:
        return step if node.attrs.get("bias_type") == "int32" else None
    stored = graph.params.get(graph.stored(bias))
    own = _scale(graph, bias, known)
    if stored is None or stored.array.dtype != np.int32 or own is None or not _plain(graph, bias):
        return None
    if not _only_for(graph, node, stored.name):
        return None
    try:
        same = np.allclose(own, step, rtol=SAME, atol=0)
    except ValueError:
        return None
    return step if same else None


def _scale(graph: Graph, name: str, known: Constants) -> Floats | None:
    maker = graph.producer(name)
    found = known.of(maker.inputs[1]) if maker is not None and maker.op == "dequantize" else None
    if found is None or np.isnan(found).any():
        return None
    return np.asarray(found, dtype=np.float64).ravel()


def _only_for(graph: Graph, node: Node, stored: str) -> bool:
    """Tell whether a stored bias is read by contractions with the same weight alone: they lose the same constants."""
    readers = [user for maker in graph.consumers(stored) for user in graph.consumers(maker.outputs[0])]
    weight = graph.stored(node.inputs[1])
    return stored not in graph.outputs and all(
        [graph.stored(name) for name in user.inputs[1:3]] == [weight, stored] and summed_axis(user) == summed_axis(node)
        for user in readers
    )


def _plain(graph: Graph, bias: str) -> bool:
    """Tell whether a bias is dequantised straight from a parameter, with no zero point but 0."""
    maker = graph.producer(bias)
    if maker is None or maker.inputs[0] not in graph.params:
        return False
    zero = graph.params.get(maker.inputs[2]) if len(maker.inputs) > 2 else None
    return len(maker.inputs) < 3 or (zero is not None and not zero.array.any())
