"""Channel rules of ops that move elements: reshape, concat, slice, gather, pad, tile, pixel shuffles, constants.

The ids are moved as the elements are; how each op moves an array is in passes/rules/moves.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prunec.ir.arrays import Ids
from prunec.ir.graph import Node, Shape
from prunec.ir.labels import Label, Ties, spread, varying
from prunec.passes.rules.channels.label_tools import (
    SPATIAL,
    extent,
    known,
    merge,
    pin_all,
    pin_other_axes,
    to_rank,
    vector,
)
from prunec.passes.rules.channels.refusals import opaque
from prunec.passes.rules.moves import MOVES, factor, reshape_array


def reshape(node: Node, inputs: Sequence[Label], outputs: Sequence[Shape | None], ties: Ties) -> Sequence[Label]:
    """Move. What survives of an axis that is split must be rectangular; a merge with the batch ties or refuses."""
    x, before, after = inputs[0], known(inputs[0].shape), known(outputs[0])
    groups = factor(before, after) or []
    with_batch = {a for ins, _ in groups if 0 in ins and before[0] != 1 and len(ins) > 1 for a in ins}
    fields = []
    for field in x.fields:
        rest = [axis for axis in varying(field) if axis not in with_batch]
        if rest and len(rest) < len(varying(field)):
            field = ties.tie_along(field, rest)  # attention heads merged with the batch: the heads lose the same slots
        moved = reshape_array(field, before, after) if rest else None
        if moved is None and rest:
            moved = _past_open_sizes(field, groups, after, ties)
        if moved is None:
            ties.pin(field, "is merged with the batch or with an axis of open size")
            continue
        fields.append(moved)
    return [Label(after, tuple(fields))]


def _past_open_sizes(
    field: Ids, groups: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], after: Shape, ties: Ties
) -> Ids | None:
    """Move ids along the first or last of several axes, some of them open, that become others.

    (64, H, W) -> (8, 8·H·W): each new row is made of several old ones, which are tied, or is a part of one.
    (L, N, 24) -> (L, 4·N, 6), attention heads merged with an open batch: the heads lose the same slots.
    None where it is neither.
    """
    axis = varying(field)[0]
    ins, outs = next(group for group in groups if axis in group[0])
    if varying(field) != (axis,) or axis not in (ins[0], ins[-1]) or len(outs) < 2:
        return None
    first = axis == ins[0]
    at = outs[0] if first else outs[-1]
    size, new = field.shape[axis], after[at]
    ids = field.ravel()
    if not isinstance(new, int) or (size % new and new % size):
        return None
    if new >= size:
        return spread(np.repeat(ids, new // size) if first else np.tile(ids, new // size), at, len(after))
    rows = ids.reshape(new, -1) if first else ids.reshape(-1, new).T
    ties.unify(rows, rows[:, :1])
    return spread(rows[:, 0].copy(), at, len(after))


def moves(node: Node, inputs: Sequence[Label], outputs: Sequence[Shape | None], ties: Ties) -> Sequence[Label]:
    """Move the ids as the op moves the elements (transpose, slice, split, space to depth, im2col)."""
    x = inputs[0]
    results: list[list[Ids]] = [[] for _ in outputs]
    for field in x.fields:
        moved = MOVES[node.op](node, [field], [known(x.shape)], [known(shape) for shape in outputs], 0)
        if moved is None:
            ties.pin(field, "its channels move in a way that prunec cannot follow")
            continue
        for result, part in zip(results, moved, strict=True):
            if varying(part):
                result.append(part)
            else:
                ties.pin(part, "is picked out by its index")
    return [Label(shape, tuple(result)) for shape, result in zip(outputs, results, strict=True)]


def gather(node: Node, inputs: Sequence[Label], outputs: Sequence[Shape | None], ties: Ties) -> Sequence[Label]:
    """Move along constant indices; refuse indices that are computed."""
    x = inputs[0]
    if node.attrs.get("indices") is None:
        return opaque(node, inputs, outputs, ties)
    if np.ndim(node.attrs["indices"]) != 1:
        axis, indices = node.attrs["axis"], np.asarray(node.attrs["indices"])
        for field in x.on(axis):
            if varying(field) == (axis,):
                ties.pin(field.take(indices, axis=axis), "is picked out by its index")
    return moves(node, inputs[:1], outputs, ties)


def concat(node: Node, inputs: Sequence[Label], outputs: Sequence[Shape | None], ties: Ties) -> Sequence[Label]:
    """Move: ids lie end to end along the axis, and are unified across the operands elsewhere."""
    axis, out_shape = node.attrs["axis"], known(outputs[0])
    fields: list[Ids] = []
    main = [(label.on(axis) or (np.zeros((1,) * label.rank, dtype=np.int64),)) for label in inputs]
    for _, *others in main:
        ties.pin(others, "two labelled axes were merged into one")
    if any(first.any() for first, *_ in main):
        shapes = [known(label.shape) for label in inputs]
        joined = MOVES["concat"](node, [first for first, *_ in main], shapes, [out_shape], 0)
        if joined is None:
            ties.pin([first for first, *_ in main], "is concatenated along an axis of open size")
        else:
            fields.append(joined[0])
    rest = [label.without(label.on(axis)) for label in inputs]
    # Along the other axes a concat is like an elementwise op: a channel goes from all operands or from none.
    free = [
        Label(tuple(1 if i == axis else s for i, s in enumerate(known(label.shape))), label.fields) for label in rest
    ]
    if any(label.fields for label in free):
        crossing = [label for label, (first, *_) in zip(inputs, main, strict=True) if len(varying(first)) > 1]
        if crossing:
            pin_all(inputs, ties, "its operands label overlapping axes in different ways")
        fields.extend(merge(free, tuple(1 if i == axis else s for i, s in enumerate(out_shape)), ties).fields)
    return [Label(out_shape, tuple(fields))]


def expand(node: Node, inputs: Sequence[Label], outputs: Sequence[Shape | None], ties: Ties) -> Sequence[Label]:
    """Move; an axis grown from size 1 gets ids of its own, for its size can be rewritten."""
    x, after = inputs[0], known(outputs[0])
    label = to_rank(x, len(after))
    grown = [
        spread(ties.fresh(size), axis, len(after))
        for axis, size in enumerate(after)
        if axis > 0 and isinstance(size, int) and size > 1 and extent(label, axis) == 1
    ]
    if node.op == "tile":
        moved = MOVES["tile"]
        shapes: tuple[list[Shape], list[Shape]] = ([known(x.shape)], [after])
        return [Label(after, (*(m for f in label.fields for m in moved(node, [f], *shapes, 0) or ()), *grown))]
    return [Label(after, (*label.fields, *grown))]


def pad(node: Node, inputs: Sequence[Label], outputs: Sequence[Shape | None], ties: Ties) -> Sequence[Label]:
    """Move; positions added to a labelled axis get ids of their own, for their number can be rewritten."""
    x, before, after = inputs[0], known(inputs[0].shape), known(outputs[0])
    pads = node.attrs["pads"]
    fields = []
    for field in x.fields:
        axes = [axis for axis in varying(field) if pads[axis] or pads[x.rank + axis]]
        if axes and (len(varying(field)) > 1 or node.attrs.get("mode", "constant") != "constant"):
            ties.pin(field, "is padded in a way that prunec cannot rewrite")
        moved = MOVES["pad"](node, [field], [before], [after], 0)
        assert moved is not None, "padding can always be followed"
        new = moved[0]
        if axes and node.attrs.get("mode", "constant") == "constant":
            inside = MOVES["pad"](node, [np.ones(field.shape, dtype=bool)], [before], [after], False)
            assert inside is not None, "padding can always be followed"
            new = new.copy()
            new[~inside[0]] = ties.fresh(int((~inside[0]).sum()))
        fields.append(new)
    return [Label(after, tuple(fields))]


def depth_to_space(node: Node, inputs: Sequence[Label], outputs: Sequence[Shape | None], ties: Ties) -> Sequence[Label]:
    """Move: the block² channels that become one channel's pixels are tied, and go together."""
    x, after = inputs[0], known(outputs[0])
    ids, block = vector(x, 1, ties), node.attrs["block"]
    pin_other_axes(x, [1], ties, SPATIAL)
    if not x.on(1):
        return [Label(after)]
    pixels = ids.reshape(-1, block * block) if node.attrs["mode"] == "CRD" else ids.reshape(block * block, -1).T
    ties.unify(pixels, pixels[:, :1])
    return [Label.along(after, 1, pixels[:, 0].copy())]


