"""Reads: where channels end, and what is known of them there.

A scale that spans all values of a tensor (dynamic quantisation) reads its channels, too, as does a sum over channels:
what leaves must have been zero.

Owns the list of contraction operands with the state of each channel (dead, constant, varying) and the
rule that follows from it: a class can be removed exactly when every read of it is dead or absorbable.
Select and absorb are built on it; constants.py and liveness.py feed it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from prunec.ir.arrays import Floats, Ids, Mask
from prunec.ir.contractions import bias_of, geometry, read_axis
from prunec.ir.graph import Graph, Node
from prunec.ir.labels import ChannelClasses, Label, varying
from prunec.ir.ops import CONTRACTIONS
from prunec.passes.columns import columns
from prunec.passes.constants import Constants
from prunec.passes.integers import bias_step, is_integer
from prunec.passes.liveness import Liveness
from prunec.passes.profiles import profiles
from prunec.passes.rules.channels.label_tools import summed
from prunec.passes.rules.profiles.at import Profile

READERS = (*CONTRACTIONS, "dynamic_quantize", "reduce")


@dataclass(frozen=True, slots=True, eq=False)
class Read:
    """One operand of a contraction whose labelled channels are summed over.

    Args:
        node: the contraction.
        index: the operand's place among its inputs.
        axis: the axis that is summed over.
        ids: the field on that axis (int64, the operand's rank).
        constant: float64, shape of ``ids``: the channel's value where it is the same everywhere, else NaN.
        dead: bool, shape of ``ids``: nothing that matters reads the channel.
        absorbs: a constant other than zero can be folded into this node; ``ids`` then vary along ``axis`` only.
        border: zero padding (or a transposed convolution's uneven overlap) meets the operand, so that a
            bias alone is not exact.
        profile: int64, shape of ``ids``: 0, or the map that ``constant`` is a factor of (passes/profiles.py):
            a channel that varies over space in the same way as all others of the same number.
        shared: int64, shape of ``ids``: 0, or the map that ``factor`` is a factor of, as it is of other channels that
            are read here: one of them can take over the others. It depends on the input, so ``constant`` is NaN.
        factor: float64, shape of ``ids``; NaN where ``shared`` is 0.
        passes: bool, shape of ``ids``: the channel leaves together with all that this node makes of it (a depthwise
            convolution), and that is a multiple of others, which what reads it can take over.
    """

    node: Node
    index: int
    axis: int
    ids: Ids
    constant: Floats
    dead: Mask
    absorbs: bool
    border: bool
    profile: Ids
    shared: Ids
    factor: Floats
    passes: Mask

    @property
    def fine(self) -> Mask:
        """True where the channel can leave without a change to what the node computes."""
        settled = self.dead | (self.constant == 0) | (self.absorbs & ~np.isnan(self.constant))
        fine: Mask = settled | (self.shared != 0) | self.passes
        return fine


def reads(graph: Graph, classes: ChannelClasses, constants: Constants, liveness: Liveness) -> tuple[Read, ...]:
    """List every operand of a contraction that carries channels on the axis it is summed over, in graph order."""
    made_of_params = graph.fixed_values()
    maps = profiles(graph, constants)
    return tuple(
        read
        for node in graph.nodes
        if node.op in READERS
        for read in _reads_of(graph, node, classes, constants, liveness, made_of_params, maps)
    )


def _reads_of(
    graph: Graph,
    node: Node,
    classes: ChannelClasses,
    constants: Constants,
    liveness: Liveness,
    weights: frozenset[str],
    maps: Mapping[str, Profile],
) -> Iterator[Read]:
    all_fixed = weights.issuperset(name for name in node.inputs[:2] if name)
    for index, name in enumerate(node.inputs[:2]):
        if not name:
            continue
        if name in weights:
            if all_fixed and not index:
                yield from _reads_of_fixed(node, name, classes, constants)
            continue
        absorbs, border = _absorption(graph, node, index, constants)
        for axis, field in _fields_read(node, index, classes.labels[name]):
            # What is folded is one number per row of the weight: a channel made of several is one where they agree.
            ids = _along(field, axis) if absorbs else field
            live = np.broadcast_to(any_outside(liveness.of(name), ids), ids.shape)
            constant = channel_constants(constants, name, ids)
            profile = shared = np.zeros(ids.shape, dtype=np.int64)
            factor, passes = np.full(ids.shape, np.nan), profile.astype(np.bool_)
            if name in maps and absorbs and _carries(graph, node):
                constant, profile = _with_profile(maps[name], constant)
                factor, shared = _multiples(node, maps[name], classes.class_of[ids], constant, ~live)
            if not index and node.outputs[0] in maps:
                passes = _passes(node, ids, classes, maps[node.outputs[0]])
            yield Read(node, index, axis, ids, constant, ~live, absorbs, border, profile, shared, factor, passes)


def _reads_of_fixed(node: Node, name: str, classes: ChannelClasses, constants: Constants) -> Iterator[Read]:
    """Yield what a contraction of parameters alone reads (a learned input, a weight that is a product of two).

    Its first operand is the data. That they are all known says nothing: what is not zero counts.
    """
    for axis, ids in _fields_read(node, 0, classes.labels[name]):
        known = channel_constants(constants, name, ids)
        known = np.where(known == 0, known, np.nan)
        nothing, no = np.zeros(ids.shape, dtype=np.int64), np.zeros(ids.shape, dtype=np.bool_)
        unknown = np.full(ids.shape, np.nan)
        yield Read(node, 0, axis, ids, known, no, False, False, nothing, nothing, unknown, no)


def _carries(graph: Graph, node: Node) -> bool:
    """Tell whether one channel's weights can take over another's: its own parameters make them, no integers."""
    return bool(columns(graph, node)) and not is_integer(graph, node)


def _with_profile(found: Profile, constant: Floats) -> tuple[Floats, Ids]:
    """Return (constants or coefficients, profile), each of the shape of ``constant``."""
    if found.keys.shape != constant.shape:
        return constant, np.zeros(constant.shape, dtype=np.int64)
    uneven = np.isnan(constant) & (found.keys < 0)
    return np.where(uneven, found.coefficients, constant), np.where(uneven, -found.keys, 0)


def _multiples(node: Node, found: Profile, owners: Ids, constant: Floats, dead: Mask) -> tuple[Floats, Ids]:
    """Return (factors, maps) of the channels that share a map with one of another class in their convolution group."""
    shared = np.zeros(owners.shape, dtype=np.int64)
    if found.keys.shape == owners.shape:
        able = np.isnan(constant) & (found.keys > 0) & ~dead
        shared = _with_company(np.where(able, found.keys, 0).ravel(), owners.ravel(), node).reshape(owners.shape)
    return np.where(shared != 0, found.coefficients if shared.any() else np.nan, np.nan), shared


def _with_company(keys: Ids, owners: Ids, node: Node) -> Ids:
    """Return the keys that several classes have within their convolution group; 0 for others."""
    groups = node.attrs.get("conv_groups", 1)
    group = np.repeat(np.arange(groups), keys.size // groups)
    pairs = np.stack([group, keys, owners])
    _, kind = np.unique(pairs[:2], axis=1, return_inverse=True)
    classes_of = np.bincount(kind.ravel()[np.unique(pairs, axis=1, return_index=True)[1]])
    return np.where(classes_of[kind.ravel()] > 1, keys, 0)


def _passes(node: Node, ids: Ids, classes: ChannelClasses, made: Profile) -> Mask:
    """Return bool, shape of ``ids``: see ``Read.passes``. Each output lies in the class of the only input it reads."""
    none = np.zeros(ids.shape, dtype=np.bool_)
    fields = classes.labels[node.outputs[0]].on(1) if node.op in ("conv", "conv_transpose") else ()
    if node.attrs.get("conv_groups", 1) != ids.size or len(fields) != 1 or fields[0].shape != ids.shape:
        return none
    alike = classes.class_of[fields[0]] == classes.class_of[ids]
    return alike & (made.keys != 0) if made.keys.shape == ids.shape else none


def _fields_read(node: Node, index: int, label: Label) -> list[tuple[int, Ids]]:
    """Return what a node reads of an operand's channels: the axis, and the ids that vary along it."""
    if label.shape is None:
        return []
    if node.op == "dynamic_quantize":
        return [(varying(ids)[0], ids) for ids in label.fields]
    if node.op == "reduce":
        return summed(node, label)
    if index >= geometry(node).sums:
        return []
    axis = read_axis(node, label.rank, index)
    return [(axis, ids) for ids in label.on(axis)[:1]]


def _along(field: Ids, axis: int) -> Ids:
    """Return the ids of the first of the other axes' positions: those of one index are tied, see rules/channels/.

    Where that one is no channel the others are pinned.
    """
    return field[tuple(slice(None) if other == axis else slice(0, 1) for other in range(field.ndim))]


def channel_constants(constants: Constants, name: str, ids: Ids) -> Floats:
    """Return the value of each channel of ``ids`` (same shape); NaN where it varies, over space or with the input."""
    known = constants.of(name)
    if known is None:
        return np.full(ids.shape, np.nan)
    known = known.reshape((1,) * (ids.ndim - known.ndim) + known.shape)
    for axis in range(ids.ndim):
        if ids.shape[axis] == 1 and known.shape[axis] != 1:
            head = known.take([0], axis=axis)
            known = np.where((known == head).all(axis=axis, keepdims=True), head, np.nan)
    return np.broadcast_to(known, ids.shape).astype(np.float64)


def any_outside(live: Mask, ids: Ids) -> Mask:
    """Reduce a liveness array over the axes along which ``ids`` does not vary."""
    live = live.reshape((1,) * (ids.ndim - live.ndim) + live.shape)
    gone = tuple(axis for axis in range(ids.ndim) if ids.shape[axis] == 1)
    return np.asarray(live.any(axis=gone, keepdims=True)) if gone else live


def _absorption(graph: Graph, node: Node, index: int, constants: Constants) -> tuple[bool, bool]:
    """Return (a constant can be folded here, doing so needs a carrier to be exact)."""
    if index or node.name not in constants.weights:
        return False, False
    if node.attrs.get("bias_type") == "none":
        return False, False
    if is_integer(graph, node):
        able = bias_step(graph, node, constants) is not None
    else:
        able = not bias_of(node) or bias_of(node) in graph.params
    if not able:
        return False, False
    if node.op == "matmul":
        plain = node.attrs.get("alpha", 1) == 1 and node.attrs.get("beta", 1) == 1
        return plain and not node.attrs.get("transpose_a"), False
    border = any(node.attrs["pads"])
    if node.op == "conv_transpose":
        shape = graph.shape(node.inputs[1]) or ()
        border = border or any(size != 1 for size in (*shape[2:], *node.attrs["strides"]))
        border = border or any(node.attrs.get("output_padding") or ())
    # A carrier is folded into the weight itself, or into what it is computed from.
    return not border or bool(columns(graph, node)), border


def exactly_removable(graph: Graph, classes: ChannelClasses, found: Sequence[Read], liveness: Liveness) -> Mask:
    """Return bool[num_classes]: True where every read is dead or absorbable and nothing pins the class.

    A class that no contraction reads goes where the values that carry it are dead there; where none is known to
    carry it (behind a value of unknown rank) nothing is known of it, and it stays.
    """
    removable = _dead_where_carried(graph, classes, liveness)
    for read in found:
        removable[classes.class_of[read.ids]] = True
    removable &= ~classes.pinned
    for read in found:
        removable[classes.class_of[read.ids[~read.fine]]] = False
    return removable


def _dead_where_carried(graph: Graph, classes: ChannelClasses, liveness: Liveness) -> Mask:
    """Return bool[num_classes]: some value that depends on the input carries the class, and none is live there."""
    carried, alive = (np.zeros(classes.num_classes, dtype=bool) for _ in range(2))
    fixed = graph.fixed_values()
    settled: set[int] = set()  # fields, shared by many values, of which one value is live throughout
    for name in graph.values:
        if name in fixed or name not in classes.labels:
            continue
        for ids in classes.labels[name].fields:
            if id(ids) in settled:
                continue
            live, owners = liveness.of(name), classes.class_of[ids]
            carried[owners] = True
            if live.all():
                alive[owners] = True
                settled.add(id(ids))
            else:
                alive[owners[np.broadcast_to(any_outside(live, ids), ids.shape)]] = True
    return carried & ~alive


def states(classes: ChannelClasses, found: Sequence[Read]) -> tuple[Mask, Mask]:
    """Return (constant, dead), each bool[num_classes]: what the reads of a class agree on."""
    read_at_all = np.zeros(classes.num_classes, dtype=bool)
    dead = np.ones(classes.num_classes, dtype=bool)
    settled = np.ones(classes.num_classes, dtype=bool)
    for read in found:
        owners = classes.class_of[read.ids]
        read_at_all[owners] = True
        dead[owners[~read.dead]] = False
        settled[owners[~(read.dead | ~np.isnan(read.constant))]] = False
    dead &= read_at_all & settled
    return settled & read_at_all & ~dead, dead


def is_flat(ids: Ids) -> bool:
    """Tell whether a read's channels lie along one axis, so that positions are plain indices."""
    return len(varying(ids)) <= 1
