"""The ONNX backend: carry Edits out on a model, and get a smaller model that is otherwise the same.

Owns the order of the changes: tensors, biases, constants that replace branches, attributes, redirected
values; then the result is cleaned (surgeon.py) and its shapes are inferred again and compared with
what the passes promised. Input and output names, node names, opset imports, metadata, functions and
precision stay. Decides nothing about pruning: that is in the edits (passes/lowering/lower.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx

from prunec.backends.onnx.insert import insert
from prunec.backends.onnx.rewrite import Site, rewrite
from prunec.backends.onnx.surgeon import Surgeon
from prunec.errors import InternalError
from prunec.frontends.onnx.check import contradiction
from prunec.frontends.onnx.frontend import OnnxSource, TracedOnnx
from prunec.frontends.onnx.loading.nodes import SourceNode, domain_of, read_nodes
from prunec.frontends.onnx.sizes.infer import infer
from prunec.frontends.onnx.sizes.view import FileFacts, View
from prunec.garbage import collected_later
from prunec.ir.arrays import Array
from prunec.ir.contractions import is_spatial
from prunec.ir.edits import CannotRewrite, Edits
from prunec.ir.graph import Graph, Node, Shape

BIASED = {
    **dict.fromkeys(("Conv", "ConvTranspose", "Gemm", "com.microsoft.FusedConv", "com.microsoft.FusedGemm"), 2),
    **dict.fromkeys(("QLinearConv", "com.microsoft.QLinearConv"), 8),
    "com.microsoft.QGemm": 6,
}
"""Source -> which of its inputs is a bias."""
_SCALED = ("Gemm", "com.microsoft.FusedMatMul", "com.microsoft.TransposeMatMul")
"""Sources that multiply their product by attribute alpha before anything else."""


@collected_later()
def apply_onnx(traced: TracedOnnx, edits: Edits) -> OnnxSource:
    """Return a model with the edits carried out. The traced model is not changed.

    Weights that stay as they are are not read; new ones are shared with ``edits``. Save the result with
    ``prunec.backends.onnx.save``.

    Raises:
        CannotRewrite: a node's sizes cannot be written anew; prune again with its channels pinned.
    """
    if not _anything(edits):
        return traced.source
    _check_operands(traced, edits)
    surgeon = Surgeon(traced)
    graph = {node.name: node for node in traced.graph.nodes}
    facts = _facts(traced)
    views = {node.name: View(source, facts) for source in traced.nodes for node in _parts(traced, source, graph)}
    _rewrite_sizes(surgeon, traced, edits, graph, views)
    _replace_params(surgeon, traced, edits, views)
    _insert(surgeon, traced, edits, views)
    for name, bias in edits.new_biases.items():
        _add_bias(surgeon, views[name], traced.graph, graph[name], bias)
    for (name, index), value in edits.constant_inputs.items():
        slot = _slot(traced, graph[name], index)
        like = f"{views[name].node.name}_constant"
        surgeon.read(views[name].node.place, slot, surgeon.store(value, like))
    for name, indices in edits.dropped_inputs.items():
        slots = [_slot(traced, graph[name], index) for index in indices]
        surgeon.drop_inputs(views[name].node.place, slots)
    for old, new in edits.replaced.items():
        surgeon.replace_value(old, new)
    pruned = surgeon.finish(edits.shapes)
    _check_shapes(traced, edits, pruned)
    return pruned


def _check_operands(traced: TracedOnnx, edits: Edits) -> None:
    """Check that what is left of each node's operands fits together.

    Raises:
        CannotRewrite: it does not, as when the groups of a convolution keep different counts.
    """
    for node in traced.graph.nodes:
        constant = [(node.name, index) in edits.constant_inputs for index in range(len(node.inputs))]
        if node.name in edits.removed or node.name in edits.dropped_inputs or any(constant):
            continue
        shapes = [_new_shape(traced, edits, name) for name in node.inputs]
        attrs = edits.attrs.get(node.name)
        changed = replace(node, attrs={**node.attrs, **attrs}) if attrs else node
        wrong = contradiction(changed, shapes)
        if wrong:
            raise CannotRewrite(node.origin, wrong)


def _new_shape(traced: TracedOnnx, edits: Edits, name: str) -> Shape | None:
    if name in edits.params:
        return tuple(edits.params[name].shape)
    return edits.shapes.get(name, traced.graph.shape(name)) if name else None


def _anything(edits: Edits) -> bool:
    return any(
        (edits.params, edits.new_biases, edits.attrs, edits.constant_inputs, edits.dropped_inputs, edits.replaced)
    )


def _facts(traced: TracedOnnx) -> FileFacts:
    facts = FileFacts()
    facts.values = dict(traced.graph.values)
    facts.known = dict(traced.known)
    facts.roots = dict(traced.roots)
    facts.marks = dict(traced.marks)
    return facts


def _parts(traced: TracedOnnx, source: SourceNode, graph: Mapping[str, Node]) -> list[Node]:
    return [graph[name] for name in traced.parts.get(source.place, ()) if name in graph]


def _slot(traced: TracedOnnx, node: Node, index: int) -> int:
    """Return the ONNX node's input that is input ``index`` of an IR node."""
    slots = traced.slots.get(node.name, ())
    if index >= len(slots) or slots[index] < 0:
        raise CannotRewrite(node.origin, f"{node.source} does not have its operands one by one")
    return slots[index]


