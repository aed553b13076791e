"""Convolutions, matrix products, pools and normalisations: ONNX -> canonical ops.

Each function is one row of the table in table.py. References: the ONNX operator specification, by
opset where a form changed, and ONNX Runtime's ContribOperators.md for com.microsoft.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

from prunec.errors import BadInput
from prunec.frontends.onnx.ops.draft import INNER, Draft, inner, literal, one, opaque, set_shape
from prunec.frontends.onnx.sizes.view import View, at, positive
from prunec.ir.graph import Dim

PACKED_HEADS = "attention with its heads packed in one axis, or with a cache, is not followed"


# --- convolutions and pools -------------------------------------------------------------------------


def window(view: View, kernel: Sequence[Dim]) -> dict[str, Any]:
    """Return strides, dilations and pads (begin..., end...) of a sliding window.

    SAME padding that depends on an open size is given as 1 everywhere, and ``auto_pad`` names it:
    what matters is that there is some.
    """
    count = len(kernel)
    strides = view.attrs.get("strides") or [1] * count
    dilations = view.attrs.get("dilations") or [1] * count
    mode = view.attrs.get("auto_pad", "NOTSET")
    if not len(strides) == len(dilations) == count or len(view.attrs.get("pads") or [0] * 2 * count) != 2 * count:
        raise BadInput(
            f"node {view.node.name!r} ({view.op}) has a window of {count} axes, "
            f"strides {strides}, dilations {dilations} and pads {view.attrs.get('pads')}",
            why="these must be one (pads: two) per axis",
        )
    settings = {"strides": list(strides), "dilations": list(dilations)}
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        return {
            **settings,
            "pads": list(view.attrs.get("pads") or [0] * 2 * count) if mode != "VALID" else [0] * 2 * count,
        }
    begin, end = [], []
    for axis, (size, stride, dilation) in enumerate(zip(kernel, strides, dilations, strict=True)):
        extent = at(view.shape(0), 2 + axis)
        total = _same_padding(extent, size, stride, dilation, view.facts.fixed_sizes)
        half = total // 2
        begin.append(half if mode == "SAME_UPPER" else total - half)
        end.append(total - half if mode == "SAME_UPPER" else half)
    return {**settings, "pads": begin + end, "auto_pad": mode}


def _same_padding(extent: Dim, kernel: Dim, stride: int, dilation: int, fixed: bool) -> int:
    """Return how much SAME pads one axis; 2 (some on both sides) where that depends on an open size."""
    if not isinstance(kernel, int):
        return 2
    reach = (kernel - 1) * dilation + 1
    if stride == 1 or reach == 1:
        return reach - 1
    if not isinstance(extent, int) or not fixed:
        return 2
    return max((-(-extent // stride) - 1) * stride + reach - extent, 0)


def conv(view: View) -> Sequence[Draft]:
    """Conv; the bias is input 2."""
    weight = view.shape(1)
    if weight is None or len(weight) < 3:
        return opaque(view, "the rank of its weight is not known")
    kernel = view.attrs.get("kernel_shape") or weight[2:]
    set_shape(view, 0, (None, weight[0], *(None for _ in kernel)))
    return one(view, "conv", (0, 1, 2), **window(view, kernel), conv_groups=view.attrs.get("group", 1))


def deform_conv(view: View) -> Sequence[Draft]:
    """DeformConv: maps sampled for each tap at computed offsets, which a convolution reads; beside them are zeros."""
    shape, weight = view.shape(0), view.shape(1)
    if shape is None or weight is None or len(shape) != len(weight):
        return opaque(view, "the rank of its input or its weight is not known")
    count = len(weight) - 2
    set_shape(view, 0, (shape[0], weight[0], *[None] * count))
    sampled = inner(view, "sampled", (*shape[:2], *[None] * count))
    slots = (0, 2, 4) if view.has(4) else (0, 2)
    settings = {"strides": [1] * count, "pads": [0] * 2 * count, "dilations": [1] * count}
    operands, places = [sampled, view.inputs[1]], [-1, 1]
    if view.has(3):
        operands, places = [*operands, view.inputs[3]], [*places, 3]
    groups, grids = view.attrs.get("group", 1), view.attrs.get("offset_group", 1)
    sampling = {"groups": grids} if grids != 1 else {}
    return [
        Draft("sample", tuple(view.inputs[slot] for slot in slots), (sampled,), sampling, slots),
        Draft("conv", tuple(operands), view.outputs, {**settings, "conv_groups": groups}, tuple(places)),
    ]


def conv_transpose(view: View) -> Sequence[Draft]:
    """ConvTranspose; where ``output_shape`` rules, the pads that follow from it only crop."""
    weight, groups = view.shape(1), view.attrs.get("group", 1)
    if weight is None or len(weight) < 3:
        return opaque(view, "the rank of its weight is not known")
    kernel = view.attrs.get("kernel_shape") or weight[2:]
    out = weight[1] * groups if isinstance(weight[1], int) else None
    set_shape(view, 0, (None, out, *(None for _ in kernel)))
    settings = window(view, kernel)
    padding = list(view.attrs.get("output_padding") or [0] * len(kernel))
    return one(view, "conv_transpose", (0, 1, 2), **settings, output_padding=padding, conv_groups=groups)


def fused_conv(view: View) -> Sequence[Draft]:
    """com.microsoft FusedConv: activation(conv(x, w, b) + z)."""
    kind = view.attrs.get("activation", "")
    if kind not in _FUSED_ACTIVATIONS:
        return opaque(view, f"its activation {kind!r} is not known")
    drafts = list(conv(view))
    if drafts[0].op != "conv":
        return drafts
    shape = view.out_shape()
    value = inner(view, "conv", shape)
    drafts = [drafts[0]._replace(outputs=(value,))]
    if view.has(3):
        total = inner(view, "sum", shape)
        drafts.append(Draft("add", (value, view.inputs[3]), (total,), INNER, (-1, 3)))
        value = total
    return [*drafts, fused_activation(view, kind, value)]


def fused_activation(view: View, kind: str, value: str) -> Draft:
    """Return the activation that a fused op ends with."""
    op, names = _FUSED_ACTIVATIONS[kind]
    given = view.attrs.get("activation_params") or []
    return Draft(op, (value,), view.outputs, dict(zip(names, given, strict=False)), (-1,))


_FUSED_ACTIVATIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "": ("identity", ()),
    "Relu": ("relu", ()),
    "Tanh": ("tanh", ()),
    "Sigmoid": ("sigmoid", ()),
    "LeakyRelu": ("leaky_relu", ("alpha",)),
    "Clip": ("clip", ("min", "max")),
    "HardSigmoid": ("hard_sigmoid", ("alpha", "beta")),
}


def average_pool(view: View) -> Sequence[Draft]:
    """AveragePool."""
    settings = window(view, view.attrs["kernel_shape"])
    return one(
        view,
        "avg_pool",
        **settings,
        kernel=view.attrs["kernel_shape"],
        ceil=bool(view.attrs.get("ceil_mode", 0)),
        counts_padding=bool(view.attrs.get("count_include_pad", 0)),
    )


def global_pool(kind: str) -> Any:
    """Return the translation of a pool over everything but batch and channels."""

    def translate(view: View) -> Sequence[Draft]:
        rank = view.rank()
        chosen = {1: "l1", 2: "l2"}.get(view.attrs.get("p", 2), "") if kind == "lp" else kind
        if rank is None or not chosen:
            return opaque(view, "the rank of its input is not known" if chosen else "its norm is neither L1 nor L2")
        return one(view, "reduce", kind=chosen, axes=list(range(2, rank)), keepdims=True)

    return translate


def sample(view: View) -> Sequence[Draft]:
    """Pools and samplings whose places come from elsewhere: each output channel reads its own input channel."""
    return one(view, "sample", tuple(range(len(view.inputs))))


# --- matrix products --------------------------------------------------------------------------------


def gemm(view: View) -> Sequence[Draft]:
    """Gemm: alpha·A·B + beta·C; the factors are ops of their own where they are not 1."""
    flags = _transposes(view, "transA", "transB")
    if all(view.attrs.get(name, 1.0) == 1.0 for name in ("alpha", "beta")):
        return one(view, "matmul", (0, 1, 2), **flags)
    shape = view.out_shape()
    product, scaled = inner(view, "product", shape), inner(view, "scaled", shape)
    alpha = literal(view, "alpha", view.attrs.get("alpha", 1.0))
    drafts = [
        Draft("matmul", view.inputs[:2], (product,), dict(flags), (0, 1)),
        Draft("mul", (product, alpha), (scaled,), INNER, (-1, -1)),
    ]
    if not view.has(2):
        return [drafts[0], drafts[1]._replace(outputs=view.outputs)]
    bias, beta = inner(view, "bias", view.shape(2)), literal(view, "beta", view.attrs.get("beta", 1.0))
    drafts.append(Draft("mul", (view.inputs[2], beta), (bias,), INNER, (2, -1)))
    return [*drafts, Draft("add", (scaled, bias), view.outputs, INNER, (-1, -1))]


def _transposes(view: View, a: str, b: str) -> dict[str, bool]:
    return {"transpose_a": bool(view.attrs.get(a, 0)), "transpose_b": bool(view.attrs.get(b, 0))}


def matmul(view: View) -> Sequence[Draft]:
    """MatMul: numpy's."""
    return one(view, "matmul", (0, 1), transpose_a=False, transpose_b=False)


