"""The builder that the ONNX backend changes a model with, and its end: a clean model.

Owns copies of the nodes, stored tensors with their names, redirected values and, in ``finish``, the
removal of what nothing reads. Decides nothing about pruning; read backends/onnx/backend.py for that. Big new
tensors are not copied into the message: they are references to arrays that the result holds
(frontends/onnx/loading/wire.py), written out when the file is saved.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from prunec.frontends.onnx.frontend import OnnxSource, TracedOnnx
from prunec.frontends.onnx.loading.nodes import free_names
from prunec.frontends.onnx.loading.wire import MIN_BYTES, refer
from prunec.ir.arrays import Array
from prunec.ir.graph import Shape

MEMORY = "memory:"
"""Prefix of the location of a tensor that lies in an array of this process."""


@dataclass(frozen=True, slots=True, eq=False)
class _Stored:
    """A new tensor: its content, and the name in the file that it takes over if nothing else holds that."""

    array: Array
    like: str


class Surgeon:
    """Changes a copy of a traced model; lives inside one call of ``apply_onnx``."""

    def __init__(self, traced: TracedOnnx) -> None:
        self.traced = traced
        self._nodes = {node.place: _copy(node.proto) for node in traced.nodes}
        self._touched: set[int] = set()
        self._before: dict[int, list[onnx.NodeProto]] = {}
        self._after: dict[int, list[onnx.NodeProto]] = {}
        self._stored: dict[str, _Stored] = {}
        self._replaced: dict[str, str] = {}
        self._taken = _all_names(traced)
        self._fresh: dict[str, Iterator[object]] = {}
        """The endings to try next: those before are taken, and nodes by the thousand may ask for one base."""
        self.makers = {name: node for node in traced.nodes for name in node.outputs if name}
        self._members: dict[int, list[int]] = {}
        for node in traced.nodes:
            if node.call >= 0:
                self._members.setdefault(node.call, []).append(node.place)

    def store(self, array: Array, like: str) -> str:
        """Add a tensor to the model; return its name for now. ``like`` is the name it gets if it can."""
        name = self.fresh(like)
        self._stored[name] = _Stored(array, like)
        return name

    def fresh(self, base: str) -> str:
        """Return a name that the model does not use."""
        endings = self._fresh.setdefault(base, itertools.chain([""], itertools.count(2)))
        name = next(name for ending in endings if (name := f"{base}_pruned{ending}") not in self._taken)
        self._taken.add(name)
        return name

    def read(self, place: int, slot: int, name: str) -> None:
        """Let input ``slot`` of a node be ``name``."""
        node = self._open(place)
        while len(node.input) <= slot:
            node.input.append("")
        node.input[slot] = name

    def drop_inputs(self, place: int, slots: Iterable[int]) -> None:
        """Take inputs out of a node's list."""
        node = self._open(place)
        for slot in sorted(slots, reverse=True):
            del node.input[slot]

    def set_attribute(self, place: int, name: str, value: Any) -> None:
        """Set an attribute; None takes it out."""
        node = self._open(place)
        kept = [attribute for attribute in node.attribute if attribute.name != name]
        if len(kept) < len(node.attribute):
            del node.attribute[:]
            node.attribute.extend(kept)
        if value is not None:
            node.attribute.append(helper.make_attribute(name, value))

    def replace_value(self, value: str, other: str) -> None:
        """Let every reader of ``value`` read ``other``."""
        self._replaced[value] = other

    def insert_before(self, place: int, node: onnx.NodeProto) -> None:
        """Add a node that computes something for the node at ``place``."""
        self._touched.add(place)
        self._before.setdefault(place, []).append(node)

    def add_after(self, place: int, output: int, op: str, operand: str, name: str) -> None:
        """Let ``op`` take an output of the node and ``operand``, and give the result that output's name."""
        node = self._open(place)
        value = node.output[output]
        node.output[output] = self.fresh(value)
        self._after.setdefault(place, []).append(helper.make_node(op, [node.output[output], operand], [value], name))

    def become(self, place: int, node: onnx.NodeProto) -> None:
        """Put another node in the place of one."""
        self._open(place).CopyFrom(node)

    def take_over(self, place: int, node: onnx.NodeProto) -> None:
        """Let another node, put behind the one at ``place``, make one of its outputs."""
        old = self._open(place)
        for slot, name in enumerate(old.output):
            if name == node.output[0]:
                old.output[slot] = self.fresh(name)
        self._after.setdefault(place, []).append(node)

    def _open(self, place: int) -> onnx.NodeProto:
        self._touched.add(place)
        return self._nodes[place]

    def finish(self, shapes: Mapping[str, Shape]) -> OnnxSource:
        """Return the changed model, clean: no dead nodes, no unused tensors, no stale shapes.

        Args:
            shapes: values whose shape changed.
        """
        nodes, read = self._live(self._redirected())
        return self._assemble(nodes, self._settle_names(nodes, read), shapes)

    # --- steps of finish --------------------------------------------------------------------------------

    def _redirected(self) -> list[onnx.NodeProto]:
        """Return all nodes in order, reading what replaced values stand for now.

        A replaced value that is an output of the network, or is read inside a subgraph, keeps its name.
        """
        target = {value: self._resolve(value) for value in self._replaced}
        outputs = {value.name for value in self.traced.source.model.graph.output}
        fixed = outputs.union(*(node.captured for node in self.traced.nodes))
        ordered: list[onnx.NodeProto] = []
        calls = self._untouched_calls(target)
        for source in self.traced.nodes:
            place = source.place
            if source.call in calls:
                group = [calls[source.call]] if place == min(self._members[source.call]) else []
            else:
                group = [*self._before.get(place, ()), self._nodes[place], *self._after.get(place, ())]
            for node in group:
                for slot, name in enumerate(node.input):
                    if name in target:
                        node.input[slot] = target[name]
            held = [name for name in source.outputs if name in target]
            if held:
                # All outputs of a replaced node are: Concat and the elementwise ops have one.
                group = [helper.make_node("Identity", [target[n]], [n], source.name) for n in held if n in fixed]
            ordered += group
        return ordered

    def _untouched_calls(self, replaced: Mapping[str, str]) -> dict[int, onnx.NodeProto]:
        """Return copies of the calls of the model's functions in which nothing changed: they stay calls."""
        in_order = all(a.place < b.place for a, b in itertools.pairwise(self.traced.nodes))
        if not self._members or not in_order:
            return {}
        changed = {
            n.call for n in self.traced.nodes if n.place in self._touched or not replaced.keys().isdisjoint(n.outputs)
        }
        nodes = self.traced.source.model.graph.node
        return {call: _copy(nodes[call]) for call in self._members if call not in changed}

    def _resolve(self, value: str) -> str:
        seen = {value}
        while value in self._replaced and self._replaced[value] not in seen:
            value = self._replaced[value]
            seen.add(value)
        return value

    def _live(self, nodes: Sequence[onnx.NodeProto]) -> tuple[list[onnx.NodeProto], set[str]]:
        """Return the nodes that the outputs need, and the names that are read: by them, or as outputs."""
        needed = {value.name for value in self.traced.source.model.graph.output}
        live: list[onnx.NodeProto] = []
        for node in reversed(nodes):
            if not node.output or any(name in needed for name in node.output):
                needed |= _reads_of(node)
                live.append(node)
        return live[::-1], needed

    def _settle_names(self, nodes: Sequence[onnx.NodeProto], read: set[str]) -> set[str]:
        """Give new tensors the names that they replace, where those are free; forget those that nothing reads.

        Returns the names that are read then.
        """
        made = {name for node in nodes for name in node.output}
        final: dict[str, str] = {}
        given: set[str] = set()
        for name in [name for name in self._stored if name in read]:
            like = self._stored[name].like
            if like not in read and like not in made and like not in given:
                final[name] = like
                given.add(like)
        for node in nodes:
            for slot, name in enumerate(node.input):
                if name in final:
                    node.input[slot] = final[name]
        self._stored = {final.get(name, name): stored for name, stored in self._stored.items() if name in read}
        return read.difference(final).union(final.values())

    def _assemble(self, nodes: Sequence[onnx.NodeProto], read: set[str], shapes: Mapping[str, Shape]) -> OnnxSource:
        source = self.traced.source
        model, files = _without_graph(source.model), source.files.with_more()
        graph, old = model.graph, source.model.graph
        for field in ("name", "doc_string"):
            setattr(graph, field, getattr(old, field))
        graph.metadata_props.extend(getattr(old, "metadata_props", ()))
        tensors = {name: _tensor(name, stored.array, files) for name, stored in self._stored.items()}
        known = {tensor.name for tensor in old.initializer}
        were_sparse = {t.values.name: t for t in old.sparse_initializer if t.values.name in read}
        sparse = {name: small for name in were_sparse.keys() & tensors if (small := self._sparse(name)) is not None}
        tensors = {name: tensor for name, tensor in tensors.items() if name not in sparse}
        as_nodes = [name for name in tensors if name not in known and (model.ir_version < 4 or name in self.makers)]
        for name in as_nodes:
            graph.node.extend(self._constant_nodes(name, tensors[name]))
        graph.node.extend(nodes)
        graph.initializer.extend(tensors.get(t.name, t) for t in old.initializer if t.name in read)
        graph.initializer.extend(t for name, t in tensors.items() if name not in known and name not in as_nodes)
        graph.sparse_initializer.extend(sparse.get(name, t) for name, t in were_sparse.items() if name not in tensors)
        self._copy_values(graph, shapes, read)
        return OnnxSource(model, files, source.path)

    def _sparse(self, name: str) -> onnx.SparseTensorProto | None:
        """Return a new tensor in the form that has its zeros left out; None where that is no smaller."""
        array = self._stored[name].array
        places = np.flatnonzero(array)
        if places.size * (array.itemsize + places.itemsize) >= array.nbytes:
            return None
        values = numpy_helper.from_array(array.ravel()[places], name)
        return helper.make_sparse_tensor(values, numpy_helper.from_array(places), array.shape)

    def _constant_nodes(self, name: str, tensor: TensorProto) -> list[onnx.NodeProto]:
        """Return what makes a tensor, under the name of the node that made it before.

        That is a Constant; for one value repeated, where ConstantOfShape made it, a ConstantOfShape.
        """
        origin = self.makers[name].proto.name if name in self.makers else ""
        array, like = self._stored[name].array, self._stored[name].like
        if like not in self.traced.repeated or array.size < 2 or not (array == array.flat[0]).all():
            node = _constant(name, tensor, origin)
            was_sparse = name in self.makers and "sparse_value" in self.makers[name].attrs
            small = self._sparse(name) if was_sparse else None
            if small is not None:
                node.attribute[0].CopyFrom(helper.make_attribute("sparse_value", small))
            return [node]
        shape = self.fresh(f"{name}_shape")
        one = _constant("", numpy_helper.from_array(array.reshape(-1)[:1]), "").attribute[0]
        node = onnx.NodeProto(op_type="ConstantOfShape", name=origin, input=[shape], output=[name], attribute=[one])
        return [_constant(shape, numpy_helper.from_array(np.array(array.shape, np.int64)), ""), node]

    def _copy_values(self, graph: onnx.GraphProto, shapes: Mapping[str, Shape], read: set[str]) -> None:
        """Copy inputs, outputs and the notes on values that are still there, with their new sizes."""
        old = self.traced.source.model.graph
        tensors = {tensor.name for tensor in old.initializer}
        graph.input.extend(value for value in old.input if value.name not in tensors or value.name in read)
        graph.output.extend(old.output)
        there = {name for node in graph.node for name in node.output}
        known_values = self.traced.graph.values
        for value in old.value_info:
            stale = value.name not in known_values and value.name not in tensors
            if value.name in there and not (shapes and stale):
                graph.value_info.add().CopyFrom(value)
        graph.quantization_annotation.extend(
            note
            for note in old.quantization_annotation
            if note.tensor_name in there | read
            and all(entry.value in read for entry in note.quant_parameter_tensor_names)
        )
        sizes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
        for value in (*graph.input, *graph.value_info):
            _resize(value, sizes.get(value.name, shapes.get(value.name)))


