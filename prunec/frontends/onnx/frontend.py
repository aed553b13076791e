"""ONNX -> Graph: the frontend for .onnx files and ModelProtos.

Owns the walk over the nodes: fold what is constant, complete the shapes, translate the rest by the
table in table.py, keep what the outputs need. The model is never changed. Its own protobuf is read
directly: importing it with onnx-graphsurgeon takes two to four times as long as loading, inferring and
saving the file together (benchmarks/onnx_prune.py), and drops doc strings and metadata on the way out.

    load_onnx (loading)  ->  read_nodes (loading)  ->  infer, refine (sizes), fold (folding),
    branches that always run (branches.py)
    ->  translate (ops)  ->  check_graph (check.py)  ->  TracedOnnx
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import onnx

from prunec.errors import BadInput, InternalError
from prunec.frontends.onnx.branches import with_settled_branches
from prunec.frontends.onnx.check import check_graph, check_nodes, complaint_about, not_well_formed
from prunec.frontends.onnx.folding.fold import fold
from prunec.frontends.onnx.folding.marks import marked, repeats_one
from prunec.frontends.onnx.loading.load import OnnxSource, load_onnx
from prunec.frontends.onnx.loading.nodes import SourceNode, read_nodes
from prunec.frontends.onnx.ops.draft import Draft
from prunec.frontends.onnx.ops.sequences import learn_pieces, taken_apart
from prunec.frontends.onnx.ops.table import teach_shape, translate
from prunec.frontends.onnx.ops.unpool import learn_unpooled
from prunec.frontends.onnx.sizes.infer import check_input_shapes, infer
from prunec.frontends.onnx.sizes.refine import SHAPED_BY_CONTENTS, better, is_soft, refine
from prunec.frontends.onnx.sizes.view import FileFacts, View
from prunec.garbage import collected_later
from prunec.ir.arrays import Array
from prunec.ir.graph import Graph, Node, Param, Shape, Value
from prunec.ir.taught import NO_RULES, OpRules

__all__ = ["OnnxSource", "TracedOnnx", "load_onnx", "trace_onnx"]


@dataclass(frozen=True, slots=True, eq=False)
class TracedOnnx:
    """A graph, and the way back to the file that it came from.

    Args:
        graph: what the passes work on.
        source: the model as it was read, with the branch that runs in place of each If that the file settles.
        nodes: its nodes, sorted topologically.
        parts: by place in the file's list of nodes: the IR nodes that one ONNX node became.
        slots: by IR node name: for each of its inputs the ONNX node's input, -1 for an inner value.
        known: contents of values that need no run: constants, and sizes as far as the file fixes them
            (object arrays of sizes/symbols.py items).
        roots, marks: for contents that follow from a number of channels: the values whose shapes are read
            for it, and bool per element: which do.
        repeated: contents that are one element over and over, made so (``FileFacts`` of sizes/view.py).
    """

    graph: Graph
    source: OnnxSource
    nodes: tuple[SourceNode, ...]
    parts: Mapping[int, tuple[str, ...]]
    slots: Mapping[str, tuple[int, ...]]
    known: Mapping[str, Array]
    roots: Mapping[str, frozenset[str]]
    marks: Mapping[str, Array]
    repeated: frozenset[str] = frozenset()


@collected_later()
def trace_onnx(
    model: onnx.ModelProto | OnnxSource,
    input_shapes: Mapping[str, Sequence[int]] = MappingProxyType({}),
    rules: OpRules = NO_RULES,
) -> TracedOnnx:
    """Translate an ONNX model into a Graph.

    Args:
        model: what ``load_onnx`` returned, or a ModelProto with its weights inside.
        input_shapes: sizes for inputs that the file leaves open, by name; "" stands for the only input.
            They make more shapes known to the passes; nothing that is later written to a file relies on them.
        rules: ops that the user teaches, see prunec/ir/taught.py.

    Raises:
        BadInput: the model is damaged, or a shape does not fit it.
        UnsupportedModel: an opset below 7, or a training graph.
    """
    source = model if isinstance(model, OnnxSource) else OnnxSource(model)
    nodes = read_nodes(source.model)
    shapes = _named(source, input_shapes)
    facts, drafts = _walk(source, nodes, {}, None, rules)
    while (settled := with_settled_branches(source, nodes, facts)) is not None:
        source, nodes = settled, read_nodes(settled.model)
        facts, drafts = _walk(source, nodes, {}, None, rules)
    file_facts = facts
    if shapes:
        check_input_shapes(_inputs(source.model), shapes)
        facts, drafts = _walk(source, nodes, shapes, file_facts, rules)
    check_nodes(nodes, facts.shape)
    graph, parts, slots = _assemble(source, nodes, facts, drafts)
    check_graph(graph)
    return TracedOnnx(
        graph,
        source,
        nodes,
        MappingProxyType(parts),
        MappingProxyType(slots),
        known=MappingProxyType(file_facts.known),
        roots=MappingProxyType(file_facts.roots),
        marks=MappingProxyType(file_facts.marks),
        repeated=frozenset(file_facts.repeated),
    )


def _named(source: OnnxSource, given: Mapping[str, Sequence[int]]) -> dict[str, Shape]:
    """Return the given shapes by input name; "" stands for the only input."""
    inputs = [value.name for value in _inputs(source.model)]
    if "" in given and len(inputs) != 1:
        raise BadInput(
            f"a shape without a name, and the model has {len(inputs)} inputs",
            do=f"name the input: {', '.join(inputs)}",
        )
    return {name or inputs[0]: tuple(shape) for name, shape in given.items()}


# --- the walk ---------------------------------------------------------------------------------------


def _walk(
    source: OnnxSource,
    nodes: Sequence[SourceNode],
    shapes: Mapping[str, Shape],
    in_file: FileFacts | None,
    rules: OpRules,
) -> tuple[FileFacts, list[tuple[SourceNode, Sequence[Draft]]]]:
    """Fold and complete shapes node by node, then translate; return the facts and each node's drafts.

    With ``shapes`` that the user chose, contents that follow from them alone are not taken as
    constants: ``in_file`` tells what the file itself fixes.
    """
    facts = FileFacts(fixed_sizes=not shapes)
    facts.values, grown = infer(source.model, nodes, shapes)
    _add_initializers(source, facts)
    views = [View(node, facts) for node in nodes]
    followed = taken_apart(nodes, (value.name for value in source.model.graph.output))
    for view in views:
        if name := learn_pieces(view, facts, followed):
            grown.add(name)
        elif not _learn(view, source, facts, in_file):
            _complete_shapes(view, source.model, facts, grown)
            if teach_shape(view, rules):
                grown.add(view.outputs[0])
        elif view.op != "Constant":  # inference sees stored tensors itself
            grown.update(view.outputs)
    learn_unpooled(nodes, (value.name for value in source.model.graph.output), facts)
    drafts = [(view.node, drafts) for view in views if (drafts := _drafts(view, facts, rules))]
    return facts, drafts


def _add_initializers(source: OnnxSource, facts: FileFacts) -> None:
    for tensor in source.model.graph.initializer:
        _add_tensor(tensor.name, source.array(tensor), facts)
    for sparse in source.model.graph.sparse_initializer:
        facts.known[sparse.values.name] = source.dense(sparse)


def _add_tensor(name: str, array: Array, facts: FileFacts) -> None:
    if array.dtype == object:  # strings: no numbers to know
        facts.values[name] = Value(name, tuple(array.shape), "object")
    else:
        facts.known[name] = array


def _learn(view: View, source: OnnxSource, facts: FileFacts, in_file: FileFacts | None) -> bool:
    """Record what the node's outputs hold, where that is known without a run; tell whether all of it is."""
    if view.op == "Constant" and not view.node.domain:
        return _learn_constant(view, source, facts)
    out = facts.values.get(view.outputs[0]) if view.outputs else None
    results = fold(view, out.dtype if out is not None else "")
    if results is None:
        return False
    if in_file is not None:
        if any(name and name not in in_file.known for name in view.outputs):
            return False  # known only because the user fixed a size
        results = [
            _as_open(array) if in_file.constant(name) is None else array
            for name, array in zip(view.outputs, results, strict=False)
        ]
    facts.known.update((name, array) for name, array in zip(view.outputs, results, strict=False) if name)
    if repeats_one(view):
        facts.repeated.update(view.outputs)
    _mark(view, facts)
    return True


