"""Which values do not depend on the network's input: the table CONSTANT_RULES, one function per family.

A rule gets what is known of a node's inputs (``Call``) and returns what is then known of its outputs:
float64 abstract arrays (passes/rules/arrays.py) with NaN where the value is unknown, or None where
nothing is known. Unknown is never wrong: a rule that cannot tell says so. Knows no other op and no
framework; the numbers are in passes/rules/numeric.py, the sweep over the graph in passes/constants.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from prunec.ir.graph import Dim, Node, Shape
from prunec.ir.ops import BINARY, UNARY
from prunec.passes.rules import numeric
from prunec.passes.rules.arrays import (
    MAX_ELEMENTS,
    TIDY_ELEMENTS,
    along,
    fits,
    lift,
    others,
    passed,
    stretched,
    uniform,
    unknown,
)
from prunec.passes.rules.moves import MOVES
from prunec.passes.rules.weights import Weight, negligible

Array = np.ndarray[Any, Any]
Known = Sequence[Array | None]


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One node, and what is known where its rule runs.

    Args:
        node: the node.
        known: per input, its abstract array; None where nothing is known or the input is absent.
        in_shapes: per input; None where absent or of unknown rank.
        out_shapes: per output; the first is never None.
        out_dtype: numpy's name of the first output's type.
        weight: the contraction's weight, where it is known at least in part.
    """

    node: Node
    known: tuple[Array | None, ...]
    in_shapes: tuple[Shape | None, ...]
    out_shapes: tuple[Shape | None, ...]
    out_dtype: str
    weight: Weight | None = None

    @property
    def rank(self) -> int:
        """The number of axes of the first output."""
        shape = self.out_shapes[0]
        assert shape is not None, "a rule runs only where the output's rank is known"
        return len(shape)

    def has(self, index: int) -> bool:
        """Tell whether the optional input ``index`` is there."""
        return index < len(self.node.inputs) and bool(self.node.inputs[index])

    def array(self, index: int) -> Array:
        """Return what is known of an input, all NaN where that is nothing."""
        found = self.known[index]
        if found is not None:
            return found
        shape = self.in_shapes[index]
        return unknown(0 if shape is None else len(shape))

    def vector(self, index: int, axis: int, default: float) -> Array:
        """Return an input that lies along ``axis`` (gamma, a bias, a scale), or ``default`` if it is absent."""
        if not self.has(index):
            return np.full((1,) * self.rank, default)
        array = np.asarray(self.array(index), dtype=np.float64)
        return along(array, axis, self.rank) if array.ndim <= 1 else lift(array, self.rank)


Rule = Callable[[Call], Known]


def nothing(_: Call) -> Known:
    """Unknown, whatever the inputs are."""
    return [None]


# --- contractions -----------------------------------------------------------------------------------


def conv(call: Call) -> Known:
    """An output whose live inputs are all constant is constant; zero padding lets only zeros through."""
    return _convolution(call, only_zeros=any(call.node.attrs.get("pads") or ()))


def conv_transpose(call: Call) -> Known:
    """As conv, but inputs that are not zero are followed only where each output reads one tap."""
    attrs, shape = call.node.attrs, call.in_shapes[1]
    kernel = (2,) if shape is None else shape[2:]
    edges = (*(attrs.get("pads") or ()), *(attrs.get("output_padding") or ()))
    pointwise = all(size == 1 for size in (*kernel, *(attrs.get("strides") or ()))) and not any(edges)
    return _convolution(call, only_zeros=not pointwise)


def _convolution(call: Call, only_zeros: bool) -> Known:
    x = call.array(0)
    if x.ndim != call.rank:
        return [None]
    channels = uniform(x, others(x.ndim, 1)).ravel()
    total = _contract(call, channels, only_zeros)
    return [None if total is None else along(total, 1, call.rank) + call.vector(2, 1, 0.0)]


