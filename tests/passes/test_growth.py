"""Work grows with the graph and no faster: networks of twice the depth take twice the calls, whatever their kind.

Calls of Python functions are counted, not seconds: they are the same on every run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx_models.nets import Net

from prunec.backends.onnx.backend import apply_onnx
from prunec.backends.onnx.save import save_onnx
from prunec.ir.edits import Edits
from prunec.ir.graph import Graph
from prunec.pipeline.options import Options
from prunec.pipeline.planning import plan_and_apply
from prunec.pipeline.reading import open_specs, read_onnx

DEPTH = 60
SLACK = 1.15
"""Tables, thresholds and small sets: the count need not double to the call."""


def convolutions(net: Net, x: str, depth: int) -> str:
    for _ in range(depth):
        x = net.op("Relu", net.op("Conv", x, net.const(net.weight(8, 8, 3, 3)), pads=[1] * 4))
    return x


def constants_at_borders(net: Net, x: str, depth: int) -> str:
    for _ in range(depth):
        weight = net.weight(8, 8, 3, 3)
        weight[:4] = 0
        x = net.op("Relu", net.op("Conv", x, net.const(weight), net.const(np.ones(8, np.float32)), pads=[1] * 4))
    return x


def residuals(net: Net, x: str, depth: int) -> str:
    x = net.op("Conv", x, net.const(net.weight(8, 8, 1, 1)))
    for _ in range(depth):
        x = net.op("Add", x, net.op("Conv", net.op("Relu", x), net.const(net.weight(8, 8, 1, 1))))
    return net.op("Conv", x, net.const(net.weight(8, 8, 1, 1)))


def concats(net: Net, x: str, depth: int) -> str:
    for place in range(depth):
        x = net.op(
            "Concat", x, net.op("Conv", net.op("Relu", x), net.const(net.weight(4, 8 + 4 * place, 1, 1))), axis=1
        )
    return net.op("Conv", x, net.const(net.weight(8, 8 + 4 * depth, 1, 1)))


def products(net: Net, x: str, depth: int) -> str:
    x = net.op("Flatten", net.op("GlobalAveragePool", x))
    for _ in range(depth):
        x = net.op("Relu", net.op("MatMul", x, net.const(net.weight(8, 8))))
    return x


def shuffles(net: Net, x: str, depth: int) -> str:
    for _ in range(depth):
        x = net.op("Reshape", net.op("Conv", x, net.const(net.weight(8, 8, 1, 1))), net.ints(1, 2, 4, 8, 8))
        x = net.op("Reshape", net.op("Transpose", x, perm=[0, 2, 1, 3, 4]), net.ints(1, 8, 8, 8))
    return x


def computed_sizes(net: Net, x: str, depth: int) -> str:
    for _ in range(depth):
        x = net.op("Conv", x, net.const(net.weight(8, 8, 1, 1)))
        batch, _, height, width = net.op("Split", net.op("Shape", x), outputs=4, axis=0)
        flat = net.op("Concat", batch, net.ints(8), net.op("Mul", height, width), axis=0)
        x = net.op("Reshape", x, flat)
        x = net.op("Reshape", x, net.op("Concat", batch, net.ints(8), height, width, axis=0))
    return x


def heads(net: Net, x: str, depth: int) -> str:
    for _ in range(depth):
        x = net.op("Conv", x, net.const(net.weight(8, 8, 1, 1)))
        net.output(net.op("Conv", x, net.const(net.weight(8, 8, 1, 1))))
    return x


KINDS = (convolutions, constants_at_borders, residuals, concats, products, shuffles, computed_sizes, heads)


def prune(path: Path, options: Options) -> None:
    traced = read_onnx(path)

    def apply(_: Graph, edits: Edits) -> Any:
        return apply_onnx(traced, edits)

    job = plan_and_apply(traced.graph, open_specs(traced.graph), options, None, apply)
    save_onnx(job.result, path.with_name("out.onnx"))


def calls(work: Callable[[], None]) -> int:
    count = 0

    def counted(frame: FrameType, event: str, _: Any) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(counted)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("options", [Options(), Options(criterion="l1", target_macs=0.5)], ids=["exact", "l1"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_network_of_twice_the_depth_takes_twice_the_work(
    kind: Callable[[Net, str, int], str], options: Options, tmp_path: Path
) -> None:
    counts = []
    for depth in (DEPTH, 2 * DEPTH):
        net = Net()
        net.output(kind(net, net.input("x", ["N", 8, "H", "W"] if kind is computed_sizes else [1, 8, 8, 8]), depth))
        path = tmp_path / f"{depth}.onnx"
        onnx.save(net.model(), path)
        counts.append(calls(partial(prune, path, options)))
    assert counts[1] < 2 * SLACK * counts[0]
