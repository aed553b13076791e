"""How much of a deployed classifier a folder of unlabelled images keeps: CIFAR ResNets pruned with data alone.

Exports a pretrained network with its BatchNorms folded, as deployed files are, prunes the file with some training
images (no labels, no training), and counts right answers on all test images. Beside it: the same selection without
compensation, l1 with and without it, and how it grows with the number of images.

    python benchmarks/data_alone.py DATA --arch resnet20 --shares 0.8 0.7 0.5
    python benchmarks/data_alone.py DATA --arch resnet56 --shares 0.7 0.5 0.4 --images 100 300 1000 5000

DATA holds cifar10-lossless/train and /test (a folder per class) and weights/cifar10-ARCH.safetensors.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from PIL import Image
from safetensors.torch import load_file

from prunec.api import prune_onnx
from prunec.data.calibration import Calibration
from prunec.models import build

MEAN, DEVIATION = (np.array(values, np.float32) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def images(folder: Path, count: int | None = None) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return float32[N, 3, 32, 32] and the classes; ``count`` of them, drawn with seed 0."""
    files = sorted(folder.rglob("*.*"))
    if count is not None:
        files = [files[i] for i in np.random.default_rng(0).permutation(len(files))[:count]]
    pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files]).astype(np.float32) / 255
    names = sorted({file.parent.name for file in files})
    classes = np.array([names.index(file.parent.name) for file in files])
    return ((pixels - MEAN) / DEVIATION).transpose(0, 3, 1, 2).copy(), classes


def accuracy(path: Path, x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> float:
    """Return the share of right answers of an ONNX file."""
    session = ort.InferenceSession(str(path))
    (name,) = (item.name for item in session.get_inputs())
    found = [session.run(None, {name: x[at : at + 500]})[0].argmax(1) for at in range(0, len(x), 500)]
    return float((np.concatenate(found) == y).mean())


def exported(data: Path, arch: str, folder: Path) -> Path:
    """Write the pretrained network as a file with its BatchNorms folded."""
    net = build(arch)
    net.load_state_dict(load_file(data / f"weights/cifar10-{arch}.safetensors"), strict=False)
    path, axes = folder / f"{arch}.onnx", {"x": {0: "n"}, "y": {0: "n"}}
    torch.onnx.export(
        net.eval(), (torch.zeros(1, 3, 32, 32),), str(path), dynamo=False, input_names=["x"], output_names=["y"],
        dynamic_axes=axes,
    )  # fmt: skip
    return path


WAYS: dict[str, dict[str, Any]] = {
    "reconstruct": {"criterion": "reconstruct"},
    "reconstruct, not compensated": {"criterion": "reconstruct", "compensate": False},
    "l1, compensated": {"criterion": "l1"},
    "l1": {"criterion": "l1", "compensate": False},
}


def main() -> None:
    """Print the table, a line as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--arch", default="resnet20")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.8, 0.7, 0.5])
    parser.add_argument("--images", type=int, nargs="+", default=[1000])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--tests", type=int, default=None, help="Test images; all of them by default.")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        path = exported(asked.data, asked.arch, folder)
        test = images(asked.data / "cifar10-lossless/test", asked.tests)
        print(f"{asked.arch}: {accuracy(path, *test):.2%} on {len(test[1]):,} test images", flush=True)
        for count in asked.images:
            inputs = folder / f"{count}"
            inputs.mkdir()
            drawn, _ = images(asked.data / "cifar10-lossless/train", count)
            np.save(inputs / "images.npy", drawn)
            for name in asked.ways if count == max(asked.images) or len(asked.images) == 1 else asked.ways[:1]:
                for share in asked.shares:
                    started, clock = time.process_time(), time.perf_counter()
                    how = {"calibration": Calibration(inputs), "target_macs": share, **WAYS[name]}
                    report = prune_onnx(path, folder / "pruned.onnx", validate=False, **how)
                    took = time.process_time() - started, time.perf_counter() - clock
                    left = report.after.macs / report.before.macs
                    found = accuracy(folder / "pruned.onnx", *test)
                    print(
                        f"{left:6.1%} of the MACs, {count:5,} images, {name:28}: {found:.2%}"
                        f"  ({took[0]:.0f} s of CPU, {took[1]:.0f} s)",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
