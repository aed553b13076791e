"""An ONNX model in double precision, node by node.

Owns the walk. A node runs in ONNX Runtime on doubles if there is a kernel for them; else in torch, by its row of the
importer; else in ONNX Runtime on floats, with the rounding of one node only. A row's result must agree with the
float kernel's, so that a mistake in the importer cannot decide a check. Used by referee.py.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from prunec.check.comparison import gap
from prunec.frontends.onnx.loading.load import OnnxSource, load_onnx
from prunec.frontends.onnx.loading.nodes import SourceNode, read_nodes
from prunec.frontends.onnx.sizes.view import FileFacts, View
from prunec.ir.arrays import Array
from prunec.ir.graph import Value
from prunec.runtime import sessions
from prunec.runtime.probes import Feed
from prunec.runtime.sessions import Model

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)

_WEIGHTED = frozenset({
    "Conv", "ConvTranspose", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "BatchNormalization",
    "InstanceNormalization", "GroupNormalization", "LayerNormalization", "LSTM", "GRU", "RNN", "Add", "Sub", "PRelu",
})  # fmt: skip
"""Ops whose stored tensors are weights, which rounding may change; of others it could change a size or an exponent."""

_AGREES = 1e-3
"""A row of the importer is used if it differs by less than this from the float kernel, relative to the largest."""


class DoubleOnnx:
    """A model that runs in double precision.

    Attributes:
        single: op type -> the number of nodes that had to run on floats.
    """

    def __init__(self, model: Model) -> None:
        self._source = OnnxSource(onnx.load_from_string(model)) if isinstance(model, bytes) else load_onnx(model)
        self._nodes = read_nodes(self._source.model)
        self._outputs = [value.name for value in self._source.model.graph.output]
        self._stored = {tensor.name: tensor for tensor in self._source.model.graph.initializer}
        for node in self._nodes:
            if node.op == "Constant" and isinstance(node.attrs.get("value"), TensorProto):
                self._stored[node.outputs[0]] = node.attrs["value"]
        self.single: Counter[str] = Counter()
        self._without_double: set[tuple[str, str]] = set()

    def __call__(self, feed: Feed, *, nudged: bool = False) -> list[Array]:
        """Run once; outputs in order, floats as doubles.

        Args:
            feed: by input name.
            nudged: the weights differ in their last bits, at random.

        Raises:
            Exception: whatever ONNX Runtime or torch raise on a node.
        """
        values: dict[str, Any] = {name: wide(array) for name, array in feed.items()}
        uses = Counter(name for node in self._nodes for name in (*node.inputs, *node.captured))
        uses.update(self._outputs)
        for node in self._nodes:
            if node.op == "Constant" and node.outputs[0] in self._stored:
                continue
            read = {name: self._value(name, values, nudged and node.op in _WEIGHTED) for name in _reads(node)}
            fixed = frozenset(name for name in read if name not in values)
            made = zip(node.outputs, self._run(node, read, fixed), strict=False)
            values.update((name, value) for name, value in made if uses[name])
            uses.subtract((*node.inputs, *node.captured))
            for name in read:
                if uses[name] <= 0:
                    values.pop(name, None)
        return [self._value(name, values, nudged=False) for name in self._outputs]

    def _value(self, name: str, values: Mapping[str, Any], nudged: bool) -> Any:
        if name in values:
            return values[name]
        array = self._source.array(self._stored[name])
        return _nudge(array, name) if nudged and is_float(array) else wide(array)

    def _run(self, node: SourceNode, read: Mapping[str, Any], fixed: frozenset[str]) -> list[Any]:
        kind = (node.domain, node.op)
        if kind not in self._without_double:
            try:
                return [wide(value) for value in self._by_runtime(node, _in_double(node.proto), read)]
            except Exception:  # noqa: BLE001 - there is no such kernel, or its types are fixed: in floats then
                self._without_double.add(kind)
        narrow = {name: _narrow(value) for name, value in read.items()}
        rounded = self._by_runtime(node, node.proto, narrow)
        if not any(is_float(value) for value in rounded):
            return list(rounded)
        exact = _by_row(node, read, fixed, rounded) if len(rounded) == 1 else None
        if exact is None:
            self.single[node.op] += 1
        return [wide(value) for value in rounded] if exact is None else [exact]

    def _by_runtime(self, node: SourceNode, proto: onnx.NodeProto, read: Mapping[str, Any]) -> Sequence[Any]:
        """Run one node in ONNX Runtime on values of the types that they have."""
        inputs = [_value_info(name, value) for name, value in read.items()]
        outputs = [onnx.ValueInfoProto(name=name) for name in node.outputs if name]
        model = self._source.model
        alone = helper.make_model(
            helper.make_graph([proto], "node", inputs, outputs),
            opset_imports=model.opset_import,
            ir_version=max(3, model.ir_version),
        )
        session = sessions.open_small(alone.SerializeToString())
        made = dict(zip((value.name for value in outputs), session.run(None, dict(read)), strict=True))
        return [made.get(name) for name in node.outputs]


def is_float(value: Any) -> bool:
    """Tell whether an array holds floats of any width; bfloat16 is none of numpy's own types."""
    return isinstance(value, np.ndarray) and (value.dtype.kind == "f" or value.dtype.name == "bfloat16")


