"""Image sets: the values of ``--data``, and how an image becomes a network's input.

Owns ``load`` and ``ImageSet``. Reading files is imagefiles.py's and maskfiles.py's, augmentation augment.py's.
A set that fits in memory (digits, CIFAR-10, most image folders) is decoded once to uint8 and kept on
the training device, so that no step waits for a disk or a host; a larger one stays in its files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np
import torch

from prunec.errors import BadInput, MissingDependency
from prunec.training.data import imagefiles, maskfiles
from prunec.training.data.imagefiles import FileSet
from prunec.training.data.photos import make_digits_on_photos
from prunec.training.data.sources import Images, Source, Streamed, read_all, read_some

Task = Literal["classification", "segmentation"]

MEMORY = 4 << 30
"""Bytes of decoded images that are kept in memory unless told otherwise."""
_LOOKED_AT = 512

_DIGITS_TEST = 360
_DIGITS_SPLIT_SEED = 0


@dataclass(frozen=True, slots=True, eq=False)
class ImageSet:
    """A data set.

    Args:
        name: for messages and reports.
        train, test: disjoint.
        classes: the labels' names; label k is ``classes[k]``.
        task: ``classification`` (labels) or ``segmentation`` (masks).
        shares: of the training pixels, per class; () for labels.
        mean, std: of the training pixels in 0..1, per channel (of 512 images if they stay in files).
        image_shape: (C, H, W).
    """

    name: str
    train: Source
    test: Source
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_shape: tuple[int, int, int]
    task: Task = "classification"
    shares: tuple[float, ...] = ()

    def to(self, device: torch.device) -> ImageSet:
        """Return the set with its tensors on ``device``."""
        return replace(self, train=self.train.to(device), test=self.test.to(device))


def load(
    source: str, image_shape: tuple[int, int, int], *, num_logits: int | None = None, memory: int = MEMORY
) -> ImageSet:
    """Load a data set at the shape a network takes.

    Args:
        source: ``digits``, ``digits-on-photos``, or a folder: class folders under ``train`` and ``test`` (or
            ``val``), class folders alone (every tenth image is then kept for testing), ``images`` beside ``masks``,
            or CIFAR-10's batches, python or binary.
        image_shape: (C, H, W); images are converted to grey (C = 1) or RGB (C = 3) and resized.
        num_logits: per image or pixel, if the network is known; see maskfiles.list_mask_folders.
        memory: bytes that decoded images may take; a folder that needs more is read during training, in advance.

    Raises:
        BadInput: no such set or folder, nothing readable in it, or a network that does not take images.
        MissingDependency: scikit-learn (digits) or Pillow (folders) is not installed.
    """
    if source in EMBEDDED:
        return EMBEDDED[source](image_shape)
    folder = Path(source)
    if not folder.is_dir():
        raise BadInput(
            f"there is no data set {source!r}",
            do=f"give {' or '.join(EMBEDDED)}, a folder with train/CLASS/* and test/CLASS/* images, "
            "or one with images/ and masks/",
        )
    if image_shape[0] not in (1, 3):
        last = image_shape[2] in (1, 3)
        raise BadInput(
            f"the network takes images of {image_shape[0]} channels",
            why=f"images have 1 or 3{'; it seems to take them with channels last' if last else ''}",
            do="give a network that takes N x C x H x W, grey or RGB",
        )
    name = folder.name or str(folder)
    batches = imagefiles.read_cifar_batches(folder)
    if batches is not None:
        return _image_set(name, batches, image_shape)
    masked = maskfiles.list_mask_folders(folder, image_shape, num_logits)
    return _from_files(name, masked or imagefiles.list_class_folders(folder, image_shape), image_shape, memory)


def _from_files(name: str, files: FileSet, image_shape: tuple[int, int, int], memory: int) -> ImageSet:
    """Decode a folder, or leave it in its files if it is large."""
    channels, height, width = image_shape
    per_image = (channels + files.masked) * height * width
    if (len(files.train) + len(files.test)) * per_image > memory:
        train: Source = Streamed(files.train)
        test: Source = Streamed(files.test)
        looked_at = read_some(files.train, _LOOKED_AT)
    else:
        looked_at = train = read_all(files.train)
        test = read_all(files.test)
    return _described(name, train, test, files.classes, looked_at, image_shape)


def _described(
    name: str, train: Source, test: Source, classes: tuple[str, ...], looked_at: Images, shape: tuple[int, int, int]
) -> ImageSet:
    """Make the set, with the statistics of ``looked_at``: the training images, or some of them."""
    mean, std = _statistics(looked_at.pixels)
    masked = looked_at.targets.dim() > 1
    shares = _shares(looked_at.targets, len(classes)) if masked else ()
    task: Task = "segmentation" if masked else "classification"
    return ImageSet(name, train, test, classes, mean, std, shape, task, shares)


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


def _digits_on_photos(image_shape: tuple[int, int, int]) -> ImageSet:
    raw = make_digits_on_photos(image_shape[1:])
    return _image_set("digits-on-photos", raw, image_shape)


EMBEDDED: Mapping[str, Callable[[tuple[int, int, int]], ImageSet]] = MappingProxyType(
    {"digits": _digits, "digits-on-photos": _digits_on_photos}
)
"""Sets that come with scikit-learn and need no files, by name."""


def _image_set(name: str, raw: imagefiles.RawSet, image_shape: tuple[int, int, int]) -> ImageSet:
    train = Images(_fitted(raw.train[0], image_shape), raw.train[1])
    test = Images(_fitted(raw.test[0], image_shape), raw.test[1])
    return _described(name, train, test, raw.classes, train, image_shape)


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


def _shares(masks: torch.Tensor, num_classes: int) -> tuple[float, ...]:
    """Return each class's share of the pixels that are not void."""
    counts = torch.zeros(256, dtype=torch.int64)
    for part in masks.split(256):
        counts += torch.bincount(part.flatten(), minlength=256)
    counted = counts[:num_classes].double()
    return tuple((counted / counted.sum().clamp(min=1)).tolist())
