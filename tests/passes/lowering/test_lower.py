"""Plans turned into edits: what a plan on parameter axes implies for everything else."""

from __future__ import annotations

import tracemalloc

import numpy as np
import torch
from assertions import assert_same_function
from onnx_models.nets import Net
from torch import Tensor, nn
from torch.nn import functional as F

from prunec.api import prune_module
from prunec.frontends.onnx.frontend import trace_onnx
from prunec.passes.lowering import slice_parameters
from prunec.passes.lowering.lower import lower
from prunec.passes.selection.select import plan, select
from prunec.pipeline.planning import gather_facts


class PaddedThenGrouped(nn.Module):
    """Each group of the second convolution reads one channel of zeros that the padding made."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1)
        self.grouped = nn.Conv2d(6, 4, 3, padding=1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.grouped(F.pad(self.first(x), (0, 0, 0, 0, 1, 1)))


def test_padding_that_only_a_grouped_convolution_reads_is_removed() -> None:
    torch.manual_seed(0)
    net = PaddedThenGrouped().eval()
    batch = torch.randn(2, 3, 8, 8)
    result = prune_module(net, (batch,))
    assert_same_function(net, result.module, batch)
    assert result.module.get_parameter("grouped.weight").shape == (4, 2, 3, 3)
    assert not result.report.blocked


def test_weights_that_take_carriers_are_made_one_after_the_other() -> None:
    net = Net()
    x, width = net.input("x", [1, 3, 8, 8]), 256
    for c_in in (3, width, width, width):
        x = net.op("Relu", net.conv(x, c_in, width, silent=range(0, width, 4)))
    net.output(net.conv(x, width, 4))
    graph = trace_onnx(net.model()).graph
    facts = gather_facts(graph)
    made = plan(facts, select(facts), ())
    assert sum(fold.kind == "carrier" for fold in made.folds) == 4
    tracemalloc.start()
    edits = lower(graph, facts.classes, made, facts.constants)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    result = sum(array.nbytes for array in edits.params.values())
    largest = max(np.asarray(param.array).nbytes for param in graph.params.values())
    assert peak <= result + 2.5 * largest, "the whole network was in memory once more"


def test_a_weight_that_lies_unaligned_is_cut_a_few_rows_at_a_time() -> None:
    shape = (2048, 512, 3, 3)
    values = np.frombuffer(bytes(1) + np.arange(np.prod(shape), dtype=np.float32).tobytes(), np.uint8)
    array = values[1:].view(np.float32).reshape(shape)
    assert not array.flags.aligned  # as nearly all in a file
    rows, columns = np.flatnonzero(np.arange(2048) % 8 == 0), np.flatnonzero(np.arange(512) % 5)
    for axes in ({0: rows}, {1: columns}, {0: rows, 1: columns}, {1: columns, 0: rows}):
        expected = array[np.ix_(axes.get(0, np.arange(2048)), axes.get(1, np.arange(512)))]
        tracemalloc.start()
        found = slice_parameters.cut_out(array, axes)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert np.array_equal(found, expected)
        assert peak < found.nbytes + 0.5 * array.nbytes
