"""Why channels stay: pins, and channels that are constant or dead somewhere but cannot go.

Owns the reasons in reports, each with the node that holds the channel and the layers where
it is constant. Decides nothing: passes/selection/select.py did. prunec/report/analysis.py puts the result into reports.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from prunec.ir.arrays import Ints, Mask
from prunec.ir.contractions import channel_axis, conv_groups, is_affine, is_spatial
from prunec.ir.graph import Node
from prunec.ir.labels import Pin, distinct
from prunec.ir.ops import BINARY, CONTRACTIONS, UNARY
from prunec.passes.channels import GRAPH_OUTPUT
from prunec.passes.cost import as_it_came
from prunec.passes.reads import any_outside, channel_constants, states
from prunec.passes.selection.select import Facts, Selection
from prunec.report.findings import Blocked, LayerChannels, PinReport

CARRIER = "stays as a carrier, so that the zero-padded border is exact"
SHARED = "its weights are shared by calls that read different constants"
BALANCED = "a grouped convolution keeps equally many channels per group"
TIED = "it is tied to channels that vary: together they must stay rectangular"
LAST = "a layer keeps at least one channel"
COMPUTED = (
    "a weight is computed from it (a spectral norm, a product of parameters): store the weight first "
    "(torch.nn.utils.remove_spectral_norm, or parametrize.remove_parametrizations)"
)
VARIES = "it varies where it is read here, though it is constant elsewhere"
RESIDUAL = "its other operand still varies (a residual stream that is constant in part)"
GATED = "a constant times an input-dependent gate (squeeze-excite) is not constant"
BORDER = "zero padding leaves the constant uneven at the border"


def layer_channels(facts: Facts) -> Iterator[tuple[Node, Ints]]:
    """Yield each contraction with the class of each of its output channels, int64[C_out], in graph order."""
    for node in as_it_came(facts.graph).nodes:
        owners = _output_classes(facts, node)
        if owners.size:
            yield node, owners


def _output_classes(facts: Facts, node: Node) -> Ints:
    """Return the class of each output channel of a contraction, int64[C_out]; empty if it has none."""
    label = facts.classes.labels.get(node.outputs[0]) if is_affine(node) else None
    if label is None or label.shape is None:
        return np.zeros(0, dtype=np.int64)
    axis = channel_axis(node, label.rank)
    if not 0 <= axis < label.rank:
        return np.zeros(0, dtype=np.int64)
    fields = [field for field in label.on(axis) if facts.classes.is_channel[facts.classes.class_of[field]].any()]
    if not fields:
        size = label.shape[axis]
        single = is_spatial(node) and size == 1
        return np.zeros(1 if single else 0, dtype=np.int64)
    field = np.moveaxis(fields[0], axis, 0)
    return facts.classes.class_of[field.reshape(field.shape[0], -1)[:, 0]]


def pin_reports(facts: Facts) -> tuple[PinReport, ...]:
    """List the pins that hold channels, one entry per node and reason, in graph order."""
    merged: dict[tuple[str, str, str], set[int]] = {}
    for pin in facts.classes.pins:
        owners = distinct(facts.classes.class_of[pin.ids])
        owners = owners[facts.classes.is_channel[owners]]
        if owners.size:
            merged.setdefault(_pin_key(pin), set()).update(owners.tolist())
    return tuple(PinReport(node, op, reason, len(owners)) for (node, op, reason), owners in merged.items())


def _pin_key(pin: Pin) -> tuple[str, str, str]:
    op = (pin.node.source or pin.node.op) if pin.node is not None else ("output" if pin.reason == GRAPH_OUTPUT else "")
    return pin.where, op, pin.reason


def blocked(facts: Facts, selection: Selection) -> tuple[Blocked, ...]:
    """List the channels that are constant (or dead) somewhere but stay, with the nodes that hold them.

    A channel is listed once, with the first reason that applies: a pin, then what selection gave back,
    then the node where it stops being constant, or is tied to a channel that never was.
    """
    classes = facts.classes
    settled = _settled_layers(facts, selection)
    left = _constant_somewhere(facts, settled, selection) & selection.keep & classes.is_channel
    merged: dict[tuple[str, str, str], Mask] = {}
    for node, where, reason, mask in _holders(facts, selection) if left.any() else ():
        found = mask & left
        if found.any():
            key = (where, (node.source or node.op) if node is not None else "", reason)
            merged[key] = merged.get(key, False) | found
            left &= ~found
            if not left.any():
                break
    return tuple(
        Blocked(where, op, reason, int(mask.sum()), _layers(settled, mask))
        for (where, op, reason), mask in merged.items()
    )


def _holders(facts: Facts, selection: Selection) -> Iterator[tuple[Node | None, str, str, Mask]]:
    """Yield what can hold channels, as (node, its name, reason, classes), the best explanations first."""
    classes = facts.classes
    nodes = {node.name: node for node in facts.graph.nodes}
    for pin in classes.pins:
        yield pin.node, pin.where, pin.reason, _mask(classes.num_classes, classes.class_of[pin.ids])
    yield None, "zero-padded convolutions", CARRIER, selection.carriers
    for name, mask in selection.clashed.items():
        yield nodes[name], nodes[name].origin, SHARED, mask
    for name, mask in selection.given_back.items():
        grouped = conv_groups(nodes[name]) > 1
        yield nodes[name], nodes[name].origin, BALANCED if grouped else LAST, mask
    for node, reason, mask in (
        *_summed(facts),
        *_where_constants_end(facts),
        *_tied(facts),
        *_computing_weights(facts),
        *_varying(facts),
    ):
        yield node, node.origin, reason, mask


def _mask(size: int, owners: Ints) -> Mask:
    mask = np.zeros(size, dtype=bool)
    mask[owners] = True
    return mask


# --- what is constant, and where ----------------------------------------------------------------------


def _settled_layers(facts: Facts, selection: Selection) -> tuple[tuple[Node, Ints, Mask], ...]:
    """Return each running contraction, the classes of its output channels, and which of these are constant or dead.

    A channel is constant here when the layer writes a constant, or its normalisation and activation make it one.
    """
    result = []
    for node, owners in layer_channels(facts):
        if node.name not in selection.wanted.nodes:
            continue
        settled = np.zeros(owners.size, dtype=bool)
        for value in _stretch(facts, node):
            settled |= _constant_along(facts, value, owners.size)
        if settled.any() or not facts.liveness.of(node.outputs[0]).all():
            result.append((node, owners, settled | _dead_along(facts, node.outputs[0], owners.size)))
    return tuple(result)


def _stretch(facts: Facts, node: Node) -> Iterator[str]:
    """Yield a layer's output, and the values that only normalisation and activation separate from it."""
    value = node.outputs[0]
    yield value
    while True:
        readers = facts.graph.consumers(value)
        if len(readers) != 1 or readers[0].op not in ("batch_norm", "instance_norm", *UNARY):
            return
        value = readers[0].outputs[0]
        yield value


