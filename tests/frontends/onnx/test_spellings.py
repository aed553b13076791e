"""Every spelling of a network prunes as well as the plain one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx_models.masks import prune_at_random
from onnx_models.nets import Net, assert_pruned_agrees, prune
from onnx_models.spellings import CHANNELS, HIDDEN, SILENT, SPELLINGS, plain

from prunec.frontends.onnx.frontend import trace_onnx
from prunec.passes.cost import cost
from prunec.pipeline.planning import gather_facts
from prunec.pipeline.reading import freed


def classes_left(model: onnx.ModelProto) -> tuple[int, int]:
    """Return (prunable channels, MACs)."""
    graph = freed(trace_onnx(model).graph)
    found = gather_facts(graph).classes
    return int((found.is_channel & ~found.pinned).sum()), cost(graph).macs


def test_the_plain_network(tmp_path: Path) -> None:
    _, made, pruned = assert_pruned_agrees(plain(), tmp_path, [{"N": 1}, {"N": 3}])
    assert {(keep.size, len(keep.keep)) for keep in made.keeps} == {(CHANNELS, CHANNELS - len(SILENT))}
    assert classes_left(pruned)[0] == CHANNELS - len(SILENT) + HIDDEN


@pytest.mark.parametrize("name", SPELLINGS)
def test_constants_go_from_every_spelling(name: str, tmp_path: Path) -> None:
    model = SPELLINGS[name]()
    assert classes_left(model) == classes_left(plain())
    _, _, pruned = assert_pruned_agrees(model, tmp_path, [{"N": 1}, {"N": 3}])
    _, _, reference = assert_pruned_agrees(plain(), tmp_path)
    assert classes_left(pruned) == classes_left(reference)
    assert model.ByteSize() > pruned.ByteSize()


@pytest.mark.parametrize("name", SPELLINGS)
def test_any_channels_go_from_every_spelling(name: str) -> None:
    model, gone = SPELLINGS[name](), 0
    for seed in range(3):
        _, facts, keep = prune_at_random(model, seed, {"N": 2})
        gone += int((~keep & facts.classes.is_channel).sum())
    assert gone > 0


@pytest.mark.parametrize("name", sorted(set(SPELLINGS) - {"onnxruntime-optimised"}))  # its weights hold the gammas
def test_scores_choose_the_same_channels(name: str) -> None:
    """A weight that is computed scores as the weight that comes out."""
    sizes = []
    for model in (plain(), SPELLINGS[name]()):
        _, made, _ = prune(model, criterion="l1", target_macs=0.3)
        sizes.append(sorted({len(keep.keep) for keep in made.keeps}))
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("readers", [1, 2])
@pytest.mark.parametrize("opset", [9, 13])
def test_padding_in_front_of_a_convolution_is_its_own(opset: int, readers: int, tmp_path: Path) -> None:
    """TensorFlow's SAME padding at stride 2: what is constant behind a ReLU goes, one carrier stays for the border."""
    left = []
    for explicit in (False, True):
        net = Net(opset)
        x = net.op("Relu", net.conv(net.input("x", ["N", 3, 9, 9]), 3, CHANNELS, silent=SILENT))
        pads = [0, 0, 0, 1, 0, 0, 1, 1]
        if explicit and opset < 11:
            x = net.op("Pad", x, pads=pads, mode="constant", value=0.0)
        elif explicit:
            x = net.op("Pad", x, net.ints(*pads), net.const(np.float32(0)))
        own = [0] * 4 if explicit else [0, 1, 1, 1]
        ends = [net.conv(x, CHANNELS, 4, pads=own, strides=[2, 2]) for _ in range(readers)]
        net.output(net.op("Concat", *ends, axis=1), shape=["N", 4 * readers, None, None])
        _, made, pruned = assert_pruned_agrees(net.model(), tmp_path, [{"N": 2}])
        assert made.exact
        assert ("Pad" in {node.op_type for node in pruned.graph.node}) == explicit
        left.append(classes_left(pruned))
    assert left[0] == left[1]
    assert left[0][0] < CHANNELS


def test_padding_that_something_else_reads_stays_for_it(tmp_path: Path) -> None:
    net = Net(13)
    x = net.op("Relu", net.conv(net.input("x", ["N", 3, 9, 9]), 3, CHANNELS))
    padded = net.op("Pad", x, net.ints(0, 0, 1, 1, 0, 0, 1, 1))
    pooled = net.op("MaxPool", padded, kernel_shape=[3, 3])
    net.output(net.op("Add", net.conv(padded, CHANNELS, CHANNELS, pads=[0] * 4), pooled), shape=["N", CHANNELS, 9, 9])
    assert_pruned_agrees(net.model(), tmp_path, [{"N": 2}])
    prune_at_random(net.model(), 1, {"N": 2})
