"""Recounts: what each of many selections of one graph leaves, counted where it differs from the one before.

Owns the memory of a search, nothing else: what counts is passes/cost.py's, sizes are shapes.py's. A selection that is
alone is counted by ``select.recount``, to the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np

from prunec.ir.arrays import Mask
from prunec.ir.graph import Graph, Node, Shape
from prunec.ir.labels import varying
from prunec.ir.ops import CONTRACTIONS
from prunec.passes.cost import batch_of, node_cost, params_read
from prunec.passes.selection.carriers import new_biases
from prunec.passes.selection.needs import Needs
from prunec.passes.selection.select import Demands, Selection, size_of_biases
from prunec.passes.selection.shapes import grouped, left_per_group, running, shape_left


class Recounts:
    """Counts MACs and parameters of selections; a step of a search changes a few layers, and only these are counted.

    Args:
        demands: what the selections have to meet.
    """

    def __init__(self, demands: Demands) -> None:
        facts = demands.facts
        graph, classes = facts.graph, facts.classes
        self._facts, self._found, self._sweep = facts, demands.absorbing, demands.sweep
        self._contractions = {node.name: node for node in graph.nodes if node.op in CONTRACTIONS}
        self._around: dict[str, list[Node]] = {}
        for node in self._contractions.values():
            for name in dict.fromkeys((*node.inputs, *node.outputs)):
                self._around.setdefault(name, []).append(node)
        self._names: dict[int, list[str]] = {place: [] for place in classes.laid.place.values()}
        for name, label in classes.labels.items():
            for field in label.fields:
                if field.size:
                    self._names[classes.laid.place[id(field)]].append(name)
        self._grouped = grouped(graph, classes)
        self._keep: Mask = np.ones(classes.num_classes, dtype=bool)
        self._kept = self._sweep.kept(self._keep)
        self._per_group = left_per_group(classes, self._grouped, self._keep)
        self._shapes: dict[str, Shape | None] = {}
        self._plain = dict(self._plainly())
        self._counted = set(params_read(graph))
        self._batch = batch_of(graph, self._shape)
        self._macs: dict[str, int] = {}
        self._elements: dict[str, int] = {}
        self._count_anew(self._contractions.values(), self._counted)
        self._wanted: Needs | None = None
        self._rest, self._params_read = graph, tuple(self._counted)

    def count(self, selection: Selection) -> tuple[int, int]:
        """Return the MACs and the parameters that a selection leaves, as ``select.recount`` counts them."""
        self._follow(selection.keep)
        self._run(selection.wanted)
        wanted, keep, exact = selection.wanted, selection.keep, selection.exact
        graph, classes = self._facts.graph, self._facts.classes
        made = new_biases(graph, classes, self._found, wanted, keep, selection.border, exact)
        params = sum(self._elements[name] for name in self._params_read)
        macs = sum(count for name, count in self._macs.items() if name in wanted.nodes)
        return macs, params + size_of_biases(made, self._rest, self._shape)

    def _follow(self, keep: Mask) -> None:
        """Count anew what a mask leaves otherwise than the one before."""
        classes = self._facts.classes
        places = np.flatnonzero(classes.laid.touched(keep != self._keep)).tolist()
        per_group = left_per_group(classes, self._grouped, keep)
        names = {name for place in places for name in self._names[place]}
        names.update(name for name, count in per_group.items() if count != self._per_group[name])
        self._keep, self._kept, self._per_group = keep, self._sweep.kept(keep), per_group
        for name in names:
            self._shapes.pop(name, None)
        batch = batch_of(self._facts.graph, self._shape)
        if batch != self._batch:
            self._batch, names = batch, set(self._around)
        nodes = {node.name: node for name in names for node in self._around.get(name, ())}
        self._count_anew(nodes.values(), names & self._counted)

    def _count_anew(self, nodes: Iterable[Node], params: Iterable[str]) -> None:
        self._macs.update({node.name: node_cost(node, self._shape, self._batch)[0] for node in nodes})
        for name in params:
            self._elements[name] = math.prod(size for size in self._shape(name) or () if isinstance(size, int))

    def _run(self, wanted: Needs) -> None:
        """Note what still runs; a sweep returns the same object where it is the same."""
        if wanted is self._wanted:
            return
        rest: Graph = running(self._facts.graph, wanted)
        if rest is not self._rest:
            self._rest, self._params_read = rest, tuple(params_read(rest))
        self._wanted = wanted

    def _shape(self, name: str) -> Shape | None:
        if name not in self._shapes:
            plain = self._plain.get(name)
            if plain is None:
                self._shapes[name] = shape_left(self._facts.graph, self._kept, name, self._per_group.get(name))
            else:
                sizes = list(plain[0])
                for axis, place in plain[1]:
                    sizes[axis] = self._kept.counts[place]
                self._shapes[name] = tuple(sizes)
        return self._shapes[name]

    def _plainly(self) -> Iterator[tuple[str, tuple[Shape, tuple[tuple[int, int], ...]]]]:
        """Yield what is as wide as ids of its fields stay, almost all: its shape, and the place of each axis' field."""
        graph, laid = self._facts.graph, self._facts.classes.laid
        for name, label in self._facts.classes.labels.items():
            fields, shape = [field for field in label.fields if field.size], graph.shape(name)
            axes = [varying(field) for field in fields]
            alone = all(len(each) == 1 for each in axes) and len(set(axes)) == len(axes)
            if shape is not None and alone and name not in self._per_group:
                places = (laid.place[id(field)] for field in fields)
                yield name, (shape, tuple((axis, place) for (axis,), place in zip(axes, places, strict=True)))