def _constant_along(facts: Facts, value: str, size: int) -> Mask:
    """Return bool[size]: which of a value's channels hold one known number."""
    label = facts.classes.labels[value]
    for axis in range(len(label.shape or ())):
        for field in label.on(axis):
            if field.size == size:
                return ~np.isnan(channel_constants(facts.constants, value, field).ravel())
    return np.zeros(size, dtype=bool)


def _dead_along(facts: Facts, value: str, size: int) -> Mask:
    live = facts.liveness.of(value)
    if live.size == 1:
        return np.full(size, not live.any())
    return ~live.ravel() if live.size == size else np.zeros(size, dtype=bool)


def _constant_somewhere(facts: Facts, settled: Sequence[tuple[Node, Ints, Mask]], selection: Selection) -> Mask:
    """Return bool[num_classes]: an activation that is computed is constant in the class, or every read is dead."""
    found = np.zeros(facts.classes.num_classes, dtype=bool)
    for _, owners, mask in settled:
        found[owners[mask]] = True
    weights = facts.graph.fixed_values()
    for name in facts.constants.known:
        producer = facts.graph.producer(name)
        if name not in facts.classes.labels or producer is None or name in weights:
            continue
        gone = producer.name not in selection.wanted.nodes  # a branch that is cut as a whole
        if gone or producer.op == "full" or producer.attrs.get("inserted"):
            continue  # it costs nothing that could be saved
        for owners, known in _fields(facts, name):
            found[owners[known]] = True
    _, dead = states(facts.classes, facts.reads)
    return found | dead


def _fields(facts: Facts, name: str) -> Iterator[tuple[Ints, Mask]]:
    """Yield, per field of a value, the class of each position and whether it is constant there."""
    for field in facts.classes.labels[name].fields:
        known = ~np.isnan(channel_constants(facts.constants, name, field))
        yield facts.classes.class_of[field].ravel(), known.ravel()


