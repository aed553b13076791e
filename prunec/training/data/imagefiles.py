"""Image files on disk -> uint8 arrays.

Owns the folder layouts of labelled images and the decoding; masks are maskfiles.py's. CIFAR-10's python batches are
read by an unpickler that can only make numpy arrays.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prunec.data.sample_files import eight_bits
from prunec.errors import BadInput, MissingDependency
from prunec.training.data.sources import Decoder, Example

_SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".jp2", ".j2k",
)  # fmt: skip
TEST_NAMES = ("test", "val", "valid", "validation")
_TEST_SHARE = 10
_BILINEAR = 2  # PIL.Image.Resampling.BILINEAR; Pillow is loaded when it is needed
_CIFAR_ROW = 1 + 3 * 32 * 32

Labelled = tuple[torch.Tensor, torch.Tensor]
"""uint8[N, C, H, W] and int64[N] labels or uint8[N, H, W] masks."""


@dataclass(frozen=True, slots=True, eq=False)
class RawSet:
    """A data set that was read completely, not yet converted for a network."""

    train: Labelled
    test: Labelled
    classes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FileSet:
    """The images of a folder, not yet decoded.

    Args:
        train, test: decoders that give images at the size a network takes.
        classes: names.
        masked: targets are masks, not labels.
    """

    train: Decoder
    test: Decoder
    classes: tuple[str, ...]
    masked: bool = False


@dataclass(frozen=True, slots=True)
class LabelledFiles:
    """Image files with the numbers of their classes, decoded at ``image_shape`` (C, H, W)."""

    files: Sequence[tuple[Path, int]]
    image_shape: tuple[int, int, int]

    def __len__(self) -> int:
        return len(self.files)

    def __call__(self, index: int) -> Example:
        path, label = self.files[index]
        return decode(path, self.image_shape), np.array(label, dtype=np.int64)


def list_class_folders(folder: Path, image_shape: tuple[int, int, int]) -> FileSet:
    """List ``train/CLASS/*`` and ``test/CLASS/*``, or ``CLASS/*`` of which every tenth image is for testing.

    Classes are numbered in alphabetical order, images taken in order of their names, so that the same
    folder gives the same set everywhere. Every image will be resized to ``image_shape`` (C, H, W).

    Raises:
        BadInput: no images, or classes that differ.
    """
    test_folder = next((folder / name for name in TEST_NAMES if (folder / name).is_dir()), None)
    if (folder / "train").is_dir() and test_folder is not None:
        train, classes = _list_classes(folder / "train")
        test, test_classes = _list_classes(test_folder)
        _check_same_classes(folder, classes, test_classes)
        _check_every_class(folder / "train", classes, train)
    else:
        files, classes = _list_classes(folder)
        train, test = _split(files)
        if len(classes) == 1 and classes[0] in ("train", *TEST_NAMES):
            missing = "test/ or val/" if classes[0] == "train" else "train/"
            raise BadInput(
                f"{folder} has {classes[0]}/ and no {missing}",
                do=f"add it, or give {folder / classes[0]}: of class folders alone every tenth image is for testing",
            )
        _check_every_class(folder, classes, train)
    if len(classes) == 1:
        raise BadInput(
            f"{folder} has one class, {classes[0]!r}",
            why="there is nothing to tell apart; each folder of images counts as a class",
            do="give the folder that holds train/ and test/, or the class folders",
        )
    if not train or not test:
        raise BadInput(
            f"{folder} has {len(train)} images to train and {len(test)} to test",
            do="give a folder with train/CLASS/* and test/CLASS/* images, with CLASS/* of ten images or more each, "
            "or with images/ and masks/",
        )
    return FileSet(LabelledFiles(train, image_shape), LabelledFiles(test, image_shape), classes)


def _list_classes(folder: Path) -> tuple[list[tuple[Path, int]], tuple[str, ...]]:
    """Return each image with its label, and the class names."""
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    files: list[tuple[Path, int]] = []
    for label, name in enumerate(classes):
        files.extend((path, label) for path in list_images(folder / name))
    return files, tuple(classes)


def list_images(folder: Path) -> list[Path]:
    """Return the image files anywhere in ``folder``, in order of their names, without macOS's ._a.png."""
    return sorted(file for file in folder.rglob("[!.]*") if file.suffix.lower() in _SUFFIXES)


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


def _check_every_class(folder: Path, classes: Sequence[str], files: Sequence[tuple[Path, int]]) -> None:
    """Refuse a class without images, unless there are none at all, which has a message of its own."""
    empty = sorted(set(range(len(classes))) - {label for _, label in files})
    if files and empty:
        raise BadInput(
            f"there is no image in {folder / classes[empty[0]]}",
            why="each folder counts as a class, and this one cannot be learned",
            do="put images there, or remove the folder",
        )


def decode(path: Path, image_shape: tuple[int, int, int]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Read an image as uint8[C, H, W], resized to ``image_shape``.

    Raises:
        BadInput: it cannot be read.
        MissingDependency: Pillow is not installed.
    """
    channels, height, width = image_shape
    with opened(path) as image:
        converted = eight_bits(image).convert("L" if channels == 1 else "RGB")
        if converted.size != (width, height):
            converted = converted.resize((width, height), _BILINEAR)
        array = np.asarray(converted, dtype=np.uint8)
    return array[None] if channels == 1 else array.transpose(2, 0, 1)


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open an image file; any error while it is read becomes BadInput."""
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingDependency("image folders need Pillow", do="pip install pillow") from error
    try:
        with Image.open(path) as image:
            yield image
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        # Pillow's readers raise SyntaxError for damaged headers.
        raise BadInput(f"cannot read the image {path}", why=str(error), do="remove or replace the file") from error


def read_cifar_batches(folder: Path) -> RawSet | None:
    """Read CIFAR-10's original files, python or binary version; None if the folder does not hold them.

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
            # numpy has moved its core since; the files name the old place.
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
