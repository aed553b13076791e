"""Cost: parameters, MACs and activation elements of a graph, and the share of each channel class.

Owns the counting. MACs per op are in passes/rules/cost.py, the classes come from passes/channels.py.
``cost`` also recounts a pruned network: give it the shapes that are left. All counts are for one
sample, and an open dimension counts as 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from prunec.ir.arrays import Floats, Ids, Ints
from prunec.ir.contractions import geometry, is_depthwise, read_axis, weights_of
from prunec.ir.graph import Graph, Node, Shape
from prunec.ir.labels import ChannelClasses, Label
from prunec.ir.ops import CONTRACTIONS
from prunec.passes.columns import grouped_weights
from prunec.passes.constants import made_of_params
from prunec.passes.rules.cost import COST_RULES, PARTS, Rule, Sizes

ShapeOf = Callable[[str], Shape | None]


@dataclass(frozen=True, slots=True)
class Cost:
    """The size of a network.

    Args:
        params: elements of all parameters that some node reads; buffers and numbers in the code left out.
        macs: multiply-accumulates of all contractions, for one sample.
        activations: elements of the contractions' outputs, for one sample.
        macs_of: MACs per contraction (IR node name).
    """

    params: int
    macs: int
    activations: int
    macs_of: Mapping[str, int]


@dataclass(frozen=True, slots=True, eq=False)
class ClassCost:
    """What each channel class holds; all int64[num_classes], class 0 ("no channel") is 0.

    A parameter element, or a MAC, between two classes counts for both: it goes with either.

    Args:
        params: elements of the parameter slices of the class.
        contraction_params: those of them that are weights of contractions.
        activations: elements, for one sample, of the maps that the class's channels make: each
            BatchNorm's output, and each contraction's where no BatchNorm follows it.
        macs: multiply-accumulates, for one sample, of the class's channels where they are computed
            and where they are read.

    On a chain ``contraction_params + activations`` is the bracket of the paper's penalty.
    """

    params: Ints
    contraction_params: Ints
    activations: Ints
    macs: Ints


def cost(graph: Graph, shape_of: ShapeOf | None = None, rules: Mapping[str, Rule] = COST_RULES) -> Cost:
    """Count what ``graph`` holds and computes.

    Args:
        shape_of: the shape of each value and parameter, where it is not the graph's (a pruned network's).
    """
    shapes = shape_of or graph.shape
    batch = batch_of(graph, shapes)
    macs_of: dict[str, int] = {}
    activations = 0
    for node in graph.nodes:
        if node.op in CONTRACTIONS:
            macs_of[node.name], elements = node_cost(node, shapes, batch, rules)
            activations += elements
    params = sum(math.prod(_sizes(shapes, name)) for name in params_read(graph))
    return Cost(params, sum(macs_of.values()), activations, MappingProxyType(macs_of))


def node_cost(node: Node, shapes: ShapeOf, batch: int, rules: Mapping[str, Rule] = COST_RULES) -> tuple[int, int]:
    """Return the MACs of a contraction and the elements of its output, for one sample."""
    outs = [_sizes(shapes, name) for name in node.outputs]
    macs = rules[node.op](node, [_sizes(shapes, name) for name in node.inputs], outs)
    return _per_sample(macs, outs[0], batch), _per_sample(math.prod(outs[0]), outs[0], batch)


def as_it_came(graph: Graph) -> Graph:
    """Return the graph less the nodes that rewrites put in: what there is to count before them."""
    if not any(node.attrs.get("inserted") for node in graph.nodes):
        return graph
    nodes = tuple(node for node in graph.nodes if not node.attrs.get("inserted"))
    return Graph(nodes, graph.values, graph.params, graph.inputs, graph.outputs, graph.name, graph.frontend)


def elements(graph: Graph, name: str) -> int:
    """Count the elements of a value, for one sample."""
    sizes = _sizes(graph.shape, name)
    return _per_sample(math.prod(sizes), sizes, batch_of(graph, graph.shape))


def class_cost(graph: Graph, classes: ChannelClasses) -> ClassCost:
    """Share the cost of ``graph`` out among its channel classes.

    Cost: linear in nodes and ids. The counts are first-order: those of one channel removed alone.
    """
    weights = _contraction_weights(graph)
    read = set(params_read(graph))
    slices, weight_slices = _Tally(classes), _Tally(classes)
    for member in classes.members:
        if member.param not in read:
            continue
        per_index = graph.params[member.param].array.size // max(1, member.ids.size)
        slices.add(member.ids, per_index)
        if member.param in weights:
            weight_slices.add(member.ids, per_index)
    for ids, per_index in _grouped_slices(graph, classes):
        slices.add(ids, per_index)
        weight_slices.add(ids, per_index)
    maps, macs = _Tally(classes), _Tally(classes)
    batch = batch_of(graph, graph.shape)
    totals = cost(graph).macs_of
    for node in graph.nodes:
        if _makes_maps(graph, node):
            _add_maps(graph, classes, node.outputs[0], batch, maps)
        if node.op in CONTRACTIONS:
            parts = PARTS[node.op](float(totals[node.name]), [_sizes(graph.shape, name) for name in node.inputs])
            _share_out(graph, classes, node, parts, macs)
    return ClassCost(slices.counts(), weight_slices.counts(), maps.counts(), macs.counts())


class _Tally:
    """Collects (ids, amount per id) and adds them up per class at the end."""

    def __init__(self, classes: ChannelClasses) -> None:
        self._classes = classes
        self._ids: list[Ids] = []
        self._amounts: list[float] = []

    def add(self, ids: Ids, amount: float) -> None:
        self._ids.append(ids.ravel())
        self._amounts.append(amount)

    def counts(self) -> Ints:
        """Return int64[num_classes]."""
        return np.rint(self.totals()).astype(np.int64)

    def totals(self) -> Floats:
        """Return float64[num_classes]."""
        if not self._ids:
            return np.zeros(self._classes.num_classes)
        amounts = np.repeat(self._amounts, [ids.size for ids in self._ids])
        owners = self._classes.class_of[np.concatenate(self._ids)]
        total = np.bincount(owners, weights=amounts, minlength=self._classes.num_classes).astype(np.float64)
        total[0] = 0
        return total


def _sizes(shapes: ShapeOf, name: str) -> Sizes:
    shape = shapes(name) if name else None
    return tuple([size if isinstance(size, int) else 1 for size in shape or ()])  # a list is faster than a generator


def sample_sizes(graph: Graph, name: str, *, batched: bool = True) -> Sizes:
    """Return the sizes of a value for one sample; of one that does not depend on the inputs (not ``batched``), all."""
    sizes, batch = _sizes(graph.shape, name), batch_of(graph, graph.shape)
    return (sizes[0] // batch, *sizes[1:]) if batched and sizes and sizes[0] % batch == 0 else sizes


def batch_of(graph: Graph, shapes: ShapeOf) -> int:
    """Return the batch that the graph was traced with: axis 0 of its first input, 1 where that is open."""
    sizes = _sizes(shapes, graph.inputs[0]) if graph.inputs else ()
    return max(1, sizes[0]) if len(sizes) > 1 else 1


def _per_sample(count: int, sizes: Sizes, batch: int) -> int:
    """Divide by the batch, unless the value's axis 0 shows that it does not carry one (tables, unbatched inputs)."""
    return count // batch if sizes and sizes[0] % batch == 0 else count


