"""Sentences and tables on stdout, as wide as the terminal is.

Owns wrapping, the widths of columns, and where styles are shown; what is shown is render.py's. A library for
terminals would take a tenth of the time of ``prunec prune``: click's styles and the few lines here are enough.
"""

from __future__ import annotations

import os
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest

import click

_PIPE_WIDTH = 120
_NARROWEST = 16
"""Columns are wrapped down to this width; what still does not fit runs over the edge, where terminals wrap it."""
_GAP = "  "

styled = click.style


class Table:
    """Rows of cells below a line of headings.

    A column whose name ends in ">" is right-aligned and never wrapped.
    """

    def __init__(self, *columns: str) -> None:
        self._right = [column.endswith(">") for column in columns]
        self._rows = [[column.removesuffix(">") for column in columns]]

    def row(self, *cells: object) -> None:
        """Add a row; each cell is shown as its text."""
        self._rows.append([str(cell) for cell in cells])

    def lines(self, width: int) -> Iterator[str]:
        """Yield the lines, at most ``width`` wide if the wrapped columns can be made narrow enough."""
        widths = self._widths(width)
        for number, cells in enumerate(self._rows):
            pieces = [
                [cell] if right else [part for line in wrapped(cell, size) for part in _cut(line, size)]
                for cell, right, size in zip(cells, self._right, widths, strict=True)
            ]
            for parts in zip_longest(*pieces, fillvalue=""):
                aligned = (_aligned(*each) for each in zip(parts, widths, self._right, strict=True))
                line = _GAP.join(aligned).rstrip()
                yield line if number else styled(line, dim=True)

    def _widths(self, width: int) -> Sequence[int]:
        """Return the width of each column: the widest that can be wrapped give way first."""
        widths = [max(map(columns, cells)) for cells in zip(*self._rows, strict=True)]
        left = [place for place, right in enumerate(self._right) if not right]
        for _ in range(sum(widths) + len(_GAP) * (len(widths) - 1) - width):
            widest = max(left, key=widths.__getitem__, default=None)
            if widest is None or widths[widest] <= _NARROWEST:
                break
            widths[widest] -= 1
        return widths


class Screen:
    """The stdout of a command: a pipe has a fixed width, so that what is written does not depend on who reads it."""

    def __init__(self) -> None:
        terminal = sys.stdout.isatty()
        self._width = shutil.get_terminal_size().columns if terminal or "COLUMNS" in os.environ else _PIPE_WIDTH
        self._styles = terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") not in ("dumb", "unknown")

    def print(self, *parts: str) -> None:
        """Print the parts as one paragraph, wrapped between words; without parts an empty line."""
        self._write(wrapped(" ".join(parts), self._width))

    def show(self, table: Table) -> None:
        """Print a table."""
        self._write(table.lines(self._width))

    def heading(self, title: str) -> None:
        """Print the title of what follows."""
        self._write(["", styled(title, bold=True)])

    def _write(self, lines: Iterable[str]) -> None:
        click.echo("\n".join(lines), file=sys.stdout, color=self._styles)


def wrapped(text: str, width: int) -> list[str]:
    """Return the lines of ``text``, broken between words; a word longer than ``width`` stays whole."""
    lines = []
    for paragraph in text.split("\n"):
        line, *words = paragraph.split(" ")
        for word in words:
            if columns(line) + 1 + columns(word) <= width:
                line = f"{line} {word}"
            else:
                lines.append(line)
                line = word
        lines.append(line)
    return lines


def columns(text: str) -> int:
    """Return how many columns of a terminal ``text`` takes: styles none, Chinese characters two each."""
    text = click.unstyle(text)
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def _cut(word: str, width: int) -> list[str]:
    """Return a word in pieces that fit."""
    pieces = [word]
    while columns(pieces[-1]) > width:
        rest = pieces.pop()
        end = next(end for end in range(len(rest), 0, -1) if end == 1 or columns(rest[:end]) <= width)
        pieces += [rest[:end], rest[end:]]
    return pieces


def _aligned(text: str, width: int, right: bool) -> str:
    padding = " " * (width - columns(text))
    return padding + text if right else text + padding
