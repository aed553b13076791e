"""Graph -> ChannelClasses: which channels must be kept or removed together.

Owns the forward sweep and the user's keep list; what each op does with ids is in rules/channels/table.py,
how ids are tied and solved in prunec/ir/labels.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from prunec.errors import BadInput, InternalError
from prunec.ir.arrays import Ids
from prunec.ir.graph import Graph, Node
from prunec.ir.labels import Balance, ChannelClasses, Label, Member, Ties, spread, varying
from prunec.passes.rules.channels.label_tools import Rule
from prunec.passes.rules.channels.refusals import unranked
from prunec.passes.rules.channels.table import CHANNEL_RULES, RANKLESS

GRAPH_OUTPUT = "is an output of the network"


def channels(
    graph: Graph,
    keep: Sequence[str] = (),
    frozen: Mapping[str, str] | None = None,
    rules: Mapping[str, Rule] = CHANNEL_RULES,
) -> ChannelClasses:
    """Partition the channels of ``graph`` into classes that must be kept or removed together.

    Args:
        graph: values whose rank or sizes are unknown only cost prunable channels.
        keep: shell patterns over parameter and node names; what they touch is pinned.
        frozen: names of the user's nodes that a backend cannot rewrite -> reason; what they touch is pinned.
        rules: the table to interpret the graph with.

    Ensures:
        Each id is in exactly one class; classes that reach a graph output are pinned.

    Raises:
        BadInput: a keep pattern that matches nothing.

    Linear in the number of nodes and ids. Compare DepGraph, arXiv:2301.12900, which groups layers
    rather than channels.
    """
    ties = Ties()
    labels: dict[str, Label] = {"": Label(None)}
    members: list[Member] = []
    for name, param in graph.params.items():
        labels[name] = _label_param(name, param.shape, ties, members) if not param.literal else Label(param.shape)
    for name in graph.inputs:
        labels[name] = Label(graph.values[name].shape)
    for node in graph.nodes:
        _interpret(graph, node, rules, labels, ties)
        if frozen and node.origin in frozen:
            touched = [labels[name] for name in (*node.inputs, *node.outputs)]
            ties.pin([field for label in touched for field in label.fields], frozen[node.origin])
    _share_slots(graph, ties)
    ties.node = None
    for name in graph.outputs:
        ties.pin(list(labels[name].fields), GRAPH_OUTPUT, where=name)
    _pin_kept(graph, keep, labels, members, ties)
    del labels[""]
    return ties.solve(labels, members)


def _label_param(name: str, shape: tuple[int, ...], ties: Ties, members: list[Member]) -> Label:
    fields = []
    for axis, size in enumerate(shape):
        if size > 1:
            ids = ties.fresh(size)
            members.append(Member(name, axis, ids))
            fields.append(spread(ids, axis, len(shape)))
    return Label(shape, tuple(fields))


def _interpret(graph: Graph, node: Node, rules: Mapping[str, Rule], labels: dict[str, Label], ties: Ties) -> None:
    ties.node = node
    shapes = [graph.values[name].shape if name else None for name in node.outputs]
    read = [labels[name] for name in node.inputs]
    met = [*(labels[name].shape for name in node.inputs if name), *(graph.values[n].shape for n in node.outputs if n)]
    rule = unranked if None in met and node.op not in RANKLESS else rules[node.op]
    try:
        results = rule(node, read, shapes, ties)
    except (ValueError, IndexError, AssertionError, KeyError, TypeError) as error:
        # A rule that met a graph it was not written for: our fault, and the user should see where.
        raise InternalError(
            "channels", f"the rule for {node.op} failed at {node.origin}: {error!r}", graph.text(node)
        ) from error
    asked = {id(field) for name in node.inputs for field in labels[name].fields}
    for name, label in zip(node.outputs, results, strict=False):
        if name:
            labels[name] = _of_known_rank(label, ties)
            for field in labels[name].fields:
                if id(field) not in asked and len(varying(field)) > 1:
                    ties.rectangle(field)  # a split, or stretches of splits that were joined


def _share_slots(graph: Graph, ties: Ties) -> None:
    """Let grouped convolutions of one weight lose the same slots of its groups; whoever else reads it loses none."""
    first_of: dict[str, Balance] = {}
    for balance in ties.balances:
        ties.node = balance.node
        weight = balance.node.inputs[1]
        if weight in graph.params and not graph.is_own_weight(balance.node):
            ties.pin(balance.slots, f"its weight {weight} is read in another way, too")
        first = first_of.setdefault(graph.stored(weight) or balance.node.name, balance)
        if first.slots.shape == balance.slots.shape:
            ties.unify(first.slots, balance.slots)
        else:
            ties.pin([first.slots, balance.slots], f"its weight {weight} is read in other groups, too")


def _of_known_rank(label: Label, ties: Ties) -> Label:
    """Pin the channels of a value whose rank is not what its ids have: who reads it cannot tell where they lie."""
    if label.shape is None and label.fields:
        ties.pin(list(label.fields), "has no known rank")
        return Label(None)
    if label.shape is not None and any(field.ndim != label.rank for field in label.fields):
        ties.pin(list(label.fields), "its result has another rank than the file declares")
        return Label(label.shape)
    return label


def _pin_kept(
    graph: Graph, keep: Sequence[str], labels: Mapping[str, Label], members: Sequence[Member], ties: Ties
) -> None:
    """Pin what the user's patterns name: a parameter's first axis, or a node's outputs."""
    for pattern in keep:
        found: list[Ids] = []
        matched = False
        for member in members:
            if fnmatchcase(member.param, pattern):
                matched = True
                if member.axis == 0:
                    found.append(member.ids)
        for node in graph.nodes:
            if fnmatchcase(node.origin, pattern) or fnmatchcase(node.name, pattern):
                matched = True
                found.extend(field for name in node.outputs if name for field in labels[name].fields)
        if not matched:
            raise BadInput(
                f"the keep pattern {pattern!r} matches no parameter and no node",
                do="use names as `prunec analyze` prints them; * and ? are allowed",
            )
        ties.pin(found, "is kept by request (--keep)", where=pattern)