def _contract(call: Call, constants: Array, only_zeros: bool) -> Array | None:
    """Return float64[out] = Σ_k constants[k] · Σ_taps W[o, k], NaN where an unknown input is read."""
    if call.weight is None:
        return np.zeros(1) if bool((constants == 0).all()) else None
    constants = stretched(constants, call.weight.num_inputs)
    lost = np.isnan(constants) | ((constants != 0) & only_zeros)
    blocked = call.weight.reading(lost)
    if blocked.all() and blocked.size:
        return None
    total = call.weight.total(~blocked, np.where(lost, 0.0, constants))
    return np.where(blocked, np.nan, total)


def matmul(call: Call) -> Known:
    """An output element is constant where, for each k, one operand is zero or both are known."""
    attrs = call.node.attrs
    a, b = call.array(0), call.array(1)
    if a.ndim == 0 or b.ndim == 0:
        return [None]
    row = a.size if a.ndim == 1 else a.shape[-2 if attrs.get("transpose_a") else -1]
    if call.weight is not None and a.size == row:
        total = _contract(call, a.ravel(), only_zeros=False)
        product = None if total is None else lift(total, call.rank)
    else:
        product = _product(call, a, b)
    if product is None:
        return [None]
    product = attrs.get("alpha", 1.0) * product
    if not call.has(2):
        return [product]
    return [product + attrs.get("beta", 1.0) * np.asarray(call.array(2), dtype=np.float64)]


def _product(call: Call, a: Array, b: Array) -> Array | None:
    """Multiply two abstract operands; None where that is too large or nothing can come out of it."""
    if call.known[0] is None and call.known[1] is None:
        return None
    a, b, inner = _operands(call, a, b)
    if a.size * b.shape[-1] > MAX_ELEMENTS or b.size * a.shape[-2] > MAX_ELEMENTS:
        return None
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if inner is None:
        # The number of terms is open: only a sum of zeros is known.
        return np.where((uniform(a, [-1]) == 0) | (uniform(b, [-2]) == 0), 0.0, np.nan)
    a = np.broadcast_to(a, (*a.shape[:-1], inner))
    b = np.broadcast_to(b, (*b.shape[:-2], inner, b.shape[-1]))
    lost_a, lost_b = np.isnan(a), np.isnan(b)
    blocked = np.matmul(lost_a * 1.0, (b != 0) * 1.0) + np.matmul((a != 0) * 1.0, lost_b * 1.0)
    product = np.where(blocked > 0, np.nan, np.matmul(np.where(lost_a, 0.0, a), np.where(lost_b, 0.0, b)))
    squeezed = [axis for axis, shape in ((-2, call.in_shapes[0]), (-1, call.in_shapes[1])) if shape and len(shape) == 1]
    return np.squeeze(product, axis=tuple(squeezed)) if squeezed else product


def _operands(call: Call, a: Array, b: Array) -> tuple[Array, Array, int | None]:
    """Return a as [..., M, K], b as [..., K, N], and K; None where it is open."""
    swap_a, swap_b = call.node.attrs.get("transpose_a"), call.node.attrs.get("transpose_b")
    lengths = (_length(call.in_shapes[0], -2 if swap_a else -1), _length(call.in_shapes[1], -1 if swap_b else -2))
    a = a[None, :] if a.ndim == 1 else a.swapaxes(-1, -2) if swap_a else a
    b = b[:, None] if b.ndim == 1 else b.swapaxes(-1, -2) if swap_b else b
    return a, b, next((length for length in lengths if isinstance(length, int)), None)


def _length(shape: Shape | None, axis: int) -> Dim:
    if not shape:
        return None
    return shape[0] if len(shape) == 1 else shape[axis]


def attention(call: Call) -> Known:
    """The attention weights of a position add up to 1, so what all values agree on comes out."""
    value = call.known[2]
    if value is None or value.ndim != call.rank:
        return [None]
    return [uniform(value, [value.ndim - 2])]


# --- normalisation ----------------------------------------------------------------------------------


