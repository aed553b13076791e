"""Integer networks: ONNX's and com.microsoft's ops on quantised tensors -> canonical ops.

Each function makes or is one row of the table in table.py. An op on integers is the op on the numbers that
they stand for, between ``dequantize`` and ``quantize``: so scales and zero points go with their channels, and
every pass reads integers as it reads floats. Where sums of products are added up in int32, attribute
``bias_type`` says so; passes/integers.py keeps what is folded there exact. References: the ONNX operator
specification, and ONNX Runtime's ContribOperators.md for com.microsoft.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from prunec.frontends.onnx.ops import compute
from prunec.frontends.onnx.ops.draft import INNER, Draft, Translate, inner, literal, one, opaque
from prunec.frontends.onnx.sizes.symbols import broadcast
from prunec.frontends.onnx.sizes.view import View, at
from prunec.ir.graph import Shape, Value

NO_RANK = "the rank of its input is not known"
BLOCKS = "its scales are per block"


def quantize(op: str) -> Translate:
    """Return the translation of QuantizeLinear or DequantizeLinear, with one scale or one per channel."""

    def translate(view: View) -> Sequence[Draft]:
        scale, axis = view.shape(1), view.axis(1)
        if scale is None or len(scale) > 1 or view.attrs.get("block_size", 0):
            return opaque(view, BLOCKS)
        if axis is None:
            return opaque(view, NO_RANK)
        per_channel = len(scale) == 1 and at(scale, 0) != 1
        return one(view, op, (0, 1, 2), axis=axis if per_channel else min(axis, max((view.rank() or 1) - 1, 0)))

    return translate


def dynamic_quantize(view: View) -> Sequence[Draft]:
    """DynamicQuantizeLinear: the scale that it computes spans all values, so a channel of zeros leaves it as it is.

    Integer products read the result less its zero point: that value is kept beside it, for zeros stay zeros there.
    """
    names = [view.outputs[index] if index < len(view.outputs) else "" for index in range(3)]
    centred = inner(view, "centred", view.shape(0), "float32")
    view.facts.centred[names[0], names[2]] = centred
    scale = names[1] or inner(view, "scale", (), "float32")
    zero = names[2] or inner(view, "zero_point", (), "uint8")
    return [
        Draft("dynamic_quantize", view.inputs[:1], (centred, scale, zero), {}, (0,)),
        Draft("add", (centred, zero), (names[0],), INNER, (-1, -1)),
    ]


class _Real:
    """Collects the drafts that turn a node's integers into the numbers that they stand for."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.drafts: list[Draft] = []

    def of(self, slot: int, scale: int, zero: int, axis: int = 1, what: str = "x") -> str:
        """Return the value of input ``slot``, dequantised; no scale (-1) stands for 1."""
        view = self.view
        centred = view.facts.centred.get((view.inputs[slot], view.inputs[zero] if view.has(zero) else ""))
        if centred is not None:
            return centred if scale < 0 else self._times(centred, scale, what)
        factor = view.inputs[scale] if scale >= 0 else literal(view, f"{what}_scale", 1.0)
        names, slots = [view.inputs[slot], factor], [slot, scale]
        if view.has(zero):
            names.append(view.inputs[zero])
            slots.append(zero)
        shape = view.shape(slot)
        value = inner(view, what, shape, "float32")
        rank = 1 if shape is None else len(shape)
        attrs = {"axis": min(axis % max(rank, 1), max(rank - 1, 0))}
        self.drafts.append(Draft("dequantize", tuple(names), (value,), attrs, tuple(slots)))
        return value

    def _times(self, centred: str, scale: int, what: str) -> str:
        value = inner(self.view, what, self.view.facts.shape(centred), "float32")
        self.drafts.append(Draft("mul", (centred, self.view.inputs[scale]), (value,), INNER, (-1, scale)))
        return value

    def bias(self, slot: int, scales: tuple[int, int]) -> str:
        """Return the value of an int32 bias: its scale is the product of both operands' scales."""
        view = self.view
        unit = inner(view, "unit", broadcast([view.shape(scale) for scale in scales]), "float32")
        names = tuple(view.inputs[scale] for scale in scales)
        self.drafts.append(Draft("mul", names, (unit,), INNER, scales))
        value = inner(view, "bias", view.shape(slot), "float32")
        self.drafts.append(Draft("dequantize", (view.inputs[slot], unit), (value,), {"axis": 0}, (slot, -1)))
        return value

    def result(self, shape: Shape | None) -> str:
        """Return a name for what the op computes before it is quantised."""
        return inner(self.view, "real", shape, "float32")

    def quantised(self, value: str, scale: int, zero: int) -> Sequence[Draft]:
        """End with the result of the node: ``value`` in the output's scale and zero point."""
        slots = (-1, scale, zero) if self.view.has(zero) else (-1, scale)
        names = (value, *(self.view.inputs[slot] for slot in slots[1:]))
        return [*self.drafts, Draft("quantize", names, self.view.outputs[:1], {"axis": 0}, slots)]


