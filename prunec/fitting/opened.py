"""A network that data are run through in stages: the original file or module, and the pruned one.

Owns the way from a fit to the tensors of the pruned network, for both frontends; see prunec/fitting/reconstruct.py.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
from onnx import numpy_helper

from prunec.backends.onnx.backend import BIASED
from prunec.backends.onnx.save import write_onnx
from prunec.fitting.refit import Place
from prunec.fitting.stages_onnx import OnnxStages
from prunec.frontends.onnx.frontend import OnnxSource, TracedOnnx
from prunec.ir.arrays import Array
from prunec.runtime.probes import Feed

Tensors = Callable[[Place, Array, Array | None], Mapping[str, Array]]


@dataclass(frozen=True, slots=True, eq=False)
class OpenedOnnx:
    """Implements ``prunec.fitting.reconstruct.Opened`` for files.

    Args:
        traced: the file.
        feeds: the data.
        memory: bytes of activations that are kept in memory.
    """

    traced: TracedOnnx
    feeds: Sequence[Feed]
    memory: int

    def sees(self, value: str) -> bool:
        return any(value in node.output for node in self.traced.source.model.graph.node)

    def original(self) -> OnnxStages:
        return OnnxStages(_in_memory(self.traced.source), self.feeds, self.memory, "the model")

    def over(self, feeds: Sequence[Feed]) -> OpenedOnnx:
        return replace(self, feeds=feeds)

    def changeable(self) -> tuple[OnnxStages, Tensors]:
        return self.pruned(self.traced.source)

    def pruned(self, result: Any) -> tuple[OnnxStages, Tensors]:
        now = OnnxStages(_in_memory(result), self.feeds, self.memory, "the pruned model")
        parts = {part: place for place, names in self.traced.parts.items() for part in names}
        sources = {node.place: node for node in self.traced.nodes}

        def tensors(place: Place, weight: Array, vector: Array | None) -> Mapping[str, Array]:
            source = sources[parts[place.node.name]]
            found = _tensor_names(now, source.outputs[0], self.traced.slots[place.node.name], place)
            if found is None:
                return {}
            contents = {found[0]: weight}
            if vector is not None and found[1]:
                contents[found[1]] = vector
            return contents

        return now, tensors


def _tensor_names(now: OnnxStages, output: str, slots: Sequence[int], place: Place) -> tuple[str, str] | None:
    """Return the names of the tensors that hold a contraction's weight and its constant; None if there are none."""
    node = now.maker(output)
    bias = ""
    if node is not None and node.op_type == "Add" and "MatMul" in place.node.source:
        bias, node = node.input[1], now.maker(node.input[0])
    if node is None:
        return None
    weight = node.input[slots[1]] if len(slots) > 1 and 0 <= slots[1] < len(node.input) else ""
    slot = BIASED.get(place.node.source, -1)
    if place.kind == "running_mean":
        bias = place.target
    elif place.kind == "bias" and not bias and 0 <= slot < len(node.input):
        bias = node.input[slot]
    known = now.tensor(weight)
    if known is None or known.shape != place.weight.shape or (bias and now.tensor(bias) is None):
        return None
    return (weight, bias) if bias or place.kind == "none" else None


def _in_memory(source: OnnxSource) -> onnx.ModelProto:
    """Return a model with all its weights inside, sparse ones as dense."""
    with tempfile.TemporaryDirectory(prefix="prunec-", ignore_cleanup_errors=True) as scratch:
        file = Path(scratch) / "model.onnx"
        write_onnx(source, file)
        model = onnx.load(file)
    graph = model.graph
    graph.initializer.extend(
        numpy_helper.from_array(source.dense(tensor), tensor.values.name) for tensor in graph.sparse_initializer
    )
    del graph.sparse_initializer[:]
    return model
