"""If nodes whose condition the file itself settles: the branch that runs takes their place.

Exporters write ``squeeze`` on an axis whose size they do not know, and scripted Python conditions, as an If. Where the
sizes that it asks for are fixed after all, only one branch ever runs. Owns the copy of the model in which that branch
stands in the main graph; what is known of values is found in onnx.py, which reads the copy in the model's place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import onnx

from prunec.frontends.onnx.loading.load import OnnxSource
from prunec.frontends.onnx.loading.nodes import SourceNode, subgraphs
from prunec.frontends.onnx.sizes.view import FileFacts


def with_settled_branches(source: OnnxSource, nodes: Sequence[SourceNode], facts: FileFacts) -> OnnxSource | None:
    """Return the model with the branch that runs in place of each If whose condition is known; None without any."""
    chosen = {_first(node.outputs): branch for node in nodes if (branch := _branch(node, facts)) is not None}
    if not chosen:
        return None
    model = onnx.ModelProto()
    model.CopyFrom(source.model)
    graph = model.graph
    taken = _names(source.model.graph)
    del graph.node[:]
    for node in source.model.graph.node:
        branch = chosen.get(_first(node.output))
        if branch is None:
            graph.node.append(node)
        else:
            _inline(graph, node, branch, taken)
    return OnnxSource(model, source.files, source.path)


def _first(outputs: Iterable[str]) -> str:
    """Return the name that tells a node from all others: values are defined once."""
    return next(filter(None, outputs), "")


def _branch(node: SourceNode, facts: FileFacts) -> onnx.GraphProto | None:
    """Return the branch of an If of the main graph that always runs."""
    if node.op != "If" or node.domain or node.call >= 0 or not any(node.outputs):
        return None
    condition = facts.constant(node.inputs[0])
    if condition is None or condition.size != 1:
        return None
    branch = node.attrs.get("then_branch" if bool(condition.ravel()[0]) else "else_branch")
    fits = isinstance(branch, onnx.GraphProto) and len(branch.output) >= len(node.outputs) and not branch.input
    return branch if fits else None


def _inline(graph: onnx.GraphProto, call: onnx.NodeProto, branch: onnx.GraphProto, taken: set[str]) -> None:
    """Append a branch's nodes and tensors, under names of their own; its outputs get the names of the call's."""
    prefix = call.name or _first(call.output)
    made = [name for node in branch.node for name in node.output if name]
    outer = {out.name: name for out, name in zip(branch.output, call.output, strict=False) if name and out.name in made}
    names = {name: outer.get(name) or _fresh(name, prefix, taken) for name in made}
    stored = (*(t for t in branch.initializer), *(t.values for t in branch.sparse_initializer))
    names |= {tensor.name: _fresh(tensor.name, prefix, taken) for tensor in stored}
    for tensor in branch.initializer:
        graph.initializer.add().CopyFrom(tensor)
        graph.initializer[-1].name = names[tensor.name]
    for sparse in branch.sparse_initializer:
        graph.sparse_initializer.add().CopyFrom(sparse)
        graph.sparse_initializer[-1].values.name = names[sparse.values.name]
    for index, node in enumerate(branch.node):
        graph.node.add().CopyFrom(node)
        graph.node[-1].name = f"{prefix}/{node.name or node.op_type}{index}"
        _rename(graph.node[-1], names)
    for out, name in zip(branch.output, call.output, strict=False):
        if name and names.get(out.name) != name:  # a stored tensor, or a value that goes out twice
            inner = names.get(out.name, out.name)
            graph.node.append(onnx.helper.make_node("Identity", [inner], [name], f"{prefix}/{name}"))


def _fresh(name: str, prefix: str, taken: set[str]) -> str:
    """Return a name that no value of the model has; the branches of two calls may use the same ones."""
    found, number = name, 0
    while found in taken:
        number += 1
        found = f"{prefix}/{name}{f'_{number}' if number > 1 else ''}"
    taken.add(found)
    return found


def _rename(node: onnx.NodeProto, names: Mapping[str, str]) -> None:
    """Rename what a node reads and makes; graphs inside it see the names around them and define none of them anew."""
    for field in (node.input, node.output):
        for slot, name in enumerate(field):
            field[slot] = names.get(name, name)
    for body in subgraphs(node):
        for inner in body.node:
            _rename(inner, names)
        for value in body.output:
            value.name = names.get(value.name, value.name)


def _names(graph: onnx.GraphProto) -> set[str]:
    """Return the names of all values of the main graph."""
    names = {value.name for value in (*graph.input, *graph.output)} | {t.name for t in graph.initializer}
    names |= {sparse.values.name for sparse in graph.sparse_initializer}
    return names.union(*(node.output for node in graph.node))
