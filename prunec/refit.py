"""The refit: front to back, each contraction is solved for what it sees by now, towards what the original gave.

Owns the least-squares fits and the order in which they are made; the sums come from prunec/grams.py, the networks
run in stages (prunec/stages.py). Where an output is added to a stream, what that stream is off by now is part of the
target, so that errors do not add up over blocks (passes/streams.py). Ridge regression, towards the weights that are
there: what data do not show stays as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prunec.grams import Floats, Gram, View, spread_places
from prunec.ir.edits import Edits
from prunec.ir.graph import Graph, Node
from prunec.ir.plan import Refit
from prunec.passes.operands import Operand, as_matrix, from_matrix, output_axis
from prunec.passes.refits import stored
from prunec.passes.streams import Stream, stream
from prunec.runtime.probes import Array
from prunec.stages import Stages


@dataclass(frozen=True, slots=True)
class Fitting:
    """How to fit.

    Args:
        columns: of each fit, about: output positions are drawn until there are so many.
        ridge: of the mean of a Gram's diagonal.
        rounds: how often positions behind a ReLU are aimed at anew: what is below zero there may lie anywhere below.
    """

    columns: int = 100_000
    ridge: float = 1e-3
    rounds: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """Where a contraction stands in the pruned network.

    Args:
        operand: as it was; ``node`` has the attributes that it has by now, ``weight`` its content.
        kind, target, vector: where the constant part goes (see plan.Refit) and what is there now, sliced.
        beside: a bias that other layers read, too, and that therefore stays: what is fitted is added to it.
        mean: for a running mean, the original's, sliced.
        outputs: indices of its outputs that stay; None where all do.
    """

    operand: Operand
    node: Node
    weight: Array
    kind: Any
    target: str
    vector: Array | None
    beside: Array | None
    mean: Array | None
    outputs: Any

    def constant(self) -> Floats:
        """Return float64[outputs]: what the contraction adds by now, the mean that is taken off behind it included."""
        found = np.zeros(as_matrix(self.node, self.weight).shape[:2]).ravel()
        if self.vector is not None:
            found = found + (-1.0 if self.kind == "running_mean" else 1.0) * self.vector
        return found if self.beside is None else found + self.beside

    def vector_for(self, constant: Floats) -> Array:
        """Return the vector that makes it so."""
        own = constant if self.beside is None else constant - self.beside
        return (-own if self.kind == "running_mean" else own).astype(self.weight.dtype)


class Layer:
    """One fit: the same places of both networks, and the sums over them."""

    def __init__(self, place: Place, way: Stream, before: Stages, now: Stages, settled: Callable[[str], bool]) -> None:
        self.place, self.way = place, way
        self.before, self.now = before, now
        operand = place.operand
        self.others = tuple(item for item in way.others if settled(item[0]))
        self.names = (operand.value, *(name for name, _, _ in self.others))
        kernel = place.weight.shape[2:] if place.node.op in ("conv", "conv_transpose") else ()
        self.matrix = as_matrix(place.node, place.weight)
        self.view = View(place.node, kernel, operand.read.axis, self.matrix.shape[0])

    def fit(self, how: Fitting) -> tuple[Floats, Floats]:
        """Return (weight as a matrix, float64[outputs] constant)."""
        place = self.place
        self.before.advance([*(name for name in self.names[1:]), place.operand.output])
        self.now.advance(self.names)
        groups, rows, width = self.matrix.shape
        biased = place.operand.biased
        gram = Gram(groups, width, ones=biased)
        right = np.zeros((groups, width + biased, rows))
        for batch, picked in self._batches(how):
            seen = self.view.inputs(self.now.value(place.operand.value, batch), picked)
            gram.add(seen)
            _add_products(right, seen, self._target(batch, picked))
        old = np.zeros((groups, width + biased, rows))
        old[:, :width] = self.matrix.swapaxes(1, 2)
        if biased:
            old[:, width] = place.constant().reshape(groups, rows)
        found = np.stack([_solve(g, r, o, how.ridge, biased) for g, r, o in zip(gram.total, right, old, strict=True)])
        return found[:, :width].swapaxes(1, 2), found[:, width].ravel() if biased else np.zeros(groups * rows)

    def _batches(self, how: Fitting) -> Any:
        first = self.now.value(self.place.operand.value, 0)
        places = self.view.num_places(first)
        samples = sum(self.now.value(self.place.operand.value, b).shape[0] for b in range(self.now.num_batches))
        for batch in range(self.now.num_batches):
            yield batch, spread_places(places, max(1, -(-how.columns // samples)), batch)

    def _target(self, batch: int, picked: Any) -> Array:
        """Return number[groups, rows, n]: the original's output, and what the streams that it joins are off."""
        place = self.place
        axis = output_axis(place.node, self.before.value(place.operand.output, batch).ndim)
        wanted = self.before.value(place.operand.output, batch)
        wanted = wanted if place.outputs is None else np.take(wanted, place.outputs, axis=axis)
        shape = [1] * wanted.ndim
        shape[axis] = -1
        if place.mean is not None:
            wanted = wanted - place.mean.reshape(shape).astype(wanted.dtype)
        for name, sign, scale in self.others:
            there = self.before.value(name, batch)
            there = there if place.outputs is None else np.take(there, place.outputs, axis=axis)
            by = scale if place.outputs is None else scale[place.outputs]
            wanted = wanted + sign * (there - self.now.value(name, batch)) / by.reshape(shape).astype(wanted.dtype)
        return self.view.outputs(wanted, picked)


