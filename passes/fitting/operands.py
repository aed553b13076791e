"""Operands: the reads through which a combination can be folded, each as a matrix product.

A read sees x_gone ≈ A · x_kept + c. What takes that in is the weight of the node that reads: W_kept += W_gone · A,
bias += W_gone · c. Owns the view of a contraction as ``rows × columns`` per convolution group (a column is one tap
of one channel), the way back from such a matrix to the parameter, and what of a read can take anything in at all.
Which channels go is passes/fitting/elimination.py's, the numbers come from data (prunec/fitting/grams.py,
prunec/fitting/refit.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from prunec.ir.arrays import Array, Floats, Ids
from prunec.ir.contractions import bias_of, channel_axis, conv_groups, is_affine, kernel_of, out_axis, weights_of
from prunec.ir.graph import Graph, Node
from prunec.ir.labels import ChannelClasses
from prunec.ir.ops import CONTRACTIONS
from prunec.passes.integers import is_integer
from prunec.passes.reads import Read, is_flat
from prunec.passes.rules.weights import weight_of
from prunec.passes.selection.select import Facts

Takes = Literal["weights", "bias", "nothing"]
"""What of a read can make up for a channel: its weights and bias, its bias only (weights that are computed or that
other layers share), or nothing (products of two activations)."""


@dataclass(frozen=True, slots=True, eq=False)
class Operand:
    """A read as a matrix product.

    Args:
        read: the operand of the contraction.
        takes: what can make up for a channel that goes.
        biased: a constant can be folded: there is a bias, or can be one.
        groups: convolution groups; a matrix product has one.
        columns: int64[groups, inputs per group]: the class of each position on the contracted axis.
        rows: int64[groups, outputs per group]: the class of each output, 0 where it has none.
        taps: columns of the matrix per position (kernel size).
        pooled: the matrix is too wide for the memory that there is: one combination per channel serves all its taps,
            so that what is summed up is channels by channels.
    """

    read: Read
    takes: Takes
    biased: bool
    groups: int
    columns: Ids
    rows: Ids
    taps: int
    pooled: bool = False

    @property
    def node(self) -> Node:
        return self.read.node

    @property
    def value(self) -> str:
        """The name of the value that is read."""
        return self.read.node.inputs[self.read.index]

    @property
    def weight(self) -> str:
        """The parameter that holds the weights; computed weights have none."""
        return self.read.node.inputs[1]

    @property
    def output(self) -> str:
        return self.read.node.outputs[0]

    @property
    def width(self) -> int:
        """Columns of each group's matrix."""
        return int(self.columns.shape[1]) * (1 if self.pooled else self.taps)

    @property
    def is_depthwise(self) -> bool:
        """True where each output goes with the one channel that it reads: nothing is left to make up for."""
        return self.columns.shape[1] == 1 and bool((self.rows == self.columns).all())


def operands(facts: Facts) -> tuple[Operand, ...]:
    """Return every read of channels that could go, in graph order, that anything depends on."""
    free = ~facts.classes.pinned & facts.classes.is_channel
    return tuple(
        _operand(facts, read)
        for read in facts.reads
        if free[facts.classes.class_of[read.ids]].any() and read.node.op in CONTRACTIONS and not read.dead.all()
    )


def _operand(facts: Facts, read: Read) -> Operand:
    node = read.node
    owners = facts.classes.class_of[read.ids.ravel()]
    shape = weight_shape(facts, node)
    takes = _takes(facts, read, shape)
    groups, taps = conv_groups(node), math.prod(kernel_of(node, shape))
    if node.op == "matmul":
        owners, taps = _runs(owners)
    biased = takes != "nothing" and (read.absorbs or _could_absorb(facts.graph, node))
    height = math.prod(shape) // max(1, owners.size * taps) if shape else 0
    rows = _rows(facts.classes, node, groups, height)
    # What comes out of the product itself is not to be seen in these: only what goes in can be fitted.
    hidden = takes == "bias" or (not biased and any(node.inputs[2:3]))
    return Operand(read, takes, biased, groups, owners.reshape(groups, -1), rows, taps, pooled=hidden)


def _runs(owners: Ids) -> tuple[Ids, int]:
    """Return the classes with what a flattened map repeats of each taken once, and how often it is repeated."""
    changes = np.flatnonzero(np.diff(owners)) + 1
    lengths = np.diff(np.concatenate([[0], changes, [owners.size]]))
    same = lengths.size > 0 and bool((lengths == lengths[0]).all()) and owners.size > 1
    return (owners[:: lengths[0]], int(lengths[0])) if same and owners[0] else (owners, 1)


