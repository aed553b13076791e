"""The refit: front to back, each contraction is solved for its present inputs, towards the original's outputs.

Owns the least-squares fits and the order in which they are made; the sums come from prunec/fitting/grams.py, the
networks run in stages (prunec/fitting/stages.py). If an output is added to a stream, the stream's error so far
is part of the target, so that errors do not add up over blocks (passes/fitting/streams.py). The ridge pulls towards the
present weights, which therefore stay where the data say nothing. A layer with a single reader is also fitted towards
that reader (makers.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np

from prunec.errors import BadInput
from prunec.fitting.grams import Gram, View, columns_for, spread_places
from prunec.fitting.makers import only_reader, towards_reader
from prunec.fitting.solving import Equations, combinations, products
from prunec.fitting.stages import Stages, in_place_of
from prunec.ir.arrays import Array, Floats
from prunec.ir.contractions import kernel_of
from prunec.ir.graph import Graph, Node
from prunec.ir.plan import Refit
from prunec.passes.fitting.operands import Operand, as_matrix, from_matrix, pooled, unpooled
from prunec.passes.fitting.streams import Stream, stream
from prunec.passes.lowering.refits import stored


@dataclass(frozen=True, slots=True)
class Fitting:
    """How to fit.

    Args:
        ridge: of the mean of a Gram's diagonal.
        rounds: how often a fit is repeated if a ReLU follows, with the targets below zero left free.
        makers: whether layers are also fitted towards their only readers (makers.py).
        share: of the positions that fits look at.
        rough: a layer that cannot be fitted, since the network computes NaN, stays as it is; otherwise that is refused.
    """

    ridge: float = 1e-2
    rounds: int = 3
    makers: bool = True
    share: float = 1.0
    rough: bool = False


ROUGH = Fitting(rounds=0, makers=False, share=0.125, rough=True)
"""A fit that tells how good a choice of channels is, for a fraction of the work."""


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """A contraction to fit in the pruned network.

    Args:
        operand: as it was; ``node`` and ``weight`` are those of the pruned network.
        kind, target, vector: where the constant part goes (see plan.Refit) and its present content, sliced.
        beside: a bias that other layers read too, so that it cannot change; the fitted constant is added to it.
        was: the content of ``target`` in the original, sliced.
        prior: the Gram of the original's inputs here, if there is one.
        inputs, outputs: indices on the contracted axis, and of its outputs, that stay; None if all do.
        original: the weight as it was, for a pooled operand.
    """

    operand: Operand
    node: Node
    weight: Array
    kind: Any
    target: str
    vector: Array | None
    beside: Array | None
    was: Array | None
    prior: Gram | None
    inputs: Any
    outputs: Any
    original: Array

    def constant(self) -> Floats:
        """Return float64[outputs]: the constant that the contraction adds now, less a mean subtracted behind it."""
        found = np.zeros(as_matrix(self.node, self.weight).shape[:2]).ravel()
        if self.vector is not None:
            found = found + (-1.0 if self.kind == "running_mean" else 1.0) * self.vector
        return found if self.beside is None else found + self.beside

    def first_constant(self) -> Floats:
        """Return float64[outputs]: the constant that the original's contraction adds, of the outputs that stay."""
        found = np.zeros(as_matrix(self.node, self.weight).shape[:2]).ravel()
        if self.was is not None:
            found = found + (-1.0 if self.kind == "running_mean" else 1.0) * self.was
        return found if self.beside is None else found + self.beside

    def vector_for(self, constant: Floats) -> Array:
        """Return the content of ``target`` that gives this constant."""
        own = constant if self.beside is None else constant - self.beside
        return (-own if self.kind == "running_mean" else own).astype(self.weight.dtype)


_HELD = 192 << 20
"""Bytes up to which a layer's inputs are kept between the rounds of its fit; beyond they are gathered anew."""


