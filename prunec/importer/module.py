"""An ONNX file as a torch module that can be trained: the importer.

Owns the table from op type to row, the walk over the file's nodes, and the check that the module computes
what the file does. The rows are in layers.py, elementwise.py, moves.py, resizing.py and reductions.py. The module's
batch is open whatever the file says; the file or the user fixes the other sizes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import onnx
import torch
import torch.nn.functional as F
from torch import fx

from prunec.errors import BadInput, UnsupportedModel
from prunec.frontends.onnx.frontend import TracedOnnx, trace_onnx
from prunec.frontends.onnx.loading.load import OnnxSource
from prunec.frontends.onnx.loading.nodes import SourceNode
from prunec.frontends.onnx.sizes.view import FileFacts, View, type_shape
from prunec.importer import elementwise, layers, moves, reductions, resizing
from prunec.importer.build import Builder, Origin, Row, Unconvertible

_BATCH = "prunec_batch"

ROWS: Mapping[str, Row] = MappingProxyType(
    {
        "Conv": layers.conv,
        "ConvTranspose": layers.conv_transpose,
        "Gemm": layers.gemm,
        "MatMul": layers.matmul,
        "BatchNormalization": layers.batch_norm,
        "InstanceNormalization": layers.instance_norm,
        "GroupNormalization": layers.group_norm,
        "LayerNormalization": layers.layer_norm,
        "LRN": layers.local_response_norm,
        "MaxPool": layers.max_pool,
        "AveragePool": layers.average_pool,
        "GlobalAveragePool": layers.global_average_pool,
        "GlobalMaxPool": layers.global_max_pool,
        # elementwise
        "Relu": elementwise.unary(F.relu),
        "LeakyRelu": elementwise.unary(F.leaky_relu, alpha=0.01),
        "Elu": elementwise.unary(F.elu, alpha=1.0),
        "Celu": elementwise.unary(F.celu, alpha=1.0),
        "Selu": elementwise.unary(F.selu),
        "Sigmoid": elementwise.unary(torch.sigmoid),
        "Tanh": elementwise.unary(torch.tanh),
        "Softplus": elementwise.unary(F.softplus),
        "Softsign": elementwise.unary(F.softsign),
        "HardSwish": elementwise.unary(F.hardswish),
        "Mish": elementwise.unary(F.mish),
        "HardSigmoid": elementwise.hard_sigmoid,
        "Exp": elementwise.unary(torch.exp),
        "Log": elementwise.unary(torch.log),
        "Sqrt": elementwise.unary(torch.sqrt),
        "Abs": elementwise.unary(torch.abs),
        "Neg": elementwise.unary(torch.neg),
        "Reciprocal": elementwise.unary(torch.reciprocal),
        "Floor": elementwise.unary(torch.floor),
        "Ceil": elementwise.unary(torch.ceil),
        "Erf": elementwise.unary(torch.erf),
        "Sin": elementwise.unary(torch.sin),
        "Cos": elementwise.unary(torch.cos),
        "Not": elementwise.unary(torch.logical_not),
        "Gelu": elementwise.unary(F.gelu),
        "ImageScaler": elementwise.image_scaler,
        "Affine": elementwise.affine,
        "ScaledTanh": elementwise.scaled_tanh,
        "Clip": elementwise.clip,
        "PRelu": elementwise.prelu,
        "Add": elementwise.binary(torch.add, trained=True),
        "Sub": elementwise.binary(torch.sub),
        "Mul": elementwise.binary(torch.mul, trained=True),
        "Div": elementwise.divide,
        "Pow": elementwise.binary(torch.pow),
        "Equal": elementwise.binary(torch.eq),
        "Less": elementwise.binary(torch.lt),
        "Greater": elementwise.binary(torch.gt),
        "Sum": elementwise.variadic(torch.add),
        "Mean": elementwise.variadic(torch.add, mean=True),
        "Max": elementwise.variadic(torch.maximum),
        "Min": elementwise.variadic(torch.minimum),
        "Cast": elementwise.cast,
        **dict.fromkeys(("Identity", "Dropout"), elementwise.identity),
        # movement
        **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), moves.reshape),
        "Transpose": moves.transpose,
        "Slice": moves.slice_,
        "Split": moves.split,
        "Concat": moves.concat,
        "Gather": moves.gather,
        "Pad": moves.pad,
        "Expand": moves.expand,
        "Tile": moves.tile,
        "DepthToSpace": moves.depth_to_space,
        "SpaceToDepth": moves.space_to_depth,
        "Crop": moves.crop,
        **dict.fromkeys(("Resize", "Upsample"), resizing.resize),
        # along axes
        "Softmax": reductions.softmax(F.softmax),
        "LogSoftmax": reductions.softmax(F.log_softmax),
        "ReduceMean": reductions.reduce(torch.mean),
        "ReduceSum": reductions.reduce(torch.sum),
        "ReduceMax": reductions.reduce(torch.amax),
        "ReduceMin": reductions.reduce(torch.amin),
        "ReduceSumSquare": reductions.reduce(torch.sum, before=torch.square),
        "ReduceL2": reductions.reduce(torch.sum, before=torch.square, after=torch.sqrt),
        "ArgMax": reductions.arg_reduce(torch.argmax),
        "ArgMin": reductions.arg_reduce(torch.argmin),
    }
)
"""ONNX's own ops that can be trained through."""

