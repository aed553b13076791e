"""Makers: a layer refitted so that the one layer that reads it can reproduce its original output.

A reader can do no better than its inputs allow. If few channels are left between two contractions, with nothing but
a ReLU or a clip between them, new channels can serve the reader better than a subset of the original ones. Owns that
fit: Gauss-Newton steps on the maker, each solved by conjugate gradients, with the reader solved anew before each
(variable projection, Golub and Pereyra 1973). A step is taken only if it helps on samples that the steps do not use.
The reader itself is fitted later (refit.py), on all samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from prunec.ir.arrays import Array, Floats
from prunec.ir.graph import Graph
from prunec.passes.fitting.operands import Operand
from prunec.passes.fitting.streams import Stream

if TYPE_CHECKING:
    from prunec.fitting.refit import Layer

STEPS, _INNER = 8, 8
_DAMPING = 0.1
"""The initial damping of a step: the price of a change in the maker's outputs, relative to its average effect on the
reader's. It falls while steps succeed and rises after one that does not."""
_MOST = 10.0
_RIDGE, _WORTH, _NOTHING = 1e-2, 0.01, 1e-6
"""The reader's ridge; the least relative gain of a step that another one follows; and the relative error below which
nothing is done."""
_PER_WEIGHT, _MANY, _FEWEST, _LEAST = 100, 384, 40, 16
_WORK, _FLOATS = 1_400_000_000, 24_000_000
"""Limits on samples: enough for a hundred targets per weight, and at least 384, but no more than keep the work of one
product with the maker, and the memory for it, below these. There is no fit with fewer than 16 samples, or with fewer
than 40 of a larger number."""


def only_reader(graph: Graph, maker: Operand, way: Stream) -> str:
    """Return the only contraction that reads the maker's output, through a ReLU or a clip; "" if there is none."""
    if way.others or way.passes == (-math.inf, math.inf) or maker.pooled or not maker.biased:
        return ""
    bends = graph.consumers(way.end)
    if len(bends) != 1 or bends[0].outputs[0] in graph.outputs:
        return ""
    readers = graph.consumers(bends[0].outputs[0])
    alike = len(readers) == 1 and readers[0].op == maker.node.op and maker.node.op in ("conv", "matmul")
    return readers[0].name if alike and readers[0].inputs[0] == bends[0].outputs[0] else ""


def towards_reader(
    layer: Layer, reader: Layer, way: Stream, matrix: Floats, constant: Floats, start: Callable[[], Floats]
) -> tuple[Floats, Floats]:
    """Return (weight as a matrix, float64[outputs] constant) of a maker with which its reader has a smaller error.

    Args:
        layer, reader: of the maker, which has been fitted, and of its only reader, which has not.
        way: from the one to the other.
        matrix, constant: of the maker.
        start: of the reader; see refit.combined_start.
    """
    maker, onward = layer.place, reader.place
    alone = len(layer.matrix) == 1 and len(reader.matrix) == 1
    if not alone or onward.inputs is None or onward.operand.pooled or not onward.operand.biased:
        return matrix, constant
    kept = slice(None) if maker.outputs is None else maker.outputs
    scale, shift = way.scale[kept], way.shift[kept]
    if maker.kind == "running_mean" and maker.was is not None:
        shift = shift + scale * maker.was  # the fitted constant includes the mean
    pair = _gathered(layer, reader, way)
    if pair is None:
        return matrix, constant
    weight = np.hstack([matrix[0] * scale[:, None], (constant * scale + shift)[:, None]])
    found = fitted_to_reader(pair, weight, start()[0])
    return found[None, :, :-1] / scale[:, None], (found[:, -1] - shift) / scale


