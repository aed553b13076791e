"""Lower: Graph + PrunePlan -> Edits, framework-free; the backends only carry them out.

Owns the order: what the plan keeps, folds (bias_folds.py), slices (slice_parameters.py), attributes (attributes.py),
and what goes. Decides nothing: all of that follows from the plan and the labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from prunec.errors import BadPlan
from prunec.ir.arrays import Array, Mask
from prunec.ir.edits import Edits
from prunec.ir.graph import Graph
from prunec.ir.labels import ChannelClasses, Kept
from prunec.ir.plan import PrunePlan
from prunec.passes.columns import grouped_weights
from prunec.passes.constants import Constants, constants
from prunec.passes.lowering.attributes import changed_attrs
from prunec.passes.lowering.bias_folds import fold_all, numpy_dtype
from prunec.passes.lowering.refits import refit
from prunec.passes.lowering.slice_parameters import slice_params
from prunec.passes.selection.needs import Needs, needs
from prunec.passes.selection.shapes import pruned_shapes
from prunec.passes.weight_norms import rescaled


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
    new_biases, folded, carried = fold_all(graph, plan, known, keeps)
    params = slice_params(graph, plan, keeps, folded, carried)
    params.update(rescaled(graph, params, lambda arrays: _cut(graph, plan, keeps, arrays)))
    refit(graph, plan, shape_of, params, new_biases)
    replaced = dict(_replacements(graph, wanted, stored))
    return Edits(
        params=MappingProxyType(params),
        new_biases=MappingProxyType(new_biases),
        attrs=MappingProxyType(
            {n.name: attrs for n in rest.nodes if (attrs := changed_attrs(graph, classes, n, keep, keeps))}
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
    masks: dict[tuple[int, int], Mask] = {}  # many axes have one tuple together: it is told by its identity
    for axis_keep in plan.keeps:
        member = members.get((axis_keep.param, axis_keep.axis))
        if member is None or member.ids.size != axis_keep.size:
            found = "no such parameter axis" if member is None else f"{member.ids.size} channels"
            raise BadPlan(
                f"the plan expects {axis_keep.size} channels on axis {axis_keep.axis} of {axis_keep.param}",
                why=f"the model has {found}",
                do="apply the plan to the architecture that it was made for, its caches empty if they were then",
            )
        key = (id(axis_keep.keep), axis_keep.size)
        if key not in masks:
            masks[key] = np.ones(axis_keep.size, dtype=bool)
            masks[key][list(axis_keep.keep)] = False
        keep[classes.class_of[member.ids[masks[key]]]] = False
    for axis_keep in plan.keeps:
        left = np.count_nonzero(keep[classes.class_of[members[axis_keep.param, axis_keep.axis].ids]])
        if left != len(axis_keep.keep):
            raise BadPlan(
                f"the plan keeps {len(axis_keep.keep)} channels on axis {axis_keep.axis} of {axis_keep.param}, "
                f"and of this model {left} would stay",
                why="other channels go together here: a buffer that picks or orders channels holds other numbers",
                do="load the original's weights before the plan is applied",
            )
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


def _cut(
    graph: Graph, plan: PrunePlan, keeps: Mapping[str, Mapping[int, Array]], arrays: Mapping[str, Array]
) -> dict[str, Array]:
    params = {name: replace(graph.params[name], array=array) for name, array in arrays.items()}
    cut = slice_params(replace(graph, params=MappingProxyType(params)), plan, keeps, {}, {})
    return {**arrays, **cut}


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
