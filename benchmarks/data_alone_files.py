"""What pruning with data alone keeps of files from the field: the error of each output, against l1's.

Each file is pruned to a share of its MACs with images of a folder (no labels, no training), by ``reconstruct`` and by
l1 without any compensation, default widths. Every fourth image is held out; on those the relative error of each output
(root mean square over that of the original's output) is told, and the ratio of the two. Ends with the median ratio.

    OMP_NUM_THREADS=1 python benchmarks/data_alone_files.py MODELS DATA [--images 48] [--share 0.7] [--only NAME …]

MODELS holds the files of ``FILES``; DATA holds ``camvid``, ``foreground`` (DAVIS) and ``nuclei``, each with ``images``.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prunec.api import prune_onnx
from prunec.data.calibration import Calibration
from prunec.errors import PrunecError


@dataclass(frozen=True, slots=True)
class Case:
    """A file, the images it is shown, how it wants its pixels, and sizes that it leaves open."""

    name: str
    images: str
    normalise: str
    shapes: tuple[tuple[str, tuple[int, ...]], ...] = ()


FILES = (
    Case("ultraface_rfb320", "foreground", "signed"),
    Case("blazeface_front", "foreground", "signed"),
    Case("selfie_landscape", "foreground", "unit"),
    Case("bodypix_mnv1_050", "foreground", "signed", (("", (1, 128, 160, 3)),)),
    Case("openseeface_detect_ortopt", "foreground", "imagenet", (("", (1, 3, 224, 224)),)),
    Case("fastestdet", "camvid", "unit"),
    Case("ppocr_v2_det", "camvid", "imagenet", (("", (1, 3, 96, 128)),)),
    Case("yolox_nano", "camvid", "raw"),
    Case("reid_osnet_0248", "foreground", "raw"),
    Case("sedgen_unet", "nuclei", "unit", (("", (1, 1, 224, 224)),)),
    Case("superres_depthtospace", "nuclei", "unit", (("", (1, 1, 224, 224)),)),
)
WAYS: dict[str, dict[str, Any]] = {
    "reconstruct": {"criterion": "reconstruct"},
    "l1": {"criterion": "l1", "compensate": False},
}


def drawn(folder: Path, count: int, target: Path) -> Path:
    """Copy ``count`` images of a folder, drawn with seed 0, to a folder of their own."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    target.mkdir()
    for number, at in enumerate(np.random.default_rng(0).permutation(len(files))[:count]):
        shutil.copy(files[at], target / f"{number:05}{files[at].suffix}")
    return target


def errors(case: Case, models: Path, images: Path, share: float, out: Path, how: dict[str, Any]) -> dict[str, float]:
    """Return the error of each output on held-out images, and under "" what is left of the MACs."""
    report = prune_onnx(
        models / f"{case.name}.onnx", out, validate=False, target_macs=share, input_shapes=dict(case.shapes) or None,
        calibration=Calibration(images, normalise=case.normalise), **how,
    )  # fmt: skip
    assert report.agreement is not None
    found = {output.name: output.error for output in report.agreement.outputs}
    return {**found, "": report.after.macs / report.before.macs}


def main() -> None:
    """Print a line per output as soon as it is known, then the median."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--share", type=float, default=0.7)
    parser.add_argument("--only", nargs="+", default=[case.name for case in FILES])
    asked = parser.parse_args()
    ratios: list[float] = []
    print("| file | output | MACs left, l1 | MACs left | error, l1 | error | ratio |\n|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        for case in FILES:
            if case.name not in asked.only:
                continue
            folder = Path(scratch) / case.images
            images = folder if folder.exists() else drawn(asked.data / case.images / "images", asked.images, folder)
            started = time.process_time()
            try:
                found = {
                    way: errors(case, asked.models, images, asked.share, Path(scratch) / "pruned.onnx", how)
                    for way, how in WAYS.items()
                }
            except PrunecError as error:
                print(f"| {case.name} | {str(error).splitlines()[0]} | | | | | |", flush=True)
                continue
            own, other = found["reconstruct"], found["l1"]
            for name in own:
                if name and other[name] > 0:
                    ratios.append(own[name] / other[name])
                    left, told = f"{other['']:.1%} | {own['']:.1%}", f"{other[name]:.4f} | {own[name]:.4f}"
                    print(f"| {case.name} | {name} | {left} | {told} | {ratios[-1]:.3f} |", flush=True)
            print(f"<!-- {case.name}: {time.process_time() - started:.0f} s of CPU -->", flush=True)
    if ratios:
        print(f"\nmedian over {len(ratios)} outputs: {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