def batch_norm(call: Call) -> Known:
    """A gamma of 0 leaves beta; a known input follows the formula, with its own statistics in training."""
    axis = call.node.attrs.get("axis", 1)
    x = call.array(0)
    if x.ndim != call.rank:
        return [None]
    if call.node.attrs.get("training") or not (call.has(3) and call.has(4)):
        return [_affine(call, _standardised(call, x, others(x.ndim, axis)), axis)]
    eps = call.node.attrs.get("eps", 1e-5)
    mean, var = call.vector(3, axis, 0.0), call.vector(4, axis, 1.0)
    return [_affine(call, (x - mean) / np.sqrt(var + eps), axis)]


def instance_norm(call: Call) -> Known:
    """A gamma of 0 leaves beta; so does an input that is uniform over space."""
    axis = call.node.attrs.get("axis", 1)
    x = call.array(0)
    return [_affine(call, _standardised(call, x, range(axis + 1, x.ndim)), axis) if x.ndim == call.rank else None]


def group_norm(call: Call) -> Known:
    """A gamma of 0 leaves beta; a group that is known in full is computed."""
    axis, groups = call.node.attrs.get("axis", 1), call.node.attrs["num_groups"]
    x, shape = call.array(0), call.in_shapes[0]
    if x.ndim != call.rank or shape is None:
        return [None]
    channels = shape[axis]
    if call.known[0] is None or not isinstance(channels, int) or x.size // x.shape[axis] * channels > MAX_ELEMENTS:
        return [_affine(call, unknown(call.rank), axis)]
    full = np.broadcast_to(x, (*x.shape[:axis], channels, *x.shape[axis + 1 :]))
    split = full.reshape((*full.shape[:axis], groups, channels // groups, *full.shape[axis + 1 :]))
    normal = _standardised(call, split, range(axis + 1, split.ndim))
    return [_affine(call, np.broadcast_to(normal, split.shape).reshape(full.shape), axis)]


def layer_norm(call: Call) -> Known:
    """A gamma of 0 leaves beta; what is known along all normalised axes is computed."""
    x, axes = call.array(0), call.node.attrs["axes"]
    if x.ndim != call.rank:
        return [None]
    return [_affine(call, _standardised(call, x, axes), x.ndim - 1)]


def _standardised(call: Call, x: Array, axes: Sequence[int]) -> Array:
    """Return (x - mean) / sqrt(var + eps) over ``axes``; an axis of size 1 stands for equal elements."""
    if call.known[0] is None:
        return x
    where = tuple(axes)
    centred: Array = x - np.mean(x, axis=where, keepdims=True, dtype=np.float64).astype(_working_type(x))
    var = np.mean(np.square(centred), axis=where, keepdims=True, dtype=np.float64)
    centred /= np.sqrt(var + call.node.attrs.get("eps", 1e-5)).astype(centred.dtype)
    return centred


def _working_type(x: Array) -> type[np.floating[Any]]:
    """A large array is a weight being standardised: it keeps float32, to hold memory and time down."""
    return np.float32 if x.size > TIDY_ELEMENTS and x.dtype == np.float32 else np.float64


def _affine(call: Call, normal: Array, axis: int) -> Array | None:
    gamma = call.vector(1, axis, 1.0).astype(normal.dtype)
    beta = call.vector(2, axis, 0.0).astype(normal.dtype)
    if not fits([normal, gamma, beta]):
        return None
    if not (call.has(1) or call.has(2)):
        return normal
    silent = np.abs(gamma) <= negligible(gamma)
    affine = gamma * normal + beta
    return np.where(silent, beta, affine) if silent.any() else affine


def lrn(call: Call) -> Known:
    """Zero stays zero; the divisor (LRN) or scale of anything else is made of other values."""
    return [None if call.known[0] is None else np.where(call.known[0] == 0, 0.0, np.nan)]


# --- elementwise ------------------------------------------------------------------------------------


def unary(call: Call) -> Known:
    """Apply the function to what is known. Further inputs are the bounds of a clip."""
    if call.known[0] is None or (call.node.op == "not" and call.out_dtype != "bool"):
        return [None]
    x = numeric.unary(call.node.op, call.known[0], call.node.attrs)
    for index, op in ((1, "maximum"), (2, "minimum")):
        if call.node.op == "clip" and call.has(index):
            x = numeric.binary(op, x, call.array(index), {})
    return [x]


ABSORBING = frozenset({"mul", "and", "or", "bit_and"})
"""Ops whose result one known operand can settle."""


def binary(call: Call) -> Known:
    """Apply the function where both operands are known, or where one settles the result."""
    op, attrs = call.node.op, call.node.attrs
    if call.known[0] is None and call.known[1] is None:
        return [None]
    if op in ("and", "or", "xor") and call.out_dtype != "bool":
        op = f"bit_{op}"
    if op not in ABSORBING and (call.known[0] is None or call.known[1] is None):
        return [None]
    operands = [lift(call.array(index), call.rank) for index in (0, 1)]
    if not fits(operands):
        return [None]
    if op == "div" and call.out_dtype.startswith(("int", "uint")) and "rounding" not in attrs:
        attrs = {**attrs, "rounding": "trunc"}
    return [numeric.binary(op, operands[0], operands[1], attrs)]


def prelu(call: Call) -> Known:
    """A slope with one axis lies along attribute ``axis``, or as numpy broadcasting has it."""
    x, slope = call.known[0], call.array(1)
    if x is None:
        return [None]
    axis = call.node.attrs.get("axis")
    if axis is not None and slope.ndim == 1:
        slope = along(slope, axis, call.rank)
    return [numeric.prelu(x, slope) if fits([x, slope]) else None]


def where(call: Call) -> Known:
    """A known condition chooses; else the choices must agree."""
    operands = [call.array(index) for index in range(3)]
    return [numeric.where(*operands) if fits(operands) else None]


def quantize(call: Call) -> Known:
    """round(x / scale) + zero_point, saturated, but unknown near a tie, where rounding may go either way."""
    x = call.known[0]
    if x is None or not call.out_dtype.startswith(("int", "uint")):
        return [None]
    scale, zero, limits = _scale(call), _zero_point(call), np.iinfo(call.out_dtype)
    if not fits([x, scale, zero]):
        return [None]
    exact = x / scale
    near_tie = np.abs(np.abs(exact - np.rint(exact)) - 0.5) < 1e-3
    return [np.where(near_tie, np.nan, np.clip(np.rint(exact) + zero, limits.min, limits.max))]


def dequantize(call: Call) -> Known:
    """(x - zero_point) · scale."""
    x, scale, zero = call.known[0], _scale(call), _zero_point(call)
    if x is None or not fits([x, scale, zero]):
        return [None]
    centred = np.subtract(x, zero, dtype=np.float64)
    # A weight takes eight times the file's bytes here: once must do.
    in_place = np.broadcast_shapes(centred.shape, scale.shape) == centred.shape
    return [np.multiply(centred, scale, out=centred if in_place else None)]


def _scale(call: Call) -> Array:
    return _per_channel(call, 1, 1.0)


def _zero_point(call: Call) -> Array:
    return _per_channel(call, 2, 0.0)


def _per_channel(call: Call, index: int, default: float) -> Array:
    """A scale of one element holds for the whole tensor, whatever ``axis`` says."""
    axis = call.node.attrs.get("axis", 1)
    found = call.known[index] if call.has(index) else None
    if found is not None and found.size == 1:
        return np.asarray(found, dtype=np.float64).reshape((1,) * call.rank)
    return call.vector(index, axis if axis < call.rank else 0, default)


# --- movement ---------------------------------------------------------------------------------------


def moves(call: Call) -> Known:
    """Move what is known as the op moves the elements."""
    return _moved(call, [call.array(index) for index in range(len(call.node.inputs))], np.nan)


def _moved(call: Call, arrays: Sequence[Array], fill: float) -> Known:
    if all(array is None for array in call.known) and np.isnan(fill):
        return [None]
    if any(shape is None for shape in (*call.in_shapes, *call.out_shapes)):
        return [None]
    shapes = [shape for shape in call.in_shapes if shape is not None]
    outs = [shape for shape in call.out_shapes if shape is not None]
    return MOVES[call.node.op](call.node, arrays, shapes, outs, fill) or [None]


def gather(call: Call) -> Known:
    """Move along constant indices; computed ones pick unknown elements."""
    return [None] if call.node.attrs.get("indices") is None else moves(call)


def scatter_slice(call: Call) -> Known:
    """Move what is known; where positions are overwritten, only what they held before stays uniform.

    How many positions a map has may change from input to input: what is made of them must not be counted.
    """
    axis, rank = call.node.attrs["axis"], call.rank
    if axis < 2 or any(array is None or array.ndim != rank for array in call.known):
        return moves(call)
    base, source = (uniform(call.array(index), [axis]) for index in (0, 1))
    return [np.where(base == source, base, np.nan) if fits([base, source]) else None]


def full(call: Call) -> Known:
    """One number everywhere."""
    value = call.node.attrs.get("value", 0.0)
    return [np.full((1,) * call.rank, float(value))] if np.ndim(value) == 0 and value is not None else [None]


def pad(call: Call) -> Known:
    """Along a padded axis, only a channel that equals the padding stays uniform.

    Padding of the channel axis is written out, so that each channel has its own value.
    """
    shape, pads = call.in_shapes[0], call.node.attrs["pads"]
    if shape is None:
        return [None]
    if call.node.attrs.get("mode", "constant") != "constant":
        return moves(call)
    fill = float(call.node.attrs.get("value") or 0.0)
    array, rank = np.asarray(call.array(0), dtype=np.float64), len(shape)
    changed = [axis for axis in range(rank) if pads[axis] or pads[rank + axis]]
    padded = [axis for axis in changed if max(pads[axis], pads[rank + axis]) > 0]
    for axis in changed:
        size = shape[axis]
        if array.shape[axis] == 1 and axis not in padded:
            continue  # cropped, and the same everywhere
        # A lone padded axis is likely to be the channels of a layout that has them elsewhere.
        alone = isinstance(size, int) and (axis == 1 or padded == [axis]) and array.size * size <= 1 << 16
        if array.shape[axis] == 1 and not alone:
            array = np.where(array == fill, fill, np.nan)
            continue
        length = max(array.shape[axis], size if alone and isinstance(size, int) else 1)
        array = np.broadcast_to(array, tuple(length if a == axis else s for a, s in enumerate(array.shape)))
        array = _padded_along(array, axis, pads[axis], pads[rank + axis], fill)
    return [array]


def _padded_along(array: Array, axis: int, before: int, after: int, fill: float) -> Array:
    """Pad one axis; negative numbers crop."""
    index: list[slice] = [slice(None)] * array.ndim
    index[axis] = slice(max(0, -before), array.shape[axis] - max(0, -after))
    widths = [(0, 0)] * array.ndim
    widths[axis] = (max(0, before), max(0, after))
    return np.pad(array[tuple(index)], widths, constant_values=fill)


def depth_to_space(call: Call) -> Known:
    """The block² channels that become one channel's pixels must agree, or it is not uniform."""
    x, shape, block = call.known[0], call.in_shapes[0], call.node.attrs["block"]
    if x is None or shape is None or x.ndim != 4:
        return [None]
    flat = uniform(x, others(4, 1)).ravel()
    if flat.size == 1:
        return [along(flat, 1, 4)]
    crd = call.node.attrs["mode"] == "CRD"
    pixels = flat.reshape(-1, block * block) if crd else flat.reshape(block * block, -1).T
    return [along(uniform(pixels, [1]).ravel(), 1, 4)]


def im2col(call: Call) -> Known:
    """Its padding is not visible here, so only zeros stay uniform."""
    x = call.known[0]
    if x is None:
        return [None]
    zeros = np.where(uniform(x, others(x.ndim, 1)) == 0, 0.0, np.nan)
    return _moved(call, [zeros], np.nan)


# --- channelwise over space, reductions -------------------------------------------------------------


def channelwise(call: Call) -> Known:
    """What is uniform over space stays: each window sees one value (max_pool pads with minus infinity)."""
    return [_over_space(call)]


def avg_pool(call: Call) -> Known:
    """As channelwise; zeros that count, or a divisor of its own, let only zeros through.

    In ONNX a window that sticks out by ``ceil`` may count what is not there, too: runtimes differ.
    """
    attrs = call.node.attrs
    counts = attrs.get("counts_padding") and (any(attrs.get("pads") or ()) or attrs.get("ceil"))
    plain = not counts and attrs.get("divisor_override") is None
    return [_over_space(call) if plain else _zeros(_over_space(call))]


def resize(call: Call) -> Known:
    """Interpolation keeps a uniform channel, unless it extrapolates."""
    return channelwise(call) if call.node.attrs.get("keeps_constants", True) else [None]


def sample(call: Call) -> Known:
    """Points outside the map read zeros, so only zeros stay."""
    x = call.known[0]
    return [None if x is None or x.ndim != call.rank else _zeros(uniform(x, others(x.ndim, 1)))]


def max_unpool(call: Call) -> Known:
    """What a pool took no element from is zero, so only zeros stay uniform."""
    return [_zeros(_over_space(call))]


def linear(call: Call) -> Known:
    """A linear map makes zeros of zeros; of anything else it may make anything."""
    x, axes = call.known[0], call.node.attrs["passes"]
    if x is None:
        return [None]
    mixed = others(x.ndim, *(axis for axis, _ in axes))
    return [passed(np.where(uniform(x, mixed) == 0, 0.0, np.nan), axes, call.rank)]


def _over_space(call: Call) -> Array | None:
    x = call.known[0]
    if x is None or x.ndim != call.rank:
        return None
    return uniform(x, call.node.attrs.get("spatial_axes") or range(2, x.ndim))


def _zeros(x: Array | None) -> Array | None:
    return None if x is None else np.where(x == 0, 0.0, np.nan)


def reduce(call: Call) -> Known:
    """Reduce what is known; along axes of size 1 each element stands for as many as the axis has."""
    x, shape, attrs = call.known[0], call.in_shapes[0], call.node.attrs
    if x is None or shape is None or x.size == 0 or (attrs["kind"] == "mean" and not call.out_dtype.startswith("f")):
        return [None]
    axes = tuple(attrs["axes"])
    sizes = [shape[axis] for axis in axes if x.shape[axis] == 1]
    ints = [size for size in sizes if isinstance(size, int)]
    repeats = float(math.prod(ints)) if len(ints) == len(sizes) else None
    x = np.asarray(x, dtype=np.float64)
    y = numeric.reduce(attrs["kind"], x, axes, repeats, float(attrs.get("correction", 1)))
    if y is None or attrs.get("keepdims", True):
        return [y]
    return [np.squeeze(y, axis=axes)]


CONSTANT_RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "conv": conv,
        "conv_transpose": conv_transpose,
        "matmul": matmul,
        "attention": attention,
        "rnn": nothing,
        "batch_norm": batch_norm,
        "instance_norm": instance_norm,
        "group_norm": group_norm,
        "layer_norm": layer_norm,
        "lrn": lrn,
        **dict.fromkeys(UNARY, unary),
        **dict.fromkeys(BINARY, binary),
        "prelu": prelu,
        "where": where,
        **dict.fromkeys(("reshape", "transpose", "slice", "split", "concat", "expand", "tile"), moves),
        "space_to_depth": moves,
        "scatter_slice": scatter_slice,
        "gather": gather,
        "pad": pad,
        "depth_to_space": depth_to_space,
        "im2col": im2col,
        "full": full,
        "max_pool": channelwise,
        "max_unpool": max_unpool,
        "linear": linear,
        "avg_pool": avg_pool,
        "resize": resize,
        "sample": sample,
        "quantize": quantize,
        "dequantize": dequantize,
        "dynamic_quantize": lrn,
        "reduce": reduce,
        "along": nothing,
        "arg_reduce": nothing,
        # A size is known, but pruning may change it: what is computed from it must not be folded.
        "shape_of": nothing,
        "opaque": nothing,
    }
)