def _rewrite_sizes(
    surgeon: Surgeon, traced: TracedOnnx, edits: Edits, graph: Mapping[str, Node], views: Mapping[str, View]
) -> None:
    changed = _may_change(traced, edits)
    for source in traced.nodes:
        parts = [node for node in _parts(traced, source, graph) if node.name not in edits.removed]
        if parts:
            view = views[parts[0].name]
            rewrite(
                [Site(surgeon, view, node, edits.attrs.get(node.name, {}), edits.shapes, changed) for node in parts]
            )
    _place_fused(surgeon, traced, edits)


def _may_change(traced: TracedOnnx, edits: Edits) -> Callable[[str], bool]:
    """Return a test whether a value's shape changes; one that only its shape is read of is not in the graph."""
    values, params = traced.graph.values, traced.graph.params
    return lambda name: name in edits.shapes or (name not in values and name not in params)


def _place_fused(surgeon: Surgeon, traced: TracedOnnx, edits: Edits) -> None:
    """Put a Gather in the place of a channel shuffle (passes/rewrites/permutations.py) whose channels change."""
    for node in traced.graph.nodes:
        if not node.attrs.get("fused") or node.name in edits.removed:
            continue
        value = node.outputs[0]
        if node.name in edits.attrs or value in edits.shapes or node.inputs[0] in edits.shapes:
            indices = edits.attrs.get(node.name, {}).get("indices", node.attrs["indices"])
            end = surgeon.makers[value]
            surgeon.take_over(end.place, _gather(surgeon, node, indices, node.attrs["axis"], f"{end.name}_gather"))


def _gather(surgeon: Surgeon, node: Node, indices: Array, axis: int, name: str) -> onnx.NodeProto:
    places = surgeon.store(np.asarray(indices, np.int64), f"{node.outputs[0]}_indices")
    return onnx.helper.make_node("Gather", [node.inputs[0], places], [node.outputs[0]], name, axis=axis)


def _replace_params(surgeon: Surgeon, traced: TracedOnnx, edits: Edits, views: Mapping[str, View]) -> None:
    """Store new tensors, and let the nodes that the graph shows read them."""
    stored: dict[str, str] = {}
    for node in traced.graph.nodes:
        for index, name in enumerate(node.inputs):
            if name not in edits.params or node.name in edits.removed or node.attrs.get("inserted"):
                continue
            if node.name not in views:
                raise InternalError("backends.onnx", f"the edits change the output tensor {name!r}")
            if name not in stored:
                stored[name] = _store_param(surgeon, traced, name, edits.params[name])
            surgeon.read(views[node.name].node.place, _slot(traced, node, index), stored[name])


def _insert(surgeon: Surgeon, traced: TracedOnnx, edits: Edits, views: Mapping[str, View]) -> None:
    """Write the nodes of rewrites, each in front of, or behind, the node that it was made for."""
    versions = {domain_of(entry.domain): entry.version for entry in traced.source.model.opset_import}
    pending: list[Node] = []
    for node in traced.graph.nodes:
        if node.name in edits.removed:
            continue
        if node.attrs.get("behind"):
            _add_behind(surgeon, traced, node, views)
            continue
        if node.attrs.get("inserted"):
            pending.append(node)
            continue
        place = views[node.name].node.place if pending else -1
        made = {inserted.outputs[0] for inserted in pending}
        for inserted in pending:
            insert(surgeon, place, inserted, traced.graph, edits, versions[""])
        for index, name in enumerate(node.inputs):
            if name in made and (node.name, index) not in edits.constant_inputs:
                surgeon.read(place, _slot(traced, node, index), name)
        pending = []


