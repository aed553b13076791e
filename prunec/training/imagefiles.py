"""Image files on disk -> uint8 tensors.

Owns the folder layouts that are understood and the decoding. Never unpickles freely: CIFAR-10's python
batches are read by an unpickler that can make numpy arrays and nothing else.
"""

from __future__ import annotations

import concurrent.futures
import os
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prunec.errors import BadInput, MissingDependency

_SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".jp2", ".j2k",
)  # fmt: skip
_TEST_NAMES = ("test", "val", "valid", "validation")
_TEST_SHARE = 10
_MAX_BYTES = 4 << 30
_CIFAR_ROW = 1 + 3 * 32 * 32

Labelled = tuple[torch.Tensor, torch.Tensor]
"""uint8[N, C, H, W] and int64[N]."""


@dataclass(frozen=True, slots=True, eq=False)
class RawSet:
    """What a folder held, not yet fitted to a network."""

    train: Labelled
    test: Labelled
    classes: tuple[str, ...]


def read_class_folders(folder: Path, image_shape: tuple[int, int, int]) -> RawSet:
    """Read ``train/CLASS/*`` and ``test/CLASS/*``, or ``CLASS/*`` of which every tenth image is for testing.

    Classes are numbered in alphabetical order, images read in order of their names, so that the same
    folder gives the same tensors everywhere. Every image is resized to ``image_shape`` (C, H, W).

    Raises:
        BadInput: no images, classes that differ, unreadable images, or more than fits in memory.
    """
    test_folder = next((folder / name for name in _TEST_NAMES if (folder / name).is_dir()), None)
    if (folder / "train").is_dir() and test_folder is not None:
        train, classes = _list_classes(folder / "train")
        test, test_classes = _list_classes(test_folder)
        _check_same_classes(folder, classes, test_classes)
    else:
        files, classes = _list_classes(folder)
        train, test = _split(files)
    if not train or not test:
        raise BadInput(
            f"{folder} has {len(train)} images to train and {len(test)} to test",
            do="give a folder with train/CLASS/* and test/CLASS/* images, or with CLASS/* of ten images or more each",
        )
    _check_memory(len(train) + len(test), image_shape)
    return RawSet(_decode_all(train, image_shape), _decode_all(test, image_shape), classes)


def _list_classes(folder: Path) -> tuple[list[tuple[Path, int]], tuple[str, ...]]:
    """Return each image with its label, and the class names."""
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    files: list[tuple[Path, int]] = []
    for label, name in enumerate(classes):
        paths = sorted(path for path in (folder / name).rglob("*") if path.suffix.lower() in _SUFFIXES)
        files.extend((path, label) for path in paths)
    return files, tuple(classes)


def _split(files: Sequence[tuple[Path, int]]) -> tuple[list[tuple[Path, int]], list[tuple[Path, int]]]:
    train: list[tuple[Path, int]] = []
    test: list[tuple[Path, int]] = []
    seen: dict[int, int] = {}
    for path, label in files:
        seen[label] = seen.get(label, 0) + 1
        (test if seen[label] % _TEST_SHARE == 0 else train).append((path, label))
    return train, test


def _check_same_classes(folder: Path, train: Sequence[str], test: Sequence[str]) -> None:
    odd = sorted(set(train) ^ set(test))
    if odd:
        raise BadInput(
            f"{folder}: training and test images have different classes",
            why=f"only one of them has: {', '.join(odd[:5])}{' …' if len(odd) > 5 else ''}",
        )


def _check_memory(count: int, image_shape: tuple[int, int, int]) -> None:
    needed = count * int(np.prod(image_shape))
    if needed > _MAX_BYTES:
        raise BadInput(
            f"{count} images of {'x'.join(map(str, image_shape))} need {needed / 2**30:.1f} GiB of memory",
            why=f"data sets are kept decoded in memory, up to {_MAX_BYTES >> 30} GiB",
            do="train on a part of the images, or in a loop of your own with prunec.training.sparsify",
        )


