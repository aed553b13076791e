"""Ahead of TensorRT: a graphsurgeon graph in, widths that its tensor cores like, and the line that builds the engine.

Run it with `python examples/toolchains/tensorrt.py`. Tensor cores want channels in multiples of 8 for FP16 and of 32
for INT8; `multiple_of` keeps the widths of layers at such multiples (layers that are narrower stay as they are). Here
the lowest-scoring channels go until half of the multiply-accumulates are left: fine-tune afterwards.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import digits
import onnx
import onnx_graphsurgeon as gs

import prunec


def main() -> None:
    """Write one file per precision, and print its widths and its trtexec line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path())
    folder = parser.parse_args().folder
    data = digits.Digits(digits.Net(width=96).eval(), *(digits.trained().test[:1],) * 3)
    graph = gs.import_onnx(digits.exported(data))
    for precision, multiple in (("fp16", 8), ("int8", 32)):
        pruned = prunec.prune_model(graph, criterion="l1", target_macs=0.5, multiple_of=multiple)
        weights = [node.inputs[1] for node in pruned.model.nodes if node.op == "Conv"]
        widths = [weight.shape[0] for weight in weights]
        left = pruned.report.after.macs / pruned.report.before.macs
        path = folder / f"pruned_{precision}.onnx"
        onnx.save(gs.export_onnx(pruned.model.cleanup().toposort()), path)
        print(f"{precision}: widths {widths}, multiples of {multiple}; {left:.0%} of the MACs")
        print(f"  trtexec --onnx={path} --{precision} --minShapes=image:1x1x8x8 --optShapes=image:32x1x8x8 "
              f"--maxShapes=image:256x1x8x8 --saveEngine={path.with_suffix('.plan')}")  # fmt: skip


if __name__ == "__main__":
    main()
