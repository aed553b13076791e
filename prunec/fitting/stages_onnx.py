"""An ONNX model, run one stretch at a time in ONNX Runtime; prunec/fitting/stages.py says why.

Owns cutting a model into pieces that run by themselves: the nodes that some values need. A piece reads values of
earlier pieces and returns those that later ones read. No torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import onnx
from onnx import helper, numpy_helper

from prunec.fitting.stages import Store, in_place_of, wide
from prunec.ir.arrays import Array
from prunec.runtime import sessions
from prunec.runtime.probes import Feed


class OnnxStages:
    """Implements ``prunec.fitting.stages.Stages``.

    Args:
        model: with its weights inside.
        feeds: all data, batch by batch.
        limit: bytes of activations kept in memory.
        name: how messages call the model.
    """

    in_order = False

    def __init__(self, model: onnx.ModelProto, feeds: Sequence[Feed], limit: int, name: str) -> None:
        self._model, self._name = model, name
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self._nodes = []
        for node in model.graph.node:
            if node.op_type == "Constant" and not node.domain and node.attribute and node.attribute[0].name == "value":
                tensor = onnx.TensorProto()
                tensor.CopyFrom(node.attribute[0].t)
                tensor.name = node.output[0]
                self._tensors[tensor.name] = tensor
            else:
                self._nodes.append(node)
        self._reads = [tuple(dict.fromkeys(_inputs(node))) for node in self._nodes]
        self._maker = {out: at for at, node in enumerate(self._nodes) for out in node.output if out}
        self._readers: dict[str, set[int]] = {}
        for at, names in enumerate(self._reads):
            for value in names:
                self._readers.setdefault(value, set()).add(at)
        self._done = [False] * len(self._nodes)
        self._wanted: set[str] = set()
        self._held = frozenset[str]()
        self._expected = Counter[str]()
        self._store = Store(limit)
        self.num_batches = len(feeds)
        for batch, feed in enumerate(feeds):
            for key, array in feed.items():
                self._store.put(key, batch, array)

    def has(self, name: str) -> bool:
        return name in self._maker or name in self._store

    def keep(self, names: Iterable[str]) -> None:
        self._held |= frozenset(names)
        self._wanted |= self._held

    def expect(self, names: Iterable[str]) -> None:
        self._expected.update(name for name in names if self.has(name))

    def advance(self, names: Iterable[str]) -> None:
        wanted = list(dict.fromkeys(names))
        self._wanted.update(wanted)
        ahead = self._needed(wanted)
        if not ahead:
            return
        for at in ahead:
            self._done[at] = True
        made, given = self._made(ahead), self._given(ahead)
        kept = [name for name in made if self._is_kept(name)]
        self._run(ahead, given, kept)
        for name in given:
            self._forget(name)

    def value(self, name: str, batch: int) -> Array:
        return wide(self._store.get(name, batch))

    def drop(self, names: Iterable[str]) -> None:
        for name in set(names) - self._held:
            self._wanted.discard(name)
            self._expected -= Counter([name])
            self._forget(name)

    def rest(
        self, names: Iterable[str], tensors: Mapping[str, Array], replaced: Mapping[str, Array] = MappingProxyType({})
    ) -> Iterator[list[Array]]:
        wanted = list(names)
        ahead = self._needed(wanted)
        given, kept = self._given(ahead), [name for name in wanted if name not in self._store]
        own = {name: self._tensors[name] for name in tensors}
        self.set_tensors(tensors)
        try:
            piece = self._piece(ahead, given, kept).SerializeToString()
        finally:
            self._tensors.update(own)
        runner = sessions.open_runner(piece, self._name, "cpu", optimise=True)
        for batch in range(self.num_batches):
            feed = {name: self._store.get(name, batch) for name in given}
            feed.update({name: in_place_of(feed[name], replaced[name]) for name in replaced if name in feed})
            made = dict(zip(kept, runner.session.run(None, feed) if kept else (), strict=True))
            yield [wide(made[name] if name in made else self._store.get(name, batch)) for name in wanted]

    def set_tensors(self, tensors: Mapping[str, Array]) -> None:
        for name, array in tensors.items():
            self._tensors[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)

    def tensor(self, name: str) -> Array | None:
        """Return a stored tensor's content; None if there is none of that name."""
        found = self._tensors.get(name)
        return None if found is None else numpy_helper.to_array(found)

    def maker(self, value: str) -> onnx.NodeProto | None:
        """Return the node that makes a value."""
        at = self._maker.get(value)
        return None if at is None else self._nodes[at]

    def _is_read_ahead(self, name: str) -> bool:
        return any(not self._done[at] for at in self._readers.get(name, ()))

    def _is_kept(self, name: str) -> bool:
        return name in self._wanted or self._expected[name] > 0 or self._is_read_ahead(name)

    def _forget(self, name: str) -> None:
        if not self._is_kept(name):
            self._store.drop(name)

    def _needed(self, names: Iterable[str]) -> list[int]:
        pending, found = [name for name in names if name not in self._store], set[int]()
        while pending:
            at = self._maker.get(pending.pop())
            if at is None or at in found:
                continue
            found.add(at)
            pending += [name for name in self._reads[at] if name not in self._store and name not in self._tensors]
        return sorted(found)

    def _made(self, ahead: Sequence[int]) -> list[str]:
        return [out for at in ahead for out in self._nodes[at].output if out]

    def _given(self, ahead: Sequence[int]) -> list[str]:
        """Return the values that these nodes read and none of them makes."""
        made = set(self._made(ahead))
        read = dict.fromkeys(name for at in ahead for name in self._reads[at])
        return [name for name in read if name not in self._tensors and name not in made]

    def _run(self, ahead: Sequence[int], given: Sequence[str], kept: Sequence[str]) -> None:
        runner = sessions.open_runner(
            self._piece(ahead, given, kept).SerializeToString(), self._name, "cpu", optimise=True
        )
        for batch in range(self.num_batches):
            found = runner.session.run(None, {name: self._store.get(name, batch) for name in given})
            for name, array in zip(kept, found, strict=True):
                self._store.put(name, batch, array)

    def _piece(self, ahead: Sequence[int], given: Sequence[str], kept: Sequence[str]) -> onnx.ModelProto:
        read = {name for at in ahead for name in self._reads[at]}
        piece = onnx.ModelProto(ir_version=self._model.ir_version)
        piece.opset_import.extend(self._model.opset_import)
        piece.functions.extend(self._model.functions)
        piece.graph.name = "piece"
        piece.graph.node.extend(self._nodes[at] for at in ahead)
        piece.graph.initializer.extend(self._tensors[name] for name in sorted(read & self._tensors.keys()))
        for name in given:
            first = self._store.get(name, 0)
            kind = helper.np_dtype_to_tensor_dtype(first.dtype)
            piece.graph.input.append(helper.make_tensor_value_info(name, kind, [None] * first.ndim))
        piece.graph.output.extend(onnx.ValueInfoProto(name=name) for name in kept)
        return piece


def _inputs(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the values that a node reads, also from inside its subgraphs."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for body in [attribute.g] if attribute.HasField("g") else list(attribute.graphs):
            made = {out for inner in body.node for out in inner.output}
            made.update(value.name for value in body.input)
            made.update(tensor.name for tensor in body.initializer)
            yield from (name for inner in body.node for name in _inputs(inner) if name not in made)
