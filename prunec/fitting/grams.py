"""The input of a contraction as columns of a matrix, and the sums that a least-squares fit needs.

Owns the patches of convolutions (zero padding included, transposed ones as convolutions of a stretched input),
the choice of output positions to sample, and Gram matrices summed up batch by batch in float64. Knows
nothing of models; numpy only.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prunec.ir.arrays import Array, Floats
from prunec.ir.contractions import is_spatial
from prunec.ir.graph import Node

Places = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, slots=True)
class Window:
    """How a convolution walks over space: sizes per spatial axis.

    Args:
        kernel, stride, dilation: of the window.
        begin, end: zero padding (negative: cropping) of the stretched input.
        stretch: the step at which the input's elements stand in the stretched input; zeros between.
        flipped: the taps run backwards (transposed convolutions).
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]
    stretch: tuple[int, ...]
    flipped: bool

    @classmethod
    def of(cls, node: Node, kernel: Sequence[int]) -> Window:
        """Return the window of a conv or conv_transpose node."""
        rank = len(kernel)
        strides = tuple(node.attrs.get("strides") or (1,) * rank)
        dilations = tuple(node.attrs.get("dilations") or (1,) * rank)
        pads = tuple(node.attrs.get("pads") or (0,) * (2 * rank))
        begin, end, ones = pads[:rank], pads[rank:], (1,) * rank
        if node.op == "conv":
            return cls(tuple(kernel), strides, dilations, begin, end, ones, flipped=False)
        extra = tuple(node.attrs.get("output_padding") or (0,) * rank)
        reach = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
        begin = tuple(r - b for r, b in zip(reach, begin, strict=True))
        end = tuple(r - e + x for r, e, x in zip(reach, end, extra, strict=True))
        return cls(tuple(kernel), ones, dilations, begin, end, strides, flipped=True)

    def outputs(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """Return the number of window positions along each axis of an input of ``sizes``."""
        padded = self._padded(sizes)
        spans = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel, strict=True)]
        return tuple((p - s) // step + 1 for p, s, step in zip(padded, spans, self.stride, strict=True))

    def _padded(self, sizes: Sequence[int]) -> list[int]:
        stretched = [(size - 1) * by + 1 for size, by in zip(sizes, self.stretch, strict=True)]
        return [size + b + e for size, b, e in zip(stretched, self.begin, self.end, strict=True)]

    def indices(self, sizes: Sequence[int]) -> Places:
        """Return int64[taps, outputs]: the flat index of the input at each tap; past the last in the padding."""
        count = math.prod(sizes)
        numbers = np.arange(1, count + 1).reshape(1, 1, *sizes)
        seen = self.patches(numbers, np.arange(math.prod(self.outputs(sizes))))[0] - 1
        return np.where(seen < 0, count, seen)

    def patches(self, x: Array, places: Places) -> Array:
        """Return number[C, taps, batch · places]: the input under the window at some positions (flat indices)."""
        sizes = x.shape[2:]
        padded = self._padded(sizes)
        flat = self._canvas(x, padded).reshape(*x.shape[:2], -1)
        starts = np.unravel_index(places, self.outputs(sizes))
        taps = list(itertools.product(*map(range, self.kernel)))
        taps = taps[::-1] if self.flipped else taps
        steps = np.array([math.prod(padded[axis + 1 :]) for axis in range(len(padded))])
        base = sum(start * stride * step for start, stride, step in zip(starts, self.stride, steps, strict=True))
        offsets = (np.array(taps) * self.dilation) @ steps
        # All taps of one channel's map are taken at once, while it is in the cache.
        seen = np.take(flat, offsets[:, None] + base, axis=2)
        return np.ascontiguousarray(seen.transpose(1, 2, 0, 3)).reshape(x.shape[1], len(taps), -1)

    def _canvas(self, x: Array, padded: Sequence[int]) -> Array:
        """Return the input stretched, with its padding; the input itself if there is nothing to do."""
        if not any((*self.begin, *self.end)) and set(self.stretch) == {1}:
            return x
        canvas = np.zeros((*x.shape[:2], *padded), dtype=x.dtype)
        inner, outer = [slice(None)] * 2, [slice(None)] * 2
        for size, by, b, full in zip(x.shape[2:], self.stretch, self.begin, padded, strict=True):
            at = np.arange(size) * by + b
            inside = np.flatnonzero((at >= 0) & (at < full))
            first, last = (int(inside[0]), int(inside[-1])) if inside.size else (0, -1)
            inner.append(slice(first, last + 1))
            outer.append(slice(int(at[first]), int(at[last]) + 1, by) if inside.size else slice(0, 0))
        canvas[tuple(outer)] = x[tuple(inner)]
        return canvas


class View:
    """A contraction's input and output as columns, at the same positions.

    Args:
        node: the contraction; ``groups`` is the number that the arrays have (pruning can remove whole groups).
        kernel: spatial sizes of its weight; () for matrix products.
        axis: the contracted axis of its input.
        pooled: a column has the channels at one place of the input, not a patch; a matrix product's channels are its
            positions in runs of ``taps``. There are no columns of outputs then.
    """

    def __init__(
        self, node: Node, kernel: Sequence[int], axis: int, groups: int, *, pooled: bool = False, taps: int = 1
    ) -> None:
        self.node, self.axis, self.groups, self.taps = node, axis, groups, taps
        self.is_conv, self.pooled = is_spatial(node), pooled
        self.window = Window.of(node, kernel) if self.is_conv and not pooled else None

    def num_places(self, x: Array) -> int:
        """Return how many columns one sample of ``x`` gives (of a matrix product: the leading axes)."""
        if self.window is not None:
            return math.prod(self.window.outputs(x.shape[2:]))
        if self.is_conv:
            return math.prod(x.shape[2:])
        return math.prod(self._others(x.shape)[1:])

    def inputs(self, x: Array, places: Places) -> Array:
        """Return number[groups, columns, batch · places] of the contraction's input."""
        if self.window is not None:
            seen = self.window.patches(x, places)
            return seen.reshape(self.groups, -1, seen.shape[-1])
        if self.is_conv:
            picked = np.take(x.reshape(*x.shape[:2], -1), places, axis=2)
            return picked.swapaxes(0, 1).reshape(self.groups, x.shape[1] // self.groups, -1)
        flat = self._flat(x, self.axis, places)
        return flat.reshape(1, flat.shape[0] // self.taps, -1) if self.pooled else flat[None]

    def outputs(self, y: Array, places: Places, rows: Places | None = None) -> Array:
        """Return number[groups, rows, batch · places] of the contraction's output, of some of its channels or all."""
        if self.window is None:
            flat = self._flat(y, y.ndim - 1, places)
            return (flat if rows is None else flat[rows])[None]
        picked = np.take(y.reshape(*y.shape[:2], -1), places, axis=2)
        picked = picked if rows is None else picked[:, rows]
        return picked.transpose(1, 0, 2).reshape(self.groups, picked.shape[1] // self.groups, -1)

    def _others(self, shape: Sequence[int]) -> tuple[int, ...]:
        others = tuple(size for axis, size in enumerate(shape) if axis != self.axis)
        return others or (1,)

    def _flat(self, x: Array, axis: int, places: Places) -> Array:
        front = np.moveaxis(x, axis, 0)
        batch = front.shape[1] if front.ndim > 1 else 1
        picked = np.take(front.reshape(front.shape[0], batch, -1), places, axis=2)
        return picked.reshape(front.shape[0], -1)


_PER_WIDTH, _MOST, _NUMBERS, _PRODUCTS = 8, 240_000, 36_000_000, 20_000_000_000


def columns_for(width: int) -> int:
    """Return the number of output positions to sum a Gram over: eight times its width at least.

    It is more as long as they hold fewer than ``_NUMBERS`` numbers, or take fewer than ``_PRODUCTS`` products:
    positions of one image are alike, so that a fit on few of them fits these images rather than the layer's inputs.
    """
    cheap = max(_NUMBERS // max(1, width), _PRODUCTS // max(1, width) ** 2)
    return max(_PER_WIDTH * width, min(_MOST, cheap))


def spread_places(count: int, wanted: int, seed: int) -> Places:
    """Return at most ``wanted`` of ``count`` places, drawn at random, ascending; the same for the same seed."""
    if wanted >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, wanted, replace=False))


class Gram:
    """Σ u·uᵀ over columns u, per group; with ``ones`` a constant 1 is the last entry of each u.

    Products are in the data's own precision, batch by batch, sums in float64.
    """

    def __init__(self, groups: int, width: int, *, ones: bool) -> None:
        self.ones, self.count = ones, 0
        self.total: Floats = np.zeros((groups, width + ones, width + ones))

    def add(self, columns: Array) -> None:
        """Take in number[groups, width, n]."""
        width = columns.shape[1]
        for total, part in zip(self.total, columns, strict=True):
            total[:width, :width] += part @ part.T
            if self.ones:
                sums = part.sum(axis=1, dtype=np.float64)
                total[:width, width] += sums
                total[width, :width] += sums
                total[width, width] += part.shape[1]
        self.count += int(columns.shape[2])

    def covariance(self) -> Floats:
        """Return float64[groups, width, width] per column, about the mean if a constant is fitted as well."""
        if not self.ones:
            return self.total / max(1, self.count)
        mean = self.total[:, :-1, -1] / max(1, self.count)
        found: Floats = self.total[:, :-1, :-1] / max(1, self.count) - mean[:, :, None] * mean[:, None, :]
        return found