def _constant(name: str, tensor: TensorProto, origin: str) -> onnx.NodeProto:
    node = onnx.NodeProto(op_type="Constant", name=origin, output=[name])
    attribute = node.attribute.add()
    attribute.name, attribute.type = "value", onnx.AttributeProto.TENSOR
    attribute.t.CopyFrom(tensor)
    attribute.t.ClearField("name")
    return node


def _copy(node: onnx.NodeProto) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy


def _all_names(traced: TracedOnnx) -> set[str]:
    graph = traced.source.model.graph
    names = {value.name for value in (*graph.input, *graph.output, *graph.value_info)}
    names |= {tensor.name for tensor in graph.initializer}
    for node in traced.nodes:
        names.update(node.inputs, node.outputs, node.captured)
    return names


def _reads_of(node: onnx.NodeProto) -> set[str]:
    reads = set(node.input)
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            reads |= free_names(attribute.g)
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            reads = reads.union(*map(free_names, attribute.graphs))
    return reads - {""}


def _without_graph(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copy everything of a model but its graph."""
    copy = onnx.ModelProto()
    for field, value in model.ListFields():
        if field.name == "graph":
            continue
        if isinstance(value, str | bytes | int | float):
            setattr(copy, field.name, value)
        else:
            getattr(copy, field.name).MergeFrom(value)
    copy.graph.SetInParent()
    return copy


def _tensor(name: str, array: Array, files: Any) -> TensorProto:
    """Return the message for an array; big ones are references to it."""
    if array.nbytes < MIN_BYTES or array.dtype.itemsize * array.size != array.nbytes or array.dtype.name in _PACKED:
        return numpy_helper.from_array(array, name)
    array = np.ascontiguousarray(array)
    tensor = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(array.dtype), dims=array.shape)
    location = f"{MEMORY}{name}"
    files.add(location, array.reshape(-1).view(np.uint8).data)
    refer(tensor, location, 0, array.nbytes)
    return tensor


_PACKED = ("int4", "uint4", "float4_e2m1fn", "int2", "uint2", "float6_e2m3fn", "float6_e3m2fn")
"""Types that a file packs tighter than memory does."""


def _resize(value: onnx.ValueInfoProto, shape: Shape | None) -> None:
    """Write the sizes that are known into a value's type; open ones keep their names."""
    dims = value.type.tensor_type.shape.dim
    if shape is None or len(shape) != len(dims):
        return
    for dim, size in zip(dims, shape, strict=True):
        if isinstance(size, int) and dim.HasField("dim_value"):
            dim.dim_value = size
