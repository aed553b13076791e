"""The table aten op -> canonical op: how one recorded call becomes IR nodes.

Owns the translation of attributes; knows nothing of torch.fx (frontends/fx/frontend.py records the calls) and
nothing of channels (passes/rules/ has the meaning of each canonical op). A call that no row matches
becomes ``opaque``, which pins what it touches. aten schemas: torch/…/native_functions.yaml.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from prunec.ir.taught import NO_RULES, OpRules, TaughtOp, likeness, operands

Operand = Tensor | float | int | bool | str | None
"""A tensor, a number written in the model, or the name of a value made by ``Emitter.emit``."""


class Emitter(Protocol):
    """What a row may do: add IR nodes, and read tensors whose content is known."""

    def emit(self, op: str, inputs: Sequence[Operand], outputs: Sequence[Any], **attrs: Any) -> list[str]:
        """Add a node; ``outputs`` are result tensors, or shapes for values that only the IR has."""

    def alias(self, source: Tensor, result: Tensor) -> None:
        """Give a result the name of what it equals, without a node."""

    def constant(self, tensor: Tensor) -> np.ndarray[Any, Any] | None:
        """Return the content of a parameter or buffer; None for computed tensors."""


@dataclass(frozen=True, slots=True)
class Call:
    """One recorded call: its name without namespace, overload and underscore, arguments by schema name, results.

    Args:
        qualified: the name with its namespace, as the schema has it ("aten::relu_").
    """

    name: str
    args: Mapping[str, Any]
    results: tuple[Tensor, ...]
    qualified: str = "aten::"

    def __getitem__(self, name: str) -> Any:
        return self.args[name]

    def get(self, name: str, default: Any = None) -> Any:
        value = self.args.get(name)
        return default if value is None else value

    @property
    def out(self) -> Tensor:
        return self.results[0]


Row = Callable[[Call, Emitter], None]


def _axis(axis: int, rank: int) -> int:
    return axis + rank if axis < 0 else axis


def _axes(axes: Any, rank: int) -> list[int]:
    if axes is None or axes == []:
        return list(range(rank))
    return sorted(_axis(axis, rank) for axis in ([axes] if isinstance(axes, int) else axes))


def _first(call: Call) -> Tensor:
    """Return the first tensor argument, whatever the schema calls it."""
    for name in ("self", "input", "x", "query"):
        if isinstance(call.args.get(name), Tensor):
            return call.args[name]  # type: ignore[no-any-return]  # just checked
    return next(value for value in call.args.values() if isinstance(value, Tensor))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


# --- contractions and normalisation -------------------------------------------------------------------


def _convolution(call: Call, to: Emitter) -> None:
    spatial = call["weight"].dim() - 2
    full = {
        name: [*call[name]] * (spatial if len(call[name]) == 1 else 1) for name in ("stride", "padding", "dilation")
    }
    attrs = {
        "strides": full["stride"],
        "pads": full["padding"] * 2,
        "dilations": full["dilation"],
        "conv_groups": call["groups"],
    }
    inputs = [call["input"], call["weight"], call["bias"]]
    if call["transposed"]:
        to.emit("conv_transpose", inputs, call.results, output_padding=list(call["output_padding"]), **attrs)
    else:
        to.emit("conv", inputs, call.results, **attrs)


def _addmm(call: Call, to: Emitter) -> None:
    a, b = (call.args["mat1"], call.args["mat2"]) if "mat1" in call.args else (call["batch1"], call["batch2"])
    if call.get("beta", 1) == 1 and call.get("alpha", 1) == 1:
        to.emit("matmul", [a, b, call["self"]], call.results)
    else:
        _opaque(call, to)


def _mm(call: Call, to: Emitter) -> None:
    second = next(call.args[name] for name in ("mat2", "other", "vec", "tensor") if name in call.args)
    if call["self"].is_complex():
        return _opaque(call, to)
    to.emit("matmul", [call["self"], second], call.results)


def _linear(call: Call, to: Emitter) -> None:
    to.emit("matmul", [call["input"], call["weight"], call.get("bias")], call.results, transpose_b=True)


def _attention(call: Call, to: Emitter) -> None:
    mask = call.get("attn_mask", call.get("attn_bias"))
    to.emit("attention", [call["query"], call["key"], call["value"], mask], call.results)


def _batch_norm(call: Call, to: Emitter) -> None:
    inputs = [call["input"], call["weight"], call["bias"], call.get("running_mean"), call.get("running_var")]
    training = bool(
        call.get("training", call.get("train", "no_training" not in call.name and "running_mean" not in call.args))
    )
    to.emit("batch_norm", inputs, call.results[:1], axis=1, eps=call.get("eps", 1e-5), training=training)


def _layer_norm(call: Call, to: Emitter) -> None:
    rank = call["input"].dim()
    axes = list(range(rank - len(call["normalized_shape"]), rank))
    to.emit("layer_norm", [call["input"], call["weight"], call["bias"]], call.results[:1], axes=axes, eps=call["eps"])


def _group_norm(call: Call, to: Emitter) -> None:
    groups = call.args.get("group", call.args.get("num_groups"))
    inputs = [call["input"], call.get("weight"), call.get("bias")]
    to.emit("group_norm", inputs, call.results[:1], axis=1, num_groups=groups, eps=call["eps"])


def _weight_norm(call: Call, to: Emitter) -> None:
    """Translate w = v · (g / ‖v‖), the norm over all axes but ``dim``: the weight is computed from parameters."""
    v, dim, rank = call["v"], call.get("dim", 0), call["v"].dim()
    norms = tuple(size if axis == dim else 1 for axis, size in enumerate(v.shape))
    if tuple(call["g"].shape) != norms:
        return _opaque(call, to)
    axes = [axis for axis in range(rank) if axis != dim]
    (norm,) = to.emit("reduce", [v], call.results[1:] or [norms], kind="l2", axes=axes, keepdims=True)
    (ratio,) = to.emit("div", [call["g"], norm], [norms])
    to.emit("mul", [v, ratio], call.results[:1])


# --- elementwise --------------------------------------------------------------------------------------


def _unary(op: str, **renamed: str) -> Row:
    """Make a row for an elementwise function; ``renamed`` maps our attribute to aten's argument."""

    def row(call: Call, to: Emitter) -> None:
        attrs = {ours: call[theirs] for ours, theirs in renamed.items() if call.args.get(theirs) is not None}
        to.emit(op, [_first(call)], call.results[:1], **attrs)

    return row


