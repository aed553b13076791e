"""Reactions: how much an error at a contraction's output affects the network's outputs, measured.

To order channels over all layers, errors of different scales have to be compared; in a stream of large values a large
error may matter little. So for each contraction a quarter of its input channels is removed, the others make up for
them, and some samples are run. The weight of its errors is the squared error of the network's outputs divided by the
squared error predicted at the contraction. Owns the measurement; reconstruct.py uses it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from prunec.data.samples import num_rows
from prunec.fitting.grams import Gram
from prunec.fitting.refit import Place
from prunec.fitting.stages import Stages
from prunec.ir.arrays import Array, Floats
from prunec.passes.fitting.branches import Branch
from prunec.passes.fitting.elimination import Matrix
from prunec.passes.fitting.operands import as_matrix, from_matrix, unpooled
from prunec.runtime.probes import Feed
from prunec.runtime.scores import is_scores, log_probabilities

ROWS, ELEMENTS = 128, 1 << 20
"""Most samples to run, and elements of all their inputs beyond which there are fewer, but ``FEWEST``."""
FEWEST = 6

_PART, _STEPS = 0.25, 3
_SPREAD = 30.0
"""Weights are limited to this factor above and below their median: a saturated output hides errors."""

_ROUNDING = 1e-12
"""The part of the squares below which a difference of sums is nothing but rounding."""

_LEAST_SHARE = 1e-12
"""The least mean probability of a class."""

Tensors = Callable[[Place, Array, Array | None], Mapping[str, Array]]


def num_measured(feed: Feed) -> int:
    """Return how many samples like those of a batch are run."""
    of_one = sum(value.size for value in feed.values()) // max(1, num_rows(feed))
    return min(ROWS, max(FEWEST, ELEMENTS // max(1, of_one)))


def weights_of_errors(
    places: Sequence[Place],
    made: Mapping[str, Sequence[Matrix]],
    grams: Mapping[str, Gram],
    stages: Stages,
    tensors: Tensors,
    outputs: Sequence[str],
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Mapping[str, tuple[float, float]]:
    """Return node name -> (the weight of an error at its output, one over the output's energy).

    The first is measured; where it can't be, it is taken from the second.

    Args:
        places: of the network as it came, front to back; those that can be changed.
        made: node name -> the matrices of its read, one per group, of every read in the order.
        stages: some samples, nothing run yet.
        outputs: of the network.
    """
    measured: dict[str, float] = {}
    first: list[list[Array]] = []
    stages.keep(outputs)  # later layers may read one, and what they have read is gone
    stages.expect(place.operand.value for place in places)
    for number, place in enumerate(places):
        name = place.node.name
        progress(number, len(places))
        reads = [place.operand.value]
        stages.advance(reads)
        first = first or list(stages.rest(outputs, {}))
        weight, vector, error = _without_a_part(place, made[name], grams[name])
        if error > 0 and (vector is not None or not grams[name].ones):
            found = stages.rest(outputs, tensors(place, weight, vector))
            measured[name] = distance(first, found) / error
        stages.drop(reads)
    usable = {name: value for name, value in measured.items() if np.isfinite(value) and value > 0}
    if not usable:
        return {}
    energies = {
        name: _squares(np.stack([matrix.full() for matrix in matrices]), matrices, grams[name])
        for name, matrices in made.items()
        if matrices
    }
    typical = float(np.median(list(usable.values())))
    per_energy = float(np.median([value * energies[name] for name, value in usable.items()]))
    relative = {name: 1 / energy for name, energy in energies.items() if energy > 0}
    weights = {**{name: per_energy * value for name, value in relative.items()}, **usable}
    return {
        name: (float(np.clip(value, typical / _SPREAD, typical * _SPREAD)), relative.get(name, 1 / per_energy * value))
        for name, value in weights.items()
    }


def errors_of_branches(
    found: Sequence[Branch],
    stages: Stages,
    outputs: Sequence[str],
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Mapping[str, tuple[float, Array]]:
    """Return the name of each branch's value -> (the error of the network's outputs without it, its mean per channel).

    Args:
        found: in graph order.
        stages: some samples, nothing run yet.
        outputs: of the network.
    """
    result: dict[str, tuple[float, Array]] = {}
    first: list[list[Array]] = []
    found = [branch for branch in found if stages.has(branch.value)]
    stages.keep(outputs)
    stages.expect(branch.value for branch in found)
    for number, branch in enumerate(found):
        progress(number, len(found))
        stages.advance([branch.value])
        first = first or list(stages.rest(outputs, {}))
        mean = _mean([stages.value(branch.value, batch) for batch in range(stages.num_batches)], branch.axis)
        if mean is not None:
            error = distance(first, stages.rest(outputs, {}, {branch.value: mean}))
            if np.isfinite(error):
                result[branch.value] = error, mean
        stages.drop([branch.value])
    return result


def _mean(values: Sequence[Array], axis: int) -> Array | None:
    """Return the mean per channel, of the values' rank; None if they are no real numbers, or not finite."""
    if any(value.dtype.kind != "f" or not value.size for value in values):
        return None
    others = tuple(other for other in range(values[0].ndim) if other != axis)
    sums = [value.sum(axis=others, dtype=np.float64, keepdims=True) for value in values]
    count = sum(value.size // value.shape[axis] for value in values)
    found: Array = np.sum(sums, axis=0) / count
    return found if np.isfinite(found).all() else None


def _without_a_part(place: Place, matrices: Sequence[Matrix], gram: Gram) -> tuple[Array, Array | None, float]:
    """Return the weight without a quarter of its inputs, the constant's vector, and the predicted error."""
    rest = []
    for matrix in matrices:
        left = matrix.apart()
        count = max(1, int(left.classes.size * _PART))
        for goes in np.array_split(np.arange(count), min(_STEPS, count)):
            left.remove(left.classes[np.argsort(left.costs(), kind="stable")[: goes.size]].tolist())
        rest.append(left.full() - matrix.full())
    change = np.stack(rest)
    error = _squares(change, matrices, gram)
    groups, rows, _ = as_matrix(place.node, place.weight).shape
    shift = change @ (gram.total[:, :-1, -1] / max(1, gram.count))[:, :, None] if gram.ones else None
    if place.operand.pooled:
        change = unpooled(change, place.operand.taps)
        shift = None if shift is None else shift.reshape(groups, rows, -1).sum(axis=2)
    weight = from_matrix(place.node, as_matrix(place.node, place.weight) + change, place.weight.shape)
    vector = None
    if shift is not None and place.vector is not None:
        vector = place.vector_for(place.constant() - shift.ravel())
    return weight.astype(place.weight.dtype), vector, error


def _squares(weights: Floats, matrices: Sequence[Matrix], gram: Gram) -> float:
    """Return the mean squared output of float64[groups, rows, columns], about its mean, as errors weigh."""
    found = 0.0
    for weight, matrix, moment in zip(weights, matrices, gram.covariance(), strict=True):
        weighed = weight * matrix.scale[:, None]
        found += float(((weighed @ moment) * weighed).sum())
    return found


def distance(first: Iterable[Sequence[Array]], second: Iterable[Sequence[Array]], *, of_classes: bool = False) -> float:
    """Return the squared error of outputs relative to their variance, averaged over outputs; both batch by batch.

    Args:
        of_classes: of class scores, it is the geometric mean of that and of the divergence of the probabilities
            (Kullback and Leibler), relative to what they tell of a sample: which class comes first hangs on the scores
            near the largest. Not for small errors, whose divergence depends on a few samples.
    """
    sums: list[_Sums] = []
    for before, after in zip(first, second, strict=True):
        sums = sums or [_Sums(of_classes=of_classes and is_scores(a)) for a in before]
        for each, a, b in zip(sums, before, after, strict=True):
            each.add(a, b)
    parts = [found for each in sums if (found := each.relative()) is not None]
    return float(np.mean(parts)) if parts else 0.0


@dataclass(slots=True, eq=False)
class _Sums:
    """Sums over one output: the squared error of the second network's, the output's squares, itself; of class scores
    also the divergence, and p·log p and p of each class.
    """

    of_classes: bool
    error: float = 0.0
    squares: float = 0.0
    total: float = 0.0
    size: int = 0
    divergence: float = 0.0
    certainty: float = 0.0
    shares: Floats | None = None
    rows: int = 0

    def add(self, a: Array, b: Array) -> None:
        if a.dtype.kind == "f" and a.shape == b.shape:
            self.error += float(np.square(a - b, dtype=np.float64).sum())
            self.squares += float(np.square(a, dtype=np.float64).sum())
            self.total, self.size = self.total + float(a.sum(dtype=np.float64)), self.size + a.size
            if self.of_classes:
                self._add_scores(log_probabilities(a), log_probabilities(b))

    def _add_scores(self, before: Floats, after: Floats) -> None:
        shares = np.exp(before)
        if self.shares is not None and self.shares.size != shares.shape[1]:
            self.of_classes = False  # as many as were found: those are no classes
            return
        self.divergence += float((shares * (before - after)).sum())
        self.certainty += float((shares * before).sum())
        self.shares = shares.sum(axis=0) if self.shares is None else self.shares + shares.sum(axis=0)
        self.rows += len(shares)

    def relative(self) -> float | None:
        """Return the error as ``distance`` has it; None if the output is the same everywhere."""
        varies = self.variance()
        if varies <= 0:
            return None
        squared, told = self.error / varies, self.information()
        return math.sqrt(squared * max(0.0, self.divergence) / told) if told > 0 else squared

    def information(self) -> float:
        """Return how far the classes' probabilities diverge from their means; 0 where they are none or alike."""
        if self.shares is None or not self.of_classes:
            return 0.0
        typical = -float((self.shares * np.log(np.maximum(self.shares / self.rows, _LEAST_SHARE))).sum())
        told = typical + self.certainty
        return told if told > _ROUNDING * typical else 0.0

    def variance(self) -> float:
        """Return the squares about the mean of all elements; 0 if they are all alike."""
        found = self.squares - self.total**2 / max(1, self.size)
        return found if found > _ROUNDING * self.squares else 0.0
