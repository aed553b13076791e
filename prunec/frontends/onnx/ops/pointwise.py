"""Elementwise ops and reductions: ONNX -> canonical ops.

Each function makes or is one row of the table in table.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onnx import helper

from prunec.frontends.onnx.ops.draft import INNER, Draft, Translate, inner, literal, one, opaque, scalar
from prunec.frontends.onnx.sizes.symbols import broadcast
from prunec.frontends.onnx.sizes.view import View, ints, positive

NO_RANK = "the rank of its input is not known"


def unary(op: str, **defaults: Any) -> Translate:
    """Return the translation of an elementwise op of one input; ``defaults`` are ONNX's own."""

    def translate(view: View) -> Sequence[Draft]:
        return one(view, op, **{name: view.attrs.get(name, value) for name, value in defaults.items()})

    return translate


def binary(op: str, **attrs: Any) -> Translate:
    """Return the translation of an elementwise op of two inputs."""
    return lambda view: one(view, op, (0, 1), **attrs)


def variadic(op: str, mean: bool = False) -> Translate:
    """Return the translation of an op of any number of inputs: a chain of binary ones."""

    def translate(view: View) -> Sequence[Draft]:
        count = len(view.inputs)
        if count == 1:
            return one(view, "identity")
        drafts: list[Draft] = []
        value, slot, shape = view.inputs[0], 0, view.shape(0)
        for index in range(1, count):
            shape = broadcast([shape, view.shape(index)])
            last = index == count - 1 and not mean
            result = view.outputs[0] if last else inner(view, f"{op}{index}", shape)
            drafts.append(Draft(op, (value, view.inputs[index]), (result,), INNER if slot < 0 else {}, (slot, index)))
            value, slot = result, -1
        if mean:
            drafts.append(Draft("div", (value, literal(view, "count", count)), view.outputs, INNER, (-1, -1)))
        return drafts

    return translate


def where(view: View) -> Sequence[Draft]:
    """Where."""
    return one(view, "where", (0, 1, 2))


def divide(view: View) -> Sequence[Draft]:
    """Div: integers truncate towards zero."""
    value = view.facts.values.get(view.outputs[0])
    whole = value is not None and value.dtype.startswith(("int", "uint"))
    return one(view, "div", (0, 1), **({"rounding": "trunc"} if whole else {}))


def modulo(view: View) -> Sequence[Draft]:
    """Mod."""
    return one(view, "mod", (0, 1), fmod=bool(view.attrs.get("fmod", 0)))


def bit_shift(view: View) -> Sequence[Draft]:
    """BitShift."""
    return one(view, "bit_shift", (0, 1), direction=view.attrs.get("direction", "LEFT"))


def clip(view: View) -> Sequence[Draft]:
    """Clip; bounds were attributes before opset 11. Bounds that are computed are ops of their own."""
    bounds: dict[str, Any] = {}
    for slot, name in ((1, "min"), (2, "max")):
        if view.has(slot):
            bounds[name] = scalar(view.constant(slot))
            if bounds[name] is None:
                return _computed_clip(view)
        elif name in view.attrs:
            bounds[name] = view.attrs[name]
    return one(view, "clip", **bounds)


def _computed_clip(view: View) -> Sequence[Draft]:
    drafts: list[Draft] = []
    value, at_slot = view.inputs[0], 0
    present = [slot for slot in (1, 2) if view.has(slot)]
    for slot in present:
        op = "maximum" if slot == 1 else "minimum"
        result = view.outputs[0] if slot == present[-1] else inner(view, op, view.shape(0))
        drafts.append(Draft(op, (value, view.inputs[slot]), (result,), INNER, (at_slot, slot)))
        value, at_slot = result, -1
    return drafts


def shrink(view: View) -> Sequence[Draft]:
    """Shrink: x - bias beyond lambd, x + bias below -lambd, 0 between."""
    lambd, bias = view.attrs.get("lambd", 0.5), view.attrs.get("bias", 0.0)
    if bias == 0:
        return one(view, "hard_shrink", lambd=lambd)
    return one(view, "soft_shrink", lambd=lambd, bias=bias)


def cast(view: View) -> Sequence[Draft]:
    """Cast and CastLike, to numpy's name of the type."""
    if view.op == "CastLike":
        value = view.facts.values.get(view.inputs[1])
        return one(view, "cast", to=value.dtype if value is not None else "float32")
    try:
        name = helper.tensor_dtype_to_np_dtype(view.attrs["to"]).name
    except (KeyError, ValueError, TypeError):
        return opaque(view, "it casts to a type without numbers")
    return opaque(view, "it casts to strings") if name.startswith(("str", "object")) else one(view, "cast", to=name)


def dropout(view: View) -> Sequence[Draft]:
    """Dropout, which does nothing but in training; its mask output is not followed."""
    if view.has(2) and scalar(view.constant(2)) != 0:
        return opaque(view, "it drops channels at random (training mode)")
    if len(view.outputs) > 1:
        shape = view.shape(0)
        mask = Draft("full", (), view.outputs[1:2], {"shape": None if shape is None else list(shape), "value": 1.0}, ())
        return [Draft("identity", view.inputs[:1], view.outputs[:1], {}, (0,)), mask]
    return one(view, "identity")