def _binary(op: str) -> Row:
    def row(call: Call, to: Emitter) -> None:
        second = next(call.args[name] for name in ("other", "exponent") if name in call.args)
        alpha = call.get("alpha", 1)
        name = op
        if op == "div" and call.get("rounding_mode"):
            if call["rounding_mode"] != "floor":
                return _opaque(call, to)
            name = "floor_div"
        to.emit(name, [call["self"], second], call.results, **({"alpha": alpha} if alpha != 1 else {}))

    return row


def _clamp(call: Call, to: Emitter) -> None:
    low, high = call.args.get("min"), call.args.get("max")
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        return _opaque(call, to)
    to.emit("clip", [call["self"]], call.results, min=low, max=high)


def _hardtanh(call: Call, to: Emitter) -> None:
    to.emit("clip", [call["self"]], call.results, min=call["min_val"], max=call["max_val"])


def _elu(call: Call, to: Emitter) -> None:
    scale = call.get("scale", 1)
    if call.get("input_scale", 1) != 1:
        return _opaque(call, to)
    if scale == 1:
        to.emit("elu", [call["self"]], call.results, alpha=call.get("alpha", 1.0))
    else:
        to.emit("selu", [call["self"]], call.results, alpha=call.get("alpha", 1.0), gamma=scale)


def _prelu(call: Call, to: Emitter) -> None:
    to.emit("prelu", [call["self"], call["weight"]], call.results)


def _where(call: Call, to: Emitter) -> None:
    if "other" not in call.args:
        return _opaque(call, to)
    to.emit("where", [call["condition"], call["self"], call["other"]], call.results)


def _masked_fill(call: Call, to: Emitter) -> None:
    to.emit("where", [call["mask"], call["value"], call["self"]], call.results)


