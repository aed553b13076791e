"""What ``--residual expand`` and ``--gates fold`` bring and cost, against leaving the channels there.

    python benchmarks/rewrites.py [--seconds S] [FILE.onnx | timm:NAME | torchvision:NAME ...]

With files: 30% of the channels of every convolution are made constant (tests/onnx_models/inject.py; of networks half of
the gammas are zero), and both results of ``prunec prune``, without and with the two options, run in turns. ``time``
is the median of the ratios of neighbouring runs on one core, rewritten over tied; ``macs`` is the ratio of their
MACs, and ``error`` the largest difference from the file that went in, over its output's largest magnitude.

Without files: blocks of two or three convolutions and an identity shortcut, as in ResNets, three in a row; the last
convolution of each has a share of constant channels (gamma 0 and a random beta), and its sum is expanded
whatever it costs. ``cost`` is what is lost between ``macs`` and ``time``, per element of the sum, in the
multiply-accumulates that the tied block does in that time: passes/rewrites/residuals.py has to count at least so many.

The seed is 0.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from assertions import outputs_of, relative_error
from onnx_models.inject import inject_alive

from prunec.api import analyze_onnx, prune_module, prune_onnx
from prunec.check.validate import validate_onnx
from prunec.lookup.libraries import import_torchvision
from prunec.passes.rewrites import residuals
from prunec.pipeline.export import export_onnx
from prunec.runtime import model_inputs, sessions
from prunec.runtime.probes import feed

BLOCKS = 3
KINDS = ((64, 64, 3, 56), (128, 128, 3, 28), (256, 256, 3, 14), (256, 64, 1, 56), (512, 128, 1, 28), (1024, 256, 1, 14))
"""(width of the stream, width inside, kernel of the last convolution, size of the map)."""
OPTIONS: dict[str, dict[str, Any]] = {"tie": {}, "expand": {"residual": "expand", "gates": "fold"}}
SHARES = (0.25, 0.5, 0.75)


class Block(nn.Module):
    """ReLU(x + BN(conv(...))), a basic block or, where the last convolution is 1x1, a bottleneck."""

    def __init__(self, width: int, inside: int, kernel: int) -> None:
        super().__init__()
        first = [nn.Conv2d(width, inside, 3 if kernel == 3 else 1, padding=kernel // 2, bias=False)]
        more = [] if kernel == 3 else [nn.ReLU(), nn.Conv2d(inside, inside, 3, padding=1, bias=False)]
        last = nn.Conv2d(inside, width, kernel, padding=kernel // 2, bias=False)
        self.branch = nn.Sequential(*first, *more, nn.ReLU(), last, nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.branch(x))


def network(width: int, inside: int, kernel: int, share: float) -> nn.Module:
    """Return a stem, the blocks and a head; a share of each block's last gammas is zero."""
    torch.manual_seed(0)
    blocks = [Block(width, inside, kernel) for _ in range(BLOCKS)]
    for block in blocks:
        norm = block.branch[-1]
        norm.weight.data[torch.randperm(width)[: int(width * share)]] = 0
        norm.bias.data.normal_()
    return nn.Sequential(nn.Conv2d(3, width, 1), nn.ReLU(), *blocks, nn.Conv2d(width, 8, 1)).eval()


