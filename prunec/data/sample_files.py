"""A folder of arrays or images -> Samples: which file fills which input.

Owns the folder layouts and how an image becomes an input. samples.py checks the arrays, which are never unpickled.

    one input       any *.npy, one sample or one batch each; *.npz with one array; images, in folders too
    several inputs  INPUT.npy for each input; or SAMPLE.INPUT.npy (also SAMPLE_INPUT, SAMPLE-INPUT); or folders
                    INPUT/SAMPLE.npy; or *.npz, each with an array per input

Characters that file names cannot hold ("/", ":") are written as "_" in INPUT.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from prunec.data.in_memory import NAME, records_of
from prunec.data.samples import UNREADABLE, Record, Samples, Source
from prunec.errors import BadInput, MissingDependency
from prunec.ir.arrays import Array
from prunec.runtime.probes import Slot

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff")
_ARRAY_SUFFIXES = (".npy", ".npz")
_IMAGENET_MEAN = np.array([0.485, 0.456, 0.406])
_IMAGENET_STD = np.array([0.229, 0.224, 0.225])


def _imagenet(pixels: Array) -> Array:
    is_grey = pixels.shape[-1] == 1
    mean, std = (_IMAGENET_MEAN.mean(), _IMAGENET_STD.mean()) if is_grey else (_IMAGENET_MEAN, _IMAGENET_STD)
    return np.asarray((pixels / 255 - mean) / std)


def _standardise(pixels: Array) -> Array:
    values = pixels / 255
    deviation = max(float(values.std()), 1 / (255 * values.size**0.5))
    return np.asarray((values - values.mean()) / deviation)


NORMALISE: Mapping[str, Callable[[Array], Array]] = MappingProxyType(
    {
        "imagenet": _imagenet,
        "unit": lambda pixels: pixels / 255,
        "signed": lambda pixels: pixels / 127.5 - 1,
        "raw": lambda pixels: pixels,
        "standardise": _standardise,
    }
)
"""How pixels (float64[H, W, C], 0 to 255) become numbers: ImageNet's mean and deviation, 0 to 1, -1 to 1, unchanged,
or each image to mean 0 and deviation 1. Integer inputs always get them unchanged."""


def read_samples(path: Any, slots: Sequence[Slot], *, normalise: str | None = None) -> Samples:
    """List the samples of a folder (or of one .npy or .npz file); reading happens batch by batch later.

    Args:
        path: see the layouts above; or data in memory (in_memory.py).
        slots: the inputs to fill.
        normalise: a key of NORMALISE, for image files; None is ``imagenet``.

    Raises:
        BadInput: no such folder, nothing in it that fits, arrays and images mixed, or inputs without a file.
        MissingDependency: there are images, and Pillow is not installed.
    """
    if not isinstance(path, str | Path):
        _no_normalise(normalise, NAME)
        return Samples(NAME, tuple(slots), records_of(path, slots))
    path = Path(path)
    if normalise is not None and normalise not in NORMALISE:
        raise BadInput(f"there is no way {normalise!r} to normalise", do=f"choose one of: {', '.join(NORMALISE)}")
    if not path.exists():
        raise BadInput(f"there is no folder {path}", do="give a folder of .npy, .npz or image files")
    if not slots:
        raise BadInput("the model has no inputs", why="there is nothing to give it data for")
    files = _files(path)
    arrays = [file for file in files if file.suffix.lower() in _ARRAY_SUFFIXES]
    images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    if arrays and images:
        raise BadInput(
            f"{path} holds arrays and images", why=f"{arrays[0].name} and {images[0].name}", do="give one kind"
        )
    if images:
        return Samples(str(path), tuple(slots), _image_records(images, slots, normalise or "imagenet"))
    if not arrays:
        raise BadInput(
            f"{path} holds no data",
            why="there is no image, .npy or .npz file in it",
            do="put a few hundred pictures there, or the network's inputs, saved with numpy.save",
        )
    _no_normalise(normalise, path)
    return Samples(str(path), tuple(slots), _array_records(path, arrays, slots))


def _no_normalise(normalise: str | None, name: str | Path) -> None:
    if normalise is not None:
        raise BadInput(
            "--normalise is for image files",
            why=f"{name} holds arrays",
            do="leave it out: arrays are taken as they are",
        )


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    try:
        found = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
    except OSError as error:
        raise BadInput(f"cannot read the folder {path}", why=error.strerror or str(error)) from error
    return found


# --- arrays -------------------------------------------------------------------------------------------


def _array_records(root: Path, files: Sequence[Path], slots: Sequence[Slot]) -> tuple[Record, ...]:
    archives = [file for file in files if file.suffix.lower() == ".npz"]
    plain = [file for file in files if file.suffix.lower() == ".npy"]
    records = [_archive_record(file, slots) for file in archives]
    if len(slots) == 1:
        records += [{slots[0].name: _npy(file)} for file in plain]
    elif plain:
        records += _named_records(root, plain, slots)
    return tuple(records)


def _npy(file: Path) -> Source:
    return Source(str(file), partial(np.load, file, mmap_mode="r", allow_pickle=False))


def _archive_record(file: Path, slots: Sequence[Slot]) -> Record:
    try:
        with _archive(file) as archive:
            keys = {_plain(key): key for key in archive.files}
    except UNREADABLE as error:
        raise BadInput(f"cannot read {file}", why=str(error)[:200], do="give files that numpy.savez wrote") from error
    if len(slots) == 1 and len(keys) == 1:
        chosen = {slots[0].name: next(iter(keys.values()))}
    else:
        chosen = {slot.name: keys[_plain(slot.name)] for slot in slots if _plain(slot.name) in keys}
    missing = [slot.name for slot in slots if slot.name not in chosen]
    if missing:
        raise BadInput(
            f"{file} has no array for input {missing[0]!r}",
            why=f"it holds {', '.join(keys.values()) or 'nothing'}",
            do="name the arrays like the inputs: numpy.savez(file, **{name: array})",
        )
    return {name: Source(f"{file} ({key})", partial(_from_archive, file, key)) for name, key in chosen.items()}


def _from_archive(file: Path, key: str) -> Array:
    with _archive(file) as archive:
        found = archive[key]
    if not isinstance(found, np.ndarray):
        raise ValueError(f"{key} in it is no array")
    return found


@contextmanager
def _archive(file: Path) -> Iterator[np.lib.npyio.NpzFile]:
    with open(file, "rb") as content:  # numpy leaves a damaged one open
        found = np.load(content, allow_pickle=False)
        if not isinstance(found, np.lib.npyio.NpzFile):
            raise ValueError("it is no archive of arrays")
        with found:
            yield found


def _named_records(root: Path, files: Iterable[Path], slots: Sequence[Slot]) -> list[Record]:
    """Group .npy files by sample: the input's name is the folder, the file's name or the end of it."""
    found: dict[str, dict[str, Source]] = {}
    for file in files:
        place = _place(root, file, slots)
        if place is None:
            raise BadInput(
                f"{file} belongs to no input",
                why=f"the model has {len(slots)} inputs: {', '.join(slot.name for slot in slots)}",
                do="name files INPUT.npy, SAMPLE.INPUT.npy or INPUT/SAMPLE.npy, or give .npz files",
            )
        sample, name = place
        found.setdefault(sample, {})[name] = _npy(file)
    for sample, record in found.items():
        missing = [slot.name for slot in slots if slot.name not in record]
        if missing:
            raise BadInput(
                f"{root}: there is no file for input {missing[0]!r} of {'the' if not sample else repr(sample)} sample",
                why=f"found: {', '.join(source.where for source in record.values())}",
            )
    return [found[sample] for sample in sorted(found)]


def _place(root: Path, file: Path, slots: Sequence[Slot]) -> tuple[str, str] | None:
    """Return (sample, input name); the sample is "" if the file holds all samples of the input."""
    stem, folder = _plain(file.stem), _plain(file.parent.name) if file.parent != root else ""
    # The longest name first: of "x" and "mask_x", the file "1_mask_x" belongs to the second.
    for slot in sorted(slots, key=lambda slot: -len(slot.name)):
        name = _plain(slot.name)
        if stem == name:
            return folder, slot.name
        if folder == name:
            return stem, slot.name
        if stem.endswith(f"_{name}"):
            return stem[: -len(name) - 1], slot.name
    return None


def _plain(name: str) -> str:
    return re.sub(r"[^0-9A-Za-z]+", "_", name).strip("_")


# --- images -------------------------------------------------------------------------------------------


def _image_records(files: Sequence[Path], slots: Sequence[Slot], normalise: str) -> tuple[Record, ...]:
    slot = slots[0]
    layout = _layout(slot) if len(slots) == 1 else None
    if layout is None:
        wanted = ", ".join(f"{s.name} {s.dtype}[{', '.join(map(str, s.shape))}]" for s in slots)
        raise BadInput(
            "image files do not fit this model",
            why=f"they are for one grey or RGB image input of known size; it takes {wanted}",
            do="give .npy files, or the size: --input-shape 1x3x224x224",
        )
    integers = np.dtype(slot.dtype).kind in "iu"
    prepare = NORMALISE["raw" if integers else normalise]
    rows = slot.shape[0] if isinstance(slot.shape[0], int) else 1
    if len(files) < rows:
        raise BadInput(
            f"there are {len(files)} images", why=f"input {slot.name!r} takes {rows} at a time", do="give more"
        )
    # A fixed batch takes so many images; those that do not fill the last one are left out.
    batches = (files[at : at + rows] for at in range(0, len(files) - rows + 1, rows))
    return tuple({slot.name: _images(batch, layout, prepare)} for batch in batches)


def _images(files: Sequence[Path], layout: tuple[int, int, int, bool], prepare: Callable[[Array], Array]) -> Source:
    """Return the images of one batch."""

    def load() -> Array:
        return np.concatenate([_decode(file, layout, prepare) for file in files])

    return Source(str(files[0]), load, prepared=True)


def _layout(slot: Slot) -> tuple[int, int, int, bool] | None:
    """Return (channels, height, width, channels first) of an image input; None if it is not one."""
    if len(slot.shape) != 4:
        return None
    first, last = slot.shape[1:], (slot.shape[3], slot.shape[1], slot.shape[2])
    for sizes, channels_first in ((first, True), (last, False)):
        channels, height, width = sizes
        if isinstance(channels, int) and isinstance(height, int) and isinstance(width, int) and channels in (1, 3):
            return channels, height, width, channels_first
    return None


def _decode(file: Path, layout: tuple[int, int, int, bool], prepare: Callable[[Array], Array]) -> Array:
    """Return float64[1, C, H, W] or float64[1, H, W, C], resized to the input's size whatever the aspect ratio."""
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingDependency("image files need Pillow", do="pip install pillow") from error
    channels, height, width, channels_first = layout
    try:
        with Image.open(file) as image:
            converted: Any = eight_bits(image).convert("L" if channels == 1 else "RGB")
            if converted.size != (width, height):
                converted = converted.resize((width, height), Image.Resampling.BILINEAR)
            pixels = np.asarray(converted, dtype=np.float64).reshape(height, width, channels)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadInput(f"cannot read the image {file}", why=str(error), do="remove or replace the file") from error
    values = prepare(pixels)
    return values.transpose(2, 0, 1)[None] if channels_first else values[None]


def eight_bits(image: Any) -> Any:
    """Convert a grey image of 16 bits to 8, since Pillow's own conversion clips everything above 255.

    Raises:
        ValueError: floating-point pixels, whose range is not known.
    """
    from PIL import Image

    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, of no known range")
    if image.mode == "I" or image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    return image
