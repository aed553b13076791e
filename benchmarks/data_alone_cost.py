"""What pruning with data alone costs: seconds and the peak of memory, for a network of ResNet-50's size.

Exports the network with random weights and its BatchNorms folded, makes smooth random images of 224x224, and runs
``prunec prune`` on them in a process of its own, without the check. Weights do not change what is computed.

    OMP_NUM_THREADS=2 python benchmarks/data_alone_cost.py [--arch torchvision:resnet50] [--images 256] [--memory 2GB]
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from prunec.lookup.libraries import build_from
from prunec.pipeline.export import export_onnx


def smooth(count: int, size: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Return float32[count, 3, size, size]: noise of 14x14 blown up, and a little of its own in each pixel."""
    rng = np.random.default_rng(0)
    coarse = rng.standard_normal((count, 3, 14, 14), dtype=np.float32)
    large = coarse.repeat(size // 14, axis=2).repeat(size // 14, axis=3)
    return large + 0.2 * rng.standard_normal(large.shape, dtype=np.float32)


def main() -> None:
    """Print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="torchvision:resnet50")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--memory", default="2GB")
    parser.add_argument("--target-macs", default="0.5")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        model, data = Path(scratch) / "model.onnx", Path(scratch) / "data"
        torch.manual_seed(0)
        export_onnx(build_from(*asked.arch.split(":"))[0].eval(), (torch.zeros(1, 3, asked.size, asked.size),), model)
        data.mkdir()
        for number, image in enumerate(smooth(asked.images, asked.size)):
            np.save(data / f"{number:04}.npy", image)
        command = [sys.executable, "-m", "prunec", "prune", str(model), "-o", str(Path(scratch) / "pruned.onnx")]
        command += ["--calibrate", str(data), "--target-macs", asked.target_macs, "--memory", asked.memory]
        started = time.perf_counter()
        code = subprocess.run([*command, "--no-validate"], check=False, stdout=subprocess.DEVNULL).returncode
        took = time.perf_counter() - started
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu, peak = used.ru_utime + used.ru_stime, used.ru_maxrss / (1 << 20)
        print(
            f"{asked.arch}, {asked.images} images of {asked.size}x{asked.size}, --memory {asked.memory}: "
            f"status {code}, {took:.0f} s, {cpu:.0f} s of CPU, peak {peak:.2f} GB"
        )


if __name__ == "__main__":
    main()
