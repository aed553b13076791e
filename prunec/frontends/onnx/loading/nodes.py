"""ModelProto -> SourceNodes in topological order, and every check of a model's structure.

Owns what must hold before anything can be said about a graph: an opset that prunec reads, names that
are defined once and defined at all, no cycles. Does not look at attributes or shapes; read
shapes.py next.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import onnx
from onnx import AttributeProto

from prunec.errors import BadInput, UnsupportedModel
from prunec.frontends.onnx.loading.functions import Member, expand_calls

MIN_OPSET = 7
TRAINING_DOMAIN = "ai.onnx.preview.training"
COMPILED_DOMAINS = ("com.microsoft.nchwc", "com.ms.internal.nhwc")
"""Ops on channels in blocks of 8 or 16, and on channels at the end, that ONNX Runtime makes for itself."""
MAX_DIM = 2**31 - 1


class SourceNode(NamedTuple):
    """One node of the main graph, calls of the model's own functions expanded.

    Args:
        place: its place in the list of nodes; where nothing is expanded, that is the file's.
        call: the place in the file of the call that it is part of; -1 for most.
        name: its own name where that is unique, else made from its first output.
        op: the op type.
        domain: "" for ONNX's own ops.
        version: the opset version that the model imports for the domain; 0 where it imports none.
        inputs, outputs: names, "" where absent; trailing absences are left out.
        captured: names of outer values that its subgraphs read.
        attrs: its attributes as plain Python; tensors and graphs as messages.
        proto: the node.
    """

    place: int
    call: int
    name: str
    op: str
    domain: str
    version: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    captured: tuple[str, ...]
    attrs: Mapping[str, Any]
    proto: onnx.NodeProto


def read_nodes(model: onnx.ModelProto) -> tuple[SourceNode, ...]:
    """Return the main graph's nodes, sorted so that each comes after what it reads.

    Raises:
        BadInput: no nodes, a name defined twice or nowhere, a cycle, sizes beyond 2^31.
        UnsupportedModel: an opset below 7, a training graph, or one that was compiled for a machine.
    """
    graph = model.graph
    versions = _opsets(model)
    _check_training(model)
    _check_compiled(model)
    if not graph.node or not graph.output:
        raise BadInput(
            "the model's graph is empty", why=f"it has {len(graph.node)} nodes and {len(graph.output)} outputs"
        )
    _check_inputs(graph)
    members = expand_calls(model)
    names = _node_names([member.node for member in members])
    nodes = [_source_node(place, member, names[place], versions) for place, member in enumerate(members)]
    given = _given_names(graph)
    made = _made_names(nodes, given)
    _check_defined(nodes, graph.output, given | made)
    return tuple(_sorted(nodes, given))


def domain_of(name: str) -> str:
    """Return the domain with ONNX's own written one way."""
    return "" if name == "ai.onnx" else name


def free_names(graph: onnx.GraphProto) -> set[str]:
    """Return the names that a subgraph reads and does not define: values of the graphs around it."""
    defined = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    free: set[str] = set()
    for node in graph.node:
        free.update(name for name in node.input if name and name not in defined)
        for body in subgraphs(node):
            free |= free_names(body) - defined
        defined.update(node.output)
    free.update(value.name for value in graph.output if value.name not in defined)
    return free


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the graphs among a node's attributes (If, Loop, Scan)."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            yield from attribute.graphs


def _opsets(model: onnx.ModelProto) -> dict[str, int]:
    versions = {domain_of(entry.domain): entry.version for entry in model.opset_import}
    # Before IR version 3 there were no imports, which meant opset 1.
    version = versions.get("", 1 if not model.opset_import else MIN_OPSET)
    if version < MIN_OPSET:
        raise UnsupportedModel(
            f"the model is of opset {version}",
            why=f"prunec reads opset {MIN_OPSET} and later",
            do="convert it: onnx.version_converter.convert_version(model, 13), or export it again",
        )
    return versions


def _check_training(model: onnx.ModelProto) -> None:
    trains = [node.op_type for node in model.graph.node if node.domain == TRAINING_DOMAIN]
    if trains or len(model.training_info):
        raise UnsupportedModel(
            f"the model is a training graph ({', '.join(sorted(set(trains))) or 'it holds training_info'})",
            why="its weights change while it runs",
            do="export the network for inference",
        )


def _check_compiled(model: onnx.ModelProto) -> None:
    """Refuse what ONNX Runtime saved for one machine: its weights lie in blocks, or inside a provider's own format."""
    found = [node for node in model.graph.node if node.domain in COMPILED_DOMAINS or node.op_type == "EPContext"]
    if found:
        first = found[0]
        name = first.name or next(iter(first.output), "")
        raise UnsupportedModel(
            f"the model was compiled for one kind of machine: {len(found)} of its {len(model.graph.node)} nodes, the "
            f"first is {name!r} ({first.domain}.{first.op_type})",
            why="what ONNX Runtime's last step of optimisation saves holds weights in the layout of that machine",
            do="prune the file that it was made from and let the runtime optimise the pruned one; or save it with "
            "graph_optimization_level ORT_ENABLE_EXTENDED, which prunec reads",
        )


def _check_inputs(graph: onnx.GraphProto) -> None:
    for value in graph.input:
        dims = value.type.tensor_type.shape.dim
        sizes = [dim.dim_value for dim in dims if dim.dim_value > 0]
        if any(size > MAX_DIM for size in sizes) or math.prod(sizes) > MAX_DIM**2:
            raise BadInput(f"the input {value.name!r} has the shape {sizes}", why="no tensor can be that large")


