"""Calibration: which channels are constant over all of the user's data.

Owns the choice of values to watch, their ranges (two numbers per channel, whatever the amount of data) and
the verdict. observing.py runs the network; the passes treat these constants like proven ones, see
passes/constants.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from prunec.data.in_memory import NAME
from prunec.errors import BadInput
from prunec.ir.arrays import Array, Ids
from prunec.ir.graph import Graph
from prunec.ir.labels import ChannelClasses
from prunec.ir.ops import BINARY, CONTRACTIONS

DEFAULT_TOLERANCE = 1e-6
DEFAULT_MEMORY = 2 << 30
MIN_MEMORY = 64 << 20
HELD_OUT_EVERY = 4
"""One batch in this many is held out: constants are found on the rest, and the held-out batches may contradict them."""
_LEAST_FOR_HOLDING_OUT = 8
_MAX_WATCHED = 1 << 20
"""Elements of a value's ranges, at most."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """The data, and what counts as constant on them.

    Args:
        data: a folder (sample_files.read_samples has the layouts), or data in memory: an array or tensor of inputs, a
            list of batches, a data loader (in_memory.records_of).
        tolerance: how far a channel may be from its constant, as a fraction of the largest magnitude of its
            tensor over all data. 0: the very same number everywhere.
        normalise: for image files, see sample_files.NORMALISE.
        memory: bytes for the matrices, and for the activations, of a fit; more activations go to disk, and wider
            layers get one combination per channel.
        labels: the class of each sample, for the accuracy on those that are held out: a CSV file (see labelled.py), or
            "folders" if each class has a folder of its own; data in memory need a CSV file with a class per line.
        orders: how many orders of channels a pruning by data tries at most, 1 to 6 (docs/method.md); more take longer.
    """

    data: Any
    tolerance: float = DEFAULT_TOLERANCE
    normalise: str | None = None
    memory: int = DEFAULT_MEMORY
    labels: str | Path | None = None
    orders: int = 6

    @classmethod
    def of(cls, given: Any) -> Calibration | None:
        """Return what a caller gave as calibration: this, or data alone; None stays None."""
        return given if given is None or isinstance(given, Calibration) else cls(given)

    @property
    def name(self) -> str:
        """The data's name for messages."""
        return str(self.data) if isinstance(self.data, str | Path) else NAME

    def __post_init__(self) -> None:
        if not 1 <= self.orders <= 6:
            raise BadInput(f"{self.orders} orders of channels cannot be tried", do="give 1 to 6")
        if self.memory < MIN_MEMORY:
            raise BadInput(f"the memory is {self.memory} bytes", do="give at least 64 MB, such as 2GB")
        if not 0 <= self.tolerance < 1:
            raise BadInput(f"the tolerance is {self.tolerance}", do="give a fraction from 0 to below 1, such as 1e-4")


@dataclass(frozen=True, slots=True, eq=False)
class Observed:
    """What calibration found.

    Args:
        constants: by value name, float64 that broadcasts against the value; NaN where it varies.
        samples: how many were run.
        held_out: how many of them were held out, see HELD_OUT_EVERY; 0 if there are too few.
        constant: channel classes that are constant on all data wherever a contraction reads them.
        contradicted: further classes that were constant before the held-out samples were seen.
    """

    constants: Mapping[str, Array]
    samples: int
    held_out: int
    constant: int
    contradicted: int


@dataclass(frozen=True, slots=True, eq=False)
class Watch:
    """A value to observe.

    Args:
        axes: those to reduce; its label does not vary along them.
        ids: its label.
        ends: a contraction reads it, so its channels end here.
    """

    axes: tuple[int, ...]
    ids: Ids
    ends: bool


