"""Reactions: how much an error at a contraction's output affects the network's outputs, measured.

To order channels over all layers, errors of different scales have to be compared; in a stream of large values a large
error may matter little. So for each contraction a quarter of its input channels is removed, the others make up for
them, and some samples are run. The weight of its errors is the squared error of the network's outputs divided by the
squared error predicted at the contraction. Owns the measurement; reconstruct.py uses it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from prunec.fitting.grams import Gram
from prunec.fitting.refit import Place
from prunec.fitting.stages import Stages
from prunec.ir.arrays import Array, Floats
from prunec.passes.fitting.elimination import Matrix
from prunec.passes.fitting.operands import as_matrix, from_matrix, unpooled

ROWS = 32
"""Most samples to run."""

_PART, _STEPS = 0.25, 3
_SPREAD = 30.0
"""Weights are limited to this factor above and below their median: a saturated output hides errors."""

Tensors = Callable[[Place, Array, Array | None], Mapping[str, Array]]


def weights_of_errors(
    places: Sequence[Place],
    made: Mapping[str, Sequence[Matrix]],
    grams: Mapping[str, Gram],
    stages: Stages,
    tensors: Tensors,
    outputs: Sequence[str],
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Mapping[str, float]:
    """Return node name -> the weight of an error at its output; by the output's energy if it cannot be measured.

    Args:
        places: of the network as it came, front to back; those that can be changed.
        made: node name -> the matrices of its read, one per group, of every read in the order.
        stages: some samples, nothing run yet.
        outputs: of the network.
    """
    measured: dict[str, float] = {}
    first: list[Array] | None = None
    for number, place in enumerate(places):
        name = place.node.name
        progress(number, len(places))
        reads = [place.operand.value]
        stages.advance(reads)
        if first is None:
            first = stages.rest(outputs, {})
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
    guessed = {name: per_energy / energy for name, energy in energies.items() if energy > 0}
    return {
        name: float(np.clip(value, typical / _SPREAD, typical * _SPREAD))
        for name, value in {**guessed, **usable}.items()
    }


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


def distance(first: Sequence[Array], second: Sequence[Array]) -> float:
    """Return the squared error of outputs relative to their variance, averaged over outputs."""
    parts = []
    for a, b in zip(first, second, strict=True):
        if a.dtype.kind == "f" and a.shape == b.shape:
            varies = float(np.square(a - a.mean(axis=0), dtype=np.float64).sum()) if a.ndim and a.shape[0] > 1 else 0.0
            varies = varies or float(np.square(a - a.mean(), dtype=np.float64).sum())
            if varies > 0:
                parts.append(float(np.square(a - b, dtype=np.float64).sum()) / varies)
    return float(np.mean(parts)) if parts else 0.0