def combined_start(place: Place) -> Floats:
    """Return float64[groups, columns, rows], the centre of the ridge: the combinations found in the original.

    W_kept + W_gone · A, with A from its own Gram: exact if channels depend on each other exactly.
    """
    matrix = as_matrix(place.node, place.weight)
    groups, rows, width = matrix.shape
    biased = place.operand.biased
    start = np.zeros((groups, width + biased, rows))
    first, prior = as_matrix(place.operand.node, place.original), place.prior
    if prior is None or len(first) != groups or len(prior.total) != groups:
        start[:, :width] = matrix.swapaxes(1, 2)
        if biased:
            start[:, width] = place.constant().reshape(groups, rows)
        return start
    columns, outputs = _columns(place, groups, width, first.shape[2]), _outputs(place, groups, first.shape[1])
    if biased:
        start[:, width] = place.first_constant().reshape(groups, rows)
    for group in range(groups):
        weight = first[group][outputs[group]]
        start[group, :width] = weight[:, columns[group]].T
        gone = np.setdiff1d(np.arange(first.shape[2]), columns[group])
        if gone.size:
            seen = np.append(columns[group], first.shape[2]) if biased else columns[group]
            start[group][: seen.size] += combinations(prior, group, seen, gone) @ weight[:, gone].T
    return start


def _columns(place: Place, groups: int, taken: int, width: int) -> Array:
    """Return int64[groups, columns that stay]: their places among the original's."""
    kept = place.inputs
    taps = taken * groups // max(1, len(kept)) if kept is not None else 1
    if kept is None:
        return np.tile(np.arange(width), (groups, 1))
    per_group = width // taps
    within = (np.asarray(kept) % per_group).reshape(groups, -1)
    return (within[:, :, None] * taps + np.arange(taps)).reshape(groups, -1)


def _outputs(place: Place, groups: int, rows: int) -> Array:
    """Return int64[groups, outputs that stay]: their places among the original's of the same group."""
    kept = place.outputs
    return np.tile(np.arange(rows), (groups, 1)) if kept is None else (np.asarray(kept) % rows).reshape(groups, -1)


