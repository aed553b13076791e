"""Constant folding: what a node computes from contents that are known, symbols included.

Owns one small function per op over numpy arrays. An array of numbers is a constant; an object array
holds items (onnx_symbols), so a chain Shape -> Gather -> Mul -> Concat over open sizes still gives the
sizes that are fixed. Movement is the same code for both. Nothing random is folded, nothing that would
grow without bound, and no DequantizeLinear (its int8 weights would come out four times as large).
A few more ops are folded, for small tensors, by onnx.reference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from prunec.frontends.onnx import symbols as sym
from prunec.frontends.onnx.symbols import Product
from prunec.frontends.onnx.view import Array, View, ints, positive
from prunec.ir.graph import Dim, Value

MAX_NEW_ELEMENTS = 2**24
"""Above this nothing is computed; views of what the model holds are free."""
MAX_REFERENCE_ELEMENTS = 2**16
MAX_UNIFORM_ELEMENTS = 2**28
"""A tensor of one repeated value takes no memory, but every pass walks its axes."""

Fold = Callable[[View, Sequence[Array]], Array | Sequence[Array] | None]
"""(node, known contents of every input; absent ones are empty arrays) -> contents of the outputs."""

_ABSENT: Array = np.zeros(0)
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
        result = _shape(view) if view.op == "Shape" else _size(view)
        return None if result is None else [_settle(result, "int64")]
    if view.op != "CastLike" and any(name and name not in view.facts.known for name in view.inputs):
        return None  # as for most nodes
    known = [view.data(index) for index in range(len(view.inputs))]
    if view.op == "CastLike" and len(known) == 2 and known[1] is None:
        known[1] = _of_type(view.facts.values.get(view.inputs[1]))  # only its type is read
    if not all(array is not None or not name for array, name in zip(known, view.inputs, strict=True)):
        return None
    arrays = [_ABSENT if array is None else array for array in known]
    results = _evaluate(view, arrays)
    if results is None:
        return None
    return [_settle(array, dtype or "int64") for array in results]


def _of_type(value: Value | None) -> Array | None:
    """Return an empty array of a value's type, None where that is not known."""
    return np.zeros(0, value.dtype) if value is not None and value.dtype not in ("", "object") else None


def _evaluate(view: View, arrays: Sequence[Array]) -> Sequence[Array] | None:
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
    arrays = [next(made) if name else _ABSENT for name in view.outputs]
    return arrays if sum(array.size for array in arrays) <= MAX_REFERENCE_ELEMENTS else None


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
    results = [facts.known[name] if name else _ABSENT for name in view.outputs]
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
        moved = _evaluate(view, [*marks[:count], *(facts.known.get(name, _ABSENT) for name in view.inputs[count:])])
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


# --- sources ----------------------------------------------------------------------------------------


def _shape(view: View) -> Array | None:
    shape = view.shape(0)
    if shape is None:
        return None
    start, end = view.attrs.get("start", 0), view.attrs.get("end")
    return _objects([sym.item(size) for size in shape[start:end]])


def _size(view: View) -> Array | None:
    shape = view.shape(0)
    return None if shape is None else _objects([sym.total(shape)]).reshape(())


def _constant_of_shape(view: View, arrays: Sequence[Array]) -> Array | None:
    """One value, repeated without taking memory."""
    shape = ints(arrays[0].tolist())
    if (
        shape is None
        or math.prod(shape) > MAX_UNIFORM_ELEMENTS
        or any(not 0 <= size <= MAX_NEW_ELEMENTS for size in shape)
    ):
        return None
    tensor = view.attrs.get("value")
    value = np.zeros(1, np.float32) if tensor is None else _tensor(tensor)
    return np.broadcast_to(value.reshape(()), shape)


def _tensor(tensor: Any) -> Array:
    from prunec.frontends.onnx.load import WeightFiles, tensor_array

    return tensor_array(tensor, WeightFiles(None))


def _range(_: View, arrays: Sequence[Array]) -> Array | None:
    if any(array.dtype == object for array in arrays):
        return None
    start, limit, delta = (array.ravel()[0] for array in arrays)
    if delta == 0 or abs(float(limit - start) / float(delta)) > MAX_NEW_ELEMENTS:
        return None
    return np.arange(start, limit, delta, dtype=arrays[0].dtype)


# --- movement ---------------------------------------------------------------------------------------