def _glu(call: Call, to: Emitter) -> None:
    axis = _axis(call["dim"], call["self"].dim())
    half = tuple(call.out.shape)
    first, second = to.emit("split", [call["self"]], [half, half], axis=axis, sizes=[half[axis]] * 2)
    (gate,) = to.emit("sigmoid", [second], [half])
    to.emit("mul", [first, gate], call.results)


def _addc(op: str) -> Row:
    def row(call: Call, to: Emitter) -> None:
        shape = tuple(torch.broadcast_shapes(call["tensor1"].shape, call["tensor2"].shape))
        (product,) = to.emit(op, [call["tensor1"], call["tensor2"]], [shape])
        if call.get("value", 1) != 1:
            (product,) = to.emit("mul", [product, call["value"]], [shape])
        to.emit("add", [call["self"], product], call.results)

    return row


def _cast(call: Call, to: Emitter) -> None:
    source = _first(call)
    if source.dtype == call.out.dtype:
        to.emit("identity", [source], call.results)
    else:
        to.emit("cast", [source], call.results, to=str(call.out.dtype).removeprefix("torch."))


def _copy(call: Call, to: Emitter) -> None:
    if call["src"].shape != call["self"].shape:
        return _opaque(call, to)
    to.emit("identity", [call["src"]], call.results)


# --- movement -----------------------------------------------------------------------------------------


def _reshape(call: Call, to: Emitter) -> None:
    to.emit("reshape", [_first(call)], call.results, shape=list(call.out.shape))


def _permute(call: Call, to: Emitter) -> None:
    x = call["self"]
    rank = x.dim()
    if "dims" in call.args:
        perm = [_axis(axis, rank) for axis in call["dims"]]
    else:
        perm = list(range(rank))
        a, b = (_axis(call.get("dim0", 0), rank), _axis(call.get("dim1", 1), rank)) if rank > 1 else (0, 0)
        perm[a], perm[b] = perm[b], perm[a]
    to.emit("transpose", [x], call.results, perm=perm)


def _slice(call: Call, to: Emitter) -> None:
    x = call["self"]
    axis = _axis(call.get("dim", 0), x.dim())
    size = x.shape[axis]
    start, end, step = slice(call.get("start"), call.args.get("end"), call.get("step", 1)).indices(size)
    if (start, end, step) == (0, size, 1):
        return to.alias(x, call.out)  # the ":" of an indexing expression
    to.emit("slice", [x], call.results, axes=[axis], starts=[start], ends=[max(start, end)], steps=[step])


def _select(call: Call, to: Emitter) -> None:
    x = call["self"]
    axis = _axis(call["dim"], x.dim())
    index = call["index"]
    to.emit("gather", [x], call.results, axis=axis, indices=np.int64(_axis(index, x.shape[axis])))


def _split(call: Call, to: Emitter) -> None:
    axis = _axis(call.get("dim", 0), call["self"].dim())
    to.emit("split", [call["self"]], call.results, axis=axis, sizes=[part.shape[axis] for part in call.results])


def _unbind(call: Call, to: Emitter) -> None:
    axis = _axis(call.get("dim", 0), call["self"].dim())
    for index, part in enumerate(call.results):
        to.emit("gather", [call["self"]], [part], axis=axis, indices=np.int64(index))


def _cat(call: Call, to: Emitter) -> None:
    # torch.cat ignores legacy empty tensors of shape (0,) among operands of any rank.
    tensors = [t for t in call["tensors"] if tuple(t.shape) != (0,) or call.out.dim() == 1]
    to.emit("concat", tensors, call.results, axis=_axis(call.get("dim", 0), call.out.dim()))


def _stack(call: Call, to: Emitter) -> None:
    axis = _axis(call.get("dim", 0), call.out.dim())
    shape = tuple(1 if i == axis else size for i, size in enumerate(call.out.shape))
    parts = [to.emit("reshape", [t], [shape], shape=list(shape))[0] for t in call["tensors"]]
    to.emit("concat", parts, call.results, axis=axis)


def _pad(mode: str) -> Row:
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


def _expand(call: Call, to: Emitter) -> None:
    to.emit("expand", [call["self"]], call.results, shape=list(call.out.shape))