def fused_matmul(view: View) -> Sequence[Draft]:
    """com.microsoft FusedMatMul (TransposeMatMul before)."""
    if view.attrs.get("transBatchA", 0) or view.attrs.get("transBatchB", 0):
        return opaque(view, "it transposes batch axes")
    flags = _transposes(view, "transA", "transB")
    if view.attrs.get("alpha", 1.0) == 1.0:
        return one(view, "matmul", (0, 1), **flags)
    product = inner(view, "product", view.out_shape())
    scale = Draft("mul", (product, literal(view, "alpha", view.attrs["alpha"])), view.outputs, INNER, (-1, -1))
    return [Draft("matmul", view.inputs[:2], (product,), dict(flags), (0, 1)), scale]


def fused_gemm(view: View) -> Sequence[Draft]:
    """com.microsoft FusedGemm: activation(gemm)."""
    kind = view.attrs.get("activation", "")
    if kind not in _FUSED_ACTIVATIONS or kind in ("Clip", "HardSigmoid"):
        return opaque(view, f"its activation {kind!r} is not known")
    product = gemm(view)
    value = inner(view, "gemm", view.out_shape())
    given = {"alpha": view.attrs["activation_alpha"]} if "activation_alpha" in view.attrs else {}
    activation = Draft(_FUSED_ACTIVATIONS[kind][0], (value,), view.outputs, given, (-1,))
    return [*product[:-1], product[-1]._replace(outputs=(value,)), activation]


