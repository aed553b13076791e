"""Lower: Graph + PrunePlan -> Edits, framework-free; the backends only carry them out.

Owns the new contents of parameters (slices and folds), the new attributes of nodes and the list of
nodes and inputs that go. Decides nothing: all of that follows from the plan and the labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from prunec.errors import BadPlan
from prunec.ir.edits import Edits
from prunec.ir.graph import Graph, Node
from prunec.ir.labels import ChannelClasses, Kept
from prunec.ir.plan import Fold, PrunePlan
from prunec.passes.columns import Column, columns, grouped_weights
from prunec.passes.constants import Constants, constants
from prunec.passes.integers import bias_step, is_integer
from prunec.passes.lowering.refits import refit
from prunec.passes.selection.needs import Needs, needs
from prunec.passes.selection.shapes import pruned_shapes
from prunec.passes.weight_norms import rescaled

Array = np.ndarray[Any, Any]
Mask = np.ndarray[Any, np.dtype[np.bool_]]


def lower(graph: Graph, classes: ChannelClasses, plan: PrunePlan, known: Constants | None = None) -> Edits:
    """Work out the edits of a plan.

    Args:
        known: ``constants(graph)`` where the caller has it; it is computed when folds need it.

    Raises:
        BadPlan: the plan names parameters or sizes that the graph does not have.
    """
    keep = keep_mask(graph, classes, plan)
    known = constants(graph) if known is None else known
    wanted = _needs(graph, classes, known, keep, plan)
    keeps = _keeps(classes, keep)
    rest, shape_of = pruned_shapes(graph, classes, keep, wanted)
    shapes = {name: shape_of(name) for name in keeps}
    stored = {(c.node, c.index): np.asarray(c.value).reshape(c.shape) for c in plan.constant_inputs}
    new_biases, folded, carried = _fold_all(graph, plan, known, keeps)
    params = _slice_params(graph, plan, keeps, folded, carried)
    params.update(rescaled(graph, params, lambda arrays: _cut(graph, plan, keeps, arrays)))
    refit(graph, plan, shape_of, params, new_biases)
    replaced = dict(_replacements(graph, wanted, stored))
    return Edits(
        params=MappingProxyType(params),
        new_biases=MappingProxyType(new_biases),
        attrs=MappingProxyType(
            {n.name: attrs for n in rest.nodes if (attrs := _attrs(graph, classes, n, keep, keeps))}
        ),
        constant_inputs=MappingProxyType({key: _typed(graph, key, value) for key, value in stored.items()}),
        dropped_inputs=MappingProxyType(dict(wanted.dropped)),
        replaced=MappingProxyType(replaced),
        removed=frozenset(n.name for n in graph.nodes if n.name not in wanted.nodes),
        shapes=MappingProxyType({name: shape for name, shape in shapes.items() if shape is not None}),
        keeps=MappingProxyType(keeps),
    )


def keep_mask(graph: Graph, classes: ChannelClasses, plan: PrunePlan) -> Mask:
    """Return bool[num_classes] from what the plan keeps of each parameter axis."""
    keep = np.ones(classes.num_classes, dtype=bool)
    members = {(member.param, member.axis): member for member in classes.members}
    for axis_keep in plan.keeps:
        member = members.get((axis_keep.param, axis_keep.axis))
        if member is None or member.ids.size != axis_keep.size:
            found = "no such parameter axis" if member is None else f"{member.ids.size} channels"
            raise BadPlan(
                f"the plan expects {axis_keep.size} channels on axis {axis_keep.axis} of {axis_keep.param}",
                why=f"the model has {found}",
                do="apply the plan to the architecture that it was made for",
            )
        gone = np.ones(axis_keep.size, dtype=bool)
        gone[list(axis_keep.keep)] = False
        keep[classes.class_of[member.ids[gone]]] = False
    grouped = {item.param: item.keep for item in plan.grouped}
    for balance in classes.balances:
        # Channels that only a grouped weight reads (padding) lie on no parameter axis of their own.
        slots = grouped.get(grouped_weights(graph, balance.node)[0])
        for ids, kept in zip(balance.slots, slots or (), strict=False):
            gone = np.setdiff1d(np.arange(ids.size), np.asarray(kept, dtype=np.int64))
            keep[classes.class_of[ids[gone]]] = False
    if not keep[classes.pinned].all():
        raise BadPlan(
            "the plan removes channels that must stay in this model",
            do="apply the plan to the architecture that it was made for",
        )
    return keep


def _needs(graph: Graph, classes: ChannelClasses, known: Constants, keep: Mask, plan: PrunePlan) -> Needs:
    """Return what still runs when exactly the plan's inputs are constant.

    The plan decides, not this graph's weights: a fresh network has other constants.
    """
    dummy = {(c.node, c.index): np.zeros(()) for c in plan.constant_inputs}
    return needs(graph, Kept(classes, keep), known, cuts=dummy)


def _keeps(classes: ChannelClasses, keep: Mask) -> dict[str, dict[int, Array]]:
    kept = Kept(classes, keep)
    masks = {name: kept.axes(name) for name in classes.labels}
    return {name: {axis: np.flatnonzero(mask) for axis, mask in of.items()} for name, of in masks.items() if of}


def _typed(graph: Graph, key: tuple[str, int], value: Array) -> Array:
    node = next(n for n in graph.nodes if n.name == key[0])
    return value.astype(numpy_dtype(graph.values[node.inputs[key[1]]].dtype))


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return numpy's dtype of that name; bfloat16, which numpy lacks, is kept as float32."""
    try:
        return np.dtype(name)
    except TypeError:
        return np.dtype(np.float32)