def params_read(graph: Graph) -> Iterator[str]:
    """Yield the parameters that count: learned, and read by some node."""
    others = _statistics(graph) | _put_back(graph)
    for name, param in graph.params.items():
        counted = param.learned and not param.literal and name not in others
        if counted and (graph.consumers(name) or name in graph.outputs):
            yield name


def _put_back(graph: Graph) -> set[str]:
    """Return the constants of expansions: stored, like those that replace whole branches, and not learned."""
    return {name for node in graph.nodes if node.attrs.get("inserted") and node.op == "add" for name in node.inputs}


def _statistics(graph: Graph) -> set[str]:
    """Return the running statistics: they are measured, not learned, and the field does not count them."""
    norms = [node for node in graph.nodes if node.op == "batch_norm"]
    found = {name for node in norms for name in node.inputs[3:5]}
    return found - {name for node in norms for name in node.inputs[1:3]}


def _contraction_weights(graph: Graph) -> set[str]:
    """Return the parameters that are, or are made into, the weight of a contraction.

    Of the parameters that a weight is computed from, vectors (the gains of weight normalisation) are left out.
    """
    direct = {name for node in graph.nodes for name in weights_of(node)}
    weights = {name for name in direct if name in graph.params}
    from_params = made_of_params(graph)
    pending = [name for name in direct if name in from_params]
    seen = set(pending)
    while pending:
        node = graph.producer(pending.pop())
        sources = () if node is None else node.inputs
        weights.update(name for name in sources if name in graph.params and _is_matrix(graph.params[name].shape))
        fresh = [name for name in sources if name in from_params and name not in seen]
        seen.update(fresh)
        pending.extend(fresh)
    return weights


def _is_matrix(shape: tuple[int, ...]) -> bool:
    return sum(size > 1 for size in shape) > 1


def _grouped_slices(graph: Graph, classes: ChannelClasses) -> Iterator[tuple[Ids, int]]:
    """Yield the slices of grouped weights that no axis carries by itself: (group, slot) is an index there."""
    for balance in classes.balances:
        weight = graph.params.get(grouped_weights(graph, balance.node)[0])
        if weight is not None:
            yield balance.slots, weight.array.size // max(1, balance.slots.size)


def _makes_maps(graph: Graph, node: Node) -> bool:
    """Tell whether the node's output is a map to count; a contraction's is not where BatchNorm follows."""
    if node.op == "batch_norm":
        return bool(node.outputs[0])
    if node.op not in CONTRACTIONS or not node.outputs[0]:
        return False
    readers = graph.consumers(node.outputs[0])
    return not (readers and all(reader.op == "batch_norm" for reader in readers))


def _add_maps(graph: Graph, classes: ChannelClasses, name: str, batch: int, maps: _Tally) -> None:
    sizes = _sizes(graph.shape, name)
    elements = _per_sample(math.prod(sizes), sizes, batch)
    for field in classes.labels.get(name, _NO_LABEL).fields:
        maps.add(field, elements // max(1, field.size))


def _share_out(graph: Graph, classes: ChannelClasses, node: Node, parts: tuple[float, float], tally: _Tally) -> None:
    """Share what a contraction costs out: each id it makes, and each it reads, has an equal part of it."""
    made, read = parts
    for field in classes.labels.get(node.outputs[0], _NO_LABEL).fields:
        tally.add(field, made / max(1, field.size))
    # A depthwise convolution's input channel is its output channel: it counts once.
    for field in () if is_depthwise(graph, node) else contracted(node, classes):
        tally.add(field, read / max(1, field.size))


def contracted(node: Node, classes: ChannelClasses) -> tuple[Ids, ...]:
    """Return the fields of ids that are summed over; where two operands are, both carry the same ones."""
    for index, name in enumerate(node.inputs[: geometry(node).sums]):
        label = classes.labels.get(name, _NO_LABEL)
        if label.fields and (fields := label.on(read_axis(node, label.rank, index))):
            return fields
    return ()


_NO_LABEL = Label(None)