def watched(graph: Graph, classes: ChannelClasses) -> dict[str, Watch]:
    """List the values whose constants could free channels: inputs of contractions and of elementwise ops."""
    free = ~classes.pinned & classes.is_channel
    given = graph.fixed_values() | set(graph.inputs)
    found: dict[str, Watch] = {}
    for node in graph.nodes:
        if node.op not in CONTRACTIONS and node.op not in BINARY:
            continue
        for name in node.inputs[:2]:
            label = classes.labels.get(name)
            if not name or name in given or name in found or label is None or not label.fields:
                continue
            ids = label.fields[0]
            is_float = np.dtype(_numpy_name(graph.values[name].dtype)).kind == "f"
            if is_float and free[classes.class_of[ids]].any() and ids.size <= _MAX_WATCHED:
                axes = tuple(axis for axis, size in enumerate(ids.shape) if size == 1)
                found[name] = Watch(axes, ids, any(reader.op in CONTRACTIONS for reader in graph.consumers(name)))
    return found


def _numpy_name(dtype: str) -> str:
    return "float32" if dtype in ("bfloat16", "") else dtype


class Ranges:
    """The smallest and largest value of every watched channel; grows batch by batch."""

    def __init__(self) -> None:
        self._low: dict[str, Array] = {}
        self._high: dict[str, Array] = {}

    def add(self, name: str, low: Array, high: Array) -> None:
        """Take in one batch's extremes, of the shape of the value's label."""
        # fmin would drop NaN; minimum keeps it, and NaN is no constant.
        if name in self._low:
            low, high = np.minimum(low, self._low[name]), np.maximum(high, self._high[name])
        self._low[name], self._high[name] = np.array(low, np.float64), np.array(high, np.float64)

    def joined(self, other: Ranges) -> Ranges:
        """Return the ranges over both."""
        both = Ranges()
        for part in (self, other):
            for name in part._low:
                both.add(name, part._low[name], part._high[name])
        return both

    def constants(self, tolerance: float) -> dict[str, Array]:
        """Return the constant of every channel that has one, NaN elsewhere; values without any are left out.

        A channel that stays within the tolerance of zero is zero; another takes the middle of its range.
        """
        found = {}
        for name, low in self._low.items():
            high = self._high[name]
            size = np.maximum(np.abs(low), np.abs(high))
            allowed = tolerance * size.max()  # with a NaN anywhere this is NaN, and nothing is constant
            with np.errstate(invalid="ignore"):
                middle = np.where(low == high, low, low / 2 + high / 2)
                constant = np.where(size <= allowed, 0.0, np.where((high - low) / 2 <= allowed, middle, np.nan))
            constant = np.where(np.isfinite(constant), constant, np.nan)
            if not np.isnan(constant).all():
                found[name] = constant
        return found


def verdict(
    classes: ChannelClasses,
    places: Mapping[str, Watch],
    asked: Ranges,
    held_out: Ranges,
    counts: tuple[int, int],
    tolerance: float,
) -> Observed:
    """Return what is constant on all data, and how many constants of the first part the held-out part contradicts.

    Args:
        asked, held_out: the ranges over the two parts.
        counts: samples in all, and in the held-out part.
    """
    constants = asked.joined(held_out).constants(tolerance)
    settled = _constant_classes(classes, places, constants)
    before = _constant_classes(classes, places, asked.constants(tolerance)) if counts[1] else settled
    return Observed(
        MappingProxyType(constants), counts[0], counts[1], int(settled.sum()), int((before & ~settled).sum())
    )


def is_held_out(index: int) -> bool:
    """Tell whether the batch of this number is held out."""
    return index % HELD_OUT_EVERY == HELD_OUT_EVERY - 1


def enough_to_hold_out(num_batches: int) -> bool:
    """Tell whether there are enough batches to hold some out."""
    return num_batches >= _LEAST_FOR_HOLDING_OUT


def _constant_classes(
    classes: ChannelClasses, places: Mapping[str, Watch], constants: Mapping[str, Array]
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Return bool[num_classes]: constant wherever a contraction reads it."""
    seen = np.zeros(classes.num_classes, dtype=bool)
    varies = np.zeros(classes.num_classes, dtype=bool)
    for name, place in places.items():
        if not place.ends:
            continue
        owners = classes.class_of[place.ids]
        seen[owners] = True
        known = constants.get(name)
        varies[owners if known is None else owners[np.isnan(known)]] = True
    found: np.ndarray[tuple[int], np.dtype[np.bool_]] = seen & ~varies & ~classes.pinned & classes.is_channel
    return found