def _one_scale(view: View, *slots: int) -> bool:
    """Tell whether each of these scales is one number."""
    shapes = [view.shape(slot) for slot in slots if view.has(slot)]
    return all(shape is not None and all(size == 1 for size in shape) for shape in shapes)


# --- contractions -----------------------------------------------------------------------------------


def qlinear_conv(view: View) -> Sequence[Draft]:
    """QLinearConv: the weight's scale is one, or one per output channel; the bias is int32."""
    if view.attrs.get("channels_last", 0):
        return opaque(view, "its channels come last")
    if not _one_scale(view, 1, 6):
        return opaque(view, BLOCKS)
    return _convolution(view, (0, 1, 2), (3, 4, 5), 8, (6, 7))


def conv_integer(view: View) -> Sequence[Draft]:
    """ConvInteger: integers less their zero points, added up in int32."""
    return _convolution(view, (0, -1, 2), (1, -1, 3), -1, None)


def _convolution(
    view: View,
    x: tuple[int, int, int],
    weight: tuple[int, int, int],
    bias: int,
    result: tuple[int, int] | None,
) -> Sequence[Draft]:
    """Return a convolution of dequantised operands, each given as the slots of value, scale and zero point."""
    shape = view.shape(weight[0])
    if shape is None or len(shape) < 3:
        return opaque(view, "the rank of its weight is not known")
    real = _Real(view)
    names = [real.of(*x), real.of(*weight, axis=0, what="weight")]
    if bias >= 0 and view.has(bias):
        names.append(real.bias(bias, (x[1], weight[1])))
    settings = compute.window(view, view.attrs.get("kernel_shape") or shape[2:])
    attrs = {**settings, "conv_groups": view.attrs.get("group", 1), "bias_type": "int32"}
    out = view.out_shape()
    out = (None, shape[0], *(None for _ in shape[2:])) if out is None else out
    if result is None:
        return [*real.drafts, Draft("conv", tuple(names), view.outputs[:1], attrs, (-1,) * len(names))]
    value = real.result(out)
    real.drafts.append(Draft("conv", tuple(names), (value,), attrs, (-1,) * len(names)))
    return real.quantised(value, *result)


def qlinear_matmul(view: View) -> Sequence[Draft]:
    """QLinearMatMul: scales are one, or one per row of a and per column of b; it has no place for a bias."""
    return _product(view, (0, 1, 2), (3, 4, 5), (6, 7), bias_type="none")


def matmul_integer(view: View) -> Sequence[Draft]:
    """MatMulInteger: integers less their zero points, added up in int32."""
    return _product(view, (0, -1, 2), (1, -1, 3), None, bias_type="int32")


def _product(
    view: View, a: tuple[int, int, int], b: tuple[int, int, int], result: tuple[int, int] | None, bias_type: str
) -> Sequence[Draft]:
    if view.rank(a[0]) is None or view.rank(b[0]) is None:
        return opaque(view, NO_RANK)
    if any(len(view.shape(slot) or ()) > 1 for slot in (*a[1:], *b[1:]) if view.has(slot)):
        return opaque(view, BLOCKS)
    real = _Real(view)
    names = (real.of(*a, axis=-2, what="a"), real.of(*b, axis=-1, what="b"))
    attrs = {"transpose_a": False, "transpose_b": False, "bias_type": bias_type}
    if result is None:
        return [*real.drafts, Draft("matmul", names, view.outputs[:1], attrs, (-1, -1))]
    value = real.result(view.out_shape())
    real.drafts.append(Draft("matmul", names, (value,), attrs, (-1, -1)))
    return real.quantised(value, *result)


def qgemm(view: View) -> Sequence[Draft]:
    """com.microsoft QGemm: alpha·A·B + C, C in int32; without an output scale the result is a float."""
    if view.attrs.get("alpha", 1.0) != 1.0:
        return opaque(view, "it scales its product (alpha)")
    if not _one_scale(view, 1):
        return opaque(view, BLOCKS)
    flags = {"transpose_a": bool(view.attrs.get("transA", 0)), "transpose_b": bool(view.attrs.get("transB", 0))}
    real = _Real(view)
    names = [real.of(0, 1, 2, what="a"), real.of(3, 4, 5, axis=0 if flags["transpose_b"] else 1, what="b")]
    if view.has(6):
        names.append(real.bias(6, (1, 4)))
    attrs = {**flags, "bias_type": "int32"}
    slots = (-1,) * len(names)
    if not view.has(7):
        view.facts.values[view.outputs[0]] = Value(view.outputs[0], view.out_shape(), "float32")
        return [*real.drafts, Draft("matmul", tuple(names), view.outputs[:1], attrs, slots)]
    value = real.result(view.out_shape())
    real.drafts.append(Draft("matmul", tuple(names), (value,), attrs, slots))
    return real.quantised(value, 7, 8)


# --- the rest ---------------------------------------------------------------------------------------


def binary(op: str) -> Translate:
    """Return the translation of com.microsoft QLinearAdd or QLinearMul."""

    def translate(view: View) -> Sequence[Draft]:
        if not _one_scale(view, 1, 4, 6):
            return opaque(view, BLOCKS)
        real = _Real(view)
        names = (real.of(0, 1, 2, what="a"), real.of(3, 4, 5, what="b"))
        value = real.result(view.out_shape())
        real.drafts.append(Draft(op, names, (value,), INNER, (-1, -1)))
        return real.quantised(value, 6, 7)

    return translate


