"""Image sets in memory: what ``--data`` may name, and how an image becomes a network's input.

Owns ``load`` and the types it returns. Reading files is imagefiles.py's, augmentation augment.py's.
Sets are small (digits, CIFAR-10, an image folder at one size), so they are decoded once to uint8 and live
on the training device as tensors; no step waits for a disk or a host.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from prunec.errors import BadInput, MissingDependency
from prunec.training import imagefiles

Task = Literal["classification", "segmentation"]

_DIGITS_TEST = 360
_DIGITS_SPLIT_SEED = 0


@dataclass(frozen=True, slots=True, eq=False)
class Images:
    """Images with what is wanted of them, on one device.

    ``pixels`` is uint8[N, C, H, W]; ``targets`` is int64[N] class labels or uint8[N, H, W] masks.
    """

    pixels: torch.Tensor
    targets: torch.Tensor

    def __len__(self) -> int:
        return int(self.pixels.shape[0])

    def to(self, device: torch.device) -> Images:
        return Images(self.pixels.to(device), self.targets.to(device))


@dataclass(frozen=True, slots=True, eq=False)
class ImageSet:
    """A data set.

    Args:
        name: for messages and reports.
        train, test: disjoint.
        classes: the labels' names; label k is ``classes[k]``.
        task: ``classification`` (labels) or ``segmentation`` (masks).
        shares: of the training pixels, per class; () for labels.
        mean, std: of the training pixels in 0..1, per channel.
    """

    name: str
    train: Images
    test: Images
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    task: Task = "classification"
    shares: tuple[float, ...] = ()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        _, channels, height, width = self.train.pixels.shape
        return channels, height, width

    def to(self, device: torch.device) -> ImageSet:
        """Return the set with its tensors on ``device``."""
        return replace(self, train=self.train.to(device), test=self.test.to(device))


def load(source: str, image_shape: tuple[int, int, int]) -> ImageSet:
    """Load a data set at the shape a network takes.

    Args:
        source: ``digits``, or a folder: class folders under ``train`` and ``test`` (or ``val``), class
            folders alone (every tenth image is then kept for testing), or CIFAR-10's batches, python or binary.
        image_shape: (C, H, W); images are converted to grey (C = 1) or RGB (C = 3) and resized.

    Raises:
        BadInput: no such set or folder, nothing readable in it, or more than fits in memory.
        MissingDependency: scikit-learn (digits) or Pillow (folders) is not installed.
    """
    if source == "digits":
        return _digits(image_shape)
    folder = Path(source)
    if not folder.is_dir():
        raise BadInput(
            f"there is no data set {source!r}",
            do="give `digits`, or a folder with train/CLASS/* and test/CLASS/* images",
        )
    raw = imagefiles.read_cifar_batches(folder) or imagefiles.read_class_folders(folder, image_shape)
    return _image_set(folder.name or str(folder), raw, image_shape)


def _digits(image_shape: tuple[int, int, int]) -> ImageSet:
    """The 1,797 handwritten digits of 8x8 pixels that scikit-learn bundles; 1,437 to train, 360 to test."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingDependency("the digits need scikit-learn", do="pip install scikit-learn") from error
    bunch = load_digits()
    pixels = torch.from_numpy(np.asarray(bunch.images, dtype=np.float32))[:, None] * (255 / 16)
    labels = torch.from_numpy(np.asarray(bunch.target, dtype=np.int64))
    order = torch.from_numpy(np.random.default_rng(_DIGITS_SPLIT_SEED).permutation(len(labels)))
    test, train = order[:_DIGITS_TEST], order[_DIGITS_TEST:]
    raw = imagefiles.RawSet(
        train=(pixels[train].round().byte(), labels[train]),
        test=(pixels[test].round().byte(), labels[test]),
        classes=tuple(str(digit) for digit in range(10)),
    )
    return _image_set("digits", raw, image_shape)


def _image_set(name: str, raw: imagefiles.RawSet, image_shape: tuple[int, int, int]) -> ImageSet:
    train = Images(_fitted(raw.train[0], image_shape), raw.train[1])
    test = Images(_fitted(raw.test[0], image_shape), raw.test[1])
    mean, std = _statistics(train.pixels)
    return ImageSet(name, train, test, raw.classes, mean, std)


def _fitted(pixels: torch.Tensor, image_shape: tuple[int, int, int]) -> torch.Tensor:
    """Return uint8[N, C, H, W] at the wanted channels and size."""
    channels, height, width = image_shape
    if pixels.shape[1] != channels:
        if {pixels.shape[1], channels} != {1, 3}:
            raise BadInput(f"the network takes {channels} channels, the images have {pixels.shape[1]}")
        pixels = pixels.expand(-1, 3, -1, -1) if channels == 3 else _grey(pixels)
    if pixels.shape[2:] == (height, width):
        return pixels.contiguous()
    parts = [_resized(part, (height, width)) for part in pixels.split(1024)]
    return torch.cat(parts)


def _grey(pixels: torch.Tensor) -> torch.Tensor:
    weights = torch.tensor([0.299, 0.587, 0.114]).reshape(1, 3, 1, 1)  # ITU-R BT.601, as Pillow's "L"
    return (pixels * weights).sum(1, keepdim=True).round().byte()


def _resized(pixels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    resized = torch.nn.functional.interpolate(
        pixels.float(), size, mode="bilinear", align_corners=False, antialias=True
    )
    return resized.round().clamp(0, 255).byte()


def _statistics(pixels: torch.Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel in 0..1, summed exactly in integers."""
    count = pixels.numel() // pixels.shape[1]
    total = torch.zeros(pixels.shape[1], dtype=torch.int64)
    squares = torch.zeros_like(total)
    for part in pixels.split(4096):
        values = part.to(torch.int64)
        total += values.sum((0, 2, 3))
        squares += values.square().sum((0, 2, 3))
    mean = total.double() / count
    std = (squares.double() / count - mean.square()).clamp(min=0).sqrt()
    return tuple((mean / 255).tolist()), tuple((std / 255).clamp(min=1e-3).tolist())