def _same(_: View, arrays: Sequence[Array]) -> Array:
    return arrays[0]


def _gather(view: View, arrays: Sequence[Array]) -> Array | None:
    data, indices = arrays
    axis = positive(view.attrs.get("axis", 0), data.ndim)
    if indices.dtype == object or indices.size > MAX_NEW_ELEMENTS:
        return None
    return data.take(indices.astype(np.int64), axis=axis)


def _concat(view: View, arrays: Sequence[Array]) -> Array | None:
    if sum(array.size for array in arrays) > MAX_NEW_ELEMENTS:
        return None
    return np.concatenate(arrays, axis=view.attrs.get("axis", 0))


def _slice(view: View, arrays: Sequence[Array]) -> Array | None:
    data = arrays[0]
    starts, ends = (ints(view.setting(name, index)) for name, index in (("starts", 1), ("ends", 2)))
    axes, steps = ints(view.setting("axes", 3)), ints(view.setting("steps", 4))
    if starts is None or ends is None or (axes is None and view.has(3)) or (steps is None and view.has(4)):
        return None
    index: list[slice] = [slice(None)] * data.ndim
    for at, start, end in zip(axes if axes is not None else range(len(starts)), starts, ends, strict=False):
        place = axes.index(at) if axes is not None else at
        step = steps[place] if steps is not None else 1
        # Below the first element ONNX counts any large negative end; Python spells that None.
        stop = None if step < 0 and end < -data.shape[at] else end
        index[at] = slice(start, stop, step)
    return data[tuple(index)]


def _unsqueeze(view: View, arrays: Sequence[Array]) -> Array | None:
    axes = ints(view.setting("axes", 1))
    return None if axes is None else np.expand_dims(arrays[0], tuple(axes))


def _squeeze(view: View, arrays: Sequence[Array]) -> Array | None:
    axes = ints(view.setting("axes", 1))
    if axes is None:
        return None if view.has(1) else arrays[0].squeeze()
    return arrays[0].squeeze(tuple(axes))


def _reshape(view: View, arrays: Sequence[Array]) -> Array | None:
    data, target = arrays[0], ints(arrays[1].ravel().tolist())
    if target is None:
        return None
    if not view.attrs.get("allowzero", 0):
        target = [data.shape[axis] if size == 0 else size for axis, size in enumerate(target)]
    return data.reshape(target)


def _flatten(view: View, arrays: Sequence[Array]) -> Array:
    axis = view.attrs.get("axis", 1)
    shape = arrays[0].shape
    rows = math.prod(shape[:axis]) if axis else 1
    return arrays[0].reshape(rows, -1)


def _transpose(view: View, arrays: Sequence[Array]) -> Array:
    return arrays[0].transpose(view.attrs.get("perm"))


def _expand(_: View, arrays: Sequence[Array]) -> Array | None:
    target = ints(arrays[1].ravel().tolist())
    if target is None:
        return None
    shape = np.broadcast_shapes(arrays[0].shape, tuple(target))
    return None if math.prod(shape) > MAX_NEW_ELEMENTS else np.broadcast_to(arrays[0], shape)


def _tile(_: View, arrays: Sequence[Array]) -> Array | None:
    repeats = ints(arrays[1].ravel().tolist())
    if repeats is None or math.prod(repeats) * arrays[0].size > MAX_NEW_ELEMENTS:
        return None
    return np.tile(arrays[0], repeats)


def _split(view: View, arrays: Sequence[Array]) -> Sequence[Array] | None:
    axis = view.attrs.get("axis", 0)
    sizes = split_sizes(view, arrays[0].shape[axis])
    return None if sizes is None else np.split(arrays[0], np.cumsum(sizes)[:-1].tolist(), axis=axis)