def scatter_slice(node: Node, inputs: Sequence[Label], outputs: Sequence[Shape | None], ties: Ties) -> Sequence[Label]:
    """Move: ``source``'s ids replace ``base``'s between start and end.

    Those that are replaced are unified with them: the result has the shape of ``base``, which gives up the same
    positions. Along the other axes both give up the same ones.
    """
    base, source = inputs
    after, axis = known(outputs[0]), node.attrs["axis"]
    outer = [
        Label(tuple(1 if i == axis else s for i, s in enumerate(known(v.shape))), v.without(v.on(axis)).fields)
        for v in inputs
    ]
    fields = list(merge(outer, tuple(1 if i == axis else s for i, s in enumerate(after)), ties).fields)
    if base.on(axis) or source.on(axis):
        for label in inputs:
            stepped = node.attrs["step"] != 1  # those that stay would not lie in equal steps
            ties.pin([f for f in label.on(axis) if stepped or len(varying(f)) > 1], "is overwritten in part")
        ids = [spread(vector(label, axis, ties), axis, base.rank) for label in inputs]
        moved = MOVES["scatter_slice"](node, ids, [known(v.shape) for v in inputs], [after], 0)
        if moved is None:
            ties.pin(ids, "is overwritten along an axis of open size")
        else:
            fields.extend(moved)
            replaced = vector(base, axis, ties)[node.attrs["start"] : node.attrs["end"] : node.attrs["step"]]
            ties.unify(replaced, vector(source, axis, ties), "is overwritten in part")
    return [Label(after, tuple(fields))]


def full(node: Node, inputs: Sequence[Label], outputs: Sequence[Shape | None], ties: Ties) -> Sequence[Label]:
    """Move: a tensor of one value gets ids of its own on every axis but the batch, for its shape can be rewritten."""
    after = known(outputs[0])
    fields = [
        spread(ties.fresh(size), axis, len(after))
        for axis, size in enumerate(after)
        if axis > 0 and isinstance(size, int) and size > 1
    ]
    return [Label(after, tuple(fields))]
