"""Weight norms, recognised: the nodes that compute g · v / ‖v‖ are marked before channels are looked for.

Owns what counts as one; what a mark means is passes/weight_norms.py's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from prunec.ir.arrays import Array
from prunec.ir.graph import Graph, Node
from prunec.passes.rewrites.permutations import replace_nodes
from prunec.passes.weight_norms import WeightNorm

STORED = (
    "l2 runs over its channels: a weight is divided by a norm of it, and has no gain of its own that could make up for "
    "what goes; store the weight first (torch.nn.utils.remove_weight_norm, or parametrize.remove_parametrizations)"
)

MAX_STEPS = 8
"""How many nodes behind a norm the product with v and g is looked for."""


def free_weight_norms(graph: Graph) -> Graph:
    """Return the graph with the attribute ``rescaled`` on norms whose gains make up for what goes.

    Other norms of weights get a ``reason``, which says what helps.

    Ensures: nodes, values and what they compute are as before.
    """
    fixed = graph.fixed_values()
    norms = [node for node in graph.nodes if _is_norm(node) and node.inputs[0] in fixed]
    if not norms:
        return graph
    found = _exclusive(graph, [match for node in norms if (match := _match(graph, node)) is not None])
    marks: dict[str, tuple[str, Any]] = {node.name: ("reason", STORED) for node in norms if node.attrs["kind"] == "l2"}
    marks.update({name: ("rescaled", norm) for norm in found for name in norm.nodes})

    def marked(node: Node) -> Node:
        key, value = marks[node.name]
        return replace(node, attrs=MappingProxyType({**node.attrs, key: value}))

    return replace_nodes(graph, tuple(marked(n) if n.name in marks and _is_norm(n) else n for n in graph.nodes))


def _is_norm(node: Node) -> bool:
    return node.op == "reduce" and node.attrs["kind"] in ("l2", "sum") and bool(node.inputs[0])


@dataclass(frozen=True, slots=True, eq=False)
class _Factor:
    """One factor of a value's elements: an element of a parameter, or the norm of a group of its elements.

    Args:
        param: the parameter.
        power: 1 or -1; 2 for the sum of squares of a group.
        at: int64 that broadcasts against the value: which element, or which group.
        groups: int64, shape of the parameter: the group of each element; None for an element itself.
    """

    param: str
    power: int
    at: Array
    groups: Array | None = None
    eps: float = 0.0


_Factors = tuple[_Factor, ...]


def _match(graph: Graph, norm: Node) -> WeightNorm | None:
    """Return the weight norm that a norm is a part of: the first product behind it of v, g and 1 / ‖v‖."""
    seen: dict[str, _Factors | None] = {}
    pending = [(norm, 0)]
    while pending:
        node, depth = pending.pop(0)
        factors = _factors(graph, node.outputs[0], seen)
        if factors is None:
            continue
        found = _as_weight_norm(graph, node, factors)
        if found is not None:
            return found
        if depth < MAX_STEPS:
            pending.extend((reader, depth + 1) for reader in graph.consumers(node.outputs[0]))
    return None


def _as_weight_norm(graph: Graph, root: Node, factors: _Factors) -> WeightNorm | None:
    shape = graph.shape(root.outputs[0])
    norms = [factor for factor in factors if factor.groups is not None and factor.power == -1]
    plain = [factor for factor in factors if factor.groups is None and factor.power == 1]
    if len(factors) != 3 or len(norms) != 1 or len(plain) != 2:
        return None
    (norm,) = norms
    v, g = plain if plain[0].param == norm.param else plain[::-1]
    size = graph.params[norm.param].array.shape
    if v.param != norm.param or g.param == v.param or shape != size or not _in_place(v.at, size):
        return None
    assert norm.groups is not None
    groups = _narrowed(norm.groups)
    at = np.broadcast_to(norm.at, size)
    if not np.array_equal(at, np.broadcast_to(groups, size)):
        return None
    of_g = np.full(graph.params[g.param].array.size, -1, dtype=np.int64)
    of_g[np.broadcast_to(g.at, size).ravel()] = at.ravel()
    if not np.array_equal(of_g[np.broadcast_to(g.at, size)], at) or (of_g < 0).any():
        return None  # one gain for elements of several groups
    nodes = frozenset(_makers(graph, root.outputs[0]))
    return WeightNorm(
        v.param, g.param, groups, of_g.reshape(graph.params[g.param].shape), norm.eps, frozenset(root.outputs), nodes
    )


def _in_place(at: Array, shape: tuple[int, ...]) -> bool:
    return at.shape == shape and np.array_equal(at.ravel(), np.arange(at.size))


def _narrowed(groups: Array) -> Array:
    """Drop to size 1 the axes along which the groups do not vary."""
    for axis in range(groups.ndim):
        head = groups.take([0], axis=axis)
        groups = head if (groups == head).all() else groups
    return groups


def _makers(graph: Graph, name: str) -> Iterator[str]:
    """Yield the names of the nodes that a value is computed by."""
    node = graph.producer(name)
    if node is not None:
        yield node.name
        for source in node.inputs:
            yield from _makers(graph, source)


def _exclusive(graph: Graph, found: Sequence[WeightNorm]) -> list[WeightNorm]:
    """Return one norm for each direction, where nothing else reads what it is computed from.

    A module that is called twice computes its weight twice: these are one.
    """
    by_v: dict[str, list[WeightNorm]] = {}
    for norm in found:
        by_v.setdefault(norm.v, []).append(norm)
    return [one for same in by_v.values() if (one := _joined(graph, same)) is not None]


def _joined(graph: Graph, same: Sequence[WeightNorm]) -> WeightNorm | None:
    first = same[0]
    if any(other.g != first.g or not np.array_equal(other.groups, first.groups) for other in same):
        return None
    roots = frozenset(name for norm in same for name in norm.roots)
    nodes = frozenset(name for norm in same for name in norm.nodes)
    makers = [node for node in graph.nodes if node.name in nodes]
    inside = {name for node in makers for name in node.outputs if name} - roots
    for name in (first.v, first.g, *inside):
        if name in graph.outputs or any(reader.name not in nodes for reader in graph.consumers(name)):
            return None
    return replace(first, roots=roots, nodes=nodes)


def _factors(graph: Graph, name: str, seen: dict[str, _Factors | None]) -> _Factors | None:
    """Return whose product a value's elements are; None where they are no such product."""
    if name not in seen:
        param, node = graph.params.get(name), graph.producer(name)
        if param is not None:
            at = np.arange(param.array.size).reshape(param.shape)
            seen[name] = None if param.literal else (_Factor(name, 1, at),)
        elif node is not None and node.op in _RULES and _sizes(graph, name) is not None:
            seen[name] = _RULES[node.op](graph, node, seen)
        else:
            seen[name] = None
    return seen[name]


