"""What is written by hand beside a library: what the library would cost. docs/architecture.md has the table.

    python benchmarks/by_hand.py

Prints the CPU seconds of each import in a fresh process (``prunec analyze`` of a small file has 0.6 s in all), and the
peak memory of reading a model of 200 MB with onnx and with prunec.
"""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LIBRARIES = ("onnx", "onnx_ir", "onnxscript.optimizer", "sympy", "scipy.sparse.csgraph", "networkx", "jinja2")
RUNS = 3


def printed(code: str) -> float:
    """Return the number that a program prints."""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(result.stdout.split()[-1])


def import_seconds(module: str) -> float:
    code = f"import time; t = time.process_time(); import {module}; print(time.process_time() - t)"
    return min(printed(code) for _ in range(RUNS))


def peak_megabytes(call: str, path: Path) -> float:
    code = f"import resource; from pathlib import Path; path = Path({str(path)!r})\n{call}\n"
    return printed(code + "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)")


def large_model(path: Path) -> None:
    """Write a chain of matrix products, 50 MB each."""
    weights = [numpy_helper.from_array(np.zeros((3584, 3584), np.float32), f"w{index}") for index in range(4)]
    names = ["x", *(f"y{index}" for index in range(4))]
    nodes = [helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]]) for i in range(4)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 3584)) for name in (names[0], names[-1])]
    graph = helper.make_graph(nodes, "large", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def main() -> None:
    """Print both tables."""
    for module in LIBRARIES:
        print(f"import {module:22} {import_seconds(module):5.2f} s")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.onnx"
        # In a process of its own: what is started later inherits this one's peak.
        writer = multiprocessing.get_context("spawn").Process(target=large_model, args=(path,))
        writer.start()
        writer.join()
        print(f"file                          {path.stat().st_size / 2**20:5.0f} MB")
        by_onnx = "import onnx; model = onnx.load(path); onnx.shape_inference.infer_shapes(model)"
        by_prunec = "from prunec.pipeline.reading import read_onnx; model = read_onnx(path)"
        print(f"onnx: load, infer shapes      {peak_megabytes(by_onnx, path):5.0f} MB at the peak")
        print(f"prunec: load, shapes, graph   {peak_megabytes(by_prunec, path):5.0f} MB at the peak")


if __name__ == "__main__":
    main()
