"""Graph, ChannelClasses, Gammas -> Scaling: which classes allow γ–W rescaling, and where it is written.

Rescaling multiplies gamma and beta of a class by α and the weights that read it by 1/α; the network's
function stays (Ye, Lu, Lin, Wang, ICLR 2018, section 3.2). That asks that a positive factor pass from every
gamma of the class to every contraction that reads it. Owns that question; prunec/training/sparsity/rescale.py carries
the answer out, passes/rules/scaling.py says what each op does to a factor.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from prunec.ir.arrays import Ids, Mask
from prunec.ir.contractions import conv_groups, in_axis, read_axis, weights_of
from prunec.ir.graph import Graph, Node
from prunec.ir.labels import ChannelClasses
from prunec.ir.ops import CONTRACTIONS
from prunec.passes.rules.scaling import ABSENT, MIXED, SCALED, SCALING_RULES, UNSCALED, ZERO, Factors, Rule
from prunec.passes.sparsity.flow import carried_classes, look_up
from prunec.passes.sparsity.gammas import Gamma, gammas, has_gamma


@dataclass(frozen=True, slots=True, eq=False)
class Read:
    """A weight axis that a contraction sums over a value's channels.

    ``classes`` is int64[C_in], the class of each channel of the value. With ``conv_groups`` g, channel
    j·C_in/g + s meets index s of ``axis`` in the j-th of g equal parts of the weight's axis 0.
    """

    param: str
    axis: int
    conv_groups: int
    classes: Ids
    node: Node


@dataclass(frozen=True, slots=True, eq=False)
class Blocked:
    """A node through which a positive factor does not pass, and the classes that are left alone for it."""

    node: Node
    classes: Ids
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class Scaling:
    """Where α and 1/α go.

    Args:
        scaled: bool[num_classes], the classes that can be rescaled.
        sources: the gammas whose scaled channels (and those of their betas) are multiplied by α.
        reads: the weights whose scaled slices are multiplied by 1/α.
        blocked: why the other classes cannot be.
    """

    scaled: Mask
    sources: tuple[Gamma, ...]
    reads: tuple[Read, ...]
    blocked: tuple[Blocked, ...]


def scalable(
    graph: Graph,
    classes: ChannelClasses,
    found: Sequence[Gamma] | None = None,
    wanted: Mask | None = None,
    rules: Mapping[str, Rule] = SCALING_RULES,
) -> Scaling:
    """Find the classes among ``wanted`` that allow γ–W rescaling.

    Args:
        found: ``gammas(graph, classes)``, computed where not given.
        wanted: bool[num_classes]; by default the classes with a prunable gamma.

    Ensures: scaling every class of the result by any α > 0 leaves the function as it was, for any weights.
    """
    found = gammas(graph, classes) if found is None else found
    if wanted is None:
        wanted = np.zeros(classes.num_classes, dtype=bool)
        for gamma in found:
            wanted[gamma.classes[gamma.prunable]] = True
    sweep = _Sweep(graph, classes, found, wanted & ~classes.pinned, rules)
    sweep.run()
    sweep.check_parameters()
    scaled = sweep.wanted & ~sweep.blocked_mask
    reads = {(r.param, r.axis): r for r in sweep.reads if scaled[r.classes].any()}
    sources = tuple(g for g in found if (scaled[g.classes] & g.decides).any())
    return Scaling(scaled, sources, tuple(reads.values()), tuple(sweep.blocked))


class _Sweep:
    """One forward sweep; lives inside one call of ``scalable``."""

    def __init__(
        self, graph: Graph, classes: ChannelClasses, found: Sequence[Gamma], wanted: Mask, rules: Mapping[str, Rule]
    ) -> None:
        self.graph, self.classes, self.rules, self.wanted = graph, classes, rules, wanted
        self.gamma_of = {gamma.param: gamma for gamma in found}
        self.carried = carried_classes(graph, classes)
        self.blocked: list[Blocked] = []
        self.blocked_mask = np.zeros(classes.num_classes, dtype=bool)
        self.reads: list[Read] = []
        self.factors: dict[str, Factors] = {}

    def run(self) -> None:
        for name in (*self.graph.inputs, *self.graph.params, ""):
            start = ZERO if self._is_literal_zero(name) else UNSCALED
            self.factors[name] = np.full(self.carried[name].shape, start, dtype=np.int8)
        for node in self.graph.nodes:
            for out in node.outputs:
                if out:
                    self.factors[out] = self._after(node, out)
            if node.op in CONTRACTIONS:
                self._read(node)
        for name in self.graph.outputs:
            producer = self.graph.producer(name)
            if producer is not None:
                self._block(self._scaled(name), producer, "the network's output would change")

    def _after(self, node: Node, out: str) -> Factors:
        """Return the factors of one output; classes whose factor does not pass are blocked at this node."""
        want = self.carried[out]
        if has_gamma(self.graph, node):
            self._block(self._scaled(node.inputs[0]), node, "its running statistics would have to change")
            gamma = self.gamma_of[node.inputs[1]]
            source = np.zeros(self.classes.num_classes, dtype=bool)
            source[gamma.classes[gamma.decides]] = True
            return np.where(source[want] & self.wanted[want], SCALED, UNSCALED).astype(np.int8)
        inputs = [self._aligned(name, want) for name in node.inputs if name]
        factors = self.rules[node.op](node, inputs or [np.full(want.shape, UNSCALED, dtype=np.int8)])
        mixed = factors == MIXED
        self._block(want[mixed], node, "a factor does not pass")
        return np.where(mixed | (factors == ABSENT), UNSCALED, factors).astype(np.int8)

    def _aligned(self, name: str, want: Ids) -> Factors:
        if self._is_literal_zero(name):
            return np.full(want.shape, ZERO, dtype=np.int8)
        return look_up(self.factors[name], self.carried[name], want, ABSENT)

    def _is_literal_zero(self, name: str) -> bool:
        """A trainable zero does not count: it will not stay one."""
        param = self.graph.params.get(name)
        return param is not None and param.literal and not param.array.any()

    def _scaled(self, name: str) -> Ids:
        scaled: Ids = self.carried[name][self.factors[name] == SCALED]
        return scaled

    def _read(self, node: Node) -> None:
        """Note the weight that undoes the factor of what ``node`` sums over; block what it cannot undo."""
        site = contraction_site(self.graph, node)
        if site is None:
            for name in node.inputs:
                self._block(self._scaled(name), node, "it does not sum over a weight")
            return
        value, axis, param, weight_axis, conv_groups = site
        fields = self.classes.labels[value].on(axis)
        scaled = self._scaled(value)
        if len(fields) != 1 or fields[0].size != fields[0].shape[axis]:
            self._block(scaled, node, "it reads the class along several axes")
            return
        own = self.classes.class_of[fields[0].ravel()]
        self._block(np.setdiff1d(scaled, own), node, "the class lies on an axis that it does not sum over")
        # Factors that differ between reads of one weight are told apart by check_parameters.
        in_scale = np.isin(own, scaled)
        self.reads.append(Read(param, weight_axis, conv_groups, np.where(in_scale, own, 0), node))

    def _block(self, classes: Ids, node: Node, reason: str) -> None:
        new = classes[~self.blocked_mask[classes] & self.wanted[classes]]
        if new.size:
            self.blocked_mask[new] = True
            self.blocked.append(Blocked(node, new, reason))

    def check_parameters(self) -> None:
        """Block classes whose weights, gammas or betas serve another purpose too."""
        by_param: dict[str, list[Read]] = {}
        for read in self.reads:
            by_param.setdefault(read.param, []).append(read)
        for param, reads in by_param.items():
            first = reads[0]
            same = all(r.axis == first.axis and np.array_equal(r.classes, first.classes) for r in reads)
            readers = {read.node.name for read in reads}
            if not same or {node.name for node in _uses(self.graph, param)} - readers:
                for read in reads:
                    self._block(np.unique(read.classes), read.node, f"its weight {param} is used in another way too")
        for gamma in self.gamma_of.values():
            scaled = np.unique(gamma.classes[gamma.decides])
            for name in filter(None, (gamma.param, gamma.beta)):
                for node in _uses(self.graph, name):
                    if not has_gamma(self.graph, node):
                        self._block(scaled, node, f"{name} is used in another way too")


def contraction_site(graph: Graph, node: Node) -> tuple[str, int, str, int, int] | None:
    """Return (value, its summed axis, weight parameter, the weight's summed axis, conv_groups) of a contraction.

    None where no operand is a parameter, as it is or transposed: attention, products of two activations,
    weights that are computed.
    """
    if node.op == "matmul":
        return _matmul_site(graph, node)
    shape = graph.shape(node.inputs[0])
    if not weights_of(node) or shape is None:
        return None
    found = _parameter_axis(graph, node.inputs[1], in_axis(node))
    groups = conv_groups(node) if in_axis(node) == 1 else 1
    return None if found is None else (node.inputs[0], read_axis(node, len(shape)), *found, groups)


def _matmul_site(graph: Graph, node: Node) -> tuple[str, int, str, int, int] | None:
    a, b = node.inputs[:2]
    shapes = graph.shape(a), graph.shape(b)
    if shapes[0] is None or shapes[1] is None:
        return None
    a_axis, b_axis = read_axis(node, len(shapes[0])), read_axis(node, len(shapes[1]), 1)
    found = _parameter_axis(graph, b, b_axis)
    if found is not None and a not in graph.params:
        return (a, a_axis, *found, 1)
    found = _parameter_axis(graph, a, a_axis)
    return None if found is None or b in graph.params else (b, b_axis, *found, 1)


def _parameter_axis(graph: Graph, name: str, axis: int) -> tuple[str, int] | None:
    """Follow transposes back from axis ``axis`` of ``name`` to a parameter."""
    while name not in graph.params:
        node = graph.producer(name)
        if node is None or node.op not in ("transpose", "identity"):
            return None
        if node.op == "transpose":
            axis = node.attrs["perm"][axis]
        name = node.inputs[0]
    return None if graph.params[name].literal else (name, axis)


def _uses(graph: Graph, name: str) -> Iterable[Node]:
    """Yield the nodes that read a parameter, as it is or transposed."""
    for node in graph.consumers(name):
        if node.op in ("transpose", "identity"):
            yield from _uses(graph, node.outputs[0])
        else:
            yield node
