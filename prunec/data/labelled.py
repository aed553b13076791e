"""The classes of samples: from the folders that they lie in, or from a CSV file.

Owns matching labels with samples, and the messages if they do not match. Class numbers are those of the
network's scores: a number in the CSV is one, names (and folders) are numbered in alphabetical order.

    folders     DATA/CLASS/…: each class has a folder of its own
    FILE.csv    two columns, sample and class: FILE or its stem, or its path from the data folder; or one class a line,
                in the order of the samples. A first line that matches no sample counts as a heading.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from prunec.data.in_memory import NAME
from prunec.data.samples import Samples
from prunec.errors import BadInput

FOLDERS = "folders"


def labels_of(samples: Samples, given: str | Path, count: int, num_classes: int) -> tuple[int, ...]:
    """Return the class of each of ``count`` samples.

    Args:
        num_classes: how many the network scores.

    Raises:
        BadInput: no such file, samples without a class, another number of them, or other classes than the network's.
    """
    files = _files(samples)
    if str(given) == FOLDERS and samples.name == NAME:
        raise BadInput("data in memory lie in no folders", do="give the labels as a CSV file with a class per line")
    if str(given) == FOLDERS:
        return _numbered(_from_folders(samples.name, files, count), num_classes, f"the folders in {samples.name}")
    path = Path(given)
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = [[cell.strip() for cell in row] for row in csv.reader(stream) if any(cell.strip() for cell in row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"cannot read the labels {path}", why=str(error), do="give a CSV file, or folders") from error
    if not rows:
        raise BadInput(f"{path} holds no labels", do="write a line per sample: FILE,CLASS")
    names = _in_order(path, rows, count) if len(rows[0]) == 1 else _by_name(path, rows, samples.name, files, count)
    return _numbered(names, num_classes, str(path))


def _files(samples: Samples) -> list[Path]:
    """Return the file of each record; arrays of an archive are called "file (key)"."""
    return [Path(next(iter(record.values())).where.split(" (")[0]) for record in samples.records]


def _from_folders(name: str, files: Sequence[Path], count: int) -> list[str]:
    root = Path(name)
    inside = [file.relative_to(root).parts if file.is_relative_to(root) else file.parts[-1:] for file in files]
    lone = next((file for file, parts in zip(files, inside, strict=True) if len(parts) < 2), None)
    if lone is not None:
        raise BadInput(
            f"{lone} lies in no class's folder",
            do=f"put each sample into {root}/CLASS/, or give the labels as a CSV file",
        )
    if len(files) != count:
        raise _miscounted(f"{len(files)} files", count)
    return [parts[0] for parts in inside]


def _in_order(path: Path, rows: Sequence[Sequence[str]], count: int) -> list[str]:
    names = [row[0] for row in rows]
    if len(names) == count + 1 and not _is_number(names[0]):
        names = names[1:]
    if len(names) != count:
        raise _miscounted(f"{path} has {len(names)} labels", count)
    return names


def _by_name(path: Path, rows: Sequence[Sequence[str]], name: str, files: Sequence[Path], count: int) -> list[str]:
    known: dict[str, str] = {}
    for row in rows:
        if len(row) < 2:
            raise BadInput(f"{path}: a line has no class: {','.join(row)}", do="write FILE,CLASS on each line")
        known[row[0]] = row[1]
    if len(files) != count:
        raise BadInput(
            f"{path} names files, and some of those in {name} hold several samples",
            do="give one class a line, in the order of the samples",
        )
    return [_known(path, known, Path(name), file) for file in files]


def _known(path: Path, known: Mapping[str, str], root: Path, file: Path) -> str:
    whole = file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name
    for key in (whole, file.name, file.stem, str(file)):
        if key in known:
            return known[key]
    raise BadInput(f"{path} has no label for {whole}", why=f"it has {len(known)} lines", do=f"add a line {whole},CLASS")


def _numbered(names: Sequence[str], num_classes: int, where: str) -> tuple[int, ...]:
    """Return class numbers; words are numbered alphabetically, which is only right if every class occurs."""
    if all(map(_is_number, names)):
        numbers = tuple(map(int, names))
        if max(numbers) >= num_classes:
            raise BadInput(
                f"{where}: there is a class {max(numbers)}, but the network scores {num_classes}",
                why="classes are counted from 0",
                do="give the numbers of the network's own classes",
            )
        return numbers
    words = sorted(set(names))
    if len(words) != num_classes:
        raise BadInput(
            f"{where}: {len(words)} classes are named, but the network scores {num_classes}",
            why="names are numbered alphabetically, which is only right if every class occurs",
            do="give the numbers of the network's own classes (from 0) instead of names",
        )
    number = {name: place for place, name in enumerate(words)}
    return tuple(number[name] for name in names)


def _is_number(text: str) -> bool:
    return text.isdecimal()


def _miscounted(what: str, count: int) -> BadInput:
    return BadInput(f"{what}, but there are {count} samples", do="give a label for each sample, in their order")
