"""The table aten op -> canonical op: how one recorded call becomes IR nodes.

Owns the translation of attributes; knows nothing of torch.fx (frontends/fx/recorder.py records the calls) and
nothing of channels (passes/rules/ has the meaning of each canonical op). A call that no row matches
becomes ``opaque``, which pins what it touches. aten schemas: torch/…/native_functions.yaml.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from torch import Tensor

from prunec.frontends.fx.ops import compute, move, reduce
from prunec.frontends.fx.ops import pointwise as point
from prunec.frontends.fx.ops.call import Call, Emitter, Row, opaque, tensors_of
from prunec.ir.taught import NO_RULES, OpRules, TaughtOp, likeness, operands

NAMESPACES = ("aten", "prims", "torchvision")
"""Whose ops the table means: a user's own op may be called like one of them and do something else."""


def translate(call: Call, to: Emitter, rules: OpRules = NO_RULES) -> None:
    """Emit the IR nodes of one recorded call.

    Args:
        rules: ops that the user teaches; they go before the table.

    Raises:
        BadInput: a rule cannot be used.
    """
    tensors = tensors_of(call)
    if rules:
        attrs = {name: value for name, value in call.args.items() if not isinstance(value, Tensor)}
        shapes = [tuple(tuple(tensor.shape) for tensor in group) for group in (tensors, call.results)]
        op = TaughtOp(call.qualified, shapes[0], shapes[1], attrs)
        found = likeness(rules, op)
        if found is not None:
            to.emit(found.op, [tensors[at] for at in operands(found, op)], call.results[:1], **found.attrs)
            return
    row = ATEN.get(call.name, opaque) if call.qualified.partition("::")[0] in NAMESPACES else opaque
    row(call, to)


_SAME_NAME = (
    "relu", "sigmoid", "tanh", "exp", "expm1", "log", "log1p", "sqrt", "rsqrt", "square", "abs", "neg", "reciprocal",
    "sign", "floor", "ceil", "round", "erf", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "asinh",
    "acosh", "atanh", "silu", "mish", "selu", "log_sigmoid",
)  # fmt: skip

_RESIZES = (
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact1d",
    "_upsample_nearest_exact2d", "_upsample_nearest_exact3d", "upsample_linear1d", "upsample_bilinear2d",
    "upsample_trilinear3d", "upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa",
)  # fmt: skip

_ATTENTIONS = (
    "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention", "scaled_dot_product_attention",
    "_scaled_dot_product_attention_math", "_scaled_dot_product_fused_attention_overrideable",
)  # fmt: skip

_BATCH_NORMS = (
    "native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm", "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training", "_batch_norm_no_update", "_batch_norm_with_update", "batch_norm",
)  # fmt: skip

_VIEWS = (
    "view", "_unsafe_view", "reshape", "_reshape_alias", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as",
    "reshape_as",
)  # fmt: skip

_SOURCES = ("arange", "linspace", "rand", "randn", "rand_like", "randn_like", "eye")