def _repeat(call: Call, to: Emitter) -> None:
    to.emit("tile", [call["self"]], call.results, repeats=list(call["repeats"]))


def _pixel_shuffle(call: Call, to: Emitter) -> None:
    if call["self"].dim() != 4:
        return _opaque(call, to)
    to.emit("depth_to_space", [call["self"]], call.results, block=call["upscale_factor"], mode="CRD")


def _pixel_unshuffle(call: Call, to: Emitter) -> None:
    if call["self"].dim() != 4:
        return _opaque(call, to)
    to.emit("space_to_depth", [call["self"]], call.results, block=call["downscale_factor"], mode="CRD")


def _channel_shuffle(call: Call, to: Emitter) -> None:
    groups, size = call["groups"], call.out.shape[1]
    to.emit("gather", [_first(call)], call.results, axis=1, indices=np.arange(size).reshape(groups, -1).T.ravel())


def _flip(call: Call, to: Emitter) -> None:
    value: Operand = call["self"]
    shape = tuple(call.out.shape)
    axes = _axes(call["dims"], len(shape))
    for axis in axes:
        results = call.results if axis == axes[-1] else [shape]
        (value,) = to.emit("gather", [value], results, axis=axis, indices=np.arange(shape[axis])[::-1].copy())


def _roll(call: Call, to: Emitter) -> None:
    if not call.get("dims"):
        return _opaque(call, to)
    value: Operand = call["self"]
    shape = tuple(call.out.shape)
    pairs = list(zip(call["shifts"], call["dims"], strict=True))
    for number, (shift, dim) in enumerate(pairs):
        axis = _axis(dim, len(shape))
        results = call.results if number == len(pairs) - 1 else [shape]
        (value,) = to.emit("gather", [value], results, axis=axis, indices=np.roll(np.arange(shape[axis]), shift))


def _index_select(call: Call, to: Emitter) -> None:
    indices = to.constant(call["index"])
    if indices is None:
        return _opaque(call, to)
    axis = _axis(call["dim"], call["self"].dim())
    size = call["self"].shape[axis]
    to.emit("gather", [call["self"]], call.results, axis=axis, indices=np.where(indices < 0, indices + size, indices))


def _index(call: Call, to: Emitter) -> None:
    x, indices = call["self"], call["indices"]
    given = [axis for axis, index in enumerate(indices) if index is not None]
    known = to.constant(indices[given[0]]) if len(given) == 1 else None
    if known is None or known.dtype.kind not in "iu":
        return _opaque(call, to)
    size = x.shape[given[0]]
    to.emit("gather", [x], call.results, axis=given[0], indices=np.where(known < 0, known + size, known))


def _im2col(call: Call, to: Emitter) -> None:
    if call["self"].dim() != 4:
        return _opaque(call, to)
    to.emit("im2col", [call["self"]], call.results, kernel=int(np.prod(call["kernel_size"])))


def _slice_scatter(call: Call, to: Emitter) -> None:
    x = call["self"]
    axis = _axis(call.get("dim", 0), x.dim())
    start, end, step = slice(call.get("start"), call.args.get("end"), call.get("step", 1)).indices(x.shape[axis])
    to.emit("scatter_slice", [x, call["src"]], call.results, axis=axis, start=start, end=end, step=step)


def _select_scatter(call: Call, to: Emitter) -> None:
    x, rank = call["self"], call["self"].dim()
    axis = _axis(call["dim"], rank)
    start = _axis(call["index"], x.shape[axis])
    shape = tuple(1 if i == axis else size for i, size in enumerate(x.shape))
    (part,) = to.emit("reshape", [call["src"]], [shape], shape=list(shape))
    to.emit("scatter_slice", [x, part], call.results, axis=axis, start=start, end=start + 1, step=1)


def _unfold(call: Call, to: Emitter) -> None:
    """Translate overlapping windows along an axis; the positions in a window become the last axis."""
    x, count, size = call["self"], call.out.shape[call["dimension"]], call["size"]
    axis, rank = _axis(call["dimension"], x.dim()), call.out.dim()
    indices = np.arange(count)[:, None] * call["step"] + np.arange(size)
    if axis == rank - 2:
        to.emit("gather", [x], call.results, axis=axis, indices=indices)
        return
    shape = (*x.shape[:axis], count, size, *x.shape[axis + 1 :])
    (windows,) = to.emit("gather", [x], [shape], axis=axis, indices=indices)
    perm = [i for i in range(rank) if i != axis + 1] + [axis + 1]
    to.emit("transpose", [windows], call.results, perm=perm)


