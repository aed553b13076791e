"""What is told of folded contents beside their numbers: made of one element, or computed from a number of channels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prunec.frontends.onnx.folding.fold import ABSENT, evaluate
from prunec.frontends.onnx.sizes.view import View
from prunec.ir.arrays import Array


def repeats_one(view: View) -> bool:
    """Tell whether a node makes one element over and over: ConstantOfShape, an expansion, a view of such contents."""
    if view.node.domain or view.op not in _REPEATING:
        return False
    if view.op == "ConstantOfShape":
        return True
    array = view.data(0)
    return view.inputs[0] in view.facts.repeated or (view.op == "Expand" and array is not None and array.size == 1)


_REPEATING = frozenset(
    {
        *("ConstantOfShape", "Expand", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity"),
        *("Slice", "Cast"),
    }
)


def marked(view: View) -> Sequence[Array]:
    """Return bool per element of each output: does it follow from a number of channels?

    Requires: the outputs' contents are known. Movement moves the marks; whatever computes joins them.
    """
    facts = view.facts
    results = [facts.known[name] if name else ABSENT for name in view.outputs]
    held = view.data(0) if view.op in ("Shape", "Size") else None
    if held is not None and (held.dtype == object or held.dtype.name in ("int64", "int32", "bool")):
        return [np.zeros(array.shape, np.bool_) for array in results]  # how many sizes there are does not change
    if view.op == "Shape":
        numbers = [isinstance(size, int) for size in view.shape(0) or ()]
        return [np.array(numbers[view.attrs.get("start", 0) : view.attrs.get("end")], np.bool_)]
    if view.op == "Size":
        return [np.array(any(isinstance(size, int) for size in view.shape(0) or ()), np.bool_)]
    marks = [
        facts.marks.get(name, np.zeros(facts.known[name].shape if name in facts.known else 0, np.bool_))
        for name in view.inputs
    ]
    if view.op in _MOVING:
        count = len(marks) if view.op == "Concat" else 1
        moved = evaluate(view, [*marks[:count], *(facts.known.get(name, ABSENT) for name in view.inputs[count:])])
        if moved is not None:
            return moved
    joined = [array for name, array in zip(view.inputs, marks, strict=True) if name in facts.known]
    joined = joined[:1] if view.op == "CastLike" else joined
    if view.op in _SIDE_BY_SIDE:
        return [np.broadcast_to(np.logical_or.reduce(np.broadcast_arrays(*joined)), results[0].shape)]
    anywhere = any(array.any() for array in joined)
    return [np.full(array.shape, anywhere) for array in results]


_MOVING = frozenset(
    {"Identity", "Gather", "Concat", "Slice", "Unsqueeze", "Squeeze", "Reshape", "Flatten", "Transpose", "Expand",
     "Tile", "Split"}
)  # fmt: skip

_SIDE_BY_SIDE = frozenset(
    {"Abs", "Add", "And", "BitShift", "Cast", "CastLike", "Ceil", "Clip", "Cos", "Div", "Equal", "Erf", "Exp", "Floor",
     "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Log", "Max", "Mean", "Min", "Mod", "Mul", "Neg", "Not", "Or",
     "Pow", "Reciprocal", "Relu", "Round", "Sigmoid", "Sign", "Sin", "Sqrt", "Sub", "Sum", "Tanh", "Where", "Xor"}
)  # fmt: skip
"""Ops whose operands broadcast against each other, element by element."""