class Layer:
    """One fit: the same places of both networks, and the sums over them.

    Args:
        place: the contraction to fit.
        others: the other operands of the sums that its output enters, as far as their error is known (streams.py).
        before, now: the original and the pruned network.
        way: the path of its output to a ReLU, if everything else that reaches that ReLU has been fitted, so that
            it is known what the ReLU hides.
        share: of the positions to look at.
        fixed: what stands in the place of values that the pruned network has no more.
    """

    def __init__(
        self,
        place: Place,
        others: Sequence[tuple[str, float, Floats]],
        before: Stages,
        now: Stages,
        way: Stream | None = None,
        share: float = 1.0,
        fixed: Mapping[str, Array] = MappingProxyType({}),
    ) -> None:
        self.share, self.fixed = share, fixed
        self.place, self.before, self.now, self.others = place, before, now, tuple(others)
        bends = way is not None and way.passes != (-math.inf, math.inf) and before.has(way.end)
        self.way = way if bends else None
        operand = place.operand
        kernel = kernel_of(place.node, place.weight.shape)
        self.matrix = as_matrix(place.node, place.weight)
        self.view = View(
            place.node, kernel, operand.read.axis, self.matrix.shape[0], pooled=operand.pooled, taps=operand.taps
        )
        names = () if operand.pooled else tuple(name for name, _, _ in self.others)
        self.reads_now = (operand.value, *(name for name in names if now.has(name)))
        end = (self.way.end,) if self.way is not None else ()
        self.reads_before = (operand.value,) if operand.pooled else (operand.output, *names, *end)

    def fit(self, how: Fitting) -> tuple[Floats, Floats]:
        """Return (weight as a matrix, float64[outputs] constant)."""
        self.before.advance(self.reads_before)
        self.now.advance(self.reads_now)
        return self._combined(how) if self.place.operand.pooled else self._solved(how)

    def _solved(self, how: Fitting) -> tuple[Floats, Floats]:
        """Fit the weights themselves."""
        groups, rows, width = self.matrix.shape
        biased = self.place.operand.biased
        equations = Equations(Gram(groups, width, ones=biased), rows)
        targets, held = list[tuple[Array, Array | None]](), list[Array]()
        holds = self.way is not None and 4 * columns_for(width) * groups * width <= _HELD
        for seen, batch, picked in self._seen():
            targets.append((self.target(batch, picked), self._end(batch, picked)))
            equations.add(seen, targets[-1][0])
            held += [seen] if holds else []
        start = combined_start(self.place)
        found = equations.solved(start, how.ridge)
        for _ in range(0 if self.way is None else how.rounds):
            equations.forget_targets()
            again = held if holds else (seen for seen, _, _ in self._seen())
            for seen, (target, end) in zip(again, targets, strict=True):
                equations.aim(seen, self._aim(products(found, seen), target, end))
            found = equations.solved(start, how.ridge)
        return found[:, :width].swapaxes(1, 2), found[:, width].ravel() if biased else np.zeros(groups * rows)

    def _seen(self) -> Iterator[tuple[Array, int, Any]]:
        """Yield the contraction's present inputs, the batch and the places in it."""
        for batch, picked in self._batches():
            yield self.view.inputs(self.now.value(self.place.operand.value, batch), picked), batch, picked

    def _end(self, batch: int, picked: Any) -> Array | None:
        """Return the original's value at the end of ``way``."""
        if self.way is None:
            return None
        return self.view.outputs(self.before.value(self.way.end, batch), picked, self.place.outputs)

    def _per_output(self, found: Floats, like: Array) -> Array:
        """Return number[groups, outputs that stay, 1] of a number per output."""
        kept = found if self.place.outputs is None else found[self.place.outputs]
        return kept.reshape(like.shape[0], -1, 1).astype(like.dtype)

    def _aim(self, made: Array, target: Array, end: Array | None) -> Array:
        """Return the target if errors that a ReLU hides do not count: the present output at the elements it hides.

        With t the target and p the present output: if the ReLU is flat at both, the target is p; if only at t, the
        edge. This bounds the error behind the ReLU from above and touches it at p, so no round makes it larger.
        """
        if self.way is None or end is None:
            return target
        low, high = self.way.passes
        scale = self._per_output(self.way.scale, made)
        moved = end + scale * (made - target)
        wished = np.where(end <= low, np.minimum(moved, low), end)
        if high < math.inf:
            wished = np.where(end >= high, np.maximum(moved, high), wished)
        return target + (wished - end) / scale

    def _combined(self, how: Fitting) -> tuple[Floats, Floats]:
        """Fit all original channels from those that are left, and fold the result into the original's weights."""
        operand, biased = self.place.operand, self.place.operand.biased
        value = operand.value
        full = pooled(as_matrix(operand.node, self.place.original), operand.taps)
        if self.place.outputs is not None:
            full = full.reshape(1, -1, operand.taps, full.shape[2])[:, self.place.outputs]
            full = full.reshape(1, -1, full.shape[3])
        width, channels = self.matrix.shape[2] // operand.taps, full.shape[2]
        equations = Equations(Gram(1, width, ones=biased), channels)
        old = np.zeros((1, width + biased, channels))
        kept = self._kept_channels(channels, width)
        old[0, np.arange(width), kept] = 1
        prior, gone = self.place.prior, np.setdiff1d(np.arange(channels), kept)
        if prior is not None and gone.size:
            seen = np.append(kept, channels) if biased else kept
            old[0][: seen.size, gone] = combinations(prior, 0, seen, gone)
        for seen, batch, picked in self._seen():
            equations.add(seen, self.view.inputs(self.before.value(value, batch), picked))
        found = equations.solved(old, how.ridge)[0]
        matrix = unpooled(full @ found[:width].T, operand.taps)
        constant = self.place.constant()
        if biased:  # the fit includes what folds added to the bias
            constant = self.place.first_constant() + (full[0] @ found[width]).reshape(-1, operand.taps).sum(axis=1)
        return matrix, constant

    def _kept_channels(self, channels: int, width: int) -> Any:
        kept = self.place.inputs
        return np.arange(channels) if kept is None else kept[:: len(kept) // width] // (len(kept) // width)

    def _batches(self) -> Iterator[tuple[int, Any]]:
        value = self.place.operand.value
        count = self.view.num_places(self.now.value(value, 0))
        samples = sum(self.now.value(value, batch).shape[0] for batch in range(self.now.num_batches))
        wanted = math.ceil(self.share * columns_for(self.matrix.shape[2]) / samples)
        for batch in range(self.now.num_batches):
            count = self.view.num_places(self.now.value(value, batch))
            yield batch, spread_places(count, wanted, batch)

    def target(self, batch: int, picked: Any) -> Array:
        """Return the original's output plus the errors of the streams that it joins; of the outputs that stay."""
        place = self.place
        wanted = self.view.outputs(self.before.value(place.operand.output, batch), picked, place.outputs)
        if place.kind == "running_mean" and place.was is not None:
            wanted = wanted - place.was.reshape(wanted.shape[0], -1, 1).astype(wanted.dtype)
        for name, sign, scale in self.others:
            whole = self.before.value(name, batch)
            was = self.view.outputs(whole, picked, place.outputs)
            if self.now.has(name):
                off = was - self.view.outputs(self.now.value(name, batch), picked)
            else:
                off = was - self.view.outputs(in_place_of(whole, self.fixed[name]), picked, place.outputs)
            wanted = wanted + sign * off / self._per_output(scale, wanted)
        return wanted


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
    fixed: Mapping[str, Array] = MappingProxyType({}),
) -> tuple[Refit, ...]:
    """Fit all places, front to back.

    Args:
        before, now: the original and the pruned network, over the same data.
        tensors: what a fit changes in ``now``: (place, weight, constant's vector) -> contents by name.
        fixed: value name -> what stands in its place, where nothing computes it any more.
    """
    by_node = {place.node.name: place for place in places}
    order = _in_turn(graph, list(by_node)) if now.in_order else depth_first(graph, list(by_node))
    reads = {name: tuple(_reads(graph, place)) for name, place in by_node.items()}
    for names in reads.values():
        before.expect(names)
        now.expect(names)
    upstream = _upstream(graph, set(by_node))
    done: set[str] = set()
    result = []

    def added_before(way: Stream) -> list[tuple[str, float, Floats]]:
        """Return the operands of sums on the way whose error is known by now."""
        there = [other for other in way.others if now.has(other[0]) or other[0] in fixed]
        return [other for other in there if upstream.get(other[0], frozenset()) <= done]

    for number, name in enumerate(order):
        progress(number, len(order))
        place = by_node[name]
        way = stream(graph, place.operand.node, place.operand.rows.size)
        known = added_before(way)
        is_last = upstream.get(way.end, frozenset()) <= done | {name}
        layer = Layer(place, known, before, now, way if is_last else None, how.share, fixed)
        matrix, constant = layer.fit(how)
        finite = bool(np.isfinite(matrix).all() and np.isfinite(constant).all())
        if not finite and not how.rough:
            raise not_finite(place.node)
        reader = by_node.get(only_reader(graph, place.operand, way)) if how.makers else None
        if reader is not None:
            joined = added_before(stream(graph, reader.operand.node, reader.operand.rows.size))
            onward = Layer(reader, joined, before, now, fixed=fixed)
            matrix, constant = towards_reader(layer, onward, way, matrix, constant, partial(combined_start, reader))
        weight = from_matrix(place.node, matrix, place.weight.shape).astype(place.weight.dtype)
        vector = place.vector_for(constant) if place.operand.biased else None
        if finite:
            now.set_tensors(tensors(place, weight, vector))
        before.drop(filter(before.has, reads[name]))
        now.drop(filter(now.has, reads[name]))
        done.add(name)
        where = ("none", "", None) if vector is None else (place.kind, place.target, stored(vector))
        result.append(Refit(name, place.operand.weight, stored(weight), *where))
    return tuple(result)


def not_finite(node: Node) -> BadInput:
    """Return the message for data on which a contraction's input or output holds NaN or infinity."""
    return BadInput(
        f"on these data {node.origin} computes NaN or infinity",
        why="nothing can be fitted to that",
        do="check that the inputs are prepared as the network reads them (--normalise), and leave out those, such as "
        "images of one color, that it cannot take",
    )


def _in_turn(graph: Graph, names: Collection[str]) -> list[str]:
    """Return contractions as they stand in the graph."""
    return [node.name for node in graph.nodes if node.name in names]


def _reads(graph: Graph, place: Place) -> Iterator[str]:
    """Yield all values that the fit of a contraction may ask for, each once."""
    way = stream(graph, place.operand.node, place.operand.rows.size)
    names = (place.operand.value, place.operand.output, way.end, *(name for name, _, _ in way.others))
    yield from dict.fromkeys(names)


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