def _learn_constant(view: View, source: OnnxSource, facts: FileFacts) -> bool:
    name = view.outputs[0]
    for key, value in view.attrs.items():
        if key == "value":
            _add_tensor(name, source.array(value), facts)
        elif key == "sparse_value":
            facts.known[name] = source.dense(value)
        elif key in ("value_int", "value_ints"):
            facts.known[name] = np.asarray(value, dtype=np.int64)
        elif key in ("value_float", "value_floats"):
            facts.known[name] = np.asarray(value, dtype=np.float32)
    return name in facts.known


def _mark(view: View, facts: FileFacts) -> None:
    """Record which elements of the outputs follow from a number of channels, and of which values."""
    if view.op in ("Shape", "Size"):
        roots = frozenset(view.inputs)
    else:
        found = [facts.roots[name] for name in view.inputs if name in facts.roots]
        if not found:
            return
        roots = frozenset().union(*found)
    for name, marks in zip(view.outputs, marked(view), strict=False):
        if name and marks.any():
            facts.roots[name], facts.marks[name] = roots, marks


def _as_open(array: Array) -> Array:
    items = np.empty(array.shape, dtype=object)
    items.ravel()[:] = array.ravel().tolist()
    return items


def _complete_shapes(view: View, model: onnx.ModelProto, facts: FileFacts, grown: set[str]) -> None:
    """Look again at the outputs' shapes where inference left sizes open and more is known by now.

    What only the file says of an output is looked at, too: it may be stale.
    """
    shapes = [facts.shape(name) if name else () for name in view.outputs]
    told = any(name in grown for name in view.outputs)
    if not told and all(shape is not None and not any(map(is_soft, shape)) for shape in shapes):
        return
    told_more = told or any(name in grown for name in view.inputs)
    if not (told_more or view.op in SHAPED_BY_CONTENTS or any(shape is None for shape in shapes)):
        return
    found = refine(view, model.opset_import, model.ir_version)
    for name, old, (new, dtype) in zip(view.outputs, shapes, found, strict=False):
        merged = better(new, old)
        if not name or merged is None or merged == old:
            continue
        named = tuple(size if size is not None else f"?{name}.{axis}" for axis, size in enumerate(merged))
        before = facts.values.get(name)
        facts.values[name] = Value(name, named, (before.dtype if before is not None else "") or dtype)
        grown.add(name)


