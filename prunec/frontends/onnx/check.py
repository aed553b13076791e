"""Shapes that contradict each other, found before the passes meet them, and nodes that nobody could read.

Owns one check per op family on the finished graph, and one on the nodes of the file: a file whose weights do not fit
its values, or whose nodes lack an input or name an axis that there is not, is told apart from a fault of prunec. Only
what is known is compared; open sizes are never wrong. What ONNX's checker says about one node is asked where a row of
the tables stumbles over it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from types import MappingProxyType

from prunec.errors import BadInput
from prunec.frontends.onnx.loading.nodes import SourceNode
from prunec.ir.graph import Dim, Graph, Node, Shape
from prunec.ir.ops import BINARY

Check = Callable[[Node, list[Shape | None]], str]
"""(node, shapes of its inputs) -> what is wrong, or ""."""


def check_graph(graph: Graph) -> None:
    """Compare the shapes that meet at each node.

    Raises:
        BadInput: two of them cannot be true together; the node is named.
    """
    for node in graph.nodes:
        if node.op not in CHECKS:
            continue
        shapes = [graph.shape(name) if name else None for name in node.inputs]
        wrong = contradiction(node, shapes)
        if wrong:
            text = ", ".join(f"{name} {_text(shape)}" for name, shape in zip(node.inputs, shapes, strict=True) if name)
            raise BadInput(
                f"the shapes at node {node.origin!r} ({node.source}) do not fit: {wrong}",
                why=f"it reads {text}",
                do="the file or the given input shape is wrong: check both with onnx.checker and ONNX Runtime",
            )


def check_nodes(nodes: Sequence[SourceNode], shape_of: Callable[[str], Shape | None]) -> None:
    """Look for what no reader of ONNX can make sense of: missing inputs, and axes that there are not.

    Raises:
        BadInput: naming the node, its op and what is wrong with it.
    """
    for node in nodes:
        if not node.domain and (wrong := _missing_input(node) or _wrong_axes(node, shape_of)):
            raise not_well_formed(node, wrong)


def not_well_formed(node: SourceNode, why: str) -> BadInput:
    """Return the error of a node that breaks ONNX's specification."""
    return BadInput(
        f"node {node.name!r} ({node.op}, opset {node.version}) is not well formed",
        why=why,
        do="check the file with onnx.checker.check_model",
    )


def _missing_input(node: SourceNode) -> str:
    """Tell of an input that the op must have: these come first."""
    absent = (slot for slot in range(_num_required(node.op, node.version)) if not any(node.inputs[slot : slot + 1]))
    return next((f"its input {slot} is missing" for slot in absent), "")


@cache
def _num_required(op: str, version: int) -> int:
    """Return how many inputs an op cannot do without; 0 for an op that ONNX does not know."""
    import onnx

    try:
        schema = onnx.defs.get_schema(op, version, "")
    except (onnx.defs.SchemaError, TypeError):  # the second: damaged text
        return 0
    single = [given.option == onnx.defs.OpSchema.FormalParameterOption.Single for given in schema.inputs]
    return single.index(False) if False in single else len(single)


def _wrong_axes(node: SourceNode, shape_of: Callable[[str], Shape | None]) -> str:
    """Tell of an axis, or a permutation of axes, that the first input does not have."""
    shape = shape_of(node.inputs[0]) if node.inputs and node.inputs[0] else None
    if shape is None:
        return ""
    rank, given = len(shape), f"its first input has {len(shape)} axes"
    perm = node.attrs.get("perm") if node.op == "Transpose" else None
    if perm is not None and sorted(perm) != list(range(rank)):
        return f"perm {perm} is no order of the axes: {given}"
    name = _AXES.get(node.op, "")
    axes = node.attrs.get(name)
    last = rank if node.op == "Flatten" else max(rank, 1) - 1
    for axis in [axes] if isinstance(axes, int) else axes or ():
        if not -max(rank, 1) <= axis <= last:
            return f"{name} is {axis}, and {given}"
    block = node.attrs.get("blocksize") if node.op in ("DepthToSpace", "SpaceToDepth") else None
    return f"blocksize is {block}" if block is not None and block < 1 else ""


_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
_AXES: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax", "Concat", "Split", "Gather", "GatherElements"), "axis"),
        **dict.fromkeys(("ScatterElements", "ArgMax", "ArgMin", "Flatten", "LayerNormalization", "Compress"), "axis"),
        **dict.fromkeys((*(f"Reduce{kind}" for kind in _REDUCTIONS), "Squeeze"), "axes"),
    }
)
"""Ops with axes of their first input in an attribute, and what that is called."""