def weight_shape(facts: Facts, node: Node) -> tuple[int, ...]:
    """Return the sizes of a contraction's weight; () where they are not known, or it has none."""
    if not weights_of(node):
        return ()
    shape = facts.graph.shape(node.inputs[1]) or ()
    return tuple(size for size in shape if isinstance(size, int)) if all(isinstance(s, int) for s in shape) else ()


def _takes(facts: Facts, read: Read, shape: Sequence[int]) -> Takes:
    """Tell what of a read can make up for a channel."""
    node, graph = read.node, facts.graph
    if read.index or not shape or not is_flat(read.ids) or node.inputs[1] not in graph.fixed_values():
        return "nothing"
    if is_integer(graph, node) or node.attrs.get("bias_type") or (node.op == "matmul" and len(shape) != 2):
        return "bias" if read.absorbs and not is_integer(graph, node) else "nothing"
    plain = node.attrs.get("alpha", 1) == 1 and node.attrs.get("beta", 1) == 1
    param = graph.params.get(node.inputs[1])
    alone = param is not None and len(graph.consumers(param.name)) == 1 and node.inputs.count(param.name) == 1
    if param is not None and alone and plain and param.array.dtype.kind == "f" and param.name not in graph.outputs:
        return "weights"
    return "bias" if read.absorbs else "nothing"


def _could_absorb(graph: Graph, node: Node) -> bool:
    """Tell whether a node that ``takes`` weights has, or can get, a bias of ordinary numbers."""
    fixed = not bias_of(node) or bias_of(node) in graph.params
    return fixed and is_affine(node) and not node.attrs.get("transpose_a")


def _rows(classes: ChannelClasses, node: Node, groups: int, count: int) -> Ids:
    """Return int64[groups, count]: the classes of a contraction's outputs."""
    result = np.zeros((groups, count), dtype=np.int64)
    label = classes.labels.get(node.outputs[0])
    if label is None or label.shape is None or not count:
        return result
    for ids in label.on(channel_axis(node, label.rank))[:1]:
        if ids.size == result.size:
            result = classes.class_of[ids.ravel()].reshape(result.shape)
    return result


def within(found: Sequence[Operand], memory: int) -> tuple[Operand, ...]:
    """Pool the widest operands until all matrices of an order are in memory at the same time.

    Args:
        memory: bytes.
    """
    sizes = [_bytes(operand) for operand in found]
    result, total = list(found), sum(sizes)
    for at in sorted(range(len(found)), key=lambda number: -sizes[number]):
        if total <= memory:
            break
        if found[at].taps > 1 and found[at].takes != "nothing":
            result[at] = replace(found[at], pooled=True)
            total += _bytes(result[at]) - sizes[at]
    return tuple(result)


def _bytes(operand: Operand) -> int:
    """Return what the order takes for an operand: its Gram, H, the inverse and the weight, in doubles."""
    if operand.takes == "nothing" or operand.is_depthwise:
        return 0
    return int(8 * operand.groups * operand.width * (3 * operand.width + operand.rows.shape[1]))


# --- weights as matrices ------------------------------------------------------------------------------


def as_matrix(node: Node, array: Array) -> Floats:
    """Return a contraction's weight as float64[groups, rows, columns]; its attributes fit the array."""
    if node.op == "rnn":
        return array.reshape(1, -1, array.shape[-1]).astype(np.float64)
    view = weight_of(node, array)
    assert view is not None, "operands of other weights take nothing"
    groups, rows, inputs, taps = view.taps.shape
    return view.taps.reshape(groups, rows, inputs * taps).astype(np.float64)


def pooled(matrix: Floats, taps: int) -> Floats:
    """Return float64[groups, rows · taps, channels]: each tap as a row of its own."""
    groups, rows, columns = matrix.shape
    parted = matrix.reshape(groups, rows, columns // taps, taps)
    return parted.transpose(0, 1, 3, 2).reshape(groups, rows * taps, columns // taps)


def unpooled(matrix: Floats, taps: int) -> Floats:
    """Return what ``pooled`` took apart."""
    groups, rows, channels = matrix.shape
    parted = matrix.reshape(groups, rows // taps, taps, channels)
    return parted.transpose(0, 1, 3, 2).reshape(groups, rows // taps, channels * taps)


def from_matrix(node: Node, matrix: Floats, shape: Sequence[int]) -> Floats:
    """Return the weight of sizes ``shape`` that ``as_matrix`` shows as ``matrix``."""
    if out_axis(node) == 0:
        return matrix.reshape(shape)
    groups = matrix.shape[0]
    taps = matrix.reshape(groups, shape[1], shape[0] // groups, math.prod(shape[2:]))
    return taps.swapaxes(1, 2).reshape(shape)