def einsum(view: View) -> Sequence[Draft]:
    """Einsum: a permutation, or a product over one letter with at most one free letter on each side."""
    equation = view.attrs.get("equation", "").replace(" ", "")
    ins, arrow, out = _without_dots(view, equation).partition("->")
    terms = ins.split(",")
    plain = arrow and all(
        set(term) <= set(string.ascii_letters) and len(set(term)) == len(term) for term in (*terms, out)
    )
    if plain and len(terms) == 1 and sorted(terms[0]) == sorted(out):
        return one(view, "transpose", perm=[terms[0].index(letter) for letter in out])
    reason = f"the product {equation!r} is not one that prunec takes apart"
    if not plain or len(terms) != 2:
        return opaque(view, reason)
    a, b = terms
    slots = (0, 1)
    if sum(letter not in b for letter in a) < sum(letter not in a for letter in b):
        (a, b), slots = (b, a), (1, 0)
    batch = [letter for letter in out if letter in a and letter in b]
    summed = [letter for letter in a if letter in b and letter not in out]
    free_a = [letter for letter in a if letter not in b]
    free_b = [letter for letter in b if letter not in a]
    whole = set(out) == set(batch + free_a + free_b)
    # Several free letters of one operand are a stack of matrices, if the other is a single one.
    if len(summed) != 1 or len(free_b) != 1 or not whole or (len(free_a) != 1 if batch else not free_a):
        return opaque(view, reason)
    shapes = [view.shape(0), view.shape(1)]
    if any(shape is None or len(shape) != len(term) for shape, term in zip(shapes, terms, strict=True)):
        return opaque(view, reason)
    sizes: dict[str, Dim] = {}
    for term, shape in zip(terms, shapes, strict=True):
        sizes.update(zip(term, shape or (), strict=True))
    drafts: list[Draft] = []
    left = _permuted(view, drafts, slots[0], a, [*batch, *free_a, *summed], sizes)
    right = _permuted(view, drafts, slots[1], b, [*batch, *summed, *free_b], sizes)
    order = [*batch, *free_a, *free_b]
    product = (
        view.outputs[0] if order == list(out) else inner(view, "product", tuple(sizes[letter] for letter in order))
    )
    read = tuple(slot if name in view.inputs else -1 for slot, name in zip(slots, (left, right), strict=True))
    drafts.append(Draft("matmul", (left, right), (product,), {"transpose_a": False, "transpose_b": False}, read))
    if product != view.outputs[0]:
        perm = [order.index(letter) for letter in out]
        drafts.append(Draft("transpose", (product,), view.outputs, {"perm": perm}, (-1,)))
    return drafts


