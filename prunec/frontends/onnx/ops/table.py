"""The table: ONNX op type (and domain) -> canonical ops. Read it top to bottom: this is what prunec reads.

To teach prunec an ONNX op, give it a row here; opset differences live in the row's function. An op in
no row is ``opaque``: it pins what it touches, by name, and is never guessed at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from prunec.frontends.onnx.ops import compute, move, quantised, sequences, unpool
from prunec.frontends.onnx.ops import pointwise as point
from prunec.frontends.onnx.ops.draft import Draft, Translate, one, opaque, refuse
from prunec.frontends.onnx.sizes.view import View
from prunec.ir.graph import Value
from prunec.ir.taught import NO_RULES, OpRules, TaughtOp, likeness, operands, shape_of

BODY = "it runs a graph of its own, which prunec does not enter"
BY_VALUE = "what it selects depends on the values"
RANDOM = "its values are random"

ONNX: Mapping[str, Translate] = MappingProxyType(
    {
        # contractions
        "Conv": compute.conv,
        "ConvTranspose": compute.conv_transpose,
        "Gemm": compute.gemm,
        "MatMul": compute.matmul,
        "Einsum": compute.einsum,
        "Attention": compute.attention,
        **dict.fromkeys(("RNN", "GRU", "LSTM"), compute.rnn),
        # normalisation
        "BatchNormalization": compute.batch_norm,
        "InstanceNormalization": compute.instance_norm,
        "GroupNormalization": compute.group_norm,
        "LayerNormalization": compute.layer_norm,
        "MeanVarianceNormalization": compute.mean_variance_norm,
        "LRN": compute.local_response_norm,
        "LpNormalization": point.along("lp_norm", -1),
        **dict.fromkeys(
            ("RMSNormalization", "SimplifiedLayerNormalization"), refuse("RMSNormalization averages over its channels")
        ),
        # elementwise
        **{name: point.unary(canonical) for name, canonical in point.UNARY_NAMES.items()},
        "LeakyRelu": point.unary("leaky_relu", alpha=0.01),
        "Elu": point.unary("elu", alpha=1.0),
        "Celu": point.unary("celu", alpha=1.0),
        "Selu": point.unary("selu", alpha=1.6732632423543772, gamma=1.0507009873554805),
        "Gelu": point.unary("gelu", approximate="none"),
        "Swish": point.unary("silu", alpha=1.0),
        "HardSigmoid": point.unary("hard_sigmoid", alpha=0.2, beta=0.5),
        "HardSwish": point.unary("hard_swish"),
        "ThresholdedRelu": point.unary("thresholded_relu", alpha=1.0),
        "Shrink": point.shrink,
        "IsNaN": point.unary("is_nan"),
        "IsInf": point.unary("is_inf"),
        "Clip": point.clip,
        **dict.fromkeys(("Cast", "CastLike"), point.cast),
        "Dropout": point.dropout,
        "PRelu": point.binary("prelu"),
        "Add": point.binary("add"),
        "Sub": point.binary("sub"),
        "Mul": point.binary("mul"),
        "Div": point.divide,
        "Pow": point.binary("pow"),
        "Mod": point.modulo,
        "BitShift": point.bit_shift,
        "Equal": point.binary("equal"),
        "Less": point.binary("less"),
        "LessOrEqual": point.binary("less_equal"),
        "Greater": point.binary("greater"),
        "GreaterOrEqual": point.binary("greater_equal"),
        **dict.fromkeys(("And", "BitwiseAnd"), point.binary("and")),
        **dict.fromkeys(("Or", "BitwiseOr"), point.binary("or")),
        **dict.fromkeys(("Xor", "BitwiseXor"), point.binary("xor")),
        "BitwiseNot": point.unary("not"),
        "Where": point.where,
        "Sum": point.variadic("add"),
        "Mean": point.variadic("add", mean=True),
        "Max": point.variadic("maximum"),
        "Min": point.variadic("minimum"),
        # movement
        **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), move.reshape),
        "Transpose": move.transpose,
        "Slice": move.slice_,
        "Split": move.split,
        "Concat": move.concat,
        "Gather": move.gather,
        "ScatterND": move.scatter_nd,
        "Pad": move.pad,
        "Expand": move.expand,
        "Tile": move.tile,
        "DepthToSpace": move.depth_to_space,
        "SpaceToDepth": move.space_to_depth,
        "ConstantOfShape": move.constant_of_shape,
        "SplitToSequence": sequences.split_to_sequence,
        "SequenceAt": sequences.sequence_at,
        "TopK": move.top_k,
        # channelwise over space
        "MaxPool": unpool.max_pool,
        "AveragePool": compute.average_pool,
        "GlobalAveragePool": compute.global_pool("mean"),
        "GlobalMaxPool": compute.global_pool("max"),
        "GlobalLpPool": compute.global_pool("lp"),
        **dict.fromkeys(("LpPool", "GridSample", "RoiAlign", "MaxRoiPool"), compute.sample),
        **dict.fromkeys(("Resize", "Upsample"), move.resize),
        # reductions and their like
        "ReduceMean": point.reduce("mean"),
        "ReduceSum": point.reduce("sum"),
        "ReduceMax": point.reduce("max"),
        "ReduceMin": point.reduce("min"),
        "ReduceProd": point.reduce("prod"),
        "ReduceL1": point.reduce("l1"),
        "ReduceL2": point.reduce("l2"),
        "ReduceLogSumExp": point.reduce("logsumexp"),
        "ReduceSumSquare": point.reduce("sum", before="square"),
        "ReduceLogSum": point.reduce("sum", after="log"),
        "ArgMax": point.arg_reduce("argmax"),
        "ArgMin": point.arg_reduce("argmin"),
        "Softmax": point.along("softmax", -1, flat_before=13),
        "LogSoftmax": point.along("log_softmax", -1, flat_before=13),
        "Hardmax": point.along("hardmax", -1, flat_before=13),
        "CumSum": point.cumulative("cumsum"),
        "CumProd": point.cumulative("cumprod"),
        "Trilu": point.triangle,
        **dict.fromkeys(("Shape", "Size"), lambda view: one(view, "shape_of")),
        # quantisation
        "QuantizeLinear": quantised.quantize("quantize"),
        "DequantizeLinear": quantised.quantize("dequantize"),
        "DynamicQuantizeLinear": quantised.dynamic_quantize,
        "QLinearConv": quantised.qlinear_conv,
        "QLinearMatMul": quantised.qlinear_matmul,
        "ConvInteger": quantised.conv_integer,
        "MatMulInteger": quantised.matmul_integer,
        # experimental ops that exporters of 2017 and 2018 wrote
        "Crop": move.crop,
        "Affine": point.affine,
        "ScaledTanh": point.scaled_tanh,
        "ImageScaler": refuse("it adds a bias per channel that the node itself holds"),
        # known, and refused
        **dict.fromkeys(("If", "Loop", "Scan", "SequenceMap"), refuse(BODY)),
        **dict.fromkeys(
            ("NonMaxSuppression", "NonZero", "Unique", "Compress", "OneHot", "GatherElements", "GatherND",
             "Scatter", "ScatterElements", "TensorScatter", "ReverseSequence"),
            refuse(BY_VALUE),
        ),
        **dict.fromkeys(
            ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial"),
            refuse(RANDOM),
        ),
        **dict.fromkeys(
            ("SequenceConstruct", "SequenceEmpty", "SequenceInsert", "SequenceErase", "SequenceLength",
             "ConcatFromSequence", "Optional", "OptionalGetElement", "OptionalHasElement"),
            refuse(sequences.SEQUENCE),
        ),
        **dict.fromkeys(("Range", "CenterCropPad"), refuse("the shape of its result is computed")),
        **dict.fromkeys(("STFT", "DFT"), refuse("a Fourier transform mixes positions")),
        "MaxUnpool": unpool.max_unpool,
        "Col2Im": refuse("it adds up blocks that overlap"),
        "DeformConv": compute.deform_conv,
    }
)  # fmt: skip

MICROSOFT: Mapping[str, Translate] = MappingProxyType(
    {
        "FusedConv": compute.fused_conv,
        "FusedGemm": compute.fused_gemm,
        **dict.fromkeys(("FusedMatMul", "TransposeMatMul"), compute.fused_matmul),
        "Gelu": point.unary("gelu", approximate="none"),
        "FastGelu": point.biased("gelu", approximate="tanh"),
        "BiasGelu": point.biased("gelu", approximate="none"),
        "QuickGelu": point.unary("silu", alpha=1.702),
        "Pad": move.pad,
        "GridSample": compute.sample,
        **dict.fromkeys(
            ("SkipLayerNormalization", "SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization"),
            refuse("it averages over its channels"),
        ),
        "BiasSoftmax": refuse("softmax mixes its channels"),
        **dict.fromkeys(
            ("Attention", "MultiHeadAttention", "GroupQueryAttention", "QAttention", "PackedMultiHeadAttention"),
            refuse(compute.PACKED_HEADS),
        ),
        **dict.fromkeys(("MatMulNBits", "GatherBlockQuantized"), refuse("its weight is packed")),
        # quantisation
        "QuantizeLinear": quantised.quantize("quantize"),
        "DequantizeLinear": quantised.quantize("dequantize"),
        "QLinearConv": quantised.qlinear_conv,
        "QGemm": quantised.qgemm,
        "MatMulIntegerToFloat": quantised.scaled_product,
        "DynamicQuantizeMatMul": quantised.dynamic_product,
        "QLinearAdd": quantised.binary("add"),
        "QLinearMul": quantised.binary("mul"),
        "QLinearConcat": quantised.concat,
        "QLinearLeakyRelu": quantised.between(point.unary("leaky_relu", alpha=0.01)),
        "QLinearSigmoid": quantised.between(point.unary("sigmoid")),
        "QLinearSoftmax": quantised.softmax,
        "QLinearAveragePool": quantised.between(compute.average_pool),
        "QLinearGlobalAveragePool": quantised.between(compute.global_pool("mean")),
        "QLinearReduceMean": quantised.reduce_mean,
    }
)  # fmt: skip

TABLES: Mapping[str, Mapping[str, Translate]] = MappingProxyType({"": ONNX, "com.microsoft": MICROSOFT})


def taught_op(view: View) -> TaughtOp:
    """Return a node as a user's rule sees it."""
    inputs = tuple(view.shape(index) for index in range(len(view.inputs)))
    outputs = tuple(view.out_shape(index) for index in range(len(view.outputs)))
    return TaughtOp(f"{view.node.domain or 'ai.onnx'}::{view.op}", inputs, outputs, dict(view.attrs))