MICROSOFT_ROWS: Mapping[str, Row] = MappingProxyType(
    {"FusedConv": layers.fused_conv, "FusedGemm": layers.gemm, "Gelu": elementwise.unary(F.gelu)}
)


@dataclass(frozen=True, slots=True, eq=False)
class ImportedOnnx:
    """A file's network as a module.

    Args:
        module: in eval mode; takes the inputs in the file's order, with any batch size.
        input_names, output_names: the file's.
        input_shapes: of each input without the batch; all sizes known.
        origins: tensor of the file -> the parameter that it became.
    """

    module: fx.GraphModule
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    input_shapes: tuple[tuple[int, ...], ...]
    origins: Mapping[str, Origin]


def to_module(source: OnnxSource, input_shapes: Mapping[str, Sequence[int]] = MappingProxyType({})) -> ImportedOnnx:
    """Build a trainable module from an ONNX file.

    Args:
        source: what ``load_onnx`` returned.
        input_shapes: for inputs whose sizes the file leaves open, batch included; "" stands for the only one.

    Raises:
        UnsupportedModel: an op that cannot be trained through; the message names node and op.
        BadInput: a size that is open and not given.
    """
    opened, batch = _with_open_batch(source, input_shapes)
    traced = trace_onnx(opened)
    facts = FileFacts()
    facts.values, facts.known = dict(traced.graph.values), dict(traced.known)
    builder = Builder(batch)
    for name in traced.graph.inputs:
        builder.values[name] = builder.graph.placeholder(builder.fresh(name))
    for node in traced.nodes:
        _convert(node, facts, builder)
    results = [_result(name, builder, facts) for name in (value.name for value in opened.model.graph.output)]
    builder.graph.output(results[0] if len(results) == 1 else tuple(results))
    whole = fx.GraphModule(builder.root, builder.graph, "ImportedOnnx")
    whole.graph.eliminate_dead_code()
    module = fx.GraphModule(whole, whole.graph, "ImportedOnnx")  # takes only the parameters that the graph still reads
    return ImportedOnnx(
        module.eval(),
        traced.graph.inputs,
        tuple(value.name for value in opened.model.graph.output),
        tuple(_known_sizes(traced, name) for name in traced.graph.inputs),
        MappingProxyType(builder.origins),
    )


def _convert(node: SourceNode, facts: FileFacts, builder: Builder) -> None:
    """Add one node, unless its result is known without running or no output needs it."""
    if all(name in facts.known or name not in facts.values for name in node.outputs if name):
        return
    row = row_of(node)
    full = f"{node.domain}.{node.op}" if node.domain else node.op
    if row is None:
        raise _cannot(node, full, "prunec has no torch form of this op")
    try:
        made = row(View(node, facts), builder)
    except Unconvertible as error:
        raise _cannot(node, full, str(error)) from error
    for name, value in zip(node.outputs, [made] if isinstance(made, fx.Node) else made, strict=False):
        if name:
            builder.values[name] = value


_MICROSOFT = "com.microsoft"


def row_of(node: SourceNode) -> Row | None:
    """Return the row of a node's op, None if it has no torch form."""
    if not node.domain:
        return ROWS.get(node.op)
    return MICROSOFT_ROWS.get(node.op) if node.domain == _MICROSOFT else None


def _cannot(node: SourceNode, op: str, why: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"node {node.name!r} ({op}, opset {node.version}) cannot be trained through",
        why=why,
        do="train the network in its own framework; prunec prune works on the file as it is",
    )


def _result(name: str, builder: Builder, facts: FileFacts) -> fx.Node:
    found = builder.values.get(name)
    if found is not None:
        return found
    array = facts.constant(name)
    if array is None:
        raise UnsupportedModel(f"the output {name!r} is computed from sizes, which cannot be trained")
    return builder.stored(name, array)


def _with_open_batch(source: OnnxSource, given: Mapping[str, Sequence[int]]) -> tuple[OnnxSource, int | None]:
    """Return the model with an open batch and all other sizes fixed, and the batch size that the file had fixed."""
    model = onnx.ModelProto()
    model.CopyFrom(source.model)
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in stored]
    batches: set[int] = set()
    for value in inputs:
        shape = given.get(value.name, given.get("", ()) if len(inputs) == 1 else ())
        old = type_shape(value.type) or ()
        if not shape and not old:
            raise BadInput(f"the rank of input {value.name!r} is not known", do="give it: --input-shape 1x3x224x224")
        if old and isinstance(old[0], int):
            batches.add(old[0])
        wanted = tuple(shape) or old
        dims = value.type.tensor_type.shape.dim
        del dims[:]
        for axis, size in enumerate(wanted):
            dim = dims.add()
            if axis == 0:
                dim.dim_param = _BATCH
            elif isinstance(size, int):
                dim.dim_value = size
            else:
                raise BadInput(
                    f"axis {axis} of input {value.name!r} is open", do="give its size: --input-shape 1x3x224x224"
                )
    del model.graph.value_info[:]
    for value in model.graph.output:  # their batch, and sizes that follow from it, are inferred again
        value.type.tensor_type.ClearField("shape")
    return replace(source, model=model), batches.pop() if len(batches) == 1 else None


def _known_sizes(traced: TracedOnnx, name: str) -> tuple[int, ...]:
    shape = traced.graph.shape(name) or ()
    return tuple(size for size in shape[1:] if isinstance(size, int))