def _gathered(layer: Layer, reader: Layer, way: Stream) -> Pair | None:
    """Return the data of both on some samples; None if there are too few, or they would be too large."""
    reader.before.advance(reader.reads_before)
    layer.now.advance(reader.reads_now[1:])
    value, batches = layer.place.operand.value, range(layer.now.num_batches)
    x = layer.now.value(value, 0)
    num, sizes = layer.view.num_places(x), x.shape[2:]
    if any(layer.now.value(value, batch).shape[1:] != x.shape[1:] for batch in batches):
        return None
    places = np.arange(num)[None]
    if layer.view.window is not None and reader.view.window is not None:
        places = reader.view.window.indices(layer.view.window.outputs(sizes))
    rows, width = layer.matrix.shape[1:]
    total = sum(layer.now.value(value, batch).shape[0] for batch in batches)
    targets = places.shape[1] * reader.matrix.shape[1]
    enough = max(_MANY, _PER_WEIGHT * rows * width // targets)
    samples = min(total, enough, _WORK // (num * width * rows), _FLOATS // max(num * width, places.size * rows))
    if samples < max(_LEAST, min(_FEWEST, total)) or samples * targets < 4 * rows * width:
        return None
    shares = np.diff(np.arange(len(batches) + 1) * samples // len(batches))
    seen, wanted = [], []
    for batch in np.flatnonzero(shares).tolist():
        found = layer.view.inputs(layer.now.value(value, batch)[: shares[batch]], np.arange(num))[0]
        found = np.vstack([found, np.ones((1, found.shape[1]), found.dtype)])
        seen.append(found.reshape(len(found), -1, num))
        target = reader.target(batch, np.arange(places.shape[1]))[0]
        wanted.append(target.reshape(len(target), -1, places.shape[1])[:, : seen[-1].shape[1]])
    columns, aims = (np.ascontiguousarray(np.concatenate(parts, axis=1).swapaxes(1, 2)) for parts in (seen, wanted))
    return Pair(columns, aims, places, *way.passes)


@dataclass(slots=True, eq=False)
class Pair:
    """A maker and its reader, on whole samples.

    Args:
        seen: float32[columns + 1, places, samples]: the maker's inputs, with ones last.
        wanted: float32[outputs, positions, samples]: the reader's target.
        places: int64[taps, positions]: the maker's place at each tap of the reader's window; one past the last
            beyond the border.
        low, high: the limits of the ReLU or clip between them.
    """

    seen: Array
    wanted: Array
    places: Array
    low: float
    high: float

    def part(self, samples: slice) -> Pair:
        """Return some of the samples."""
        seen, wanted = (np.ascontiguousarray(values[:, :, samples]) for values in (self.seen, self.wanted))
        return Pair(seen, wanted, self.places, self.low, self.high)

    def spread(self, values: Array) -> Array:
        """Return number[channels · taps, positions · samples] of number[channels, places, samples]."""
        found = np.empty((len(values), *self.places.shape, values.shape[2]), dtype=values.dtype)
        padded = _padded(values)
        for tap, at in enumerate(self.places):
            np.take(padded, at, axis=1, out=found[:, tap])
        return found.reshape(len(values) * len(self.places), -1)

    def gathered(self, values: Array, channels: int) -> Array:
        """Return the transpose of ``spread``: number[channels, places, samples]."""
        count, positions = self.seen.shape[1], self.places.shape[1]
        parted = values.reshape(channels, len(self.places), positions, -1)
        found = np.zeros((channels, count, parted.shape[3]), dtype=values.dtype)
        for tap, at in enumerate(self.places):
            sees = np.full(count + 1, positions)
            sees[at] = np.arange(positions)
            found += np.take(_padded(parted[:, tap]), sees[:count], axis=1)
        return found

    def passed(self, made: Array) -> tuple[Array, Array]:
        """Return the result of the op between them, and bool: where its slope is not zero."""
        open_ = (made > self.low) & (made < self.high)
        return np.clip(made, self.low, self.high), open_


def fitted_to_reader(pair: Pair, weight: Floats, start: Floats) -> Floats:
    """Return float64[channels, columns] of a maker with a smaller error at its reader, or ``weight`` if none is found.

    Args:
        weight: float64[channels, columns], of the maker, its constant last.
        start: float64[channels · taps + 1, outputs]: the reader as it is, its constant last.
    """
    shown = pair.seen.shape[2] * 3 // 4
    asked, judge = pair.part(slice(shown)), pair.part(slice(shown, None))
    best = weight
    metric, power = _metric(asked.seen), float(np.square(judge.wanted, dtype=np.float64).mean())
    reader = _reader(asked, best, start)
    error, damping = _error(judge, best, reader), _DAMPING
    for _ in range(STEPS):
        if error <= _NOTHING * power or damping > _MOST:
            break
        tried = best + _step(asked, best, reader, metric, damping)
        other = _reader(asked, tried, start)
        found = _error(judge, tried, other)
        if found >= error:
            damping *= 8
            continue
        gained, best, reader, error = error - found, tried, other, found
        damping /= 2
        if gained < _WORTH * error:
            break
    return best


def _padded(values: Array) -> Array:
    """Return number[channels, places + 1, samples]: zeros at the place past the last."""
    return np.concatenate([values, np.zeros_like(values[:, :1])], axis=1)


def _maker_outputs(pair: Pair, weight: Floats) -> Array:
    """Return float32[channels, places, samples]."""
    seen = pair.seen.reshape(len(pair.seen), -1)
    return (weight.astype(seen.dtype) @ seen).reshape(len(weight), *pair.seen.shape[1:])


def _reader(pair: Pair, weight: Floats, start: Floats) -> Floats:
    """Return the best reader for a maker, with a ridge towards the reader as it is."""
    through = pair.spread(pair.passed(_maker_outputs(pair, weight))[0])
    wanted = pair.wanted.reshape(len(pair.wanted), -1)
    width = len(through)
    gram = np.zeros((width + 1, width + 1))
    gram[:width, :width] = through @ through.T
    gram[width, :width] = gram[:width, width] = through.sum(axis=1, dtype=np.float64)
    gram[width, width] = through.shape[1]
    right = np.vstack([through @ wanted.T, wanted.sum(axis=1, dtype=np.float64)[None]])
    ridge = np.full(width + 1, max(_RIDGE * float(gram.diagonal()[:width].mean()), 1e-30))
    ridge[width] = 1e-9 * gram[width, width]
    found: Floats = start + np.linalg.solve(gram + np.diag(ridge), right - gram @ start)
    return found


def _errors(pair: Pair, weight: Floats, reader: Floats) -> tuple[Array, Array]:
    """Return the reader's remaining error, and where the op between them has a slope."""
    through, open_ = pair.passed(_maker_outputs(pair, weight))
    known = reader.astype(through.dtype)
    wanted = pair.wanted.reshape(len(pair.wanted), -1)
    return wanted - known[:-1].T @ pair.spread(through) - known[-1][:, None], open_


def _error(pair: Pair, weight: Floats, reader: Floats) -> float:
    return float(np.square(_errors(pair, weight, reader)[0], dtype=np.float64).mean())


def _metric(seen: Array) -> Any:
    """Return a factorisation of the moments of the maker's inputs."""
    from scipy.linalg import cho_factor

    flat = seen.reshape(len(seen), -1)
    gram = (flat @ flat.T).astype(np.float64)
    return gram, cho_factor(gram + np.eye(len(gram)) * max(1e-3 * float(gram.diagonal().mean()), 1e-30))


def _step(pair: Pair, weight: Floats, reader: Floats, metric: Any, damping: float) -> Floats:
    """Return the Gauss-Newton step of the maker, by preconditioned conjugate gradients."""
    from scipy.linalg import cho_solve

    gram, factor = metric
    left, open_ = _errors(pair, weight, reader)
    channels, known = len(weight), reader[:-1].astype(left.dtype)
    taps = len(pair.places)
    curvature = np.square(reader[:-1]).sum(axis=1).reshape(channels, taps).sum(axis=1)
    damping *= float((curvature * open_.mean(axis=(1, 2))).mean())

    def back(errors: Array) -> Floats:
        through = (pair.gathered(known @ errors, channels) * open_).reshape(channels, -1)
        found: Floats = (through @ pair.seen.reshape(len(pair.seen), -1).T).astype(np.float64)
        return found

    def applied(change: Floats) -> Floats:
        moved = pair.spread(_maker_outputs(pair, change) * open_)
        total: Floats = back(known.T @ moved) + damping * (change @ gram)
        return total

    def eased(g: Floats) -> Floats:
        solved: Floats = cho_solve(factor, g.T).T
        return solved

    found = np.zeros_like(weight)
    rest = back(left)
    first = eased(rest)
    way, size = first, float((rest * first).sum())
    for _ in range(_INNER):
        onward = applied(way)
        bent = float((way * onward).sum())
        if size <= 0 or bent <= 0:
            break
        length = size / bent
        found += length * way
        rest = rest - length * onward
        next_ = eased(rest)
        now = float((rest * next_).sum())
        way, size = next_ + (now / size) * way, now
    return found