def _full(value: float | None) -> Row:
    def row(call: Call, to: Emitter) -> None:
        fill = call.get("fill_value", call.get("value", value))
        if not _is_number(fill):
            to.emit("opaque", [], call.results, reason="makes a tensor whose values are not fixed")
        else:
            to.emit("full", [], call.results, shape=list(call.out.shape), value=float(fill))

    return row


def _source(call: Call, to: Emitter) -> None:
    """Translate an op that makes a tensor from no channels (arange, rand …)."""
    to.emit("opaque", [], call.results, reason="makes a tensor whose values are not fixed")


# --- channelwise, reductions --------------------------------------------------------------------------


def _spatial(call: Call, count: int) -> list[int]:
    rank = _first(call).dim()
    return list(range(rank - count, rank))


def _max_pool(count: int) -> Row:
    def row(call: Call, to: Emitter) -> None:
        pads = [*call.get("padding", [0])] * (count if len(call.get("padding", [0])) == 1 else 1) * 2
        axes = _spatial(call, count)
        to.emit(
            "max_pool", [call["self"]], call.results, pads=pads, ceil=bool(call.get("ceil_mode")), spatial_axes=axes
        )

    return row


def _max_unpool(count: int) -> Row:
    def row(call: Call, to: Emitter) -> None:
        to.emit("max_unpool", [call["self"], call["indices"]], call.results, spatial_axes=_spatial(call, count))

    return row


def _deform_conv(call: Call, to: Emitter) -> None:
    """Translate torchvision's deformable convolution: sampled maps, one for each tap, that a convolution reads.

    What is sampled beside the map is zero, so only zeros are uniform afterwards, and go.
    """
    x, weight = call["input"], call["weight"]
    if call["offset_groups"] != 1:
        return _opaque(call, to)
    mask = call["mask"] if call["use_mask"] else None
    (sampled,) = to.emit("sample", [x, call["offset"], mask], [(*x.shape[:2], *call.out.shape[2:])])
    settings = {"strides": [1, 1], "pads": [0] * 4, "dilations": [1, 1], "conv_groups": call["groups"]}
    to.emit("conv", [sampled, weight, call["bias"]], call.results, **settings)


def _fourier(call: Call, to: Emitter) -> None:
    rank = call["self"].dim()
    axes = _axes(call["dim"], rank)
    to.emit("linear", [call["self"]], call.results, passes=[(axis, axis) for axis in range(rank) if axis not in axes])


def _linear_in_place(call: Call, to: Emitter) -> None:
    """Translate a linear map of each element (conjugation), or one that adds or drops a last axis of two parts."""
    rank = min(_first(call).dim(), call.out.dim())
    to.emit("linear", [_first(call)], call.results, passes=[(axis, axis) for axis in range(rank)])


def _complex(call: Call, to: Emitter) -> None:
    shape = (*call.out.shape, 1)
    parts = [to.emit("reshape", [call[name]], [shape], shape=list(shape))[0] for name in ("real", "imag")]
    (both,) = to.emit("concat", parts, [(*call.out.shape, 2)], axis=len(shape) - 1)
    to.emit("linear", [both], call.results, passes=[(axis, axis) for axis in range(len(shape) - 1)])


def _avg_pool(count: int) -> Row:
    def row(call: Call, to: Emitter) -> None:
        axes = _spatial(call, count)
        if call.get("divisor_override") is not None:
            to.emit("sample", [call["self"]], call.results, spatial_axes=axes)
            return
        padding = [*call.get("padding", [0])]
        pads = padding * (count if len(padding) == 1 else 1) * 2
        counts = bool(call.get("count_include_pad", True))
        to.emit("avg_pool", [call["self"]], call.results, pads=pads, counts_padding=counts, spatial_axes=axes)

    return row