def split_sizes(view: View, extent: Dim) -> list[int] | None:
    """Return the sizes that Split cuts an axis of ``extent`` into; None where they are open."""
    given = view.setting("split", 1)
    if given is not None or view.has(1):
        return ints(given)
    parts = view.attrs.get("num_outputs", len(view.outputs))
    if not isinstance(extent, int):
        return None
    size = -(-extent // parts)
    sizes = [size] * (parts - 1)
    return [*sizes, extent - sum(sizes)]


def _cast(view: View, arrays: Sequence[Array]) -> Array | None:
    if arrays[0].dtype == object:
        return _objects([_cast_item(value, view.attrs["to"]) for value in arrays[0].ravel()]).reshape(arrays[0].shape)
    if arrays[0].size > MAX_NEW_ELEMENTS:
        return None
    return arrays[0].astype(helper.tensor_dtype_to_np_dtype(view.attrs["to"]))


def _cast_item(value: sym.Item, kind: int) -> sym.Item:
    whole = kind in (TensorProto.INT32, TensorProto.INT64)
    if isinstance(value, sym.Computed):
        return value if whole else None  # a quotient of floats would not be the one of integers
    return int(value) if whole and isinstance(value, float) else value


def _cast_like(_: View, arrays: Sequence[Array]) -> Array | None:
    if arrays[0].dtype == object or arrays[0].size > MAX_NEW_ELEMENTS:
        return None
    return arrays[0].astype(arrays[1].dtype)


# --- arithmetic -------------------------------------------------------------------------------------


def _objects(items: Sequence[sym.Item]) -> Array:
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


def _elementwise(numbers: Callable[..., Array], items: Callable[..., sym.Item]) -> Fold:
    """Apply one of two functions: to whole arrays of numbers, or item by item."""

    def run(_: View, arrays: Sequence[Array]) -> Array | None:
        size = math.prod(np.broadcast_shapes(*(array.shape for array in arrays)))
        if not any(array.dtype == object for array in arrays):
            return None if size > MAX_NEW_ELEMENTS else _typed(numbers(*arrays), arrays)
        if size > MAX_REFERENCE_ELEMENTS:
            return None
        grids = np.broadcast_arrays(*arrays)
        flat = [items(*(_plain(value) for value in row)) for row in zip(*(grid.ravel() for grid in grids), strict=True)]
        return _objects(flat).reshape(grids[0].shape)

    return run


def _typed(result: Array, arrays: Sequence[Array]) -> Array:
    """Keep the operands' type where numpy widened it (float16 means, integer division)."""
    result = np.asarray(result)
    return result if result.dtype == bool or result.dtype == arrays[-1].dtype else result.astype(arrays[-1].dtype)


def _plain(value: Any) -> sym.Item:
    plain: sym.Item = value.item() if isinstance(value, np.generic) else value
    return plain


def _divide(a: Array, b: Array) -> Array:
    """Divide; integers truncate towards zero, as in C."""
    if a.dtype.kind not in "iu":
        return a / b
    if not np.all(b):
        raise ZeroDivisionError
    return np.where((a < 0) != (b < 0), -(np.abs(a) // np.abs(b)), np.abs(a) // np.abs(b))


def _less_than(a: sym.Item, b: sym.Item) -> sym.Item:
    if isinstance(a, int | float) and isinstance(b, int | float):
        return a < b
    if isinstance(b, Product) and isinstance(a, int | float) and a < 0:
        return True  # a size is at least 0
    if isinstance(a, Product) and isinstance(b, int | float) and b <= 0:
        return False
    return None


def _equal_items(a: sym.Item, b: sym.Item) -> sym.Item:
    if isinstance(a, int | float) and isinstance(b, int | float):
        return a == b
    if a is not None and a == b:
        return True
    # A size is never negative; exporters compare with -1 to find the axes to copy.
    sizes = any(isinstance(v, Product) for v in (a, b))
    return False if sizes and any(isinstance(v, int | float) and v < 0 for v in (a, b)) else None


def _largest(a: sym.Item, b: sym.Item) -> sym.Item:
    if isinstance(a, int | float) and isinstance(b, int | float):
        return max(a, b)
    if a is not None and a == b:
        return a
    for number, size in ((a, b), (b, a)):
        if isinstance(number, int | float) and isinstance(size, Product) and number <= 0:
            return size
    return None


def _smallest(a: sym.Item, b: sym.Item) -> sym.Item:
    if isinstance(a, int | float) and isinstance(b, int | float):
        return min(a, b)
    return a if a is not None and a == b else None


def _choose(condition: sym.Item, a: sym.Item, b: sym.Item) -> sym.Item:
    if isinstance(condition, int | float):
        return a if condition else b
    return a if a is not None and a == b else None


def _on_numbers(function: Callable[..., Any]) -> Callable[..., sym.Item]:
    """Apply ``function`` where all items are numbers; anything else gives None."""

    def run(*items: sym.Item) -> sym.Item:
        if any(value is None or sym.is_symbolic(value) for value in items):
            return None
        result: sym.Item = function(*items)
        return result

    return run


def _rounding(numbers: Callable[[Array], Array], function: Callable[[Any], Any]) -> Fold:
    """Floor, Ceil, Round: a size is whole already."""
    return _elementwise(numbers, lambda value: value if isinstance(value, Product) else _on_numbers(function)(value))


def _reduce(numbers: Callable[..., Array], join: Callable[[sym.Item, sym.Item], sym.Item]) -> Fold:
    def run(view: View, arrays: Sequence[Array]) -> Array | None:
        data, axes = arrays[0], ints(view.setting("axes", 1))
        keepdims = bool(view.attrs.get("keepdims", 1))
        if data.size > MAX_NEW_ELEMENTS:
            return None
        if not axes:
            if view.attrs.get("noop_with_empty_axes", 0):
                return data
            axes = list(range(data.ndim))
        if data.dtype != object:
            return _typed(numbers(data, axis=tuple(axes), keepdims=keepdims), [data])
        if data.ndim != 1 or not data.size:
            return None
        joined = data[0]
        for value in data[1:]:
            joined = join(joined, value)
        return _objects([joined]).reshape((1,) if keepdims else ())

    return run


def _batch_norm(view: View, arrays: Sequence[Array]) -> Sequence[Array] | None:
    """Normalise stored weights: exporters write weight standardisation as a BatchNormalization in training mode."""
    training = bool(view.attrs.get("training_mode", 0))
    if len(arrays) != 5 or arrays[0].ndim < 2 or arrays[0].size > MAX_NEW_ELEMENTS or arrays[0].dtype == object:
        return None
    if len(view.outputs) not in ((1, 3) if training else (1,)):
        return None
    x, scale, bias, mean, var = (array.astype(np.float64) for array in arrays)
    others = tuple(axis for axis in range(x.ndim) if axis != 1)
    now = (x.mean(axis=others), x.var(axis=others)) if training else (mean, var)
    shape = (-1, *(1,) * (x.ndim - 2))
    factor = scale / np.sqrt(now[1] + view.attrs.get("epsilon", 1e-5))
    y = (x - now[0].reshape(shape)) * factor.reshape(shape) + bias.reshape(shape)
    momentum = view.attrs.get("momentum", 0.9)
    running = [old * momentum + new * (1 - momentum) for old, new in zip((mean, var), now, strict=True)]
    return [array.astype(arrays[0].dtype) for array in (y, *running)][: len(view.outputs)]


FOLDS: Mapping[str, Fold] = MappingProxyType(
    {
        "Identity": _same,
        "ConstantOfShape": _constant_of_shape,
        "Range": _range,
        "Gather": _gather,
        "Concat": _concat,
        "Slice": _slice,
        "Unsqueeze": _unsqueeze,
        "Squeeze": _squeeze,
        "Reshape": _reshape,
        "Flatten": _flatten,
        "Transpose": _transpose,
        "Expand": _expand,
        "Tile": _tile,
        "Split": _split,
        "Cast": _cast,
        "CastLike": _cast_like,
        "Add": _elementwise(np.add, sym.plus),
        "Sub": _elementwise(np.subtract, sym.minus),
        "Mul": _elementwise(np.multiply, sym.times),
        "Div": _elementwise(_divide, sym.divide),
        "Neg": _elementwise(np.negative, lambda a: sym.times(a, -1)),
        "Sqrt": _elementwise(np.sqrt, _on_numbers(math.sqrt)),
        "Floor": _rounding(np.floor, math.floor),
        "Ceil": _rounding(np.ceil, math.ceil),
        "Round": _rounding(np.rint, round),
        "Equal": _elementwise(np.equal, _equal_items),
        "Less": _elementwise(np.less, _less_than),
        "Greater": _elementwise(np.greater, lambda a, b: _less_than(b, a)),
        "Not": _elementwise(np.logical_not, _on_numbers(lambda a: not a)),
        "Where": _elementwise(np.where, _choose),
        "BatchNormalization": _batch_norm,
        "ReduceProd": _reduce(np.prod, sym.times),
        "ReduceSum": _reduce(np.sum, sym.plus),
        "ReduceMax": _reduce(np.max, _largest),
        "ReduceMin": _reduce(np.min, _smallest),
    }
)
