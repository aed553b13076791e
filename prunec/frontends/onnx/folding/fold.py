"""Constant folding: what a node computes from contents that are known, symbols included.

An array of numbers is a constant; an object array holds items (sizes/symbols.py), so a chain
Shape -> Gather -> Mul -> Concat over open sizes still gives the sizes that are fixed. Movement is the same code for
both. Nothing random is folded, nothing that would grow without bound, and no DequantizeLinear (its int8 weights would
come out four times as large). What each op computes is in table.py; a few more ops are folded, for small tensors, by
onnx.reference.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import helper

from prunec.frontends.onnx.folding.moves import shape_items, total_item
from prunec.frontends.onnx.folding.rule import MAX_REFERENCE_ELEMENTS
from prunec.frontends.onnx.folding.table import FOLDS
from prunec.frontends.onnx.sizes import symbols as sym
from prunec.frontends.onnx.sizes.view import View
from prunec.ir.arrays import Array
from prunec.ir.graph import Value

ABSENT: Array = np.zeros(0)

_BY_REFERENCE = frozenset(
    {"Abs", "And", "ArgMax", "ArgMin", "BitShift", "Clip", "Compress", "Cos", "CumSum", "Erf", "Exp",
     "GatherElements", "GatherND", "Gemm", "GreaterOrEqual", "LessOrEqual", "Log", "MatMul", "Max", "Mean", "Min",
     "Mod", "NonZero", "Or", "Pow", "Reciprocal", "ReduceL1", "ReduceL2", "ReduceMean", "ReduceSumSquare", "Relu",
     "ScatterElements", "ScatterND", "Sigmoid", "Sign", "Sin", "Softmax", "Sum", "Tanh", "TopK", "Trilu", "Unique",
     "Xor"}
)  # fmt: skip
"""Deterministic ops whose result is not larger than what they read."""


def fold(view: View, dtype: str) -> Sequence[Array] | None:
    """Return the contents of the node's outputs as far as its inputs' are known; None where they are not.

    Args:
        view: the node.
        dtype: numpy's name of the first output's type; "" where unknown.
    """
    if view.op in ("Shape", "Size"):
        result = shape_items(view) if view.op == "Shape" else total_item(view)
        return None if result is None else [_settle(result, "int64")]
    if view.op != "CastLike" and any(name and name not in view.facts.known for name in view.inputs):
        return None  # as for most nodes
    known = [view.data(index) for index in range(len(view.inputs))]
    if view.op == "CastLike" and len(known) == 2 and known[1] is None:
        known[1] = _of_type(view.facts.values.get(view.inputs[1]))  # only its type is read
    if not all(array is not None or not name for array, name in zip(known, view.inputs, strict=True)):
        return None
    arrays = [ABSENT if array is None else array for array in known]
    results = evaluate(view, arrays)
    if results is None:
        return None
    return [_settle(array, dtype or "int64") for array in results]


def _of_type(value: Value | None) -> Array | None:
    """Return an empty array of a value's type, None where that is not known."""
    return np.zeros(0, value.dtype) if value is not None and value.dtype not in ("", "object") else None


def evaluate(view: View, arrays: Sequence[Array]) -> Sequence[Array] | None:
    """Return what the node computes of these contents; None where no rule does, or it does not compute."""
    rule = FOLDS.get(view.op) if view.node.domain == "" else None
    symbolic = any(array.dtype == object for array in arrays)
    try:
        with np.errstate(all="ignore"):
            if rule is not None:
                results = rule(view, arrays)
                if results is None:
                    return None
                return results if isinstance(results, list | tuple) else [np.asarray(results)]
            return None if symbolic else _by_reference(view, arrays)
    except (ValueError, IndexError, TypeError, OverflowError, ZeroDivisionError, MemoryError):
        # A chain that does not compute is left as it is: ONNX Runtime will say what is wrong with it.
        return None


def _settle(array: Array, dtype: str) -> Array:
    """Turn an object array whose items are all numbers into a plain one; make it read-only."""
    if array.dtype == object and not any(value is None or sym.is_symbolic(value) for value in array.ravel()):
        array = array.astype(dtype)
    array = array.view()
    array.flags.writeable = False
    return array


def _by_reference(view: View, arrays: Sequence[Array]) -> Sequence[Array] | None:
    """Run ONNX's own reference implementation of one op on small constants."""
    if view.op not in _BY_REFERENCE or view.node.domain or not view.node.version:
        return None
    if sum(array.size for array in arrays) > MAX_REFERENCE_ELEMENTS:
        return None
    import onnx
    from onnx.reference import ReferenceEvaluator

    graph = helper.make_graph(
        [view.node.proto],
        "node",
        [onnx.ValueInfoProto(name=name) for name in dict.fromkeys(view.inputs) if name],
        [onnx.ValueInfoProto(name=name) for name in view.outputs if name],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", view.node.version)])
    try:
        results = ReferenceEvaluator(model).run(None, dict(zip(view.inputs, arrays, strict=True)))
    except Exception:  # noqa: BLE001  # the reference raises anything on ops it lacks; then nothing is folded
        return None
    if not all(isinstance(result, np.ndarray | np.generic) for result in results):
        return None
    made = iter([np.asarray(result) for result in results])
    arrays = [next(made) if name else ABSENT for name in view.outputs]
    return arrays if sum(array.size for array in arrays) <= MAX_REFERENCE_ELEMENTS else None
