"""Sizes that are computed in the graph: one node taken further with what folding found of its inputs' contents.

Sizes that stay open get names, so that two values of the same open size can be told to be equal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from types import MappingProxyType
from typing import Any

import onnx
from onnx import TensorProto, defs, helper, shape_inference

from prunec.frontends.onnx.loading.load import dtype_name
from prunec.frontends.onnx.loading.nodes import domain_of
from prunec.frontends.onnx.sizes import symbols as sym
from prunec.frontends.onnx.sizes.infer import MICROSOFT, stand_in
from prunec.frontends.onnx.sizes.view import Cut, View, at, type_shape
from prunec.ir.arrays import Array
from prunec.ir.graph import Dim, Shape

_INVENTED = "unk__"
"""How onnx.shape_inference calls the sizes that it cannot compute."""


def is_soft(size: Dim) -> bool:
    """Tell whether a size is open and its name was invented by inference."""
    return size is None or (isinstance(size, str) and size.startswith((_INVENTED, "?")))


def refine(
    view: View, opsets: Sequence[onnx.OperatorSetIdProto], ir_version: int
) -> Sequence[tuple[Shape | None, str]]:
    """Return shape and type of each output of one node from what is known of its inputs now, as far as that goes."""
    if view.node.domain == MICROSOFT and (fused := _MICROSOFT_RULES.get(view.op)) is not None:
        return [fused(view)]
    rule = _RULES.get(view.op) if view.node.domain == "" else None
    if rule is not None:
        before = view.facts.values.get(view.inputs[0]) if view.op != "ConstantOfShape" else None
        return [(rule(view), before.dtype if before is not None else "")]
    found = _infer_node(view, opsets, ir_version)
    if view.op in _WINDOWED and view.node.domain == "" and found and found[0][0] is not None:
        return [(better(_windowed(view, found[0][0]), found[0][0]), found[0][1]), *found[1:]]
    at_least = _AT_LEAST.get(view.op)
    if at_least is not None and (not found or found[0][0] is None):
        before = view.facts.values.get(view.inputs[0])
        return [(at_least(view), before.dtype if before is not None else "float32")]
    return found


def better(new: Shape | None, old: Shape | None) -> Shape | None:
    """Merge two findings about one shape, size by size: numbers over names over invented names over nothing."""
    if new is None or old is None or len(new) != len(old):
        return old if new is None else new
    return tuple(
        a if isinstance(a, int) or (is_soft(b) and a is not None) else b for a, b in zip(new, old, strict=True)
    )


def _infer_node(
    view: View, opsets: Sequence[onnx.OperatorSetIdProto], ir_version: int
) -> Sequence[tuple[Shape | None, str]]:
    known = stand_in(view.node)
    node = known or view.node.proto
    domain = "" if known is not None else view.node.domain
    version = next((entry.version for entry in opsets if domain_of(entry.domain) == domain), 0)
    try:
        schema = defs.get_schema(node.op_type, version, domain)
        types, data = _node_inputs(view, [name for name in node.input if name], shapes_only=known is not None)
        found = shape_inference.infer_node_outputs(
            schema, node, types, data, opset_imports=list(opsets), ir_version=ir_version
        )
    except Exception:  # noqa: BLE001  # no schema, or a type that inference rejects: the shape stays open
        return []
    kinds = [found.get(name) for name in view.outputs]
    return [
        (None, "") if kind is None else (type_shape(kind), "" if known else dtype_name(kind.tensor_type.elem_type))
        for kind in kinds
    ]


def _node_inputs(
    view: View, names: Iterable[str], shapes_only: bool
) -> tuple[dict[str, onnx.TypeProto], dict[str, TensorProto]]:
    """Return type and, where it is small, content of each input; ``shapes_only`` calls all of them float32.

    A stand-in may not take the type: there is no Add of int8 below opset 14.
    """
    types: dict[str, onnx.TypeProto] = {}
    data: dict[str, TensorProto] = {}
    for name in names:
        value, array = view.facts.values.get(name), view.facts.constant(name)
        dtype = array.dtype.name if array is not None else (value.dtype if value is not None else "")
        kind = TensorProto.FLOAT if shapes_only else _ELEM_TYPES.get(dtype, 0)
        types[name] = helper.make_tensor_type_proto(kind, view.facts.shape(name))
        if array is not None and array.size <= 1024 and array.dtype.name in ("int64", "int32", "float32"):
            data[name] = _tensor(name, array)
    return types, data


def _tensor(name: str, array: Array) -> TensorProto:
    tensor = TensorProto(name=name, data_type=_ELEM_TYPES[array.dtype.name], dims=array.shape)
    tensor.raw_data = array.tobytes()
    return tensor


_ELEM_TYPES: Mapping[str, int] = MappingProxyType(
    {dtype_name(number): number for number in TensorProto.DataType.values() if dtype_name(number)}
)


def _reshape(view: View) -> Shape | None:
    target = view.setting("shape", 1)
    if target is None:
        shape = view.shape(1)
        length = at(shape, 0)
        return (None,) * length if isinstance(length, int) else None
    return sym.reshaped(view.shape(0), target, bool(view.attrs.get("allowzero", 0)))


def _expand(view: View) -> Shape | None:
    target = view.setting("shape", 1)
    return None if target is None else sym.broadcast([view.shape(0), tuple(sym.dim(size) for size in target)])


def _constant_of_shape(view: View) -> Shape | None:
    target = view.data(0)
    return None if target is None else tuple(sym.dim(size) for size in target.tolist())


def _tile(view: View) -> Shape | None:
    before, repeats = view.shape(0), view.setting("repeats", 1)
    if before is None or repeats is None:
        return None
    return tuple(sym.dim(sym.times(sym.item(size), times)) for size, times in zip(before, repeats, strict=False))


def _resize(view: View) -> Shape | None:
    """Sizes where they are given; else scales, with sizes that are scaled by 1 kept whatever they are."""
    before = view.shape(0)
    if before is None:
        return None
    first = view.node.version <= 10
    sizes: Sequence[Any] | None = None if first else view.setting("sizes", 3)
    scales = view.setting("scales", 1 if first else 2)
    axes = view.attrs.get("axes") or list(range(len(before)))
    after: list[Dim] = list(before)
    if sizes is not None and view.attrs.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        sizes = _in_proportion([before[axis % len(before)] for axis in axes], sizes, view)
    for place, axis in enumerate(axes):
        axis %= len(before)
        size = before[axis]
        if sizes is not None and place < len(sizes):
            after[axis] = sym.dim(sizes[place])
        elif scales and place < len(scales) and isinstance(scales[place], int | float):
            scale = scales[place]
            after[axis] = size if scale == 1 else int(size * scale) if isinstance(size, int) else None
        else:
            after[axis] = None
    return tuple(after)


def _in_proportion(before: Sequence[Dim], sizes: Sequence[Any], view: View) -> Sequence[Any]:
    """Return the sizes after a Resize that keeps the aspect ratio: within, or around, those that are asked for.

    All axes take one scale, and halves are rounded up: the specification of Resize, opset 18.
    """
    choose = {"not_larger": min, "not_smaller": max}.get(view.attrs["keep_aspect_ratio_policy"])
    pairs = zip(before, sizes, strict=False)
    known = [(old, new) for old, new in pairs if isinstance(old, int) and isinstance(new, int)]
    if choose is None or len(known) != len(before) or not all(old for old, _ in known):
        return [None] * len(before)
    scale = choose(Fraction(new, old) for old, new in known)
    return [math.floor(scale * old + Fraction(1, 2)) for old, _ in known]


def _slice(view: View) -> Shape | None:
    before = view.shape(0)
    if before is None:
        return None
    cuts = view.cuts()
    if cuts is None:
        return (None,) * len(before)
    after: list[Dim] = list(before)
    for cut in cuts:
        after[cut.axis] = _sliced(before[cut.axis], cut)
    return tuple(after)


def _sliced(size: Dim, cut: Cut) -> Dim:
    start, end, step = cut.start, cut.end, cut.step
    if isinstance(size, int) and isinstance(start, int) and isinstance(end, int) and isinstance(step, int) and step:
        return len(range(size)[slice(start, None if step < 0 and end < -size else end, step)])
    whole = end == sym.item(size) or (isinstance(end, int) and end >= 2**31 - 1)
    return size if start == 0 and step == 1 and whole else None


def _flatten(view: View) -> Shape:
    before = view.shape(0)
    if before is None:
        return None, None
    axis = view.attrs.get("axis", 1)
    return sym.dim(sym.total(before[:axis])) if axis else 1, sym.dim(sym.total(before[axis:]))


def _crop(view: View) -> Shape | None:
    """Crop (experimental, 2017): border is left, top, right, bottom; with scale, that size from there."""
    before, border = view.shape(0), view.attrs.get("border")
    if before is None or len(before) != 4 or border is None or len(border) != 4:
        return None
    scale = view.attrs.get("scale")
    left, top, right, bottom = border
    after = [
        scale[place] if scale else (size - low - high if isinstance(size, int) else None)
        for place, (size, low, high) in enumerate(((before[2], top, bottom), (before[3], left, right)))
    ]
    return (*before[:2], *after)


def _same(view: View) -> Shape | None:
    """Ops that ONNX defines by a function of other ops, which inference does not always enter."""
    return view.shape(0)


_WINDOWED = frozenset({"Conv", "MaxPool", "AveragePool", "LpPool"})
"""Ops that inference leaves open behind open sizes, though the formula of theirs is simple."""


def _windowed(view: View, known: Shape) -> Shape | None:
    """Name the sizes behind a window: an open size itself where the window keeps it, else the formula.

    Two values that are computed alike from the same size get the same name, so that a sum of both has it, too.
    """
    before = view.shape(0)
    kernel = view.attrs.get("kernel_shape") or (view.shape(1) or ())[2:]
    rank = len(kernel)
    if before is None or len(before) != rank + 2 or len(known) != rank + 2 or view.attrs.get("ceil_mode"):
        return None
    strides = view.attrs.get("strides") or [1] * rank
    dilations = view.attrs.get("dilations") or [1] * rank
    pads = view.attrs.get("pads") or [0] * (2 * rank)
    mode = view.attrs.get("auto_pad", "NOTSET")
    after = list(known)
    for axis, (size, taps, stride, step) in enumerate(zip(before[2:], kernel, strides, dilations, strict=True)):
        if not isinstance(taps, int) or not isinstance(size, str):
            continue
        span = step * (taps - 1)
        padding = {"NOTSET": pads[axis] + pads[axis + rank], "VALID": 0}.get(mode, span)  # SAME: a size over the stride
        last = sym.plus(sym.item(size), padding - span - 1)
        after[axis + 2] = size if padding == span and stride == 1 else sym.dim(_over(last, stride))
    return tuple(after)


def _over(last: sym.Item, stride: int) -> sym.Item:
    """Return how many windows there are from the first to the last place."""
    return sym.plus(sym.divide(last, stride) if stride > 1 else last, 1)


def _by_weight(axis: int, groups: str = "") -> Callable[[View], Shape | None]:
    """Return the rule of a convolution of something unknown: the weight has its rank and, on one axis, its channels."""

    def rule(view: View) -> Shape | None:
        weight = view.shape(1)
        if weight is None or len(weight) < 3:
            return None
        channels = sym.dim(sym.times(sym.item(weight[axis]), view.attrs.get(groups, 1)))
        return (at(view.shape(0), 0), channels, *(None for _ in weight[2:]))

    return rule


def _stft(view: View) -> Shape | None:
    """STFT: batch, frames, frequencies, and two for the real and the imaginary part."""
    window, length = at(view.shape(2), 0), view.setting("frame_length", 3)
    size = length[0] if length else window
    bins = size // 2 + 1 if view.attrs.get("onesided", 1) and isinstance(size, int) else None
    return (at(view.shape(0), 0), None, bins, 2)


_AT_LEAST: Mapping[str, Callable[[View], Shape | None]] = MappingProxyType(
    {
        **dict.fromkeys(("Conv", "FusedConv"), _by_weight(0)),
        "ConvTranspose": _by_weight(1, "group"),
        "STFT": _stft,
    }
)
"""What is known of an output where inference, which wants to know the input first, says nothing."""

_RULES: Mapping[str, Callable[[View], Shape | None]] = MappingProxyType(
    {
        "Reshape": _reshape,
        "Expand": _expand,
        "ConstantOfShape": _constant_of_shape,
        "Tile": _tile,
        "Resize": _resize,
        "Upsample": _resize,
        "Slice": _slice,
        "Flatten": _flatten,
        "Crop": _crop,
        **dict.fromkeys(("GroupNormalization", "RMSNormalization", "Swish", "Mish", "HardSwish", "Celu"), _same),
    }
)


def _product(dtype: str = "") -> Callable[[View], tuple[Shape | None, str]]:
    """Return the rule of a matrix product of inputs 0 and 1 whose batch axes are broadcast."""

    def rule(view: View) -> tuple[Shape | None, str]:
        a, b = view.shape(0), view.shape(1)
        if a is None or b is None or len(a) < 2 or len(b) < 2:
            return None, dtype
        rows = a[-1 if view.attrs.get("transA", 0) else -2]
        columns = b[-2 if view.attrs.get("transB", 0) else -1]
        batch = sym.broadcast([a[:-2], b[:-2]])
        found = view.facts.values.get(view.inputs[0])
        return (None if batch is None else (*batch, rows, columns)), dtype or (found.dtype if found else "")

    return rule


def _reduced(view: View) -> tuple[Shape | None, str]:
    """QLinearReduceMean: axes are an attribute."""
    before, found = view.shape(0), view.facts.values.get(view.inputs[0])
    if before is None:
        return None, ""
    axes = {axis % len(before) for axis in view.attrs.get("axes") or range(len(before))}
    keeps = view.attrs.get("keepdims", 1)
    after = tuple(1 if axis in axes else size for axis, size in enumerate(before) if keeps or axis not in axes)
    return after, found.dtype if found else ""


_MICROSOFT_RULES: Mapping[str, Callable[[View], tuple[Shape | None, str]]] = MappingProxyType(
    {
        **dict.fromkeys(("FusedMatMul", "TransposeMatMul"), _product()),
        **dict.fromkeys(("MatMulIntegerToFloat", "DynamicQuantizeMatMul"), _product("float32")),
        "QLinearReduceMean": _reduced,
    }
)

SHAPED_BY_CONTENTS = frozenset(_RULES) | _WINDOWED
"""Ops whose output shape is worth another look once the contents of their inputs are known, or if it is open."""