def session(path: Path) -> ort.InferenceSession:
    """Open a file on one core."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def ratio(files: dict[str, Path], values: dict[str, np.ndarray], seconds: float) -> tuple[float, float]:
    """Return (median milliseconds of the tied file, median of expanded over tied)."""
    tied, expanded = session(files["tie"]), session(files["expand"])
    times, ratios, end = [], [], time.monotonic() + seconds
    while time.monotonic() < end:
        marks = [time.perf_counter()]
        for runner in (tied, expanded):
            runner.run(None, values)
            marks.append(time.perf_counter())
        times.append(marks[1] - marks[0])
        ratios.append((marks[2] - marks[1]) / times[-1])
    return 1e3 * float(np.median(times)), float(np.median(ratios))


def rows(folder: Path, seconds: float) -> Iterator[str]:
    """Measure every block at every share."""
    for width, inside, kernel, size in KINDS:
        for share in SHARES:
            net, batch = network(width, inside, kernel, share), torch.randn(1, 3, size, size)
            files, macs = {}, {}
            for residual in ("tie", "expand"):
                with patch.object(residuals, "COPY_MACS", 0):
                    found = prune_module(net, (batch,), validate=False, residual=residual)
                files[residual], macs[residual] = folder / f"{residual}.onnx", found.report.after.macs
                export_onnx(found.module, (batch,), files[residual])
            milliseconds, measured = ratio(files, {"input": batch.numpy()}, seconds)
            promised = macs["expand"] / macs["tie"]
            cost = (measured - promised) * macs["tie"] / (BLOCKS * width * size**2)
            name = f"{width}-{inside} {kernel}x{kernel} at {size}x{size}"
            yield f"| {name} | {share:.0%} | {milliseconds:.2f} | {promised:.3f} | {measured:.3f} | {cost:.0f} |"


def of_file(path: Path, folder: Path, seconds: float, multiple_of: int) -> str:
    """Measure a file; open sizes of its input are those that the check of a pruning takes first."""
    model, before = onnx.load(path), folder / "before.onnx"
    inject_alive(model)
    onnx.save(model, before)
    files, macs, removed = {}, {}, {}
    for name, options in OPTIONS.items():
        files[name] = folder / f"{name}.onnx"
        report = prune_onnx(before, files[name], validate=False, multiple_of=multiple_of, **options)
        removed[name] = report.removed_channels
        macs[name] = analyze_onnx(files[name]).macs
    error = validate_onnx(before, files["expand"], provider="cpu", runs=0).max_rel_error
    runner = sessions.open_runner(files["tie"], path.stem, "cpu", optimise=False)
    kinds = model_inputs.input_kinds(runner, None, size=next(iter(model_inputs.candidate_sizes(runner, None))))
    return _row(path.stem, removed, macs, ratio(files, feed(kinds, "image", 0), seconds), error)


def of_network(name: str, folder: Path, seconds: float, multiple_of: int) -> str:
    """Measure a network of torchvision or timm, half of its gammas zero, on one image of 224x224."""
    import_torchvision()
    from test_real_networks import build

    net, batch = build(name), torch.randn(1, 3, 224, 224)
    files, macs, removed = {}, {}, {}
    for label, options in OPTIONS.items():
        files[label] = folder / f"{label}.onnx"
        found = prune_module(net, (batch,), validate=False, multiple_of=multiple_of, **options)
        export_onnx(found.module, (batch,), files[label])
        macs[label], removed[label] = found.report.after.macs, found.report.removed_channels
    values = {ort.InferenceSession(files["tie"]).get_inputs()[0].name: batch.numpy()}
    error = relative_error(outputs_of(net, batch), [torch.from_numpy(session(files["expand"]).run(None, values)[0])])
    return _row(name, removed, macs, ratio(files, values, seconds), error)


def _row(name: str, removed: dict[str, int], macs: dict[str, int], measured: tuple[float, float], error: float) -> str:
    shares = f"{macs['expand'] / macs['tie']:.3f} | {measured[1]:.3f}"
    return f"| {name} | {removed['tie']} | {removed['expand']} | {measured[0]:.2f} | {shares} | {error:.1e} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE.onnx|timm:NAME|torchvision:NAME")
    parser.add_argument("--multiple-of", type=int, default=1, help="of files and networks: round kept channels up")
    parser.add_argument("--seconds", type=float, default=4.0, help="time for each row")
    given = parser.parse_args()
    if given.files:
        print("| file | removed, tied | rewritten | tied, ms | macs | time | error |\n|---|---|---|---|---|---|---|")
        with tempfile.TemporaryDirectory() as folder:
            for item in given.files:
                measure = of_file if item.suffix == ".onnx" else of_network
                named = item if item.suffix == ".onnx" else str(item)
                print(measure(named, Path(folder), given.seconds, given.multiple_of), flush=True)
        return
    print("| block | constant | tied, ms | macs | time | cost |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for row in rows(Path(folder), given.seconds):
            print(row, flush=True)


if __name__ == "__main__":
    main()