def teach_shape(view: View, rules: OpRules) -> bool:
    """Record the shape that a rule gives a result whose shape nothing else tells; tell whether one was recorded."""
    if not rules or not view.outputs or view.out_shape() is not None:
        return False
    op = taught_op(view)
    found = likeness(rules, op)
    shape = None if found is None else shape_of(found, op)
    if shape is None:
        return False
    first = view.facts.values.get(view.inputs[0]) if view.inputs else None
    view.facts.values[view.outputs[0]] = Value(view.outputs[0], shape, first.dtype if first is not None else "float32")
    return True


def translate(view: View, rules: OpRules = NO_RULES) -> Sequence[Draft]:
    """Return the IR nodes of one ONNX node.

    Args:
        rules: ops that the user teaches; they go before the table.

    Raises:
        BadInput: a rule cannot be used.
    """
    if rules:
        op = taught_op(view)
        found = likeness(rules, op)
        if found is not None:
            draft = one(view, found.op, operands(found, op), **found.attrs)[0]
            return [draft._replace(outputs=view.outputs[:1])]
    rule = TABLES.get(view.node.domain, {}).get(view.op)
    if rule is not None:
        return rule(view)
    if view.node.domain:
        return opaque(view, f"{view.node.domain}.{view.op} is an op of a custom domain, which prunec does not know")
    return opaque(view, f"prunec has no rule for {view.op}")
