"""Rows of aten ops that compute with weights or windows: convolutions, products, normalisations, pooling, resizing."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from prunec.frontends.fx.ops.call import Call, Emitter, Row, first_tensor, opaque, positive_axes, spatial_axes


def convolution(call: Call, to: Emitter) -> None:
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


def addmm(call: Call, to: Emitter) -> None:
    a, b = (call.args["mat1"], call.args["mat2"]) if "mat1" in call.args else (call["batch1"], call["batch2"])
    if call.get("beta", 1) == 1 and call.get("alpha", 1) == 1:
        to.emit("matmul", [a, b, call["self"]], call.results)
    else:
        opaque(call, to)


def mm(call: Call, to: Emitter) -> None:
    second = next(call.args[name] for name in ("mat2", "other", "vec", "tensor") if name in call.args)
    if call["self"].is_complex():
        return opaque(call, to)
    to.emit("matmul", [call["self"], second], call.results)


def linear(call: Call, to: Emitter) -> None:
    to.emit("matmul", [call["input"], call["weight"], call.get("bias")], call.results, transpose_b=True)


def attention(call: Call, to: Emitter) -> None:
    mask = call.get("attn_mask", call.get("attn_bias"))
    to.emit("attention", [call["query"], call["key"], call["value"], mask], call.results)


def batch_norm(call: Call, to: Emitter) -> None:
    inputs = [call["input"], call["weight"], call["bias"], call.get("running_mean"), call.get("running_var")]
    training = bool(
        call.get("training", call.get("train", "no_training" not in call.name and "running_mean" not in call.args))
    )
    to.emit("batch_norm", inputs, call.results[:1], axis=1, eps=call.get("eps", 1e-5), training=training)


def layer_norm(call: Call, to: Emitter) -> None:
    rank = call["input"].dim()
    axes = list(range(rank - len(call["normalized_shape"]), rank))
    to.emit("layer_norm", [call["input"], call["weight"], call["bias"]], call.results[:1], axes=axes, eps=call["eps"])


def group_norm(call: Call, to: Emitter) -> None:
    groups = call.args.get("group", call.args.get("num_groups"))
    inputs = [call["input"], call.get("weight"), call.get("bias")]
    to.emit("group_norm", inputs, call.results[:1], axis=1, num_groups=groups, eps=call["eps"])


def weight_norm(call: Call, to: Emitter) -> None:
    """Translate w = v · (g / ‖v‖), the norm over all axes but ``dim``: the weight is computed from parameters."""
    v, dim, rank = call["v"], call.get("dim", 0), call["v"].dim()
    norms = tuple(size if axis == dim else 1 for axis, size in enumerate(v.shape))
    if tuple(call["g"].shape) != norms:
        return opaque(call, to)
    axes = [axis for axis in range(rank) if axis != dim]
    (norm,) = to.emit("reduce", [v], call.results[1:] or [norms], kind="l2", axes=axes, keepdims=True)
    (ratio,) = to.emit("div", [call["g"], norm], [norms])
    to.emit("mul", [v, ratio], call.results[:1])


def max_pool(count: int) -> Row:
    def row(call: Call, to: Emitter) -> None:
        pads = [*call.get("padding", [0])] * (count if len(call.get("padding", [0])) == 1 else 1) * 2
        axes = spatial_axes(call, count)
        to.emit(
            "max_pool", [call["self"]], call.results, pads=pads, ceil=bool(call.get("ceil_mode")), spatial_axes=axes
        )

    return row


def max_unpool(count: int) -> Row:
    def row(call: Call, to: Emitter) -> None:
        to.emit("max_unpool", [call["self"], call["indices"]], call.results, spatial_axes=spatial_axes(call, count))

    return row


def deform_conv(call: Call, to: Emitter) -> None:
    """Translate torchvision's deformable convolution: sampled maps, one for each tap, that a convolution reads.

    What is sampled beside the map is zero, so only zeros are uniform afterwards, and go.
    """
    x, weight = call["input"], call["weight"]
    mask = call["mask"] if call["use_mask"] else None
    groups = {"groups": call["offset_groups"]} if call["offset_groups"] != 1 else {}
    (sampled,) = to.emit("sample", [x, call["offset"], mask], [(*x.shape[:2], *call.out.shape[2:])], **groups)
    settings = {"strides": [1, 1], "pads": [0] * 4, "dilations": [1, 1], "conv_groups": call["groups"]}
    to.emit("conv", [sampled, weight, call["bias"]], call.results, **settings)


def fourier(call: Call, to: Emitter) -> None:
    rank = call["self"].dim()
    axes = positive_axes(call["dim"], rank)
    to.emit("linear", [call["self"]], call.results, passes=[(axis, axis) for axis in range(rank) if axis not in axes])


def linear_in_place(call: Call, to: Emitter) -> None:
    """Translate a linear map of each element (conjugation), or one that adds or drops a last axis of two parts."""
    rank = min(first_tensor(call).dim(), call.out.dim())
    to.emit("linear", [first_tensor(call)], call.results, passes=[(axis, axis) for axis in range(rank)])


def complex_parts(call: Call, to: Emitter) -> None:
    shape = (*call.out.shape, 1)
    parts = [to.emit("reshape", [call[name]], [shape], shape=list(shape))[0] for name in ("real", "imag")]
    (both,) = to.emit("concat", parts, [(*call.out.shape, 2)], axis=len(shape) - 1)
    to.emit("linear", [both], call.results, passes=[(axis, axis) for axis in range(len(shape) - 1)])


def avg_pool(count: int) -> Row:
    def row(call: Call, to: Emitter) -> None:
        axes = spatial_axes(call, count)
        if call.get("divisor_override") is not None:
            to.emit("sample", [call["self"]], call.results, spatial_axes=axes)
            return
        padding = [*call.get("padding", [0])]
        pads = padding * (count if len(padding) == 1 else 1) * 2
        counts = bool(call.get("count_include_pad", True))
        to.emit("avg_pool", [call["self"]], call.results, pads=pads, counts_padding=counts, spatial_axes=axes)

    return row


def adaptive_pool(op: str, count: int) -> Row:
    def row(call: Call, to: Emitter) -> None:
        more: dict[str, Any] = {"counts_padding": False} if op == "avg_pool" else {"ceil": False}
        to.emit(
            op, [call["self"]], call.results, pads=[0] * (2 * count), spatial_axes=spatial_axes(call, count), **more
        )

    return row


def resize(call: Call, to: Emitter) -> None:
    to.emit("resize", [first_tensor(call)], call.results, keeps_constants=True)


def sample(call: Call, to: Emitter) -> None:
    tensors = [value for value in call.args.values() if isinstance(value, Tensor)]
    to.emit("sample", tensors, call.results[:1])