ATEN: Mapping[str, Row] = MappingProxyType(
    {
        "convolution": compute.convolution,
        "addmm": compute.addmm,
        "baddbmm": compute.addmm,
        **dict.fromkeys(("mm", "bmm", "matmul", "mv", "dot", "vdot"), compute.mm),
        "linear": compute.linear,
        **dict.fromkeys(_ATTENTIONS, compute.attention),
        **dict.fromkeys(_BATCH_NORMS, compute.batch_norm),
        "native_layer_norm": compute.layer_norm,
        "native_group_norm": compute.group_norm,
        **dict.fromkeys(("_weight_norm_interface", "_weight_norm"), compute.weight_norm),
        **{name: point.unary(name) for name in _SAME_NAME},
        "log_sigmoid_forward": point.unary("log_sigmoid"),
        "leaky_relu": point.unary("leaky_relu", alpha="negative_slope"),
        "gelu": point.unary("gelu", approximate="approximate"),
        "hardsigmoid": point.unary("hard_sigmoid"),
        "hardswish": point.unary("hard_swish"),
        "celu": point.unary("celu", alpha="alpha"),
        "softplus": point.unary("softplus", beta="beta", threshold="threshold"),
        "softsign": point.unary("softsign"),
        "hardshrink": point.unary("hard_shrink", lambd="lambd"),
        "softshrink": point.unary("soft_shrink", lambd="lambd"),
        "threshold": point.unary("threshold", threshold="threshold", value="value"),
        "logical_not": point.unary("not"),
        "bitwise_not": point.unary("not"),
        "isnan": point.unary("is_nan"),
        "isinf": point.unary("is_inf"),
        "elu": point.elu,
        "_prelu_kernel": point.prelu,
        "hardtanh": point.hardtanh,
        **dict.fromkeys(("clamp", "clamp_min", "clamp_max", "clip"), point.clamp),
        **dict.fromkeys(
            (
                "clone",
                "detach",
                "alias",
                "contiguous",
                "lift_fresh_copy",
                "lift_fresh",
                "dropout",
                "resolve_conj",
                "resolve_neg",
            ),
            point.unary("identity"),
        ),
        "native_dropout": point.unary("identity"),
        **dict.fromkeys(("_to_copy", "to"), point.cast),
        "copy": point.copy,
        **{name: point.binary(name) for name in ("add", "sub", "mul", "div", "pow", "maximum", "minimum", "atan2")},
        "rsub": point.binary("rsub"),
        "floor_divide": point.binary("floor_div"),
        "remainder": point.binary("mod"),
        "eq": point.binary("equal"),
        "ne": point.binary("not_equal"),
        "lt": point.binary("less"),
        "le": point.binary("less_equal"),
        "gt": point.binary("greater"),
        "ge": point.binary("greater_equal"),
        **dict.fromkeys(("logical_and", "bitwise_and"), point.binary("and")),
        **dict.fromkeys(("logical_or", "bitwise_or"), point.binary("or")),
        **dict.fromkeys(("logical_xor", "bitwise_xor"), point.binary("xor")),
        "where": point.where,
        "masked_fill": point.masked_fill,
        "glu": point.glu,
        "addcmul": point.addc("mul"),
        "addcdiv": point.addc("div"),
        **dict.fromkeys(_VIEWS, move.reshape),
        **dict.fromkeys(("permute", "transpose", "t", "numpy_T", "swapaxes"), move.permute),
        "slice": move.slice_axis,
        "select": move.select,
        **dict.fromkeys(
            ("split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split", "unsafe_chunk"), move.split
        ),
        "unbind": move.unbind,
        **dict.fromkeys(("cat", "concat"), move.cat),
        "stack": move.stack,
        "constant_pad_nd": move.pad("constant"),
        **{f"reflection_pad{n}d": move.pad("reflect") for n in (1, 2, 3)},
        **{f"replication_pad{n}d": move.pad("edge") for n in (1, 2, 3)},
        **dict.fromkeys(("expand", "expand_as", "broadcast_to"), move.expand),
        "repeat": move.repeat,
        "pixel_shuffle": move.pixel_shuffle,
        "pixel_unshuffle": move.pixel_unshuffle,
        **dict.fromkeys(("channel_shuffle", "native_channel_shuffle"), move.channel_shuffle),
        "flip": move.flip,
        "roll": move.roll,
        "index_select": move.index_select,
        "index": move.index,
        **dict.fromkeys(("index_put", "_unsafe_index_put"), move.index_put),
        "im2col": move.im2col,
        "slice_scatter": move.slice_scatter,
        "select_scatter": move.select_scatter,
        "unfold": move.unfold,
        **dict.fromkeys(("zeros", "zeros_like", "new_zeros", "zero"), move.full(0.0)),
        **dict.fromkeys(("ones", "ones_like", "new_ones"), move.full(1.0)),
        **dict.fromkeys(("full", "full_like", "new_full", "fill", "scalar_tensor"), move.full(None)),
        **dict.fromkeys(_SOURCES, move.made),
        **dict.fromkeys(("empty", "empty_like", "new_empty"), move.empty),
        **{f"max_pool{n}d": compute.max_pool(n) for n in (1, 2, 3)},
        **{f"max_pool{n}d_with_indices": compute.max_pool(n) for n in (1, 2, 3)},
        **{f"max_unpool{n}d": compute.max_unpool(n) for n in (2, 3)},
        **{f"avg_pool{n}d": compute.avg_pool(n) for n in (1, 2, 3)},
        **{f"_adaptive_avg_pool{n}d": compute.adaptive_pool("avg_pool", n) for n in (1, 2, 3)},
        **{f"adaptive_avg_pool{n}d": compute.adaptive_pool("avg_pool", n) for n in (1, 2, 3)},
        **{f"adaptive_max_pool{n}d": compute.adaptive_pool("max_pool", n) for n in (1, 2, 3)},
        **dict.fromkeys(_RESIZES, compute.resize),
        "deform_conv2d": compute.deform_conv,
        **dict.fromkeys(("grid_sampler_2d", "grid_sampler_3d", "grid_sampler", "roi_align"), compute.sample),
        **{name: reduce.reduce(name) for name in ("mean", "sum", "max", "min", "prod", "logsumexp", "any", "all")},
        **dict.fromkeys(("_fft_r2c", "_fft_c2c", "_fft_c2r"), compute.fourier),
        **dict.fromkeys(
            ("view_as_real", "view_as_complex", "_conj", "_conj_physical", "conj_physical"), compute.linear_in_place
        ),
        "complex": compute.complex_parts,
        "amax": reduce.reduce("max"),
        "amin": reduce.reduce("min"),
        "var_mean": reduce.var_mean,
        "var": reduce.var("var"),
        "std": reduce.var("std"),
        **dict.fromkeys(("linalg_vector_norm", "norm"), reduce.vector_norm),
        **dict.fromkeys(("_softmax", "softmax", "_safe_softmax"), reduce.along("softmax")),
        **dict.fromkeys(("_log_softmax", "log_softmax"), reduce.along("log_softmax")),
        **{name: reduce.along(name) for name in ("cumsum", "cumprod", "sort", "argsort", "logcumsumexp", "topk")},
        "argmax": reduce.arg_reduce("argmax"),
        "argmin": reduce.arg_reduce("argmin"),
    }
)