def _without_dots(view: View, equation: str) -> str:
    """Return an equation with letters in the place of "...", if one operand has it; what is spread stays as it is."""
    terms = equation.partition("->")[0].split(",")
    dotted = [slot for slot, term in enumerate(terms) if "..." in term]
    rank = view.rank(dotted[0]) if len(dotted) == 1 else None
    if rank is None:
        return equation
    free = [letter for letter in string.ascii_letters if letter not in equation]
    return equation.replace("...", "".join(free[: rank - len(terms[dotted[0]].replace("...", ""))]))


def _permuted(view: View, drafts: list[Draft], slot: int, term: str, order: list[str], sizes: dict[str, Dim]) -> str:
    """Transpose one operand to ``order`` where it is not in it."""
    if list(term) == order:
        return view.inputs[slot]
    value = inner(view, f"operand{slot}", tuple(sizes[letter] for letter in order))
    perm = [term.index(letter) for letter in order]
    drafts.append(Draft("transpose", (view.inputs[slot],), (value,), {"perm": perm}, (slot,)))
    return value


def rnn(view: View) -> Sequence[Draft]:
    """RNN, GRU, LSTM: x[..., I] is read by W[dirs, gates·H, I]."""
    return one(view, "rnn", tuple(range(len(view.inputs))))


def attention(view: View) -> Sequence[Draft]:
    """Attention (opset 23) on separate heads, q[B, heads, L, D]."""
    ranks = [view.rank(slot) for slot in range(3)]
    same_heads = at(view.shape(0), 1) == at(view.shape(1), 1)
    if ranks != [4, 4, 4] or not same_heads or len(view.inputs) > 4 or len(view.outputs) > 1:
        return opaque(view, PACKED_HEADS)
    return one(view, "attention", (0, 1, 2, 3))


# --- normalisation ----------------------------------------------------------------------------------


def batch_norm(view: View) -> Sequence[Draft]:
    """BatchNormalization; opset 7 and 8 also have a form with statistics per position (spatial = 0)."""
    if view.attrs.get("spatial", 1) == 0:
        return opaque(view, "its statistics are per position (spatial = 0)")
    if len(view.outputs) > 1:
        return opaque(view, "it updates its running statistics (a training graph)")
    training = bool(view.attrs.get("training_mode", 0))
    return one(view, "batch_norm", (0, 1, 2, 3, 4), axis=1, eps=view.attrs.get("epsilon", 1e-5), training=training)


def instance_norm(view: View) -> Sequence[Draft]:
    """InstanceNormalization."""
    return one(view, "instance_norm", (0, 1, 2), axis=1, eps=view.attrs.get("epsilon", 1e-5))


def group_norm(view: View) -> Sequence[Draft]:
    """GroupNormalization: gamma and beta per channel from opset 21 on, per group before."""
    groups = view.attrs.get("num_groups", 1)
    if view.node.version < 21 and at(view.shape(0), 1) != groups:
        return opaque(view, "GroupNorm averages over the channels of a group")
    return one(view, "group_norm", (0, 1, 2), axis=1, num_groups=groups, eps=view.attrs.get("epsilon", 1e-5))


def layer_norm(view: View) -> Sequence[Draft]:
    """LayerNormalization over the last axes."""
    rank, axis = view.rank(), view.axis(-1)
    if rank is None or axis is None:
        return opaque(view, "the rank of its input is not known")
    return one(view, "layer_norm", (0, 1, 2), axes=list(range(axis, rank)), eps=view.attrs.get("epsilon", 1e-5))


def mean_variance_norm(view: View) -> Sequence[Draft]:
    """MeanVarianceNormalization: over batch and space by default, as an untrained batch norm."""
    axes = [positive(axis, view.rank()) for axis in view.attrs.get("axes", [0, 2, 3])]
    if view.rank() is None or any(axis is None for axis in axes):
        return opaque(view, "the rank of its input is not known")
    return one(view, "along", kind="mean_variance_norm", axes=axes)


def local_response_norm(view: View) -> Sequence[Draft]:
    """LRN across channels."""
    return one(view, "lrn", axis=1)
