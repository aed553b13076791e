"""What the check of a large file takes: the peak of memory of ``prunec prune``, over the size of the file.

Writes a chain of 3x3 convolutions of 2,048 channels with random weights, an eighth of them zero filters, and prunes it
exactly. Each step has a process of its own, which this one, being small, does not add to: Linux counts what the parent
takes when a process begins as that process's own.

    python benchmarks/check_memory.py [--layers 10]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CHANNELS, SIDE = 2048, 4


def write(path: Path, layers: int) -> None:
    """Write the chain."""
    rng = np.random.default_rng(0)
    nodes, weights = [], []
    for number in range(layers):
        array = (rng.standard_normal((CHANNELS, CHANNELS, 3, 3), dtype=np.float32) / (3 * CHANNELS**0.5)).astype("f4")
        array[::8] = 0
        weights.append(numpy_helper.from_array(array, f"w{number}"))
        nodes.append(helper.make_node("Conv", [f"x{number}", f"w{number}"], [f"x{number + 1}"], pads=[1, 1, 1, 1]))
    shape = [1, CHANNELS, SIDE, SIDE]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x0", f"x{layers}")]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def peak_of(command: Sequence[str]) -> int:
    """Run a command; return the most bytes that it had in memory, the mapped part of files included."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"failed: {' '.join(command)}")
    return usage.ru_maxrss * 1024


def main() -> None:
    """Print the peaks, with the check and without."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=10, help="151 MB each; 10 by default.")
    parser.add_argument("--write", type=Path, help="write the file there, and nothing else.")
    arguments = parser.parse_args()
    if arguments.write:
        write(arguments.write, arguments.layers)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "chain.onnx"
        peak_of([sys.executable, __file__, "--layers", str(arguments.layers), "--write", str(path)])
        size = path.stat().st_size
        for options in (["--no-validate"], []):
            command = [sys.executable, "-m", "prunec", "prune", str(path), "-o", f"{folder}/out.onnx", "--force"]
            peak = peak_of([*command, *options])
            how = "without the check" if options else "with the check"
            print(f"{size / 1e9:.2f} GB, {how}: peak {peak / 1e9:.2f} GB, {peak / size:.1f} times the file", flush=True)


if __name__ == "__main__":
    main()