def _adaptive_pool(op: str, count: int) -> Row:
    def row(call: Call, to: Emitter) -> None:
        more: dict[str, Any] = {"counts_padding": False} if op == "avg_pool" else {"ceil": False}
        to.emit(op, [call["self"]], call.results, pads=[0] * (2 * count), spatial_axes=_spatial(call, count), **more)

    return row


def _resize(call: Call, to: Emitter) -> None:
    to.emit("resize", [_first(call)], call.results, keeps_constants=True)


def _sample(call: Call, to: Emitter) -> None:
    tensors = [value for value in call.args.values() if isinstance(value, Tensor)]
    to.emit("sample", tensors, call.results[:1])


def _reduce(kind: str) -> Row:
    def row(call: Call, to: Emitter) -> None:
        x = call["self"]
        if "other" in call.args:
            name = {"max": "maximum", "min": "minimum"}[kind]
            to.emit(name, [x, call["other"]], call.results)
            return
        axes = _axes(call.args.get("dim"), x.dim())
        keep = bool(call.get("keepdim", False))
        for number, result in enumerate(call.results):
            to.emit("reduce" if number == 0 else "arg_reduce", [x], [result], kind=kind, axes=axes, keepdims=keep)

    return row


def _vector_norm(call: Call, to: Emitter) -> None:
    order = call.args.get("ord", call.args.get("p", 2))
    kind = {1: "l1", 2: "l2"}.get(order, "norm")
    axes = _axes(call.args.get("dim"), call["self"].dim())
    to.emit("reduce", [call["self"]], call.results, kind=kind, axes=axes, keepdims=bool(call.get("keepdim", False)))


def _var_mean(call: Call, to: Emitter) -> None:
    axes = _axes(call.args.get("dim"), call["self"].dim())
    for kind, result in zip(("var", "mean"), call.results, strict=True):
        correction = {"correction": call.get("correction", 1)} if kind == "var" else {}
        to.emit(
            "reduce",
            [call["self"]],
            [result],
            kind=kind,
            axes=axes,
            keepdims=bool(call.get("keepdim", False)),
            **correction,
        )


def _var(kind: str) -> Row:
    def row(call: Call, to: Emitter) -> None:
        axes = _axes(call.args.get("dim"), call["self"].dim())
        correction = call.get("correction", int(call.get("unbiased", True)))
        to.emit(
            "reduce",
            [call["self"]],
            call.results,
            kind=kind,
            axes=axes,
            keepdims=bool(call.get("keepdim", False)),
            correction=correction,
        )

    return row


def _along(kind: str) -> Row:
    def row(call: Call, to: Emitter) -> None:
        x = _first(call)
        axis = _axis(call.get("dim", -1), x.dim())
        for result in call.results:
            to.emit("along", [x], [result], kind=kind, axes=[axis])

    return row


def _arg_reduce(kind: str) -> Row:
    def row(call: Call, to: Emitter) -> None:
        axes = _axes(call.args.get("dim"), call["self"].dim())
        to.emit(
            "arg_reduce", [call["self"]], call.results, kind=kind, axes=axes, keepdims=bool(call.get("keepdim", False))
        )

    return row


def _opaque(call: Call, to: Emitter) -> None:
    to.emit("opaque", _tensors(call), call.results)


def _tensors(call: Call) -> list[Tensor]:
    tensors: list[Tensor] = []
    for value in call.args.values():
        items = value if isinstance(value, (list, tuple)) else [value]
        tensors.extend(item for item in items if isinstance(item, Tensor))
    return tensors


NAMESPACES = ("aten", "prims", "torchvision")
"""Whose ops the table means: a user's own op may be called like one of them and do something else."""


def translate(call: Call, to: Emitter, rules: OpRules = NO_RULES) -> None:
    """Emit the IR nodes of one recorded call.

    Args:
        rules: ops that the user teaches; they go before the table.

    Raises:
        BadInput: a rule cannot be used.
    """
    tensors = _tensors(call)
    if rules:
        attrs = {name: value for name, value in call.args.items() if not isinstance(value, Tensor)}
        shapes = [tuple(tuple(tensor.shape) for tensor in group) for group in (tensors, call.results)]
        op = TaughtOp(call.qualified, shapes[0], shapes[1], attrs)
        found = likeness(rules, op)
        if found is not None:
            to.emit(found.op, [tensors[at] for at in operands(found, op)], call.results[:1], **found.attrs)
            return
    row = ATEN.get(call.name, _opaque) if call.qualified.partition("::")[0] in NAMESPACES else _opaque
    row(call, to)


