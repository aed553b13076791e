"""Measure the speed-up of half the MACs, with default options, against what the MACs promise.

    OMP_NUM_THREADS=1 python benchmarks/speedup.py [MODEL ...] [--target-macs 0.5] [--rounds 7] [--json]

Each network is exported, pruned by `prunec prune --criterion l1 --target-macs F` and timed against the original in ONNX
Runtime on one thread of the CPU: both files are opened anew in each round and run in turns, and the round in the middle
counts. The goal is a ratio of measured over promised speed-up of at least 0.8 for each. MODEL is whatever `prunec
prune` takes; without any: resnet18, mobilenet_v2, efficientnet_b0, hrnet_w18_small at 224x224 and resnet56 at 32x32.
Accuracy is not looked at, so the weights are random where no file is given. With --calibrate the data choose the
channels, as they do by default where there are some; with --weights an architecture has those of a file:

    OMP_NUM_THREADS=1 python benchmarks/speedup.py resnet56 --weights cifar10-resnet56.safetensors --calibrate IMAGES
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from safetensors.torch import load_file

from prunec.api import prune_onnx
from prunec.data.calibration import Calibration
from prunec.lookup.resolve import OnnxModel, resolve
from prunec.pipeline.export import export_onnx
from prunec.runtime.model_inputs import input_kinds
from prunec.runtime.sessions import Runner
from prunec.timing.latency import interleaved_latency

MODELS = (
    "torchvision:resnet18",
    "torchvision:mobilenet_v2",
    "torchvision:efficientnet_b0",
    "timm:hrnet_w18_small",
    "resnet56",
)
GOAL = 0.8


def opened(path: Path) -> Runner:
    """Open a file on one thread, at ONNX Runtime's default level."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return Runner(path.name, ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]))


def latencies(before: Path, after: Path, rounds: int, runs: int, seconds: float) -> tuple[float, float]:
    """Return the milliseconds of both files in the round whose ratio is in the middle."""
    found = []
    for _ in range(rounds):
        first, second = opened(before), opened(after)
        rng = np.random.default_rng(0)
        feed = {kind.name: rng.standard_normal(kind.shape).astype(kind.dtype) for kind in input_kinds(first, {})}
        found.append(interleaved_latency(first, second, feed, runs, seconds))
    return sorted(found, key=lambda pair: pair[0] / pair[1])[len(found) // 2]


def measure(name: str, folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Prune one network and time it."""
    model = resolve(name, {})
    if isinstance(model, OnnxModel):
        path = model.path
    else:
        path = folder / "before.onnx"
        if given.weights is not None:
            model.module.load_state_dict(load_file(given.weights), strict=False)
        export_onnx(model.module, model.example_inputs, path)
    after = folder / "after.onnx"
    options: dict[str, Any] = {"target_macs": given.target_macs, "multiple_of": given.multiple_of, "criterion": "l1"}
    if given.calibrate is not None:
        options |= {"criterion": None, "calibration": Calibration(given.calibrate)}
    report = prune_onnx(path, after, validate=False, **options)
    times = latencies(path, after, given.rounds, given.runs, given.seconds)
    promised, measured = report.before.macs / report.after.macs, times[0] / times[1]
    return {
        "model": name,
        "macs": round(report.after.macs / report.before.macs, 4),
        "before_ms": round(times[0], 3),
        "after_ms": round(times[1], 3),
        "promised": round(promised, 3),
        "measured": round(measured, 3),
        "ratio": round(measured / promised, 3),
    }


def line(row: Mapping[str, Any]) -> str:
    """Return one row of the table."""
    return (
        f"{row['model']:30s} {row['macs']:6.1%} of the MACs  {row['before_ms']:8.2f} -> {row['after_ms']:8.2f} ms  "
        f"promised {row['promised']:.2f} x  measured {row['measured']:.2f} x  ratio {row['ratio']:.2f}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a row per network; status 1 where a ratio misses the goal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS, metavar="MODEL")
    parser.add_argument("--target-macs", type=float, default=0.5)
    parser.add_argument("--multiple-of", type=lambda text: text if text == "auto" else int(text), default="auto")
    parser.add_argument("--calibrate", type=Path, help="a folder of inputs; l1 chooses without")
    parser.add_argument("--weights", type=Path, help="of an architecture, a .safetensors file")
    parser.add_argument("--rounds", type=int, default=7, help="times that both files are opened")
    parser.add_argument("--runs", type=int, default=40, help="runs of each file in a round, at most")
    parser.add_argument("--seconds", type=float, default=4.0, help="of a round, at most")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in given.models:
            rows.append(measure(name, Path(folder), given))
            if not given.json:
                print(line(rows[-1]), flush=True)
    ratios = [row["ratio"] for row in rows]
    if given.json:
        print(json.dumps({"rows": rows, "goal": GOAL}))
    else:
        print(f"median ratio {statistics.median(ratios):.2f}, least {min(ratios):.2f}, goal {GOAL}")
    return int(min(ratios) < GOAL)


if __name__ == "__main__":
    sys.exit(main())
