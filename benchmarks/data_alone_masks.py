"""What pruning with data alone keeps of a segmentation network: foreground IoU before and after, no training between.

Trains a small SegNet (prunec.models) on nuclei for a few epochs, exports it, prunes the file with some training images
(no masks), and counts foreground pixels on the test images in ONNX Runtime: intersection over union, over all pixels.

    OMP_NUM_THREADS=1 python benchmarks/data_alone_masks.py DATA/nuclei [--epochs 6] [--size 96] [--images 200]

The folder holds images/SPLIT/* and masks/SPLIT/*.
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

from prunec.api import prune_onnx
from prunec.data.calibration import Calibration
from prunec.ir.arrays import Array
from prunec.models.segnet import SegNet
from prunec.pipeline.export import export_onnx
from prunec.training.data.sets import ImageSet, load
from prunec.training.data.sources import Source
from prunec.training.learning.objective import Segmentation

BATCH, RATE = 16, 2e-3


def arrays(images: Source, like: ImageSet) -> tuple[torch.Tensor, torch.Tensor]:
    """Return float32[N, 3, H, W], normalised, and uint8[N, H, W]: 1 is foreground."""
    pixels, masks = images.take(torch.arange(len(images)))
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (like.mean, like.std))
    return (pixels.float() / 255 - mean) / std, masks


def trained(x: torch.Tensor, masks: torch.Tensor, data: ImageSet, width: float, epochs: int) -> SegNet:
    """Return a SegNet after so many epochs of AdamW, seed 0, flips for augmentation."""
    torch.manual_seed(0)
    net = SegNet(width)
    objective = Segmentation(data.classes, 1, data.shares)
    steps = epochs * (len(x) // BATCH)
    optimiser = torch.optim.AdamW(net.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps)
    for step in range(steps):
        if step % (len(x) // BATCH) == 0:
            order = torch.randperm(len(x))
        at = order[step % (len(x) // BATCH) * BATCH :][:BATCH]
        axes = [axis for axis in (1, 2) if torch.rand(()) < 0.5]
        inputs, wanted = x[at].flip([axis + 1 for axis in axes]), masks[at].flip(axes)
        optimiser.zero_grad()
        objective.loss(net(inputs), wanted).backward()
        optimiser.step()
        schedule.step()
    return net.eval()


def foreground_iou(path: Path, x: Array, masks: Array) -> float:
    """Return intersection over union of the foreground, over all pixels."""
    session = ort.InferenceSession(str(path))
    name = session.get_inputs()[0].name
    both = either = 0
    for image, mask in zip(x, masks, strict=True):
        found, wanted = session.run(None, {name: image[None]})[0][0, 0] > 0, mask == 1
        both += int((found & wanted).sum())
        either += int((found | wanted).sum())
    return both / either


WAYS: dict[str, dict[str, Any]] = {
    "reconstruct": {"criterion": "reconstruct"},
    "l1": {"criterion": "l1", "compensate": False},
}


def main() -> None:
    """Print the table, a line as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--size", type=int, default=96, help="Pixels of a side, a multiple of 32.")
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--images", type=int, default=200, help="Images without masks that pruning is given.")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.7, 0.5])
    asked = parser.parse_args()
    side = asked.size
    data = load(str(asked.data), (3, side, side))
    x, masks = arrays(data.train, data)
    test, wanted = (part.numpy() for part in arrays(data.test, data))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        net = trained(x, masks, data, asked.width, asked.epochs)
        model, pruned, inputs = folder / "segnet.onnx", folder / "pruned.onnx", folder / "inputs"
        export_onnx(net, (x[:1],), model)
        inputs.mkdir()
        np.save(inputs / "images.npy", x[torch.randperm(len(x))[: asked.images]].numpy())
        print(
            f"segnet x{asked.width:g} at {side}x{side}, {asked.epochs} epochs on {len(x)} images; IoU on {len(test)}:"
        )
        print(f"{foreground_iou(model, test, wanted):.2%} before pruning\n", flush=True)
        print("| MACs asked | left | by | foreground IoU | CPU time |\n|---|---|---|---|---|", flush=True)
        for share in asked.shares:
            for name, how in WAYS.items():
                started = time.process_time()
                report = prune_onnx(
                    model, pruned, validate=False, target_macs=share, calibration=Calibration(inputs), **how
                )
                took, left = time.process_time() - started, report.after.macs / report.before.macs
                found = foreground_iou(pruned, test, wanted)
                print(f"| {share:.0%} | {left:.1%} | {name} | {found:.2%} | {took:.0f} s |", flush=True)


if __name__ == "__main__":
    main()