def biased(op: str, **attrs: Any) -> Translate:
    """Return the translation of com.microsoft's activation(x + bias)."""

    def translate(view: View) -> Sequence[Draft]:
        if not view.has(1):
            return one(view, op, **attrs)
        total = inner(view, "sum", view.shape(0))
        add = Draft("add", view.inputs[:2], (total,), INNER, (0, 1))
        return [add, Draft(op, (total,), view.outputs, attrs, (-1,))]

    return translate


def affine(view: View) -> Sequence[Draft]:
    """Affine (experimental, 2017): alpha·x + beta, two numbers."""
    product = inner(view, "product", view.shape(0))
    alpha, beta = (
        literal(view, name, view.attrs.get(name, default)) for name, default in (("alpha", 1.0), ("beta", 0.0))
    )
    scale = Draft("mul", (view.inputs[0], alpha), (product,), INNER, (0, -1))
    return [scale, Draft("add", (product, beta), view.outputs, INNER, (-1, -1))]


def scaled_tanh(view: View) -> Sequence[Draft]:
    """ScaledTanh (experimental, 2017): alpha·tanh(beta·x)."""
    shape = view.shape(0)
    scaled, bent = inner(view, "scaled", shape), inner(view, "tanh", shape)
    alpha, beta = (literal(view, name, view.attrs.get(name, 1.0)) for name in ("alpha", "beta"))
    return [
        Draft("mul", (view.inputs[0], beta), (scaled,), INNER, (0, -1)),
        Draft("tanh", (scaled,), (bent,), {}, (-1,)),
        Draft("mul", (bent, alpha), view.outputs, INNER, (-1, -1)),
    ]


# --- reductions and their like ----------------------------------------------------------------------


def reduce(kind: str, before: str = "", after: str = "") -> Translate:
    """Return the translation of a reduction, with an elementwise op before or after it."""

    def translate(view: View) -> Sequence[Draft]:
        axes, rank = _axes(view), view.rank()
        if axes is None:
            return opaque(view, "the axes that it reduces are computed" if rank is not None else NO_RANK)
        if not axes:
            # Opset 18: with noop_with_empty_axes only the elementwise part happens.
            steps = [op for op in (before, after) if op]
            return one(view, steps[0] if steps else "identity")
        attrs = {"kind": kind, "axes": axes, "keepdims": bool(view.attrs.get("keepdims", 1))}
        drafts = [Draft("reduce", view.inputs[:1], view.outputs, attrs, (0,))]
        if before:
            value = inner(view, before, view.shape(0))
            drafts = [
                Draft(before, view.inputs[:1], (value,), {}, (0,)),
                drafts[0]._replace(inputs=(value,), slots=(-1,)),
            ]
        if after:
            value = inner(view, kind, view.out_shape())
            drafts[-1] = drafts[-1]._replace(outputs=(value,))
            drafts.append(Draft(after, (value,), view.outputs, {}, (-1,)))
        return drafts

    return translate


def _axes(view: View) -> list[int] | None:
    """Return the axes of a Reduce op, not negative; all of them where it names none."""
    rank, axes = view.rank(), ints(view.setting("axes", 1))
    if rank is None or (axes is None and view.has(1)):
        return None
    if not axes:
        return [] if view.attrs.get("noop_with_empty_axes", 0) else list(range(rank))
    return sorted({axis % rank for axis in axes}) if rank else []


def arg_reduce(kind: str) -> Translate:
    """Return the translation of ArgMax or ArgMin."""

    def translate(view: View) -> Sequence[Draft]:
        axis = view.axis(0)
        if axis is None:
            return opaque(view, NO_RANK)
        return one(view, "arg_reduce", kind=kind, axes=[axis], keepdims=bool(view.attrs.get("keepdims", 1)))

    return translate


def along(kind: str, default: int, flat_before: int = 0) -> Translate:
    """Return the translation of an op that mixes one axis and keeps the shape.

    Before opset ``flat_before`` it mixed that axis together with all that follow.
    """

    def translate(view: View) -> Sequence[Draft]:
        old = view.node.version < flat_before
        axis, rank = view.axis(1 if old else default), view.rank()
        if axis is None or (old and rank is None):
            return opaque(view, NO_RANK)
        return one(view, "along", kind=kind, axes=list(range(axis, rank or 0)) if old else [axis])

    return translate


def cumulative(kind: str) -> Translate:
    """Return the translation of CumSum or CumProd; their axis is an input."""

    def translate(view: View) -> Sequence[Draft]:
        axis = view.constant(1)
        place = positive(int(axis.ravel()[0]), view.rank()) if axis is not None and axis.size == 1 else None
        if place is None:
            return opaque(view, "the axis that it runs along is computed")
        return one(view, "along", kind=kind, axes=[place])

    return translate


def triangle(view: View) -> Sequence[Draft]:
    """Trilu: which elements of the last two axes become zero depends on where they lie."""
    rank = view.rank()
    if rank is None or rank < 2:
        return opaque(view, NO_RANK)
    return one(view, "along", kind="a triangular mask", axes=[rank - 2, rank - 1])


UNARY_NAMES: Mapping[str, str] = {
    name: name.lower()
    for name in ("Relu", "Sigmoid", "Tanh", "Softplus", "Softsign", "Mish", "Exp", "Log", "Sqrt", "Abs", "Neg", "Sign",
                 "Reciprocal", "Floor", "Ceil", "Round", "Erf", "Sin", "Cos", "Tan", "Asin", "Acos", "Atan", "Sinh",
                 "Cosh", "Asinh", "Acosh", "Atanh", "Not", "Identity")
}  # fmt: skip
"""Ops without attributes whose canonical name is their own in lower case."""
