"""Shapes and types of every value, as ONNX's own shape inference finds them on a model without weights.

Owns that call, and what stands in for ops that it does not know. What it leaves open is taken further by refine.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

import onnx
from onnx import TensorProto, helper, shape_inference

from prunec.errors import BadInput
from prunec.frontends.onnx.loading.load import dtype_name
from prunec.frontends.onnx.loading.nodes import SourceNode
from prunec.frontends.onnx.sizes.view import type_shape
from prunec.ir.graph import Shape, Value


def infer(
    model: onnx.ModelProto, nodes: Sequence[SourceNode], input_shapes: Mapping[str, Shape]
) -> tuple[dict[str, Value], set[str]]:
    """Return shape and type of inputs, outputs and intermediate values as ONNX's inference finds them.

    What the file declares stands in where inference has nothing; the names of these values are returned, too.

    Args:
        model: weights may be missing; its own value_info is not trusted, for editors leave it stale.
        nodes: the main graph, sorted.
        input_shapes: shapes to take instead of the declared ones.
    """
    skeleton = _skeleton(model, nodes, input_shapes)
    try:
        inferred = shape_inference.infer_shapes(skeleton, data_prop=True)
    except Exception:  # noqa: BLE001  # of many types by version; one bad node must not cost the rest
        inferred = skeleton
    values: dict[str, Value] = {}
    for value in (*inferred.graph.input, *inferred.graph.output, *inferred.graph.value_info):
        values[value.name] = Value(value.name, type_shape(value.type), dtype_name(value.type.tensor_type.elem_type))
    declared: set[str] = set()
    for value in (*model.graph.output, *model.graph.value_info):
        found = values.get(value.name)
        if found is None or found.shape is None or not found.dtype:
            dtype = dtype_name(value.type.tensor_type.elem_type)
            shape = type_shape(value.type) or None  # Paddle leaves the sizes of outputs out, which makes them scalars
            if found is None or found.shape is None:
                declared.add(value.name)
            else:
                shape = found.shape
            values[value.name] = Value(value.name, shape, found.dtype or dtype if found is not None else dtype)
    return values, declared


def check_input_shapes(inputs: Sequence[onnx.ValueInfoProto], given: Mapping[str, Shape]) -> None:
    """Check that the shapes that the user asks for fit the declared ones.

    Raises:
        BadInput: an unknown input, another rank, or a size that the model fixes to something else.
    """
    declared = {value.name: type_shape(value.type) for value in inputs}
    for name, shape in given.items():
        if name not in declared:
            raise BadInput(f"the model has no input {name!r}", do=f"its inputs are {', '.join(map(repr, declared))}")
        fixed = declared[name]
        text = "x".join(map(str, shape))
        if any(not isinstance(size, int) or size < 1 for size in shape):
            raise BadInput(f"the shape {text} for input {name!r} is not made of positive sizes")
        if fixed is None:
            continue
        clash = any(isinstance(size, int) and size != want for size, want in zip(fixed, shape, strict=False))
        if len(fixed) != len(shape) or clash:
            raise BadInput(
                f"the shape {text} does not fit input {name!r}",
                why=f"the model declares {'x'.join('?' if size is None else str(size) for size in fixed)}",
                do="give a shape with the fixed sizes, or leave it out",
            )


def _skeleton(
    model: onnx.ModelProto, nodes: Sequence[SourceNode], input_shapes: Mapping[str, Shape]
) -> onnx.ModelProto:
    """Return the model with weights, docs and value_info left out, and with ops that ONNX does not know replaced."""
    skeleton = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    graph = skeleton.graph
    graph.name = model.graph.name or "graph"
    sparse = dict(_sparse(model, nodes))
    graph.node.extend([stand_in(node) or node.proto for node in nodes if not sparse.keys() & set(node.outputs)])
    for name, stored in sparse.items():
        graph.initializer.add(name=name, data_type=stored.values.data_type, dims=stored.dims)
    for tensor in model.graph.initializer:
        light = graph.initializer.add()
        if len(tensor.dims) <= 1 and tensor.data_location != TensorProto.EXTERNAL and tensor.ByteSize() <= 4096:
            light.CopyFrom(tensor)
        else:
            light.name, light.data_type = tensor.name, tensor.data_type
            light.dims.extend(tensor.dims)
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    for value in model.graph.input:
        entry = graph.input.add()
        entry.CopyFrom(value)
        given = input_shapes.get(value.name)
        if given is None and type_shape(value.type) is None:
            given = _as_it_is_read(value.name, nodes, weights)
        _clean(entry.type, given)
    for value in model.graph.output:
        entry = graph.output.add()
        entry.name = value.name
        if value.type.HasField("tensor_type"):
            entry.type.tensor_type.elem_type = value.type.tensor_type.elem_type
        else:
            entry.type.CopyFrom(value.type)
    return skeleton


def _sparse(model: onnx.ModelProto, nodes: Sequence[SourceNode]) -> Iterator[tuple[str, onnx.SparseTensorProto]]:
    """Yield sparse tensors by the name under which they are read; ONNX's inference would refuse them as weights."""
    yield from ((tensor.values.name, tensor) for tensor in model.graph.sparse_initializer)
    for node in nodes:
        if node.op == "Constant" and not node.domain and "sparse_value" in node.attrs:
            yield node.outputs[0], node.attrs["sparse_value"]


