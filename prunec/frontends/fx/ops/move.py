"""Rows of aten ops that move elements (views, slices, concatenation, indexing, padding), or make tensors of nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from prunec.frontends.fx.ops.call import Call, Emitter, Operand, Row, first_tensor, opaque, positive, positive_axes


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def reshape(call: Call, to: Emitter) -> None:
    to.emit("reshape", [first_tensor(call)], call.results, shape=list(call.out.shape))


def permute(call: Call, to: Emitter) -> None:
    x = call["self"]
    rank = x.dim()
    if "dims" in call.args:
        perm = [positive(axis, rank) for axis in call["dims"]]
    else:
        perm = list(range(rank))
        a, b = (positive(call.get("dim0", 0), rank), positive(call.get("dim1", 1), rank)) if rank > 1 else (0, 0)
        perm[a], perm[b] = perm[b], perm[a]
    to.emit("transpose", [x], call.results, perm=perm)


def slice_axis(call: Call, to: Emitter) -> None:
    x = call["self"]
    axis = positive(call.get("dim", 0), x.dim())
    size = x.shape[axis]
    start, end, step = slice(call.get("start"), call.args.get("end"), call.get("step", 1)).indices(size)
    if (start, end, step) == (0, size, 1):
        return to.alias(x, call.out)  # the ":" of an indexing expression
    to.emit("slice", [x], call.results, axes=[axis], starts=[start], ends=[max(start, end)], steps=[step])


def select(call: Call, to: Emitter) -> None:
    x = call["self"]
    axis = positive(call["dim"], x.dim())
    index = call["index"]
    to.emit("gather", [x], call.results, axis=axis, indices=np.int64(positive(index, x.shape[axis])))


def split(call: Call, to: Emitter) -> None:
    axis = positive(call.get("dim", 0), call["self"].dim())
    to.emit("split", [call["self"]], call.results, axis=axis, sizes=[part.shape[axis] for part in call.results])


def unbind(call: Call, to: Emitter) -> None:
    axis = positive(call.get("dim", 0), call["self"].dim())
    for index, part in enumerate(call.results):
        to.emit("gather", [call["self"]], [part], axis=axis, indices=np.int64(index))


def cat(call: Call, to: Emitter) -> None:
    # torch.cat ignores legacy empty tensors of shape (0,) among operands of any rank.
    tensors = [t for t in call["tensors"] if tuple(t.shape) != (0,) or call.out.dim() == 1]
    to.emit("concat", tensors, call.results, axis=positive(call.get("dim", 0), call.out.dim()))


def stack(call: Call, to: Emitter) -> None:
    axis = positive(call.get("dim", 0), call.out.dim())
    shape = tuple(1 if i == axis else size for i, size in enumerate(call.out.shape))
    parts = [to.emit("reshape", [t], [shape], shape=list(shape))[0] for t in call["tensors"]]
    to.emit("concat", parts, call.results, axis=axis)


def pad(mode: str) -> Row:
    def row(call: Call, to: Emitter) -> None:
        x = call["self"]
        pad = call.args.get("pad", call.args.get("padding"))
        pads = [0] * (2 * x.dim())
        for i in range(len(pad) // 2):
            axis = x.dim() - 1 - i
            pads[axis], pads[x.dim() + axis] = pad[2 * i], pad[2 * i + 1]
        value = {"value": call.get("value", 0)} if mode == "constant" else {}
        to.emit("pad", [x], call.results, pads=pads, mode=mode, **value)

    return row


def expand(call: Call, to: Emitter) -> None:
    to.emit("expand", [call["self"]], call.results, shape=list(call.out.shape))


def repeat(call: Call, to: Emitter) -> None:
    to.emit("tile", [call["self"]], call.results, repeats=list(call["repeats"]))


def pixel_shuffle(call: Call, to: Emitter) -> None:
    if call["self"].dim() != 4:
        return opaque(call, to)
    to.emit("depth_to_space", [call["self"]], call.results, block=call["upscale_factor"], mode="CRD")


def pixel_unshuffle(call: Call, to: Emitter) -> None:
    if call["self"].dim() != 4:
        return opaque(call, to)
    to.emit("space_to_depth", [call["self"]], call.results, block=call["downscale_factor"], mode="CRD")


def channel_shuffle(call: Call, to: Emitter) -> None:
    groups, size = call["groups"], call.out.shape[1]
    to.emit("gather", [first_tensor(call)], call.results, axis=1, indices=np.arange(size).reshape(groups, -1).T.ravel())


def flip(call: Call, to: Emitter) -> None:
    value: Operand = call["self"]
    shape = tuple(call.out.shape)
    axes = positive_axes(call["dims"], len(shape))
    for axis in axes:
        results = call.results if axis == axes[-1] else [shape]
        (value,) = to.emit("gather", [value], results, axis=axis, indices=np.arange(shape[axis])[::-1].copy())


def roll(call: Call, to: Emitter) -> None:
    if not call.get("dims"):
        return opaque(call, to)
    value: Operand = call["self"]
    shape = tuple(call.out.shape)
    pairs = list(zip(call["shifts"], call["dims"], strict=True))
    for number, (shift, dim) in enumerate(pairs):
        axis = positive(dim, len(shape))
        results = call.results if number == len(pairs) - 1 else [shape]
        (value,) = to.emit("gather", [value], results, axis=axis, indices=np.roll(np.arange(shape[axis]), shift))


def index_select(call: Call, to: Emitter) -> None:
    indices = to.constant(call["index"])
    if indices is None:
        return opaque(call, to)
    axis = positive(call["dim"], call["self"].dim())
    size = call["self"].shape[axis]
    to.emit("gather", [call["self"]], call.results, axis=axis, indices=np.where(indices < 0, indices + size, indices))


def index(call: Call, to: Emitter) -> None:
    x, indices = call["self"], call["indices"]
    given = [axis for axis, index in enumerate(indices) if index is not None]
    known = to.constant(indices[given[0]]) if len(given) == 1 else None
    if known is None or known.dtype.kind not in "iu":
        return opaque(call, to)
    size = x.shape[given[0]]
    to.emit("gather", [x], call.results, axis=given[0], indices=np.where(known < 0, known + size, known))


def index_put(call: Call, to: Emitter) -> None:
    """Translate a number put where a mask over the first axes says so."""
    x, indices, values = call["self"], call["indices"], call["values"]
    mask = indices[0] if len(indices) == 1 else None
    if mask is None or mask.dtype != torch.bool or values.numel() != 1 or call.get("accumulate"):
        return opaque(call, to)
    shape = (*mask.shape, *(1,) * (x.dim() - mask.dim()))
    (mask,) = to.emit("reshape", [mask], [shape], shape=list(shape))
    (number,) = to.emit("reshape", [values], [()], shape=[])
    to.emit("where", [mask, number, x], call.results)


def im2col(call: Call, to: Emitter) -> None:
    if call["self"].dim() != 4:
        return opaque(call, to)
    to.emit("im2col", [call["self"]], call.results, kernel=int(np.prod(call["kernel_size"])))


def slice_scatter(call: Call, to: Emitter) -> None:
    x = call["self"]
    axis = positive(call.get("dim", 0), x.dim())
    start, end, step = slice(call.get("start"), call.args.get("end"), call.get("step", 1)).indices(x.shape[axis])
    _check_source(call, (*x.shape[:axis], len(range(start, end, step)), *x.shape[axis + 1 :]))
    to.emit("scatter_slice", [x, call["src"]], call.results, axis=axis, start=start, end=end, step=step)


def _check_source(call: Call, expected: tuple[int, ...]) -> None:
    """Refuse what does not run, though shapes alone do: a source of another size than what it replaces."""
    if tuple(call["src"].shape) != tuple(expected):
        raise ValueError(f"{tuple(call['src'].shape)} is written into {tuple(expected)}")


def select_scatter(call: Call, to: Emitter) -> None:
    x, rank = call["self"], call["self"].dim()
    axis = positive(call["dim"], rank)
    _check_source(call, (*x.shape[:axis], *x.shape[axis + 1 :]))
    start = positive(call["index"], x.shape[axis])
    shape = tuple(1 if i == axis else size for i, size in enumerate(x.shape))
    (part,) = to.emit("reshape", [call["src"]], [shape], shape=list(shape))
    to.emit("scatter_slice", [x, part], call.results, axis=axis, start=start, end=start + 1, step=1)


def unfold(call: Call, to: Emitter) -> None:
    """Translate overlapping windows along an axis; the positions in a window become the last axis."""
    x, count, size = call["self"], call.out.shape[call["dimension"]], call["size"]
    axis, rank = positive(call["dimension"], x.dim()), call.out.dim()
    indices = np.arange(count)[:, None] * call["step"] + np.arange(size)
    if axis == rank - 2:
        to.emit("gather", [x], call.results, axis=axis, indices=indices)
        return
    shape = (*x.shape[:axis], count, size, *x.shape[axis + 1 :])
    (windows,) = to.emit("gather", [x], [shape], axis=axis, indices=indices)
    perm = [i for i in range(rank) if i != axis + 1] + [axis + 1]
    to.emit("transpose", [windows], call.results, perm=perm)


def full(value: float | None) -> Row:
    def row(call: Call, to: Emitter) -> None:
        fill = call.get("fill_value", call.get("value", value))
        if not _is_number(fill):
            to.emit("opaque", [], call.results, reason="makes a tensor whose values are not fixed")
        else:
            to.emit("full", [], call.results, shape=list(call.out.shape), value=float(fill))

    return row


def empty(call: Call, to: Emitter) -> None:
    """Translate memory that is filled later; what it holds until then is anything."""
    if call.out.dtype.is_floating_point:
        to.emit("full", [], call.results, shape=list(call.out.shape), value=None)
    else:
        made(call, to)


def made(call: Call, to: Emitter) -> None:
    """Translate an op that makes a tensor from no channels (arange, rand …)."""
    to.emit("opaque", [], call.results, reason="makes a tensor whose values are not fixed")