def complaint_about(node: SourceNode) -> str:
    """Return what ONNX's own checker says against a node's attributes and number of inputs; "" if nothing."""
    import onnx

    context = onnx.checker.C.CheckerContext()
    context.ir_version = onnx.IR_VERSION
    context.opset_imports = {node.domain: node.version or onnx.defs.onnx_opset_version()}
    try:
        onnx.checker.check_node(node.proto, context)
    except onnx.checker.ValidationError as error:
        return str(error).strip().splitlines()[0]
    return ""


def contradiction(node: Node, shapes: list[Shape | None]) -> str:
    """Tell what is wrong with a node that reads operands of these shapes; "" if nothing is."""
    check = CHECKS.get(node.op)
    return "" if check is None else check(node, shapes)


def _text(shape: Shape | None) -> str:
    return (
        "of unknown rank" if shape is None else f"[{', '.join('?' if size is None else str(size) for size in shape)}]"
    )


def _differ(a: Dim, b: Dim) -> bool:
    return isinstance(a, int) and isinstance(b, int) and a != b


def _conv(node: Node, shapes: list[Shape | None]) -> str:
    x, weight = shapes[0], shapes[1]
    groups = node.attrs["conv_groups"]
    if weight is None:
        return ""
    per_group, out = weight[1], weight[0]
    if groups < 1 or (isinstance(out, int) and out % groups):
        return f"{out} output channels cannot be divided into {groups} groups"
    if x is not None and len(x) != len(weight):
        return "the weight and the input have different ranks"
    if x is not None and isinstance(per_group, int) and _differ(x[1], per_group * groups):
        return f"the weight is for {per_group * groups} input channels, the input has {x[1]}"
    return _bias(shapes, out)


def _conv_transpose(node: Node, shapes: list[Shape | None]) -> str:
    x, weight = shapes[0], shapes[1]
    groups = node.attrs["conv_groups"]
    if weight is None:
        return ""
    if groups < 1 or (isinstance(weight[0], int) and weight[0] % groups):
        return f"{weight[0]} input channels cannot be divided into {groups} groups"
    if x is not None and len(x) != len(weight):
        return "the weight and the input have different ranks"
    if x is not None and _differ(x[1], weight[0]):
        return f"the weight is for {weight[0]} input channels, the input has {x[1]}"
    return _bias(shapes, weight[1] * groups if isinstance(weight[1], int) else None)


def _bias(shapes: list[Shape | None], channels: Dim) -> str:
    bias = shapes[2] if len(shapes) > 2 else None
    if bias is not None and (len(bias) != 1 or _differ(bias[0], channels)):
        return f"the bias should have {channels} elements"
    return ""


def _matmul(node: Node, shapes: list[Shape | None]) -> str:
    a, b = shapes[0], shapes[1]
    if not a or not b:
        return ""
    last = a[-2] if node.attrs.get("transpose_a") and len(a) > 1 else a[-1]
    first = b[-1] if node.attrs.get("transpose_b") or len(b) == 1 else b[-2]
    return f"a product over {last} and {first} elements" if _differ(last, first) else ""


def _per_channel(node: Node, shapes: list[Shape | None]) -> str:
    x, axis = shapes[0], node.attrs.get("axis", 1)
    if x is None:
        return ""
    for shape in shapes[1:]:
        if shape is None or len(shape) != 1 or shape[0] == 1:
            continue  # one number for all: the axis means nothing
        if axis >= len(x):
            return f"the input has no axis {axis}"
        if _differ(shape[0], x[axis]):
            return f"{shape[0]} values for {x[axis]} channels"
    return ""


def _elementwise(_: Node, shapes: list[Shape | None]) -> str:
    known = [shape for shape in shapes if shape is not None]
    for axis in range(-max((len(shape) for shape in known), default=0), 0):
        sizes = {shape[axis] for shape in known if len(shape) >= -axis}
        numbers = {size for size in sizes if isinstance(size, int) and size != 1}
        if len(numbers) > 1:
            return f"sizes {' and '.join(map(str, sorted(numbers)))} cannot be broadcast"
    return ""


def _concat(node: Node, shapes: list[Shape | None]) -> str:
    known = [shape for shape in shapes if shape is not None]
    axis = node.attrs["axis"]
    if len({len(shape) for shape in known}) > 1:
        return "operands of different ranks are concatenated"
    for other in range(len(known[0]) if known else 0):
        numbers = {shape[other] for shape in known if isinstance(shape[other], int)}
        if other != axis and len(numbers) > 1:
            return (
                f"operands of sizes {' and '.join(map(str, sorted(numbers, key=str)))} on axis {other} are concatenated"
            )
    return ""


CHECKS: Mapping[str, Check] = MappingProxyType(
    {
        "conv": _conv,
        "conv_transpose": _conv_transpose,
        "matmul": _matmul,
        **dict.fromkeys(("batch_norm", "instance_norm", "quantize", "dequantize"), _per_channel),
        **dict.fromkeys((*BINARY, "prelu", "where"), _elementwise),
        "concat": _concat,
    }
)
