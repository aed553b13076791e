"""Inputs to try a network on: several families, so that no single kind of input hides a difference.

Owns what random inputs look like for a given name, shape and dtype. White noise alone drives some
networks to an all-zero output, where any two networks agree; smooth, flat and extreme inputs do not
all do that at once. Who runs them: prunec/check/validate.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from prunec.errors import BadInput
from prunec.ir.arrays import Array

Feed = dict[str, Array]


@dataclass(frozen=True, slots=True)
class Slot:
    """An input to fill: its name, its shape with open sizes as anything but an int, numpy's name of its dtype."""

    name: str
    shape: tuple[int | str | None, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class InputKind:
    """An input to make values for; ``dtype`` is numpy's name ("float32", "int64", "bool")."""

    name: str
    shape: tuple[int, ...]
    dtype: str


def noise(shape: Sequence[int], rng: np.random.Generator) -> Array:
    """White noise, mean 0, standard deviation 1."""
    return rng.standard_normal(tuple(shape))


def image(shape: Sequence[int], rng: np.random.Generator) -> Array:
    """Smooth waves and a few hard edges along every long axis, mean 0, standard deviation 1."""
    values = np.zeros(tuple(shape))
    if not values.size:
        return values
    long_axes = [axis for axis, size in enumerate(shape) if axis > 0 and size >= 8]
    for _ in range(6):
        phase = np.zeros(tuple(shape))
        for axis, size in enumerate(shape):
            turns = rng.uniform(-3, 3) if axis in long_axes else rng.uniform(0, 0.2) * size
            phase = phase + turns * 2 * np.pi * np.linspace(0, 1, size).reshape(_along(axis, len(shape)))
        values += rng.uniform(0.3, 1) * np.sin(phase + rng.uniform(0, 2 * np.pi))
    values += 1.5 * _blocks(shape, long_axes, rng)
    return np.asarray((values - values.mean()) / max(float(values.std()), 1e-6))


def pixels(shape: Sequence[int], rng: np.random.Generator) -> Array:
    """An image in the 0 to 255 range that some networks read."""
    values = image(shape, rng)
    return np.asarray(np.clip(128 + 64 * values, 0, 255))


def flat(shape: Sequence[int], rng: np.random.Generator) -> Array:
    """One value everywhere: only borders and the network's own biases vary."""
    return np.full(tuple(shape), rng.uniform(0.3, 0.8))


def extreme(shape: Sequence[int], rng: np.random.Generator) -> Array:
    """Large values of either sign."""
    return 10 * np.sign(rng.standard_normal(tuple(shape)))


FAMILIES: Mapping[str, Callable[[Sequence[int], np.random.Generator], Array]] = MappingProxyType(
    {"noise": noise, "image": image, "pixels": pixels, "flat": flat, "extreme": extreme}
)


def feed(kinds: Sequence[InputKind], family: str, seed: int, *, small: bool = False) -> Feed:
    """Return one value per input, of its shape and dtype; the same for the same arguments.

    Args:
        kinds: the inputs.
        family: a key of FAMILIES.
        seed: of the random generator.
        small: integer inputs get 0 or 1 only (they may be indices into something short).

    Raises:
        BadInput: the seed is negative.
    """
    if seed < 0:
        raise BadInput(f"seed is {seed}", do="give 0 or a larger number")
    rng = np.random.default_rng([seed, list(FAMILIES).index(family)])
    return {kind.name: _cast(np.asarray(FAMILIES[family](kind.shape, rng)), kind, small) for kind in kinds}


def _cast(values: Array, kind: InputKind, small: bool) -> Array:
    if kind.dtype == "bool":
        return np.asarray(values > 0)
    if np.dtype(kind.dtype).kind in "iu":
        info = np.iinfo(kind.dtype)
        is_image = info.bits == 8 and len(kind.shape) >= 3
        spread = 64 * values + (128 if info.min == 0 else 0) if is_image else np.abs(values) * (0.5 if small else 4)
        low, high = (info.min, info.max) if is_image else (0, 1 if small else 9)
        return np.asarray(np.clip(np.rint(spread), low, high), dtype=kind.dtype)
    return np.asarray(values, dtype=kind.dtype)


def _along(axis: int, rank: int) -> tuple[int, ...]:
    return tuple(-1 if other == axis else 1 for other in range(rank))


def _blocks(shape: Sequence[int], axes: Sequence[int], rng: np.random.Generator) -> Array:
    """Return 0 and ±1 in a few boxes along ``axes``."""
    values = np.zeros(tuple(shape))
    for _ in range(3 if axes else 0):
        box: list[slice] = [slice(None)] * len(shape)
        for axis in axes:
            start = int(rng.integers(0, shape[axis] // 2))
            box[axis] = slice(start, start + max(2, shape[axis] // 3))
        values[tuple(box)] = rng.choice((-1.0, 1.0))
    return values
