"""What the passes found, turned into reports: counts, groups, pins, blocked channels, layers.

Owns the counting for people; the data types are in prunec/report/findings.py, and
prunec/report/survivors.py says why channels stay. A channel here is an output channel of a contraction: a residual
stream that four convolutions write to counts four times.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from prunec.ir.arrays import Ints
from prunec.ir.contractions import is_affine
from prunec.ir.graph import Graph, Node
from prunec.ir.labels import ChannelClasses, distinct
from prunec.ir.plan import PrunePlan
from prunec.passes.cost import Cost as PassCost
from prunec.passes.cost import as_it_came, class_cost, cost
from prunec.passes.groups import group_classes
from prunec.passes.reads import states
from prunec.passes.selection.select import Facts, Selection, recount
from prunec.report.findings import (
    Analysis,
    Blocked,
    ChannelCounts,
    Cost,
    Expanded,
    GateFolded,
    Group,
    GroupMember,
    LayerChange,
    LayerSummary,
    PruneReport,
    Removable,
)
from prunec.report.remnants import remnants
from prunec.report.survivors import blocked, layer_channels, pin_reports


def analysis(facts: Facts, selection: Selection, name: str) -> Analysis:
    """Report a network; ``selection`` is that of exact removal."""
    whole, left = cost(facts.graph), recount(facts, selection)
    layers = tuple(_layers(facts))
    constant, dead = states(facts.classes, facts.reads)
    owners = _all_channels(facts)
    pinned = int(facts.classes.pinned[owners].sum())
    return Analysis(
        model=name,
        frontend=facts.graph.frontend,
        nodes=len(facts.graph.nodes),
        params=whole.params,
        macs=whole.macs,
        activations=whole.activations,
        channels=ChannelCounts(
            total=owners.size,
            prunable=owners.size - pinned,
            pinned=pinned,
            constant=int(constant[owners].sum()),
            dead=int(dead[owners].sum()),
        ),
        removable=Removable(
            channels=int(selection.removed[owners].sum()),
            params=whole.params - left.params,
            macs=whole.macs - left.macs,
            multiples=int(selection.multiples(facts)[owners].sum()),
        ),
        groups=tuple(_groups(facts)),
        pins=pin_reports(facts),
        blocked=blocked(facts, selection),
        layers=layers,
        notes=(*_open_sizes(facts.graph), *remnants(facts.graph), *_constant_outputs(facts)),
    )


def prune_report(facts: Facts, selection: Selection, plan: PrunePlan, name: str) -> PruneReport:
    """Report one pruning; costs are counted again on the pruned network."""
    before, after = cost(as_it_came(facts.graph)), recount(facts, selection, folded=plan.folds)
    owners = _all_channels(facts)
    layers = tuple(_changes(facts, selection))
    removed = sum(layer.before - layer.after for layer in layers)
    held = blocked(facts, selection)
    return PruneReport(
        model=name,
        before=_cost(before, owners.size),
        after=_cost(after, sum(layer.after for layer in layers)),
        removed_channels=removed,
        multiples=int(selection.multiples(facts)[owners].sum()),
        layers=layers,
        carriers=int(selection.carriers.sum()),
        blocked=held,
        pins=pin_reports(facts),
        exact=plan.exact,
        reason=plan.reason,
        message="" if removed else _why_nothing(facts, held),
        expanded=tuple(_expanded(facts, selection, plan)),
        gates=tuple(_gates(facts, selection, plan)),
        notes=(*_open_sizes(facts.graph), *remnants(facts.graph), *_constant_outputs(facts)),
        branches=tuple(_without_branch(facts, selection)),
    )


def _without_branch(facts: Facts, selection: Selection) -> Iterator[str]:
    """Yield the sums of which one operand was replaced by its mean."""
    for node in facts.graph.nodes:
        cut = [name for at, name in enumerate(node.inputs) if (node.name, at) in selection.wanted.cuts]
        if not facts.constants.replaced.isdisjoint(cut):
            yield node.origin


def _open_sizes(graph: Graph) -> Iterator[str]:
    """Yield a note for each input with open sizes besides the batch, since MACs at a size of 1 mean little."""
    for name in graph.inputs:
        shape = graph.values[name].shape or ()
        if not all(isinstance(size, int) for size in shape[1:]):
            sizes = "x".join(str(size) if isinstance(size, int) else "?" for size in shape)
            yield f"open sizes count as 1 in MACs and activations: give --input-shape for input {name} ({sizes})"


def _constant_outputs(facts: Facts) -> Iterator[str]:
    """Yield a note for each output that is computed from inputs and yet the same for all: a layer before it is dead."""
    graph, reached = facts.graph, set(facts.graph.inputs)
    for node in graph.nodes:
        if not reached.isdisjoint(node.inputs):
            reached.update(node.outputs)
    for name in graph.outputs:
        known = facts.constants.by_rule(name)
        if name in reached and known is not None and not np.isnan(known).any():
            yield (
                f"output {name} does not depend on the input: all that it is computed from is constant. "
                "If the network was trained with a penalty, it was too strong"
            )


def _gates(facts: Facts, selection: Selection, plan: PrunePlan) -> Iterator[GateFolded]:
    """Yield the products of which constants were folded past the gate."""
    nodes = {node.name: node for node in facts.graph.nodes}
    for item in plan.gate_folds:
        node = nodes[item.product]
        if node.name in selection.wanted.nodes:
            yield GateFolded(node.origin, node.source or node.op, len(item.positions))


def _expanded(facts: Facts, selection: Selection, plan: PrunePlan) -> Iterator[Expanded]:
    """Yield the operands that the pruned network expands."""
    nodes = {node.name: node for node in facts.graph.nodes}
    for item in plan.expansions:
        node = nodes[item.node]
        made = facts.graph.producer(node.inputs[item.index])
        if made is None or made.name not in selection.wanted.nodes:
            continue  # scores took so much that the whole operand is constant
        while made is not None and made.attrs.get("inserted"):
            source = made.inputs[0]
            made = facts.graph.producer(source)
        (field,) = facts.classes.labels[source].on(item.axis)
        kept = selection.keep[facts.classes.class_of[field.ravel()]]
        gone = int((~kept[list(item.positions)]).sum())
        yield Expanded(node.origin, node.source or node.op, gone, int(kept.sum()))


def _cost(count: PassCost, channels: int) -> Cost:
    return Cost(count.params, count.macs, count.activations, channels)


def _why_nothing(facts: Facts, held: tuple[Blocked, ...]) -> str:
    if held:
        worst = max(held, key=lambda item: item.channels)
        total = sum(item.channels for item in held)
        what = f" ({worst.op})" if worst.op else ""  # what holds them is no node: borders of several, an output
        return (
            f"nothing was removed: {total} channels are constant or dead, but must stay; "
            f"most at {worst.node}{what}: {worst.reason}"
        )
    owners = _all_channels(facts)
    if owners.size and facts.classes.pinned[owners].all():
        return "nothing was removed: every channel is pinned; see the pins for the nodes and reasons"
    if not owners.size:
        return "nothing was removed: the network has no convolution or linear layer with channels"
    return (
        "nothing was removed: no channel is provably constant or dead. "
        "Train towards sparsity (prunec train-prune or prunec.sparsify; if you did, raise rho or train longer), "
        "or give a criterion and a budget (this changes the function)"
    )


# --- channels and groups ------------------------------------------------------------------------------


def _all_channels(facts: Facts) -> Ints:
    return np.concatenate([owners for _, owners in layer_channels(facts)] or [np.zeros(0, dtype=np.int64)])


def _readers(facts: Facts) -> Mapping[str, Node]:
    """Return parameter name -> the first node that reads it, through computations on parameters."""
    found: dict[str, Node] = {}
    for node in reversed(facts.graph.nodes):
        for name in node.inputs:
            if name in facts.graph.params:
                reader = node
                while not is_affine(reader) and reader.op != "batch_norm":
                    following = facts.graph.consumers(reader.outputs[0]) if reader.outputs else ()
                    if len(following) != 1 or not all(n in facts.graph.params for n in reader.inputs if n):
                        break
                    reader = following[0]
                found[name] = reader
    return found


def _groups(facts: Facts) -> Iterator[Group]:
    costs = class_cost(facts.graph, facts.classes)
    readers = _readers(facts)
    members, group_of = facts.classes.members, _group_of(facts.classes)
    # How often each group lies on each parameter axis: pairs of group and member, each once, sorted.
    owners = facts.classes.class_of[np.concatenate([_NO_IDS, *(member.ids.ravel() for member in members)])]
    numbers = np.repeat(np.arange(len(members)), [member.ids.size for member in members])
    pairs, times = np.unique(group_of[owners] * len(members) + numbers, return_counts=True)
    lies_on: dict[int, list[tuple[int, int]]] = {}
    for pair, count in zip(pairs.tolist(), times.tolist(), strict=True):
        lies_on.setdefault(pair // len(members), []).append((pair % len(members), count))
    for number, group in enumerate(group_classes(facts.classes)):
        channels = np.asarray(group)
        listed = []
        for member_number, count in lies_on[number]:
            member = members[member_number]
            reader = readers.get(member.param)
            listed.append(
                GroupMember(
                    member.param, member.axis, count, reader.origin if reader else "", reader.op if reader else ""
                )
            )
        yield Group(
            id=number,
            channels=channels.size,
            prunable=not bool(facts.classes.pinned[channels].any()),
            params_per_channel=float(costs.params[channels].mean()),
            macs_per_channel=float(costs.macs[channels].mean()),
            members=tuple(listed),
        )


def _group_of(classes: ChannelClasses) -> Ints:
    """Return the number of each class' group, int64[num_classes]; -1 for classes in none."""
    found = np.full(classes.num_classes, -1, dtype=np.int64)
    for number, group in enumerate(group_classes(classes)):
        found[np.asarray(group)] = number
    return found