def _decode_all(files: Sequence[tuple[Path, int]], image_shape: tuple[int, int, int]) -> Labelled:
    pixels = np.empty((len(files), *image_shape), dtype=np.uint8)

    def decode(index: int) -> None:
        pixels[index] = _decode(files[index][0], image_shape)

    # Pillow lets go of the interpreter while it decodes, so threads help.
    with concurrent.futures.ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        list(pool.map(decode, range(len(files)), chunksize=64))
    return torch.from_numpy(pixels), torch.tensor([label for _, label in files], dtype=torch.int64)


def _decode(path: Path, image_shape: tuple[int, int, int]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return uint8[C, H, W]."""
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingDependency("image folders need Pillow", do="pip install pillow") from error
    channels, height, width = image_shape
    try:
        with Image.open(path) as image:
            converted = image.convert("L" if channels == 1 else "RGB")
            if converted.size != (width, height):
                converted = converted.resize((width, height), Image.Resampling.BILINEAR)
            array = np.asarray(converted, dtype=np.uint8)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        # Pillow's readers raise SyntaxError for damaged headers.
        raise BadInput(f"cannot read the image {path}", why=str(error), do="remove or replace the file") from error
    return array[None] if channels == 1 else array.transpose(2, 0, 1)


def read_cifar_batches(folder: Path) -> RawSet | None:
    """Read CIFAR-10 as its authors pack it, python or binary version; None where the folder is not that.

    Raises:
        BadInput: a batch is missing or damaged.
    """
    for base in (folder, folder / "cifar-10-batches-py", folder / "cifar-10-batches-bin"):
        for suffix, read in (("", _read_python_batch), (".bin", _read_binary_batch)):
            if (base / f"data_batch_1{suffix}").is_file():
                train = [read(base / f"data_batch_{index}{suffix}") for index in range(1, 6)]
                pixels = torch.cat([part[0] for part in train])
                labels = torch.cat([part[1] for part in train])
                return RawSet((pixels, labels), read(base / f"test_batch{suffix}"), _CIFAR10)
    return None


_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


_RECONSTRUCT = np.empty(0).__reduce__()[0]
"""numpy's own maker of arrays, wherever this version keeps it."""


class _ArrayUnpickler(pickle.Unpickler):
    """Makes numpy arrays and nothing else: a batch file cannot run code."""

    _ALLOWED = frozenset(("_reconstruct", "ndarray", "dtype"))

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray") and name in self._ALLOWED:
            # numpy moved its core; the files name the place of their time.
            return _RECONSTRUCT if name == "_reconstruct" else getattr(np, name)
        if (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"a CIFAR-10 batch has no business with {module}.{name}")


def _read_python_batch(path: Path) -> Labelled:
    try:
        with open(path, "rb") as file:
            batch = _ArrayUnpickler(file, encoding="bytes").load()
        pixels = np.ascontiguousarray(batch[b"data"], dtype=np.uint8).reshape(-1, 3, 32, 32)
        labels = torch.tensor(batch[b"labels"], dtype=torch.int64)
    except (OSError, EOFError, pickle.UnpicklingError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadInput(f"cannot read the CIFAR-10 batch {path}", why=str(error) or repr(error)) from error
    return _checked(path, torch.from_numpy(pixels), labels)


def _read_binary_batch(path: Path) -> Labelled:
    try:
        rows = np.fromfile(path, dtype=np.uint8).reshape(-1, _CIFAR_ROW)
    except (OSError, ValueError) as error:
        raise BadInput(f"cannot read the CIFAR-10 batch {path}", why=str(error)) from error
    pixels = torch.from_numpy(rows[:, 1:].reshape(-1, 3, 32, 32).copy())
    return _checked(path, pixels, torch.from_numpy(rows[:, 0].astype(np.int64)))


def _checked(path: Path, pixels: torch.Tensor, labels: torch.Tensor) -> Labelled:
    in_range = bool(((labels >= 0) & (labels < len(_CIFAR10))).all())
    if pixels.shape[0] == 0 or labels.shape != pixels.shape[:1] or not in_range:
        raise BadInput(f"the CIFAR-10 batch {path} is damaged", why="its labels do not fit its images")
    return pixels, labels