def _add_products(right: Floats, seen: Array, target: Array) -> None:
    width = seen.shape[1]
    for total, u, t in zip(right, seen, target, strict=True):
        total[:width] += u @ t.T
        if total.shape[0] > width:
            total[width] += t.sum(axis=1, dtype=np.float64)


def _solve(gram: Floats, right: Floats, old: Floats, ridge: float, biased: bool) -> Floats:
    """Return float64[columns, rows] that minimises the squared error plus the ridge towards ``old``."""
    width = len(gram) - biased
    diagonal = np.zeros(len(gram))
    diagonal[:width] = max(ridge * float(gram.diagonal()[:width].mean()), 1e-30)
    if biased:
        diagonal[width] = 1e-9 * max(1.0, gram[width, width])
    found: Floats = old + np.linalg.solve(gram + np.diag(diagonal), right - gram @ old)
    return found


def depth_first(graph: Graph, names: Sequence[str]) -> list[str]:
    """Return contractions in order of depth (the most contractions on a way from the input), then as in the graph."""
    depth: dict[str, int] = {}
    at: dict[str, int] = {}
    chosen = set(names)
    for node in graph.nodes:
        here = max((at.get(name, 0) for name in node.inputs), default=0)
        depth[node.name] = here
        for name in node.outputs:
            at[name] = here + (node.name in chosen)
    return sorted(chosen, key=lambda name: (depth[name], list(depth).index(name)))


def refits(
    graph: Graph,
    places: Sequence[Place],
    before: Stages,
    now: Stages,
    how: Fitting,
    tensors: Callable[[Place, Array, Array | None], Mapping[str, Array]],
    progress: Callable[[int, int], None] = lambda *_: None,
) -> tuple[Refit, ...]:
    """Fit all places, front to back.

    Args:
        before, now: the original and the pruned network, over the same data.
        tensors: what a fit changes in ``now``: (place, weight, constant's vector) -> contents by name.
    """
    by_node = {place.node.name: place for place in places}
    order = depth_first(graph, list(by_node))
    upstream = _upstream(graph, set(by_node))
    done: set[str] = set()
    result = []
    for number, name in enumerate(order):
        progress(number, len(order))
        place = by_node[name]

        def settled(value: str, own: str = name) -> bool:
            ahead = upstream.get(value, frozenset())
            return own not in ahead and ahead <= done

        rows = place.operand.rows.size
        layer = Layer(place, stream(graph, place.operand.node, rows), before, now, settled)
        matrix, constant = layer.fit(how)
        weight = from_matrix(place.node, matrix, place.weight.shape).astype(place.weight.dtype)
        vector = place.vector_for(constant) if place.operand.biased else None
        now.set_tensors(tensors(place, weight, vector))
        result.append(
            Refit(
                name,
                place.operand.weight,
                stored(weight),
                place.kind if vector is not None else "none",
                place.target if vector is not None else "",
                None if vector is None else stored(vector),
            )
        )
        done.add(name)
        before.drop([*layer.names[1:], place.operand.output])
        now.drop(layer.names)
    return tuple(result)


def _upstream(graph: Graph, chosen: set[str]) -> Mapping[str, frozenset[str]]:
    """Return value -> the chosen contractions that it depends on."""
    found: dict[str, frozenset[str]] = {}
    for node in graph.nodes:
        own = frozenset([node.name]) if node.name in chosen else frozenset()
        sets = [found[name] for name in dict.fromkeys(node.inputs) if name in found]
        joined = max(sets, key=len, default=frozenset())
        if own or any(not part <= joined for part in sets):
            joined = joined.union(own, *sets)
        for name in node.outputs:
            found[name] = joined
    return found