def _add_behind(surgeon: Surgeon, traced: TracedOnnx, node: Node, views: Mapping[str, View]) -> None:
    """Let all that reads a node's result read its sum with an inserted value."""
    maker = traced.graph.producer(node.inputs[0])
    view = views[maker.name] if maker is not None else None
    if view is None or view.outputs[0] != node.outputs[0]:
        raise CannotRewrite(node.origin, "nothing can be added to what a part of it computes")
    surgeon.add_after(view.node.place, 0, "Add", node.inputs[1], node.outputs[0])


def _store_param(surgeon: Surgeon, traced: TracedOnnx, name: str, array: Array) -> str:
    """Store a tensor's new content; one that the file casts from a shorter type stays short if it loses nothing."""
    source = surgeon.makers.get(name)
    before = traced.known.get(source.inputs[0]) if source is not None and source.op == "Cast" else None
    if source is None or before is None or before.dtype.itemsize >= array.dtype.itemsize:
        return surgeon.store(array, name)
    if any(name in node.inputs and node.place not in traced.parts for node in traced.nodes):
        return surgeon.store(array, name)  # something that was folded reads the old content
    with np.errstate(all="ignore"):
        short = array.astype(before.dtype)
    if not np.array_equal(short.astype(array.dtype), array):
        return surgeon.store(array, name)
    surgeon.read(source.place, 0, surgeon.store(short, source.inputs[0]))
    return name


def _add_bias(surgeon: Surgeon, view: View, graph: Graph, node: Node, bias: Array) -> None:
    """Give a contraction a bias: its own input where it has one, an Add behind it elsewhere."""
    place, name = view.node.place, f"{node.inputs[1]}_bias"
    scaled = view.attrs.get("alpha", 1.0) != 1.0
    slot = BIASED.get(node.source, -1)
    if slot >= 0 and not scaled and not view.has(slot):
        surgeon.set_attribute(place, "beta", None)
        surgeon.read(place, slot, surgeon.store(bias, name))
        return
    if scaled and node.source in _SCALED:
        bias = (bias * np.float64(view.attrs["alpha"])).astype(bias.dtype)
    elif (perm := _permuted_by(graph, node, view.outputs[0])) is not None:
        bias = _along(perm, bias)
    elif node.outputs[0] != view.outputs[0] and node.source != "Gemm":  # whose C is added behind the product
        reason = f"the constants that it reads would have to be added to its result, which {node.source} cannot"
        raise CannotRewrite(node.origin, reason)
    if is_spatial(node):  # behind a convolution that takes no bias, channels are axis 1 of what comes out
        bias = bias.reshape(-1, *(1 for _ in node.attrs["strides"]))
    surgeon.add_after(place, 0, "Add", surgeon.store(bias, name), f"{view.node.name}_bias")


def _permuted_by(graph: Graph, node: Node, output: str) -> Sequence[int] | None:
    """Return how a product inside of an Einsum becomes the Einsum's output; None where nothing permutes it."""
    readers = graph.consumers(node.outputs[0])
    turned = [reader for reader in readers if reader.op == "transpose" and reader.outputs[0] == output]
    return turned[0].attrs["perm"] if len(readers) == len(turned) == 1 else None


def _along(perm: Sequence[int], bias: Array) -> Array:
    """Return a vector along a product's last axis so that it can be added to the permuted product."""
    behind = len(perm) - 1 - list(perm).index(len(perm) - 1)
    return bias.reshape(-1, *(1 for _ in range(behind)))


def _check_shapes(traced: TracedOnnx, edits: Edits, pruned: OnnxSource) -> None:
    """Infer the result's shapes and compare them with what the passes computed.

    Raises:
        CannotRewrite: a value has another size than it should: its producer was not rewritten rightly.
    """
    found, declared = infer(pruned.model, read_nodes(pruned.model), {})
    for name, value in traced.graph.values.items():
        expected: Shape | None = edits.shapes.get(name, value.shape)
        got = found[name].shape if name in found and name not in declared else None
        if expected is None or got is None or name not in traced.graph.values:
            continue
        same_rank = len(expected) == len(got)
        sizes = zip(expected, got, strict=True) if same_rank else ()
        if not same_rank or any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in sizes):
            node = traced.graph.producer(name)
            raise CannotRewrite(
                node.origin if node is not None else name, f"its new shape would be {got}, not {expected}"
            )