def sliced(graph: Graph, classes: ChannelClasses, plan: PrunePlan, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Return what a plan leaves of arrays that go with the parameters (an optimiser's memory): cut alike, no folds.

    Args:
        arrays: parameter name -> an array of its shape.
    """
    return _cut(graph, plan, _keeps(classes, keep_mask(graph, classes, plan)), arrays)


def _cut(
    graph: Graph, plan: PrunePlan, keeps: Mapping[str, Mapping[int, Array]], arrays: Mapping[str, Array]
) -> dict[str, Array]:
    params = {name: replace(graph.params[name], array=array) for name, array in arrays.items()}
    cut = _slice_params(replace(graph, params=MappingProxyType(params)), plan, keeps, {}, {})
    return {**arrays, **cut}


# --- parameters ---------------------------------------------------------------------------------------


def _fold_all(
    graph: Graph, plan: PrunePlan, known: Constants, keeps: Mapping[str, Mapping[int, Array]]
) -> tuple[dict[str, Array], dict[str, Array], dict[str, list[_Carried]]]:
    """Return (new biases by node, sliced; folded vectors by name, not yet sliced; what weights take in, by name)."""
    nodes = {node.name: node for node in graph.nodes}
    new_biases: dict[str, Array] = {}
    folded: dict[str, Array] = {}
    carried: dict[str, list[_Carried]] = {}
    done: set[tuple[str, str]] = set()
    for fold in plan.folds:
        node = nodes.get(fold.node)
        if node is None:
            raise BadPlan(f"the plan folds constants into {fold.node}, which the model does not have")
        weight_name = graph.stored(node.inputs[1]) or next((column.param for column in columns(graph, node)), "")
        key = (weight_name, f"{fold.kind}:{fold.target or weight_name}:{fold.positions[:1]}")
        stored = fold.kind == "carrier" or (fold.kind == "bias" and fold.target)
        if stored and weight_name and key in done:
            continue  # a module that is called twice: its tensors take the fold once
        done.add(key)
        if fold.kind == "carrier":
            for column in columns(graph, node):
                carried.setdefault(column.param, []).append(_Carried(node, fold, _scales(graph, column), column.mask))
                if column.mask:
                    carried.setdefault(column.mask, []).append(_Carried(node, fold, is_mask=True))
            continue
        total = _total(known, node, fold)
        if is_integer(graph, node) and (step := bias_step(graph, node, known)) is not None:
            total = np.rint(total / step)
        if fold.target:
            base = folded.get(fold.target, graph.params[fold.target].array.astype(np.float64))
            folded[fold.target] = base - total if fold.kind == "running_mean" else base + total
        else:
            new_biases[node.name] = new_biases.get(node.name, 0.0) + total
    sliced = {}
    for name, bias in new_biases.items():
        out = nodes[name].outputs[0]
        axis = len(graph.shape(out) or ()) - 1 if nodes[name].op == "matmul" else 1
        index = keeps.get(out, {}).get(axis)
        kept = bias if index is None else bias[index]
        sliced[name] = kept.astype(_dtype_of(graph, nodes[name]))
    return sliced, folded, carried


def _dtype_of(graph: Graph, node: Node) -> np.dtype[Any]:
    if is_integer(graph, node):
        return np.dtype(np.int32)
    param = graph.params.get(node.inputs[1])
    return param.array.dtype if param is not None else numpy_dtype(graph.values[node.outputs[0]].dtype)


def _total(known: Constants, node: Node, fold: Fold) -> Array:
    """Return float64[C_out]: Σ_k constants[k] · Σ_taps W[:, positions[k]]."""
    weight = known.weights.get(node.name)
    if weight is None:
        raise BadPlan(f"the plan folds constants into {node.name}, whose weight is not fixed in this model")
    vector = np.zeros(weight.num_inputs)
    vector[list(fold.positions)] = fold.constants
    return weight.total(np.ones(weight.num_outputs, dtype=bool), vector)


@dataclass(frozen=True, slots=True, eq=False)
class _Carried:
    """A fold into a carrier's column of a parameter.

    Args:
        scales: float64[columns], what each column is multiplied by later; None where that is 1.
        mask: the parameter that it is masked by, if any.
        is_mask: it is that mask, and the column's becomes one.
    """

    node: Node
    fold: Fold
    scales: Array | None = None
    mask: str = ""
    is_mask: bool = False


def _scales(graph: Graph, column: Column) -> Array | None:
    """Return float64[columns]: gain / norm of each column; None where columns have none of their own."""
    if column.norm is None:
        return None
    v, g = (graph.params[name].array for name in (column.norm.v, column.norm.g))
    norms = column.norm.norms(v, np.broadcast_to(column.norm.groups, v.shape))
    gains = np.zeros_like(norms)
    gains[column.norm.groups_of_g] = g
    scales: Array = np.divide(gains, norms, out=np.zeros_like(norms), where=norms > 0)[column.norm.groups.ravel()]
    return scales


def _carry(weight: Array, carried: _Carried) -> None:
    """Add Σ_k (c_k / c_r) · W[:, k] to W[:, r], within their convolution group (weight changed in place).

    The sums are float64; what is added to is the weight in its own precision, which may be most of a big file.
    """
    node, fold = carried.node, carried.fold
    groups = node.attrs["conv_groups"]
    ratios = np.asarray(fold.constants, dtype=np.float64) / fold.carrier_constant
    positions = np.asarray(fold.positions)
    if carried.scales is not None:
        width = carried.scales.size
        ratios = ratios * carried.scales[positions % width] / carried.scales[fold.carrier % width]
    if node.op == "conv_transpose":
        added = np.tensordot(ratios, weight[positions], axes=(0, 0))
        weight[fold.carrier] = 1 if carried.is_mask else weight[fold.carrier].astype(np.float64) + added
        return
    per_group = weight.shape[1]
    rows_per_group = weight.shape[0] // groups
    group, column = fold.carrier // per_group, fold.carrier % per_group
    rows = weight[group * rows_per_group : (group + 1) * rows_per_group]
    added = np.tensordot(rows[:, positions % per_group], ratios, axes=(1, 0))
    rows[:, column] = 1 if carried.is_mask else rows[:, column].astype(np.float64) + added


def _slice_params(
    graph: Graph,
    plan: PrunePlan,
    keeps: Mapping[str, Mapping[int, Array]],
    folded: Mapping[str, Array],
    carried: Mapping[str, Sequence[_Carried]],
) -> dict[str, Array]:
    """Return the new parameters, one after the other: no more than one is in memory unsliced."""
    grouped = {item.param: item.keep for item in plan.grouped}
    result: dict[str, Array] = {}
    for name, param in graph.params.items():
        axes = keeps.get(name, {})
        if not axes and name not in folded and name not in carried and name not in grouped:
            continue
        array = folded.get(name, param.array)
        if name in carried:
            mask = carried[name][0].mask
            array = array * graph.params[mask].array if mask else np.array(array)
            for each in carried[name]:
                _carry(array, each)
        if name in grouped:
            array = _slice_grouped(array, axes.get(0), grouped[name])
            axes = {axis: index for axis, index in axes.items() if axis not in (0, 1)}
        for axis, index in axes.items():
            array = array.take(index, axis=axis)
        result[name] = np.ascontiguousarray(array, dtype=param.array.dtype)
    return result


def _slice_grouped(weight: Array, rows: Array | None, slots: Sequence[Sequence[int]]) -> Array:
    """Slice axis 0 (kept rows) and axis 1 (slots of each row's convolution group) of a grouped weight."""
    per_group = weight.shape[0] // len(slots)
    kept = np.arange(weight.shape[0]) if rows is None else rows
    width = max((len(s) for s in slots), default=0)
    columns = np.zeros((len(slots), width), dtype=np.int64)
    for group, kept_slots in enumerate(slots):
        columns[group, : len(kept_slots)] = kept_slots
    return np.asarray(weight[kept[:, None], columns[kept // per_group]])


# --- attributes ---------------------------------------------------------------------------------------


def _attrs(
    graph: Graph, classes: ChannelClasses, node: Node, keep: Mask, keeps: Mapping[str, Mapping[int, Array]]
) -> dict[str, Any]:
    """Return the attributes of a node that a pruning changes."""
    rule = _ATTRS.get(node.op)
    if rule is None:
        return {}
    where = _Where(graph, classes, node, keep, keeps)
    before: Mapping[str, Any] = node.attrs
    return {key: value for key, value in rule(where) if key not in before or not np.array_equal(value, before[key])}


@dataclass(frozen=True, slots=True, eq=False)
class _Where:
    """One node with what stays of its tensors."""

    graph: Graph
    classes: ChannelClasses
    node: Node
    keep: Mask
    keeps: Mapping[str, Mapping[int, Array]]

    def kept(self, name: str, axis: int) -> Array | None:
        """Return the indices that stay on one axis of a value; None where all do."""
        return self.keeps.get(name, {}).get(axis)

    def size(self, name: str, axis: int) -> int:
        """Return the size of a labelled axis before pruning; shape inference may have left it open."""
        return int(self.classes.labels[name].on(axis)[0].shape[axis])

    @property
    def x(self) -> str:
        return self.node.inputs[0]

    @property
    def out(self) -> str:
        return self.node.outputs[0]


_Changes = Iterator[tuple[str, Any]]


def _conv_groups(at: _Where) -> _Changes:
    groups = at.node.attrs["conv_groups"]
    if groups == 1:
        return
    shape = at.graph.shape(at.x)
    size = shape[1] if shape is not None else None
    index = at.kept(at.x, 1)
    if not isinstance(size, int) or (index is None and at.kept(at.out, 1) is None):
        return
    alive = np.arange(size) if index is None else index
    yield "conv_groups", int(np.unique(alive // (size // groups)).size)


def _new_shape(at: _Where) -> _Changes:
    if at.node.attrs["shape"] is None:  # computed, and of a length that is not known: nothing passes there
        return
    shape = list(at.node.attrs["shape"])
    for axis, index in at.keeps.get(at.out, {}).items():
        shape[axis] = int(index.size)
    yield "shape", shape


def _tile(at: _Where) -> _Changes:
    repeats = list(at.node.attrs["repeats"])
    before = at.graph.shape(at.x) or ()
    offset = len(repeats) - len(before)
    for axis, index in at.keeps.get(at.out, {}).items():
        if axis < offset or before[axis - offset] == 1:
            repeats[axis] = int(index.size)
    yield "repeats", repeats


def _split(at: _Where) -> _Changes:
    sizes, axis = list(at.node.attrs["sizes"]), at.node.attrs["axis"]
    for number, name in enumerate(at.node.outputs):
        index = at.kept(name, axis) if name else None
        if index is not None:
            sizes[number] = int(index.size)
        elif not name:
            index = at.kept(at.x, axis)
            start = sum(at.node.attrs["sizes"][:number])
            if index is not None:
                sizes[number] = int(((index >= start) & (index < start + sizes[number])).sum())
    yield "sizes", sizes


def _slice(at: _Where) -> _Changes:
    attrs = at.node.attrs
    starts, ends = list(attrs["starts"]), list(attrs["ends"])
    picks: dict[int, Array] = {}
    for number, (axis, step) in enumerate(zip(attrs["axes"], attrs["steps"], strict=True)):
        index = at.kept(at.x, axis)
        if index is None:
            continue
        size = at.size(at.x, axis)
        cut = slice(starts[number], ends[number], step)
        if step == 1:
            start, end, _ = cut.indices(size)
            starts[number], ends[number] = _rank(index, start), _rank(index, end)
        else:
            chosen = np.arange(size)[cut]
            picks[axis] = np.searchsorted(index, chosen[np.isin(chosen, index)]).astype(np.int64)
    yield "starts", starts
    yield "ends", ends
    if picks:
        yield "picks", picks


def _rank(index: Array, position: int) -> int:
    """Return how many kept indices lie before ``position``."""
    return int(np.searchsorted(index, position))


def _scatter_slice(at: _Where) -> _Changes:
    index = at.kept(at.x, at.node.attrs["axis"])
    if index is not None:
        yield "start", _rank(index, at.node.attrs["start"])
        yield "end", _rank(index, at.node.attrs["end"])


def _gather(at: _Where) -> _Changes:
    indices, axis = at.node.attrs.get("indices"), at.node.attrs["axis"]
    index = at.kept(at.x, axis)
    if indices is None or index is None:
        return
    indices = np.asarray(indices)
    staying = indices if indices.ndim == 0 else indices[np.isin(indices, index)]
    yield "indices", np.searchsorted(index, staying).astype(np.int64)


def _pad(at: _Where) -> _Changes:
    pads = list(at.node.attrs["pads"])
    rank = len(pads) // 2
    for axis, index in at.keeps.get(at.out, {}).items():
        size = at.size(at.out, axis)
        if pads[axis] > 0:
            pads[axis] = _rank(index, pads[axis])
        if pads[rank + axis] > 0:
            pads[rank + axis] = int(index.size) - _rank(index, size - pads[rank + axis])
    yield from _crop(at, pads)


def _crop(at: _Where, pads: list[int]) -> _Changes:
    """Negative padding crops: it counts what stays of the channels that are cut off."""
    rank = len(pads) // 2
    for axis, index in at.keeps.get(at.x, {}).items():
        size = at.size(at.x, axis)
        if pads[axis] < 0:
            pads[axis] = -_rank(index, -pads[axis])
        if pads[rank + axis] < 0:
            pads[rank + axis] = -(int(index.size) - _rank(index, size + pads[rank + axis]))
    yield "pads", pads


def _num_groups(at: _Where) -> _Changes:
    axis = at.node.attrs.get("axis", 1)
    index = at.kept(at.x, axis)
    if index is not None:  # whole groups go
        yield "num_groups", int(index.size) * at.node.attrs["num_groups"] // at.size(at.x, axis)


_ATTRS: Mapping[str, Callable[[_Where], _Changes]] = MappingProxyType(
    {
        "conv": _conv_groups,
        "conv_transpose": _conv_groups,
        "reshape": _new_shape,
        "expand": _new_shape,
        "full": _new_shape,
        "tile": _tile,
        "split": _split,
        "slice": _slice,
        "scatter_slice": _scatter_slice,
        "gather": _gather,
        "pad": _pad,
        "group_norm": _num_groups,
    }
)


# --- what disappears ----------------------------------------------------------------------------------

_NEUTRAL: Mapping[tuple[str, int], float] = MappingProxyType(
    {("add", 0): 0.0, ("add", 1): 0.0, ("sub", 1): 0.0, ("mul", 0): 1.0, ("mul", 1): 1.0, ("div", 1): 1.0}
)
"""(op, index of the constant operand) -> the constant for which the op returns its other operand."""


def _replacements(graph: Graph, wanted: Needs, stored: Mapping[tuple[str, int], Array]) -> Iterator[tuple[str, str]]:
    for node in graph.nodes:
        if node.name not in wanted.nodes:
            continue
        if node.op == "concat" and len(node.inputs) - len(wanted.dropped.get(node.name, ())) == 1:
            gone = wanted.dropped.get(node.name, ())
            left = next(n for i, n in enumerate(node.inputs) if i not in gone)
            yield node.outputs[0], left
        for index in range(min(2, len(node.inputs))):
            value = stored.get((node.name, index))
            neutral = _NEUTRAL.get((node.op, index))
            if value is None or neutral is None or not (value == neutral).all():
                continue
            other = node.inputs[1 - index]
            alpha = node.attrs.get("alpha", 1) if index == 0 else 1  # add(x, y, alpha) scales its second operand
            same_dtype = other in graph.values and graph.values[other].dtype == graph.values[node.outputs[0]].dtype
            if alpha == 1 and same_dtype:
                yield node.outputs[0], other