def _drafts(view: View, facts: FileFacts, rules: OpRules) -> Sequence[Draft]:
    """Translate one node; nothing where all of it is constant.

    Contents made of sizes stand as one node per value: it reads the values whose sizes matter, so that
    they stay as they are if something takes the sizes for data.
    """
    if all(facts.constant(name) is not None for name in view.outputs if name):
        return ()
    if any(name in facts.known for name in view.outputs):
        return [_sizes(name, facts) for name in view.outputs if name and facts.constant(name) is None]
    if view.op == "Constant" and not view.node.domain:
        return [Draft("opaque", (), view.outputs, {"reason": "it is not a tensor of numbers"}, ())]
    try:
        return translate(view, rules)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        complaint = complaint_about(view.node)
        if complaint:
            raise not_well_formed(view.node, complaint) from error
        # The node is as ONNX wants it: the row is at fault, or the file is wrong elsewhere (prunec/check/blame.py).
        place = f"node {view.node.name!r} ({view.op}, opset {view.node.version})"
        raise InternalError("the ONNX frontend", f"the row for {view.op} failed at {place}: {error!r}") from error


def _sizes(name: str, facts: FileFacts) -> Draft:
    roots = tuple(sorted(facts.roots.get(name, ())))
    if name not in facts.values:
        facts.values[name] = Value(name, facts.shape(name), "int64")
    return Draft("opaque", roots, (name,), {"reason": "its size is read as data"}, (-1,) * len(roots))


# --- assembly ---------------------------------------------------------------------------------------


def _assemble(
    source: OnnxSource,
    nodes: Sequence[SourceNode],
    facts: FileFacts,
    drafts: Sequence[tuple[SourceNode, Sequence[Draft]]],
) -> tuple[Graph, dict[int, tuple[str, ...]], dict[str, tuple[int, ...]]]:
    """Keep what the outputs need, and make the frozen graph of it."""
    outputs = tuple(value.name for value in source.model.graph.output)
    needed = set(outputs).union(*(facts.roots.get(name, ()) for name in outputs))
    kept: list[tuple[SourceNode, int, Draft]] = []
    for node, parts in reversed(drafts):
        for place in range(len(parts) - 1, -1, -1):
            draft = parts[place]
            if any(name in needed for name in draft.outputs):
                needed.update(draft.inputs)
                kept.append((node, place, draft))
    kept.reverse()
    made = [_node(node, place, draft) for node, place, draft in kept]
    made = [*_paddings(facts, nodes, made), *made]
    inputs = tuple(value.name for value in _inputs(source.model))
    values, params, tail = _tensors(facts, made, inputs, outputs)
    parts_of: dict[int, tuple[str, ...]] = {}
    by_name = {node.name: node for node in nodes}
    for ir_node in made:
        place = by_name[ir_node.origin].place
        parts_of[place] = (*parts_of.get(place, ()), ir_node.name)
    graph = Graph(
        nodes=(*made, *tail),
        values=MappingProxyType(values),
        params=MappingProxyType(params),
        inputs=inputs,
        outputs=tuple(tail_value(name) if tail_value(name) in values else name for name in outputs),
        name=source.model.graph.name,
        frontend="onnx",
    )
    slots = {
        ir_node.name: draft.slots for (_, _, draft), ir_node in zip(kept, made[len(made) - len(kept) :], strict=True)
    }
    return graph, parts_of, slots


