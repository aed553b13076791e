"""Folders of images with masks -> decoders of both.

Owns the layout ``images/SPLIT/NAME.*`` with ``masks/SPLIT/NAME.png`` (CamVid's, and that of most sets) and what the
numbers in masks mean. There are two codings: binary (255 is the foreground, 128 is void) and
class indices (0, 1, 2 …; 255 is void, as is a class that classes.txt calls void).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from prunec.errors import BadInput
from prunec.training.data.imagefiles import TEST_NAMES, FileSet, decode, list_images, opened
from prunec.training.data.sources import Example
from prunec.training.learning.objective import VOID

_LOOKED_AT = 256
_TEST_SHARE = 10
_NEAREST = 0  # PIL.Image.Resampling.NEAREST; Pillow is loaded when it is needed
_FOREGROUND_MASKS = "masks_fg"
_VOID_NAMES = ("void", "ignore", "unlabelled", "unlabeled")

MaskPixels = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True, slots=True)
class Coding:
    """What the values of mask pixels mean: ``meaning[value]`` is a class or VOID; other values are refused."""

    classes: tuple[str, ...]
    meaning: Mapping[int, int]

    def read(self, path: Path, mask: MaskPixels) -> MaskPixels:
        """Return classes for values, uint8[H, W].

        Raises:
            BadInput: a value has no meaning.
        """
        table = np.zeros(256, dtype=np.uint8)
        known = np.zeros(256, dtype=np.bool_)
        for value, meant in self.meaning.items():
            table[value], known[value] = meant, True
        if not known[mask].all():
            odd = np.unique(mask[~known[mask]])
            raise BadInput(
                f"the mask {path} has pixels of value {_listed(odd.tolist())}",
                why=f"the values of this set are {_listed(sorted(self.meaning))}",
                do="correct the mask; masks hold 0 and 255 (128 is void), or class indices, and no shades between",
            )
        return table[mask]


BINARY = Coding(("background", "foreground"), MappingProxyType({0: 0, 255: 1, 128: VOID}))


@dataclass(frozen=True, slots=True)
class MaskedFiles:
    """Image files with their masks, decoded at ``image_shape`` (C, H, W); masks are resized to the nearest pixel."""

    files: Sequence[tuple[Path, Path]]
    image_shape: tuple[int, int, int]
    coding: Coding

    def __len__(self) -> int:
        return len(self.files)

    def __call__(self, index: int) -> Example:
        image_path, mask_path = self.files[index]
        _, height, width = self.image_shape
        mask = read_mask(mask_path, like=image_path, size=(width, height))
        return decode(image_path, self.image_shape), self.coding.read(mask_path, mask)


def list_mask_folders(folder: Path, image_shape: tuple[int, int, int], num_logits: int | None) -> FileSet | None:
    """List images with masks; None if the folder has no ``images`` beside ``masks``.

    Without a ``test`` (or ``val``) folder every tenth image is for testing.

    Args:
        num_logits: of the network, per pixel; with one, ``masks_fg`` (foreground against the rest) is used if
            the set has it and ``masks`` has more classes.

    Raises:
        BadInput: a mask is missing, of another size than its image, or has values without a meaning.
    """
    images = folder / "images"
    places = [folder / name for name in ("masks", _FOREGROUND_MASKS) if (folder / name).is_dir()]
    if not images.is_dir() or not places:
        return None
    splits = _splits(images)
    masks = places[0]
    pairs = {split: _paired(folder, files, masks) for split, files in splits.items()}
    coding = _coding(folder, pairs["train"])
    if num_logits == 1 and len(coding.classes) > 2 and len(places) > 1:
        masks = places[1]
        pairs = {split: _paired(folder, files, masks) for split, files in splits.items()}
        coding = _coding(folder, pairs["train"])
    train, test = (MaskedFiles(pairs[split], image_shape, coding) for split in ("train", "test"))
    return FileSet(train, test, coding.classes, masked=True)


def _splits(images: Path) -> dict[str, list[Path]]:
    """Return the image files to train and to test on."""
    test_folder = next((images / name for name in TEST_NAMES if (images / name).is_dir()), None)
    if (images / "train").is_dir() and test_folder is not None:
        found = {"train": list_images(images / "train"), "test": list_images(test_folder)}
    else:
        files = list_images(images)
        test = files[_TEST_SHARE - 1 :: _TEST_SHARE]
        found = {"train": [file for file in files if file not in set(test)], "test": test}
    if not found["train"] or not found["test"]:
        raise BadInput(
            f"{images} has {len(found['train'])} images to train and {len(found['test'])} to test",
            do="give a folder with images/train/*, images/test/* (or val) and masks/ of the same names",
        )
    return found


def _paired(folder: Path, images: Sequence[Path], masks: Path) -> tuple[tuple[Path, Path], ...]:
    """Return each image with its mask: the file of the same folder and stem under ``masks``."""
    there = {_key(path, masks): path for path in list_images(masks)}
    keys = [_key(path, folder / "images") for path in images]
    missing = [str(path) for path, key in zip(images, keys, strict=True) if key not in there]
    if missing:
        raise BadInput(
            f"{len(missing)} of {len(images)} images have no mask in {masks}",
            why=f"no file of the same name belongs to {_listed(missing)}",
            do="name masks like their images: images/train/a.jpg and masks/train/a.png",
        )
    return tuple((path, there[key]) for path, key in zip(images, keys, strict=True))


def _key(path: Path, root: Path) -> str:
    return path.relative_to(root).with_suffix("").as_posix()


def _coding(folder: Path, pairs: Sequence[tuple[Path, Path]]) -> Coding:
    """Find out what the values mean, from classes.txt or from the masks themselves."""
    step = -(-len(pairs) // _LOOKED_AT)
    values: set[int] = set()
    for image, mask in pairs[::step]:
        values.update(np.unique(read_mask(mask, like=image)).tolist())
    if len(values) == 1:  # these few have one value; the others may have more
        values.update(*(np.unique(read_mask(mask, like=image)).tolist() for image, mask in pairs))
    if len(values) == 1:
        raise BadInput(
            f"every pixel of the masks in {pairs[0][1].parent} is {values.pop()}",
            why="there is nothing to tell apart",
            do="give masks of 0 and 255, or of class indices",
        )
    if values <= {0, 128, 255}:
        return BINARY
    names = folder / "classes.txt"
    if names.is_file():
        try:
            return _named(names.read_text(encoding="utf-8").split("\n"))
        except UnicodeDecodeError as error:
            raise BadInput(f"{names} is not UTF-8", why=str(error), do="save it as UTF-8, a name per line") from error
    last = max(values - {VOID})
    if last == 1:
        return Coding(BINARY.classes, MappingProxyType({0: 0, 1: 1, VOID: VOID}))
    classes = tuple(str(index) for index in range(last + 1))
    return Coding(classes, MappingProxyType({**{index: index for index in range(last + 1)}, VOID: VOID}))


def _named(lines: Sequence[str]) -> Coding:
    """Read classes.txt: a name per line, in order of the values; classes called void do not count."""
    meaning: dict[int, int] = {VOID: VOID}
    classes: list[str] = []
    for value, name in enumerate(line.strip() for line in lines if line.strip()):
        if name.lower() in _VOID_NAMES:
            meaning[value] = VOID
        else:
            meaning[value] = len(classes)
            classes.append(name)
    return Coding(tuple(classes), MappingProxyType(meaning))


def read_mask(path: Path, *, like: Path, size: tuple[int, int] | None = None) -> MaskPixels:
    """Read a mask's values, uint8[H, W]; palette images give their indices.

    Args:
        like: the image that it belongs to and whose size it must have.
        size: (width, height) to resize to; None keeps its own.

    Raises:
        BadInput: it cannot be read, is in colour, or has another size than the image.
    """
    with opened(like) as image:
        wanted = image.size
    with opened(path) as mask:
        if mask.size != wanted:
            raise BadInput(
                f"the mask {path} is {mask.width}x{mask.height}, its image {wanted[0]}x{wanted[1]}",
                do="make them the same size",
            )
        if mask.mode not in ("L", "P", "1"):
            raise BadInput(
                f"the mask {path} has mode {mask.mode}",
                why="a mask has one number per pixel: 8-bit grey, palette or black and white",
                do="convert it to class indices, or to 0 and 255",
            )
        # Black and white is 0 and 255, like grey.
        plain = mask.convert("L") if mask.mode == "1" else mask
        resized = plain if size in (None, plain.size) else plain.resize(size, _NEAREST)
        return np.asarray(resized, dtype=np.uint8)


def _listed(things: Sequence[object], most: int = 5) -> str:
    shown = ", ".join(str(thing) for thing in things[:most])
    return shown + (" …" if len(things) > most else "")
