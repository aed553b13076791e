"""Calls of a model's own functions, expanded so that the passes see what they do.

Owns the expansion: each call becomes the nodes of the function's body, with inner names made unique.
The model keeps its functions and, where nothing inside a call changes, the call (backends/onnx_surgeon).
A function whose body has graphs of its own, or other opset versions than the model, stays one opaque node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import onnx

from prunec.errors import BadInput

MAX_NODES = 200_000
"""Nested calls multiply: a small file can ask for more nodes than memory holds."""


class Member(NamedTuple):
    """A node, and the place of the call in the file's list that it came from; -1 for a node of the graph itself."""

    node: onnx.NodeProto
    call: int


_Key = tuple[str, str]


def expand_calls(model: onnx.ModelProto) -> list[Member]:
    """Return the main graph's nodes with every call of a function that can be expanded in place of it.

    Raises:
        BadInput: functions that call each other in a circle, or grow without measure.
    """
    nodes = [Member(node, -1) for node in model.graph.node]
    functions = {(function.domain, function.name): function for function in model.functions}
    if not functions:
        return nodes
    versions = {entry.domain: entry.version for entry in model.opset_import}
    plain = {key: function for key, function in functions.items() if _can_expand(function, versions)}
    sizes: dict[_Key, int] = {}
    total = sum(_size((node.domain, node.op_type), plain, sizes, ()) for node, _ in nodes)
    if total > MAX_NODES:
        raise BadInput(f"the model's functions expand to {total} nodes", do="inline them when exporting")
    members: list[Member] = []
    for place, (node, _) in enumerate(nodes):
        if (node.domain, node.op_type) in plain:
            members += [Member(part, place) for part in _expand(node, f"{node.name or node.op_type}{place}", plain)]
        else:
            members.append(Member(node, -1))
    return members


def _can_expand(function: onnx.FunctionProto, versions: Mapping[str, int]) -> bool:
    if any(versions.get(entry.domain, 0) != entry.version for entry in function.opset_import):
        return False
    kinds = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
    return not any(attribute.type in kinds for node in function.node for attribute in node.attribute)


def _size(
    key: _Key, functions: Mapping[_Key, onnx.FunctionProto], sizes: dict[_Key, int], above: Sequence[_Key]
) -> int:
    """Return how many nodes an op expands to."""
    if key not in functions:
        return 1
    if key in above:
        raise BadInput(f"the model's function {key[1]!r} calls itself", do="fetch or export the model again")
    if key not in sizes:
        inside = ((node.domain, node.op_type) for node in functions[key].node)
        sizes[key] = sum(_size(part, functions, sizes, (*above, key)) for part in inside)
    return sizes[key]


def _expand(call: onnx.NodeProto, prefix: str, functions: Mapping[_Key, onnx.FunctionProto]) -> list[onnx.NodeProto]:
    """Return the body of a call, nested calls expanded as well."""
    function = functions[call.domain, call.op_type]
    names = dict(zip(function.input, [*call.input, *[""] * len(function.input)], strict=False))
    names.update(zip(function.output, call.output, strict=False))
    given = {attribute.name: attribute for attribute in (*function.attribute_proto, *call.attribute)}
    nodes: list[onnx.NodeProto] = []
    for index, template in enumerate(function.node):
        node = onnx.NodeProto()
        node.CopyFrom(template)
        node.name = f"{prefix}/{template.name or template.op_type}{index}"
        for field in (node.input, node.output):
            for slot, name in enumerate(field):
                field[slot] = names.setdefault(name, f"{prefix}/{name}") if name else ""
        _fill_attributes(node, given)
        nested = (node.domain, node.op_type) in functions
        nodes += _expand(node, node.name, functions) if nested else [node]
    return nodes


def _fill_attributes(node: onnx.NodeProto, given: Mapping[str, onnx.AttributeProto]) -> None:
    """Put the call's attributes where the body refers to them; what the call leaves out stays out."""
    if not any(attribute.ref_attr_name for attribute in node.attribute):
        return
    kept = []
    for attribute in node.attribute:
        if not attribute.ref_attr_name:
            kept.append(attribute)
        elif attribute.ref_attr_name in given:
            filled = onnx.AttributeProto()
            filled.CopyFrom(given[attribute.ref_attr_name])
            filled.name = attribute.name
            kept.append(filled)
    del node.attribute[:]
    node.attribute.extend(kept)