def _as_it_is_read(name: str, nodes: Sequence[SourceNode], weights: Mapping[str, tuple[int, ...]]) -> Shape | None:
    """Return what a convolution's weight says of its input, for inputs that the file declares without a shape."""
    for node in nodes:
        if node.op in ("Conv", "ConvTranspose") and not node.domain and node.inputs[:1] == (name,):
            weight = weights.get(node.inputs[1] if len(node.inputs) > 1 else "", ())
            if len(weight) > 2:
                groups = next((entry.i for entry in node.proto.attribute if entry.name == "group"), 1)
                channels = weight[1] * groups if node.op == "Conv" else weight[0]
                return (None, channels, *(None for _ in weight[2:]))
    return None


def _clean(kind: onnx.TypeProto, given: Shape | None) -> None:
    """Put the given shape in place; take out sizes and names that mean "any"."""
    shape = given if given is not None else type_shape(kind)
    if shape is None or not kind.HasField("tensor_type"):
        return
    kind.tensor_type.shape.Clear()
    for size in shape:
        entry = kind.tensor_type.shape.dim.add()
        if isinstance(size, int):
            entry.dim_value = size
        elif size is not None:
            entry.dim_param = size


def stand_in(node: SourceNode) -> onnx.NodeProto | None:
    """Return a standard node whose result has the same shape and type, for ops without a schema."""
    entry = _STAND_INS.get((node.domain, node.op))
    if entry is None or (node.op == "LayerNormalization" and node.version >= 17):
        return None
    op, inputs, attrs = entry
    if isinstance(inputs, slice):
        names = list(node.inputs[inputs])
    else:
        names = [node.inputs[index] for index in inputs if index < len(node.inputs)]
    stand_in = helper.make_node(op, names, list(node.outputs[:1]))
    stand_in.attribute.extend(a for a in node.proto.attribute if a.name in attrs)
    return stand_in


_CONV = ("kernel_shape", "strides", "pads", "dilations", "group", "auto_pad")

_POOL = ("kernel_shape", "strides", "pads", "auto_pad", "ceil_mode", "count_include_pad")

MICROSOFT = "com.microsoft"

_SIMPLE_NORM = "SimplifiedLayerNormalization"

_LAYER_NORMS = ("LayerNormalization", _SIMPLE_NORM)  # ONNX Runtime writes both into files of any opset

_STAND_INS: Mapping[tuple[str, str], tuple[str, tuple[int, ...] | slice, tuple[str, ...]]] = MappingProxyType(
    {
        (MICROSOFT, "FusedConv"): ("Conv", (0, 1, 2), _CONV),
        (MICROSOFT, "FusedGemm"): ("Gemm", (0, 1, 2), ("transA", "transB", "alpha", "beta")),
        **{(MICROSOFT, op): ("Identity", (0,), ()) for op in ("Gelu", "FastGelu", "QuickGelu", "BiasGelu")},
        **{(MICROSOFT, op): ("Identity", (0,), ()) for op in ("QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax")},
        **{(MICROSOFT, op): ("Add", (0, 3), ()) for op in ("QLinearAdd", "QLinearMul")},
        (MICROSOFT, "QLinearAveragePool"): ("AveragePool", (0,), _POOL),
        (MICROSOFT, "QLinearGlobalAveragePool"): ("GlobalAveragePool", (0,), ()),
        (MICROSOFT, "QLinearConcat"): ("Concat", slice(2, None, 3), ("axis",)),
        (MICROSOFT, "QGemm"): ("Gemm", (0, 3), ("transA", "transB")),
        (MICROSOFT, "QLinearConv"): ("QLinearConv", tuple(range(9)), _CONV),
        **{
            ("", op): ("Identity", (0,), ())
            for op in ("ImageScaler", "Affine", "ScaledTanh", "ParametricSoftplus", "Scale", *_LAYER_NORMS)
        },
        **{(MICROSOFT, op): ("Identity", (0,), ()) for op in ("SkipLayerNormalization", f"Skip{_SIMPLE_NORM}")},
    }
)
