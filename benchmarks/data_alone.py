"""How much of a deployed classifier a folder of unlabelled images keeps: CIFAR ResNets pruned with data alone.

Exports a pretrained network with its BatchNorms folded, as deployed files are, prunes the file with some training
images (no labels, no training), and counts right answers on all test images. Beside it: the same selection without
compensation, l1 with and without it, and how it grows with the number of images. Every fourth image is held out by
prunec itself: of 1,000 images 750 are fitted. Widths are free (--multiple-of 1), as in published tables: networks of
16, 32 and 64 channels have few blocks to choose from (--multiple-of auto, the default of prunec).

    OMP_NUM_THREADS=1 python benchmarks/data_alone.py DATA --arch resnet20 --shares 0.8 0.7 0.5 --growth 100 300 5000
    OMP_NUM_THREADS=1 python benchmarks/data_alone.py DATA --arch resnet56 --shares 0.7 0.5 0.4 --ways reconstruct

DATA holds cifar10-lossless/train and /test (a folder per class) and weights/cifar10-ARCH.safetensors.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own exporter calls itself old
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
    parser.add_argument("--images", type=int, default=1000, help="Unlabelled images that the table is made with.")
    parser.add_argument(
        "--growth", type=int, nargs="*", default=[], help="Further numbers of images, reconstruct only."
    )
    parser.add_argument("--multiple-of", default=1, type=lambda text: text if text == "auto" else int(text))
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--tests", type=int, default=None, help="Test images; all of them by default.")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        path = exported(asked.data, asked.arch, folder)
        test = images(asked.data / "cifar10-lossless/test", asked.tests)
        print(f"{asked.arch}: {accuracy(path, *test):.2%} on {len(test[1]):,} test images\n", flush=True)
        print("| MACs asked | left | images | by | accuracy | CPU time |\n|---|---|---|---|---|---|", flush=True)
        for count in (asked.images, *asked.growth):
            inputs = folder / f"{count}"
            inputs.mkdir()
            drawn, _ = images(asked.data / "cifar10-lossless/train", count)
            np.save(inputs / "images.npy", drawn)
            for name in asked.ways if count == asked.images else ["reconstruct"]:
                for share in asked.shares:
                    started = time.process_time()
                    how = {"calibration": Calibration(inputs), "multiple_of": asked.multiple_of, **WAYS[name]}
                    report = prune_onnx(path, folder / "pruned.onnx", validate=False, target_macs=share, **how)
                    took = time.process_time() - started
                    left, found = report.after.macs / report.before.macs, accuracy(folder / "pruned.onnx", *test)
                    row = f"| {share:.0%} | {left:.1%} | {count:,} | {name} | {found:.2%} | {took:.0f} s |"
                    print(row, flush=True)


if __name__ == "__main__":
    main()