def _node_names(nodes: Sequence[onnx.NodeProto]) -> list[str]:
    """Name every node once: many exporters leave names out or repeat them."""
    count = Counter(node.name for node in nodes)
    taken = {name for name, times in count.items() if times == 1}
    names = []
    for index, node in enumerate(nodes):
        name = node.name
        if not name or count[name] > 1:
            name = next((output for output in node.output if output), "") or f"{node.op_type}_{index}"
            while name in taken:
                name = f"{name}_{index}"
            taken.add(name)
        names.append(name)
    return names


def _source_node(place: int, member: Member, name: str, versions: Mapping[str, int]) -> SourceNode:
    node = member.node
    domain = domain_of(node.domain)
    captured: tuple[str, ...] = ()
    attrs: dict[str, Any] = {}
    for attribute in node.attribute:
        kind = attribute.type
        read = READ_ATTRIBUTE.get(kind)
        if read is not None:
            attrs[attribute.name] = read(attribute)
        if kind in _GRAPH_KINDS and not captured:
            captured = tuple(sorted(set().union(*(free_names(body) for body in subgraphs(node)))))
    inputs, outputs = _trim(node.input), _trim(node.output)
    version = versions.get(domain, 0)
    return SourceNode(place, member.call, name, node.op_type, domain, version, inputs, outputs, captured, attrs, node)


READ_ATTRIBUTE: Mapping[int, Callable[[AttributeProto], Any]] = {
    AttributeProto.INT: lambda a: a.i,
    AttributeProto.FLOAT: lambda a: a.f,
    AttributeProto.STRING: lambda a: a.s.decode("utf-8", "replace"),
    AttributeProto.INTS: lambda a: list(a.ints),
    AttributeProto.FLOATS: lambda a: list(a.floats),
    AttributeProto.STRINGS: lambda a: [s.decode("utf-8", "replace") for s in a.strings],
    AttributeProto.TENSOR: lambda a: a.t,
    AttributeProto.SPARSE_TENSOR: lambda a: a.sparse_tensor,
    AttributeProto.GRAPH: lambda a: a.g,
}
_GRAPH_KINDS = (AttributeProto.GRAPH, AttributeProto.GRAPHS)


def _trim(names: Iterable[str]) -> tuple[str, ...]:
    kept = tuple(names)
    while kept and not kept[-1]:
        kept = kept[:-1]
    return kept


def _given_names(graph: onnx.GraphProto) -> set[str]:
    """Return the names that no node makes: inputs and initializers."""
    tensors = [tensor.name for tensor in graph.initializer]
    tensors += [tensor.values.name for tensor in graph.sparse_initializer]
    inputs = [value.name for value in graph.input]
    for kind, names in (("initializer", tensors), ("input", inputs)):
        twice = [name for name, times in Counter(names).items() if times > 1]
        if twice:
            raise BadInput(f"the model defines the {kind} {twice[0]!r} twice", do="fetch or export the model again")
    return {*tensors, *inputs}


def _made_names(nodes: Sequence[SourceNode], given: set[str]) -> set[str]:
    made: set[str] = set()
    for node in nodes:
        for output in node.outputs:
            if output and (output in made or output in given):
                raise BadInput(
                    f"the value {output!r} is defined twice (node {node.name!r}, {node.op})",
                    why="in ONNX each name stands for one tensor",
                    do="fetch or export the model again",
                )
            made.add(output)
    return made


def _check_defined(nodes: Sequence[SourceNode], outputs: Iterable[onnx.ValueInfoProto], defined: set[str]) -> None:
    for node in nodes:
        for name in (*node.inputs, *node.captured):
            if name and name not in defined:
                raise BadInput(
                    f"node {node.name!r} ({node.op}) reads {name!r}, which nothing defines",
                    why="an initializer is missing, or the file was cut out of a larger one",
                    do="fetch or export the model again",
                )
    for value in outputs:
        if value.name not in defined:
            raise BadInput(f"nothing computes the output {value.name!r}", do="fetch or export the model again")


def _sorted(nodes: Sequence[SourceNode], given: set[str]) -> list[SourceNode]:
    """Sort topologically; nodes that are in order stay in order."""
    ready = set(given) | {""}
    done: list[SourceNode] = []
    waiting: dict[str, list[int]] = {}
    missing: dict[int, int] = {}
    for index, node in enumerate(nodes):
        needs = {name for name in (*node.inputs, *node.captured) if name not in ready}
        if not needs:
            _finish(index, nodes, ready, done, waiting, missing)
            continue
        missing[index] = len(needs)
        for name in needs:
            waiting.setdefault(name, []).append(index)
    if len(done) < len(nodes):
        stuck = [nodes[index].name for index, count in missing.items() if count > 0][:3]
        raise BadInput(
            f"the graph has a cycle: {', '.join(map(repr, stuck))} wait for their own results",
            do="fetch or export the model again",
        )
    return done


def _finish(
    index: int,
    nodes: Sequence[SourceNode],
    ready: set[str],
    done: list[SourceNode],
    waiting: dict[str, list[int]],
    missing: dict[int, int],
) -> None:
    """Take a node whose inputs are there, then those that waited for nothing but its outputs."""
    queue = [index]
    while queue:
        node = nodes[queue.pop()]
        done.append(node)
        for output in node.outputs:
            ready.add(output)
            for other in waiting.pop(output, ()):
                missing[other] -= 1
                if missing[other] == 0:
                    queue.append(other)
