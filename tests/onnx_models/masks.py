"""The reference for pruning by score: the whole network, with the removed channels silenced where they are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnx_models.nets import assert_same_outputs, random_feeds
from prunec.backends.onnx.backend import apply_onnx
from prunec.backends.onnx.save import model_bytes
from prunec.frontends.onnx.frontend import TracedOnnx, trace_onnx
from prunec.ir.arrays import Mask
from prunec.passes.lowering.lower import lower
from prunec.passes.selection.select import Facts, plan, select
from prunec.pipeline.planning import gather_facts
from prunec.pipeline.reading import freed

_ZERO_POINT = {
    "MatMulIntegerToFloat": 4,
    "QLinearConv": 2,
    "QLinearMatMul": 2,
    "ConvInteger": 2,
    "MatMulInteger": 2,
    "QGemm": 2,
}
"""Op on integers -> the input that says which integer stands for zero."""


def some_classes(facts: Facts, seed: int) -> Mask:
    """Keep two thirds of the classes, and all that are constant at one reader: those the plan folds instead."""
    wish = np.random.default_rng(seed).random(facts.classes.num_classes) > 0.35
    for read in facts.reads:
        wish[facts.classes.class_of[read.ids[~np.isnan(read.constant)]]] = True
    return wish


def prune_at_random(
    model: onnx.ModelProto, seed: int = 0, sizes: Mapping[str, int] | None = None
) -> tuple[TracedOnnx, Facts, Mask]:
    """Take channels away at random, and compare with the masked network in ONNX Runtime; return what stayed.

    Raises:
        AssertionError: the outputs differ, or the pruned file is not well formed.
    """
    traced = trace_onnx(model)
    traced = replace(traced, graph=freed(traced.graph))
    facts = gather_facts(traced.graph)
    selection = select(facts, some_classes(facts, seed))
    made = plan(facts, selection, ())
    pruned = model_bytes(apply_onnx(traced, lower(traced.graph, facts.classes, made, facts.constants)))
    masked = with_masks(model, traced, facts, selection.keep).SerializeToString()
    assert_same_outputs(masked, pruned, random_feeds(model, sizes, seed), 2e-5)
    return traced, facts, selection.keep


def with_masks(model: onnx.ModelProto, traced: TracedOnnx, facts: Facts, keep: Mask) -> onnx.ModelProto:
    """Return the model with removed channels set to zero wherever a contraction reads them.

    Channels that are constant there are left as they are: the plan folds them.
    """
    masked = onnx.ModelProto()
    masked.CopyFrom(model)
    places = {node.name: node.place for node in traced.nodes}
    for number, read in enumerate(facts.reads):
        gone = ~keep[facts.classes.class_of[read.ids]] & np.isnan(read.constant)
        if gone.any():
            slots = traced.slots[read.node.name]
            slot = slots[read.index] if read.index < len(slots) else -1
            _silence(masked, masked.graph.node[places[read.node.origin]], max(slot, 0), ~gone, number)
    return sorted_model(masked)


def _silence(model: onnx.ModelProto, node: onnx.NodeProto, slot: int, stays: Mask, number: int) -> None:
    result = f"masked{number}"
    zero = _ZERO_POINT.get(node.op_type)
    if zero is None:
        operands = [node.input[slot], f"mask{number}"]
        mask = stays.astype(np.float32)
        model.graph.node.append(helper.make_node("Mul", operands, [result]))
    else:
        operands = [f"mask{number}", node.input[slot], node.input[zero]]
        mask = stays
        model.graph.node.append(helper.make_node("Where", operands, [result]))
    model.graph.initializer.append(numpy_helper.from_array(mask, f"mask{number}"))
    node.input[slot] = result


def sorted_model(model: onnx.ModelProto) -> onnx.ModelProto:
    nodes = [node.proto for node in trace_onnx(model).nodes]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model
