"""Time per node as a network grows: chains, DenseNets and stacks of transformer blocks, exact and by score.

    python benchmarks/growth.py [--nodes 300 1250 5000 20000] [--repeats 2]

Networks are ONNX models with random weights of 8 to 32 channels, so that what is measured is prunec's own work: read,
analyse, select, lower, apply (no check, nothing written). CPU seconds, the best of ``--repeats``; one run of the
largest.
The goal: time per node grows by less than 1.5 times from the smallest to the largest.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from prunec.backends.onnx.backend import apply_onnx
from prunec.ir.edits import Edits
from prunec.ir.graph import Graph
from prunec.pipeline.options import Options
from prunec.pipeline.planning import plan_and_apply
from prunec.pipeline.reading import open_specs, read_onnx

NODES = (300, 1250, 5000, 20000)
WAYS = {"exact": Options(), "by score": Options(criterion="l1", target_macs=0.5)}
DENSE_LAYERS, WIDTH, TOKENS = 6, 16, 8


class Network:
    """An ONNX model in the making; a fifth of each weight's filters is zero, so that there is something to remove."""

    def __init__(self, *shape: int) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.shape = shape
        self._rng = np.random.default_rng(0)

    def weight(self, *shape: int) -> str:
        array = self._rng.normal(size=shape).astype(np.float32)
        array[: shape[0] // 5] = 0
        return self.stored(array)

    def stored(self, array: Any) -> str:
        self.weights.append(numpy_helper.from_array(np.asarray(array), f"w{len(self.weights)}"))
        return str(self.weights[-1].name)

    def op(self, kind: str, *inputs: str, **attrs: Any) -> str:
        self.nodes.append(helper.make_node(kind, list(inputs), [f"v{len(self.nodes)}"], **attrs))
        return str(self.nodes[-1].output[0])

    def model(self, result: str, *shape: int) -> onnx.ModelProto:
        ends = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes)
            for name, sizes in (("x", self.shape), (result, shape))
        ]
        graph = helper.make_graph(self.nodes, "net", ends[:1], ends[1:], self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def chain(nodes: int) -> onnx.ModelProto:
    """Convolutions and ReLUs, one after the other."""
    net, x, width = Network(1, 3, 8, 8), "x", 3
    while len(net.nodes) < nodes - 1:
        x = net.op("Relu", net.op("Conv", x, net.weight(WIDTH, width, 3, 3), pads=[1] * 4))
        width = WIDTH
    return net.model(net.op("Conv", x, net.weight(4, width, 1, 1)), 1, 4, 8, 8)


def densenet(nodes: int) -> onnx.ModelProto:
    """Dense blocks, each of whose layers reads all before it, with a narrow convolution between two blocks."""
    net = Network(1, 3, 8, 8)
    x = net.op("Conv", "x", net.weight(WIDTH, 3, 3, 3), pads=[1] * 4)
    while len(net.nodes) < nodes - 2:
        for layer in range(DENSE_LAYERS):
            new = net.op("Conv", net.op("Relu", x), net.weight(8, WIDTH + 8 * layer, 3, 3), pads=[1] * 4)
            x = net.op("Concat", x, new, axis=1)
        x = net.op("Conv", net.op("Relu", x), net.weight(WIDTH, WIDTH + 8 * DENSE_LAYERS, 1, 1))
    return net.model(net.op("Conv", x, net.weight(4, WIDTH, 1, 1)), 1, 4, 8, 8)


def vit(nodes: int) -> onnx.ModelProto:
    """Transformer blocks: attention with four heads and an MLP around a residual stream."""
    net = Network(1, TOKENS, WIDTH)
    x = net.op("MatMul", "x", net.weight(WIDTH, WIDTH))
    shape, flat = (net.stored(np.asarray(sizes)) for sizes in ((1, TOKENS, 4, WIDTH // 4), (1, TOKENS, WIDTH)))

    def norm(x: str) -> str:
        return net.op("LayerNormalization", x, net.weight(WIDTH), net.weight(WIDTH), axis=-1)

    def heads(x: str, *perm: int) -> str:
        made = net.op("MatMul", x, net.weight(WIDTH, WIDTH))
        return net.op("Transpose", net.op("Reshape", made, shape), perm=perm)

    while len(net.nodes) < nodes - 1:
        normed = norm(x)
        query, key, value = heads(normed, 0, 2, 1, 3), heads(normed, 0, 2, 3, 1), heads(normed, 0, 2, 1, 3)
        mixed = net.op("MatMul", net.op("Softmax", net.op("MatMul", query, key), axis=-1), value)
        joined = net.op("Reshape", net.op("Transpose", mixed, perm=[0, 2, 1, 3]), flat)
        x = net.op("Add", x, net.op("MatMul", joined, net.weight(WIDTH, WIDTH)))
        hidden = net.op("Relu", net.op("MatMul", norm(x), net.weight(WIDTH, 2 * WIDTH)))
        x = net.op("Add", x, net.op("MatMul", hidden, net.weight(2 * WIDTH, WIDTH)))
    return net.model(net.op("MatMul", x, net.weight(WIDTH, 4)), 1, TOKENS, 4)


KINDS: dict[str, Callable[[int], onnx.ModelProto]] = {"chain": chain, "DenseNet": densenet, "ViT": vit}


def pruned(path: Path, options: Options) -> float:
    """Return the CPU seconds that pruning takes."""
    started = time.process_time()
    traced = read_onnx(path)

    def apply(_: Graph, edits: Edits) -> Any:
        return apply_onnx(traced, edits)

    plan_and_apply(traced.graph, open_specs(traced.graph), options, None, apply)
    return time.process_time() - started


def main() -> None:
    """Print milliseconds per node, a row per network and way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="*", default=NODES)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS))
    arguments = parser.parse_args()
    print(f"| ms a node | {' | '.join(f'{count:,} nodes' for count in arguments.nodes)} | growth |")
    print(f"|---|{'---|' * (len(arguments.nodes) + 1)}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        for kind in arguments.kinds:
            times: dict[str, list[float]] = {way: [] for way in WAYS}
            for count in arguments.nodes:
                model = KINDS[kind](count)
                onnx.save(model, path)
                repeats = 1 if count == max(arguments.nodes) else arguments.repeats
                for way, options in WAYS.items():
                    seconds = min(pruned(path, options) for _ in range(repeats))
                    times[way].append(1000 * seconds / len(model.graph.node))
            for way, each in times.items():
                cells = " | ".join(f"{milliseconds:.2f}" for milliseconds in each)
                print(f"| {kind}, {way} | {cells} | {each[-1] / each[0]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
