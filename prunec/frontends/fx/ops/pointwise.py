"""Rows of aten ops whose elements stay where they are."""

from __future__ import annotations

import torch
from torch import Tensor

from prunec.frontends.fx.ops.call import Call, Emitter, Row, first_tensor, opaque, positive


def unary(op: str, **renamed: str) -> Row:
    """Make a row for an elementwise function; ``renamed`` maps our attribute to aten's argument."""

    def row(call: Call, to: Emitter) -> None:
        attrs = {ours: call[theirs] for ours, theirs in renamed.items() if call.args.get(theirs) is not None}
        to.emit(op, [first_tensor(call)], call.results[:1], **attrs)

    return row


def binary(op: str) -> Row:
    def row(call: Call, to: Emitter) -> None:
        second = next(call.args[name] for name in ("other", "exponent") if name in call.args)
        alpha = call.get("alpha", 1)
        name = op
        if op == "div" and call.get("rounding_mode"):
            if call["rounding_mode"] != "floor":
                return opaque(call, to)
            name = "floor_div"
        to.emit(name, [call["self"], second], call.results, **({"alpha": alpha} if alpha != 1 else {}))

    return row


def clamp(call: Call, to: Emitter) -> None:
    low, high = call.args.get("min"), call.args.get("max")
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        return opaque(call, to)
    to.emit("clip", [call["self"]], call.results, min=low, max=high)


def hardtanh(call: Call, to: Emitter) -> None:
    to.emit("clip", [call["self"]], call.results, min=call["min_val"], max=call["max_val"])


def elu(call: Call, to: Emitter) -> None:
    scale = call.get("scale", 1)
    if call.get("input_scale", 1) != 1:
        return opaque(call, to)
    if scale == 1:
        to.emit("elu", [call["self"]], call.results, alpha=call.get("alpha", 1.0))
    else:
        to.emit("selu", [call["self"]], call.results, alpha=call.get("alpha", 1.0), gamma=scale)


def prelu(call: Call, to: Emitter) -> None:
    to.emit("prelu", [call["self"], call["weight"]], call.results)


def where(call: Call, to: Emitter) -> None:
    if "other" not in call.args:
        return opaque(call, to)
    to.emit("where", [call["condition"], call["self"], call["other"]], call.results)


def masked_fill(call: Call, to: Emitter) -> None:
    to.emit("where", [call["mask"], call["value"], call["self"]], call.results)


def glu(call: Call, to: Emitter) -> None:
    axis = positive(call["dim"], call["self"].dim())
    half = tuple(call.out.shape)
    first, second = to.emit("split", [call["self"]], [half, half], axis=axis, sizes=[half[axis]] * 2)
    (gate,) = to.emit("sigmoid", [second], [half])
    to.emit("mul", [first, gate], call.results)


def addc(op: str) -> Row:
    def row(call: Call, to: Emitter) -> None:
        shape = tuple(torch.broadcast_shapes(call["tensor1"].shape, call["tensor2"].shape))
        (product,) = to.emit(op, [call["tensor1"], call["tensor2"]], [shape])
        if call.get("value", 1) != 1:
            (product,) = to.emit("mul", [product, call["value"]], [shape])
        to.emit("add", [call["self"], product], call.results)

    return row


def cast(call: Call, to: Emitter) -> None:
    source = first_tensor(call)
    if source.dtype == call.out.dtype:
        to.emit("identity", [source], call.results)
    else:
        to.emit("cast", [source], call.results, to=str(call.out.dtype).removeprefix("torch."))


def copy(call: Call, to: Emitter) -> None:
    if call["src"].shape != call["self"].shape:
        return opaque(call, to)
    to.emit("identity", [call["src"]], call.results)