def _layers(settled: Sequence[tuple[Node, Ints, Mask]], mask: Mask) -> tuple[LayerChannels, ...]:
    """Return the constant output channels that belong to the classes of ``mask``, by layer."""
    found = ((node, np.flatnonzero(known & mask[owners] & (owners != 0))) for node, owners, known in settled)
    return tuple(LayerChannels(node.origin, tuple(rows.tolist())) for node, rows in found if rows.size)


# --- why it stays -------------------------------------------------------------------------------------


def _summed(facts: Facts) -> Iterator[tuple[Node, str, Mask]]:
    """Yield contractions that read a constant other than zero, and cannot fold it."""
    for read in facts.reads:
        stuck = ~read.fine & ~np.isnan(read.constant)
        if stuck.any():
            reason = "a constant that is summed here cannot be folded into a fixed weight"
            yield read.node, reason, _mask(facts.classes.num_classes, facts.classes.class_of[read.ids[stuck]])


def _where_constants_end(facts: Facts) -> Iterator[tuple[Node, str, Mask]]:
    """Yield nodes, in graph order, whose input is constant in a channel and whose output in that channel is not."""
    weights = facts.graph.fixed_values()
    for node in facts.graph.nodes:
        # Channels that a contraction sums over end there: its output has its own, though they may be coupled.
        if weights.issuperset(node.outputs) or (node.op in CONTRACTIONS and conv_groups(node) == 1):
            continue
        known = _all_settled(facts, node.inputs, known=True)
        if known.any():
            read = [name for name in node.outputs if facts.graph.consumers(name) or name in facts.graph.outputs]
            lost = known & _all_settled(facts, read, known=False)
            if lost.any():
                yield node, _why_it_ends(node), lost


def _all_settled(facts: Facts, names: Sequence[str], *, known: bool) -> Mask:
    """Return bool[num_classes]: some of the values carries the class and is constant (or is not) wherever it does."""
    result = np.zeros(facts.classes.num_classes, dtype=bool)
    for name in names:
        if not name or (known and name not in facts.constants.known):
            continue
        for owners, is_known in _fields(facts, name):
            mask = _mask(facts.classes.num_classes, owners[is_known == known])
            mask[owners[is_known != known]] = False
            result |= mask
    return result


def _why_it_ends(node: Node) -> str:
    if node.op in ("mul", "div"):
        return GATED
    if node.op in BINARY:
        return RESIDUAL
    if node.op in ("conv", "conv_transpose", "avg_pool", "pad") and any(node.attrs.get("pads") or ()):
        return BORDER
    if node.op == "concat":
        return "constants of different value lie along one axis"
    return "what is constant before it varies after it"


def _tied(facts: Facts) -> Iterator[tuple[Node, str, Mask]]:
    """Yield nodes whose output has a class at several positions, constant or dead at some of them only."""
    weights = facts.graph.fixed_values()
    for node in facts.graph.nodes:
        if weights.issuperset(node.outputs):
            continue
        mixed = np.zeros(facts.classes.num_classes, dtype=bool)
        for name in node.outputs:
            for field in facts.classes.labels[name].fields if name else ():
                settled = ~np.isnan(channel_constants(facts.constants, name, field))
                settled = settled | ~any_outside(facts.liveness.of(name), field)
                owners = facts.classes.class_of[field]
                mixed |= _mask(mixed.size, owners[settled]) & _mask(mixed.size, owners[~settled])
        if mixed.any():
            yield node, TIED, mixed


def _computing_weights(facts: Facts) -> Iterator[tuple[Node, str, Mask]]:
    """Yield contractions of parameters alone that read a class: their result is a weight, or its spectral norm."""
    weights = facts.graph.fixed_values()
    for read in facts.reads:
        if weights.issuperset(read.node.outputs) and not read.fine.all():
            owners = facts.classes.class_of[read.ids[~read.fine]]
            yield read.node, COMPUTED, _mask(facts.classes.num_classes, owners)


def _varying(facts: Facts) -> Iterator[tuple[Node, str, Mask]]:
    """Yield contractions that read a class where it varies, though it is constant elsewhere."""
    for read in facts.reads:
        if not read.fine.all():
            owners = facts.classes.class_of[read.ids[~read.fine]]
            yield read.node, VARIES, _mask(facts.classes.num_classes, owners)