def concat(view: View) -> Sequence[Draft]:
    """com.microsoft QLinearConcat: the output's scale and zero point come first, then three inputs per operand."""
    operands = range(2, len(view.inputs), 3)
    axis = view.axis(1, view.rank(2))
    if axis is None:
        return opaque(view, NO_RANK)
    real = _Real(view)
    names = tuple(real.of(slot, slot + 1, slot + 2, what=f"x{number}") for number, slot in enumerate(operands))
    value = real.result(view.out_shape())
    real.drafts.append(Draft("concat", names, (value,), {"axis": axis}, (-1,) * len(names)))
    return real.quantised(value, 0, 1)


def between(translate: Callable[[View], Sequence[Draft]]) -> Translate:
    """Return the translation of com.microsoft's QLinear form of an op: x, its scale and zero point, then the output's.

    Args:
        translate: what the op does to the numbers; it makes one IR node.
    """

    def wrapped(view: View) -> Sequence[Draft]:
        if view.attrs.get("channels_last", 0):
            return opaque(view, "its channels come last")
        drafts = translate(view)
        if len(drafts) != 1 or drafts[0].op == "opaque":
            return drafts
        real = _Real(view)
        x = real.of(0, 1, 2)
        value = real.result(view.out_shape())
        real.drafts.append(drafts[0]._replace(inputs=(x,), outputs=(value,), slots=(-1,)))
        return real.quantised(value, 3, 4)

    return wrapped


def softmax(view: View) -> Sequence[Draft]:
    """com.microsoft QLinearSoftmax: before opset 13 it mixed its axis together with all that follow."""
    axis, rank = view.axis(-1), view.rank()
    if axis is None or rank is None:
        return opaque(view, NO_RANK)
    axes = list(range(axis, rank)) if view.attrs.get("opset", 13) < 13 else [axis]
    return between(lambda inner_view: one(inner_view, "along", kind="softmax", axes=axes))(view)


def reduce_mean(view: View) -> Sequence[Draft]:
    """com.microsoft QLinearReduceMean; its axes are an attribute."""
    rank, axes = view.rank(), view.attrs.get("axes")
    if rank is None:
        return opaque(view, NO_RANK)
    where = sorted(axis % rank for axis in axes) if axes else list(range(rank))
    attrs: dict[str, Any] = {"kind": "mean", "axes": where, "keepdims": bool(view.attrs.get("keepdims", 1))}
    return between(lambda inner_view: one(inner_view, "reduce", **attrs))(view)


def scaled_product(view: View) -> Sequence[Draft]:
    """com.microsoft MatMulIntegerToFloat: a, b, their scales, zero points, and a float bias."""
    return _float_product(view, (0, 2, 4), (1, 3, 5), 6)


def dynamic_product(view: View) -> Sequence[Draft]:
    """com.microsoft DynamicQuantizeMatMul: a is quantised on the way, by a scale that spans all its values."""
    if view.rank() is None or view.rank(1) is None or any(len(view.shape(slot) or ()) > 1 for slot in (2, 3)):
        return opaque(view, BLOCKS)
    shape = view.shape(0)
    names = [inner(view, what, at_shape, "float32") for what, at_shape in (("centred", shape), ("scale", ()))]
    zero, a = inner(view, "zero_point", (), "uint8"), inner(view, "a", shape, "float32")
    real = _Real(view)
    real.drafts.append(Draft("dynamic_quantize", view.inputs[:1], (*names, zero), {}, (0,)))
    real.drafts.append(Draft("mul", (names[0], names[1]), (a,), INNER, (-1, -1)))
    return _ended(view, real, a, real.of(1, 2, 3, axis=-1, what="b"), 4)


def _float_product(view: View, a: tuple[int, int, int], b: tuple[int, int, int], bias: int) -> Sequence[Draft]:
    if view.rank(a[0]) is None or view.rank(b[0]) is None:
        return opaque(view, NO_RANK)
    if any(len(view.shape(slot) or ()) > 1 for slot in (*a[1:], *b[1:]) if view.has(slot)):
        return opaque(view, BLOCKS)
    real = _Real(view)
    return _ended(view, real, real.of(*a, axis=-2, what="a"), real.of(*b, axis=-1, what="b"), bias)


def _ended(view: View, real: _Real, a: str, b: str, bias: int) -> Sequence[Draft]:
    """End with a product in floats; a bias is added to it."""
    attrs = {"transpose_a": False, "transpose_b": False, "bias_type": "none"}
    if not view.has(bias):
        return [*real.drafts, Draft("matmul", (a, b), view.outputs[:1], attrs, (-1, -1))]
    product = real.result(view.out_shape())
    real.drafts.append(Draft("matmul", (a, b), (product,), attrs, (-1, -1)))
    return [*real.drafts, Draft("add", (product, view.inputs[bias]), view.outputs[:1], INNER, (-1, bias))]