_NO_IDS: Ints = np.zeros(0, dtype=np.int64)


# --- layers -------------------------------------------------------------------------------------------


def _layers(facts: Facts) -> Iterator[LayerSummary]:
    constant, dead = states(facts.classes, facts.reads)
    macs_of = cost(facts.graph).macs_of
    group_of = _group_of(facts.classes)
    notes = _notes(facts)
    origins = _sources(facts)
    for node, owners in layer_channels(facts):
        pinned = facts.classes.pinned[owners]
        first = next((notes[c] for c in owners[pinned].tolist() if c in notes), "")
        yield LayerSummary(
            node=node.origin,
            op=node.op,
            channels=owners.size,
            prunable=int((~pinned).sum()),
            pinned=int(pinned.sum()),
            constant=int(constant[owners].sum()),
            dead=int(dead[owners].sum()),
            params=sum(facts.graph.params[name].array.size for name in node.inputs[1:] if name in facts.graph.params),
            macs=macs_of.get(node.name, 0),
            groups=tuple(number for number in distinct(group_of[owners]).tolist() if number >= 0),
            inputs=origins[node.name],
            note=first,
        )


def _notes(facts: Facts) -> dict[int, str]:
    notes: dict[int, str] = {0: "a single channel: there is nothing to choose from"}
    for pin in facts.classes.pins:
        for channel in distinct(facts.classes.class_of[pin.ids]).tolist():
            notes.setdefault(channel, f"{pin.where}: {pin.reason}" if pin.where else pin.reason)
    return notes


def _sources(facts: Facts) -> dict[str, tuple[str, ...]]:
    """Return contraction -> the contractions whose outputs reach it without passing another one."""
    reach: dict[str, tuple[str, ...]] = {}
    result: dict[str, tuple[str, ...]] = {}
    contractions = {node.name for node, _ in layer_channels(facts)}
    for node in facts.graph.nodes:
        arriving = tuple(dict.fromkeys(origin for name in node.inputs for origin in reach.get(name, ())))
        if node.name in contractions:
            result[node.name] = arriving
            arriving = (node.origin,)
        for name in node.outputs:
            reach[name] = arriving
    return result


def _changes(facts: Facts, selection: Selection) -> Iterator[LayerChange]:
    for node, owners in layer_channels(facts):
        runs = node.name in selection.wanted.nodes
        yield LayerChange(node.origin, node.op, owners.size, int(selection.keep[owners].sum()) if runs else 0)