_SAME_NAME = (
    "relu", "sigmoid", "tanh", "exp", "expm1", "log", "log1p", "sqrt", "rsqrt", "square", "abs", "neg", "reciprocal",
    "sign", "floor", "ceil", "round", "erf", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "asinh",
    "acosh", "atanh", "silu", "mish", "selu", "log_sigmoid",
)  # fmt: skip
_RESIZES = (
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact1d",
    "_upsample_nearest_exact2d", "_upsample_nearest_exact3d", "upsample_linear1d", "upsample_bilinear2d",
    "upsample_trilinear3d", "upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa",
)  # fmt: skip
_ATTENTIONS = (
    "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention", "scaled_dot_product_attention",
    "_scaled_dot_product_attention_math", "_scaled_dot_product_fused_attention_overrideable",
)  # fmt: skip
_BATCH_NORMS = (
    "native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm", "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training", "_batch_norm_no_update", "_batch_norm_with_update", "batch_norm",
)  # fmt: skip
_VIEWS = (
    "view", "_unsafe_view", "reshape", "_reshape_alias", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as",
    "reshape_as",
)  # fmt: skip
_SOURCES = ("arange", "linspace", "rand", "randn", "rand_like", "randn_like", "empty", "empty_like", "new_empty", "eye")

ATEN: Mapping[str, Row] = MappingProxyType(
    {
        "convolution": _convolution,
        "addmm": _addmm,
        "baddbmm": _addmm,
        **dict.fromkeys(("mm", "bmm", "matmul", "mv", "dot", "vdot"), _mm),
        "linear": _linear,
        **dict.fromkeys(_ATTENTIONS, _attention),
        **dict.fromkeys(_BATCH_NORMS, _batch_norm),
        "native_layer_norm": _layer_norm,
        "native_group_norm": _group_norm,
        **dict.fromkeys(("_weight_norm_interface", "_weight_norm"), _weight_norm),
        **{name: _unary(name) for name in _SAME_NAME},
        "log_sigmoid_forward": _unary("log_sigmoid"),
        "leaky_relu": _unary("leaky_relu", alpha="negative_slope"),
        "gelu": _unary("gelu", approximate="approximate"),
        "hardsigmoid": _unary("hard_sigmoid"),
        "hardswish": _unary("hard_swish"),
        "celu": _unary("celu", alpha="alpha"),
        "softplus": _unary("softplus", beta="beta", threshold="threshold"),
        "softsign": _unary("softsign"),
        "hardshrink": _unary("hard_shrink", lambd="lambd"),
        "softshrink": _unary("soft_shrink", lambd="lambd"),
        "threshold": _unary("threshold", threshold="threshold", value="value"),
        "logical_not": _unary("not"),
        "bitwise_not": _unary("not"),
        "isnan": _unary("is_nan"),
        "isinf": _unary("is_inf"),
        "elu": _elu,
        "_prelu_kernel": _prelu,
        "hardtanh": _hardtanh,
        **dict.fromkeys(("clamp", "clamp_min", "clamp_max", "clip"), _clamp),
        **dict.fromkeys(
            (
                "clone",
                "detach",
                "alias",
                "contiguous",
                "lift_fresh_copy",
                "lift_fresh",
                "dropout",
                "resolve_conj",
                "resolve_neg",
            ),
            _unary("identity"),
        ),
        "native_dropout": _unary("identity"),
        **dict.fromkeys(("_to_copy", "to"), _cast),
        "copy": _copy,
        **{name: _binary(name) for name in ("add", "sub", "mul", "div", "pow", "maximum", "minimum", "atan2")},
        "rsub": _binary("rsub"),
        "floor_divide": _binary("floor_div"),
        "remainder": _binary("mod"),
        "eq": _binary("equal"),
        "ne": _binary("not_equal"),
        "lt": _binary("less"),
        "le": _binary("less_equal"),
        "gt": _binary("greater"),
        "ge": _binary("greater_equal"),
        **dict.fromkeys(("logical_and", "bitwise_and"), _binary("and")),
        **dict.fromkeys(("logical_or", "bitwise_or"), _binary("or")),
        **dict.fromkeys(("logical_xor", "bitwise_xor"), _binary("xor")),
        "where": _where,
        "masked_fill": _masked_fill,
        "glu": _glu,
        "addcmul": _addc("mul"),
        "addcdiv": _addc("div"),
        **dict.fromkeys(_VIEWS, _reshape),
        **dict.fromkeys(("permute", "transpose", "t", "numpy_T", "swapaxes"), _permute),
        "slice": _slice,
        "select": _select,
        **dict.fromkeys(("split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split", "unsafe_chunk"), _split),
        "unbind": _unbind,
        **dict.fromkeys(("cat", "concat"), _cat),
        "stack": _stack,
        "constant_pad_nd": _pad("constant"),
        **{f"reflection_pad{n}d": _pad("reflect") for n in (1, 2, 3)},
        **{f"replication_pad{n}d": _pad("edge") for n in (1, 2, 3)},
        **dict.fromkeys(("expand", "expand_as", "broadcast_to"), _expand),
        "repeat": _repeat,
        "pixel_shuffle": _pixel_shuffle,
        "pixel_unshuffle": _pixel_unshuffle,
        **dict.fromkeys(("channel_shuffle", "native_channel_shuffle"), _channel_shuffle),
        "flip": _flip,
        "roll": _roll,
        "index_select": _index_select,
        "index": _index,
        "im2col": _im2col,
        "slice_scatter": _slice_scatter,
        "select_scatter": _select_scatter,
        "unfold": _unfold,
        **dict.fromkeys(("zeros", "zeros_like", "new_zeros", "zero"), _full(0.0)),
        **dict.fromkeys(("ones", "ones_like", "new_ones"), _full(1.0)),
        **dict.fromkeys(("full", "full_like", "new_full", "fill", "scalar_tensor"), _full(None)),
        **dict.fromkeys(_SOURCES, _source),
        **{f"max_pool{n}d": _max_pool(n) for n in (1, 2, 3)},
        **{f"max_pool{n}d_with_indices": _max_pool(n) for n in (1, 2, 3)},
        **{f"max_unpool{n}d": _max_unpool(n) for n in (2, 3)},
        **{f"avg_pool{n}d": _avg_pool(n) for n in (1, 2, 3)},
        **{f"_adaptive_avg_pool{n}d": _adaptive_pool("avg_pool", n) for n in (1, 2, 3)},
        **{f"adaptive_avg_pool{n}d": _adaptive_pool("avg_pool", n) for n in (1, 2, 3)},
        **{f"adaptive_max_pool{n}d": _adaptive_pool("max_pool", n) for n in (1, 2, 3)},
        **dict.fromkeys(_RESIZES, _resize),
        "deform_conv2d": _deform_conv,
        **dict.fromkeys(("grid_sampler_2d", "grid_sampler_3d", "grid_sampler", "roi_align"), _sample),
        **{name: _reduce(name) for name in ("mean", "sum", "max", "min", "prod", "logsumexp", "any", "all")},
        **dict.fromkeys(("_fft_r2c", "_fft_c2c", "_fft_c2r"), _fourier),
        **dict.fromkeys(
            ("view_as_real", "view_as_complex", "_conj", "_conj_physical", "conj_physical"), _linear_in_place
        ),
        "complex": _complex,
        "amax": _reduce("max"),
        "amin": _reduce("min"),
        "var_mean": _var_mean,
        "var": _var("var"),
        "std": _var("std"),
        **dict.fromkeys(("linalg_vector_norm", "norm"), _vector_norm),
        **dict.fromkeys(("_softmax", "softmax", "_safe_softmax"), _along("softmax")),
        **dict.fromkeys(("_log_softmax", "log_softmax"), _along("log_softmax")),
        **{name: _along(name) for name in ("cumsum", "cumprod", "sort", "argsort", "logcumsumexp", "topk")},
        "argmax": _arg_reduce("argmax"),
        "argmin": _arg_reduce("argmin"),
    }
)