def _paddings(facts: FileFacts, nodes: Sequence[SourceNode], made: Sequence[Node]) -> list[Node]:
    """Return a ``full`` node for each uniform tensor that is there to be concatenated only: it pads."""
    readers: dict[str, set[str]] = {}
    for node in made:
        for name in node.inputs:
            readers.setdefault(name, set()).add(node.op)
    joined = {name for name, ops in readers.items() if ops == {"concat"} and name in facts.known}
    paddings = []
    for source in nodes if joined else ():
        for name in joined.intersection(source.outputs):
            array = facts.constant(name)
            if array is not None and array.size > 1 and name in facts.repeated:
                attrs = {"shape": list(array.shape), "value": float(array.ravel()[0])}
                facts.values[name] = Value(name, tuple(array.shape), array.dtype.name)
                paddings.append(_node(source, 0, Draft("full", (), (name,), attrs, ())))
    return paddings


def _node(node: SourceNode, place: int, draft: Draft) -> Node:
    return Node(
        name=node.name if place == 0 else f"{node.name}/{draft.op}{place}",
        op=draft.op,
        inputs=draft.inputs,
        outputs=draft.outputs,
        attrs=MappingProxyType(draft.attrs),
        source=f"{node.domain}.{node.op}" if node.domain else node.op,
        origin=node.name,
    )


def tail_value(name: str) -> str:
    """Return the name of the value that stands for a graph output which is a stored tensor."""
    return f"{name}/output"


def _tensors(
    facts: FileFacts, nodes: Sequence[Node], inputs: Sequence[str], outputs: Sequence[str]
) -> tuple[dict[str, Value], dict[str, Param], list[Node]]:
    """Return values, parameters, and an identity for each graph output that is a parameter."""
    values = {name: _value(name, facts) for name in inputs}
    params: dict[str, Param] = {}
    for node in nodes:
        for name in node.inputs:
            array = facts.constant(name)
            if array is not None and name not in params and name not in values:
                params[name] = Param(name, array, literal=array.size == 1 or _follows_from_sizes(name, array, facts))
            elif array is None and name and name not in values:
                values[name] = _value(name, facts)
        values.update((name, _value(name, facts)) for name in node.outputs if name)
    tail: list[Node] = []
    for name in dict.fromkeys(outputs):
        array = facts.constant(name)
        if array is not None and name not in values:
            value = tail_value(name)
            values[value] = Value(value, tuple(array.shape), array.dtype.name)
            sized = tuple(root for root in sorted(facts.roots.get(name, ())) if root in values)
            if sized:
                reason = {"reason": "its size is read as data"}
                tail.append(Node(value, "opaque", sized, (value,), reason, source="output", origin=name))
                continue
            params.setdefault(name, Param(name, array, literal=True))
            tail.append(Node(value, "identity", (name,), (value,), source="output", origin=name))
    return values, params, tail


def _follows_from_sizes(name: str, array: Array, facts: FileFacts) -> bool:
    """Tell whether contents are sizes, or uniform and made of them: what the backend writes out and never slices.

    A weight that is scaled by its own size (weight standardisation) is a weight.
    """
    return name in facts.roots and (array.dtype.kind != "f" or name in facts.repeated)


def _value(name: str, facts: FileFacts) -> Value:
    value = facts.values.get(name)
    if value is None:
        return Value(name, facts.shape(name))
    return value if value.dtype else Value(name, value.shape)


def _inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Return the inputs that a user feeds: not those that old files list beside their initializers."""
    stored = {tensor.name for tensor in model.graph.initializer} | {
        t.values.name for t in model.graph.sparse_initializer
    }
    return [value for value in model.graph.input if value.name not in stored]