def wide(value: Any) -> Any:
    """Return floats as doubles, of a sequence too; anything else as it is."""
    if isinstance(value, list):
        return [wide(item) for item in value]
    return value.astype(np.float64) if is_float(value) else value


def _narrow(value: Any) -> Any:
    if isinstance(value, list):
        return [_narrow(item) for item in value]
    return value.astype(np.float32) if is_float(value) else value


def _nudge(array: Array, name: str) -> Array:
    """Return the doubles of a stored tensor with the last bit of its own type changed; always the same way."""
    steps = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float64": 2.0**-52}.get(array.dtype.name, 2.0**-23)
    signs = np.random.default_rng(zlib.crc32(name.encode())).choice((-1.0, 1.0), array.shape)
    return np.asarray(array.astype(np.float64) * (1 + steps * signs))


def _reads(node: SourceNode) -> list[str]:
    return list(dict.fromkeys(name for name in (*node.inputs, *node.captured) if name))


def _in_double(proto: onnx.NodeProto) -> onnx.NodeProto:
    """Return a node whose casts to a float go to double."""
    if proto.op_type != "Cast" or all(entry.i not in _FLOATS for entry in proto.attribute if entry.name == "to"):
        return proto
    changed = onnx.NodeProto()
    changed.CopyFrom(proto)
    del changed.attribute[:]
    changed.attribute.append(helper.make_attribute("to", TensorProto.DOUBLE))
    return changed


def _value_info(name: str, value: Any) -> onnx.ValueInfoProto:
    if isinstance(value, list):
        kind = helper.np_dtype_to_tensor_dtype(value[0].dtype) if value else TensorProto.FLOAT
        return helper.make_tensor_sequence_value_info(name, kind, None)
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)


def _by_row(node: SourceNode, read: Mapping[str, Any], fixed: frozenset[str], rounded: Sequence[Array]) -> Array | None:
    """Return the only output of a node by its row of the importer; None without a row, or if the result disagrees."""
    import torch
    from torch import fx

    from prunec.check.double_module import InDouble
    from prunec.importer.build import Builder
    from prunec.importer.module import row_of

    row, data = row_of(node), node.inputs[0] if node.inputs else ""
    if row is None or not data or data in fixed or any(isinstance(value, list) for value in read.values()):
        return None
    facts = FileFacts()
    for name, value in (*read.items(), (node.outputs[0], rounded[0])):
        facts.values[name] = Value(name, tuple(value.shape), value.dtype.name)
    facts.known = {name: value for name, value in read.items() if name != data}
    with torch.random.fork_rng(devices=[]), torch.no_grad(), InDouble():
        try:
            builder = Builder(None)
            builder.values[data] = builder.graph.placeholder("data")
            made = row(View(node, facts), builder)
            builder.graph.output(made if isinstance(made, fx.Node) else made[0])
            alone = fx.Interpreter(builder.root.eval(), graph=builder.graph)
            result = np.asarray(alone.run(torch.from_numpy(np.ascontiguousarray(read[data]))).numpy())
        except Exception:  # noqa: BLE001 - a row made for training need not fit; the float kernel's result does
            return None
    return result if _agree(result, rounded[0]) else None


def _agree(result: Array, rounded: Array) -> bool:
    if result.shape != rounded.shape or result.dtype != np.float64:
        return False
    return gap(rounded.astype(np.float64), result).over() <= _AGREES