def _sizes(graph: Graph, name: str) -> tuple[int, ...] | None:
    shape = graph.shape(name)
    return None if shape is None or not all(isinstance(s, int) for s in shape) else tuple(int(s or 0) for s in shape)


def _product(graph: Graph, node: Node, seen: dict[str, _Factors | None]) -> _Factors | None:
    operands = [_factors(graph, name, seen) for name in node.inputs]
    if operands[0] is None or operands[1] is None or node.attrs.get("alpha", 1) != 1:
        return None
    second = operands[1]
    if node.op == "div":
        if any(factor.power == 2 for factor in second):
            return None
        second = tuple(replace(factor, power=-factor.power) for factor in second)
    return (*operands[0], *second)


def _same(graph: Graph, node: Node, seen: dict[str, _Factors | None]) -> _Factors | None:
    return _factors(graph, node.inputs[0], seen)


def _moved(graph: Graph, node: Node, seen: dict[str, _Factors | None]) -> _Factors | None:
    factors, before, after = _same(graph, node, seen), _sizes(graph, node.inputs[0]), _sizes(graph, node.outputs[0])
    if factors is None or before is None or after is None:
        return None

    def move(at: Array) -> Array:
        whole = np.broadcast_to(at, before)
        return whole.transpose(node.attrs["perm"]) if node.op == "transpose" else whole.reshape(after)

    return tuple(replace(factor, at=move(factor.at)) for factor in factors)


def _norm(graph: Graph, node: Node, seen: dict[str, _Factors | None]) -> _Factors | None:
    """Follow ‖v‖, or the sum of v², over some axes of a parameter that was moved."""
    factors, before, after = _same(graph, node, seen), _sizes(graph, node.inputs[0]), _sizes(graph, node.outputs[0])
    if not factors or before is None or after is None:
        return None
    first = factors[0]
    squares = len(factors) == 2 and all(np.array_equal(first.at, factor.at) for factor in factors)
    if len(factors) != (2 if node.attrs["kind"] == "sum" else 1) or len({factor.param for factor in factors}) > 1:
        return None
    if any(factor.groups is not None or factor.power != 1 for factor in factors) or (len(factors) == 2 and not squares):
        return None
    numbers = np.arange(math.prod(after))
    kept = tuple(1 if axis in node.attrs["axes"] else size for axis, size in enumerate(before))
    groups = np.full(graph.params[first.param].shape, -1, dtype=np.int64)
    groups.reshape(-1)[np.broadcast_to(first.at, before)] = numbers.reshape(kept)
    if (groups < 0).any() or first.at.size != groups.size:
        return None
    return (_Factor(first.param, 1 if len(factors) == 1 else 2, numbers.reshape(after), groups),)


def _square(graph: Graph, node: Node, seen: dict[str, _Factors | None]) -> _Factors | None:
    exponent = graph.params.get(node.inputs[1]) if node.op == "pow" else None
    if node.op == "pow" and (exponent is None or exponent.array.size != 1 or exponent.array.item() != 2):
        return None
    factors = _same(graph, node, seen)
    return factors * 2 if factors is not None and len(factors) == 1 else None


def _root(graph: Graph, node: Node, seen: dict[str, _Factors | None]) -> _Factors | None:
    factors = _same(graph, node, seen)
    if factors is None or len(factors) != 1 or factors[0].power != 2:
        return None
    return (replace(factors[0], power=1 if node.op == "sqrt" else -1),)


def _at_least(graph: Graph, node: Node, seen: dict[str, _Factors | None]) -> _Factors | None:
    """Follow a lower bound of a norm (torch.nn.functional.normalize)."""
    factors, low = _same(graph, node, seen), node.attrs.get("min")
    if factors is None or low is None or low < 0 or node.attrs.get("max") is not None or len(node.inputs) > 1:
        return None
    if len(factors) != 1 or factors[0].groups is None or factors[0].power != 1 or factors[0].eps:
        return None
    return (replace(factors[0], eps=float(low)),)


def _spread(graph: Graph, node: Node, seen: dict[str, _Factors | None]) -> _Factors | None:
    return _factors(graph, node.inputs[0], seen)  # arrays of element numbers broadcast as the elements do


_RULES: Mapping[str, Callable[[Graph, Node, dict[str, _Factors | None]], _Factors | None]] = MappingProxyType(
    {
        "mul": _product,
        "div": _product,
        "identity": _same,
        "cast": _same,
        "expand": _spread,
        "reshape": _moved,
        "transpose": _moved,
        "reduce": _norm,
        "square": _square,
        "pow": _square,
        "sqrt": _root,
        "rsqrt": _root,
        "clip": _at_least,
    }
)
