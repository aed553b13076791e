"""Reconstruction: data alone -> which channels go, and the weights of the rest.

Owns the steps for either frontend: Grams of the original, the order, the places to fit and their fits. Gets an object
that runs a network in stages. The arithmetic is in passes/fitting/elimination.py, passes/fitting/combinations.py
and prunec/fitting/refit.py.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np

from prunec.fitting.fit_data import FitData
from prunec.fitting.grams import Gram, View, columns_for, spread_places
from prunec.fitting.reactions import distance, errors_of_branches, num_measured, weights_of_errors
from prunec.fitting.refit import ROUGH, Fitting, Place, not_finite, refits
from prunec.fitting.stages import Stages, parts
from prunec.ir.arrays import Array, Floats
from prunec.ir.contractions import bias_of, channel_axis, kernel_of
from prunec.ir.edits import Edits
from prunec.ir.plan import Fold, PrunePlan, Refit
from prunec.passes.fitting.branches import Branch, branches, cheapest_first, prefixes
from prunec.passes.fitting.combinations import Removals, macs_of, params_of, removals
from prunec.passes.fitting.elimination import Matrix, damped
from prunec.passes.fitting.operands import Operand, as_matrix, operands, pooled, weight_shape, within
from prunec.passes.fitting.streams import stream
from prunec.passes.selection.carriers import bias_target
from prunec.passes.selection.criteria import score
from prunec.passes.selection.needs import Needs
from prunec.passes.selection.select import Facts
from prunec.runtime.probes import Feed

ORDER_RIDGE = 1e-4
"""The ridge of the order, relative to the mean of H's diagonal."""

_SLACK = 0.2
"""How far the order continues below the budget, as a fraction of the whole: legality gives channels back, and where
widths change in blocks a block goes at the mean of its channels' places, those that go last included."""

Order = tuple[float, float] | Literal["l1"]
"""How channels are ordered: by their errors, weighed by these powers of the measured effect of an error at each layer,
and of one over the energy of the layer's output; or by l1."""

ORDERS: tuple[Order, ...] = ((1.0, 0.0), (0.5, 0.0), (0.25, 0.0), (0.5, 0.5), (0.0, 1.0), "l1")
"""The orders that are tried. An effect is measured with one layer pruned at a time, and need not hold when all are; the
smaller its power, the more evenly layers share the loss, in their own units or relative to what they put out. l1 knows
nothing of the data, so they can't mislead it."""

_TRIED_ON, _JUDGED_ON, _WORK = 96, 192, 20e9
"""Samples that a trial is fitted to, and others that judge it; and the work of one order (cubed widths, in all layers)
up to which there are trials."""

_PARTS_BY_BRANCHES = (1 / 6, 1 / 3, 1 / 2, 2 / 3, 5 / 6, 1.0)
"""The parts of what is to be saved that whole branches are tried for."""

_LEAST_JUDGED = 1 / 4
"""The part of few samples that judges."""
_JUDGES_OF_CLASSES = 100
"""The samples from which probabilities of classes are judged: how they diverge hangs on the few that are uncertain.
From so many on small differences count, too."""

_NO_EDITS = Edits({}, {}, {}, {}, {}, {}, frozenset(), {}, {})


Tensors = Callable[[Place, Array, Array | None], Mapping[str, Array]]
"""A fit's weight and constant -> the tensors that it changes, by name."""


class Opened(Protocol):
    """A network that can be run in stages: the original or the pruned one."""

    def sees(self, value: str) -> bool:
        """Tell whether a value of the original can be read."""

    def over(self, feeds: Sequence[Feed]) -> Opened:
        """Return the same network with other data."""

    def original(self) -> Stages: ...

    def changeable(self) -> tuple[Stages, Tensors]:
        """Return the original network, and a function that names the tensors a fit changes."""

    def pruned(self, result: Any) -> tuple[Stages, Tensors]:
        """Return the pruned network, and a function that names the tensors a fit changes."""


@dataclass(slots=True, eq=False)
class Reconstruction:
    """Data and a network; Grams are summed up once and serve any budget.

    Args:
        opened: the network.
        data: the samples to fit on.
        memory: bytes.
        least: the order goes on until this fraction of the whole is left, or a smaller one that is asked for, so that
            several budgets can share it.
        orders: how many are tried at most.
        order: of channels; see ``ORDERS``.
    """

    opened: Opened
    data: FitData
    memory: int
    progress: Callable[[str], None] = lambda _: None
    least: float = 1.0
    orders: int = len(ORDERS)
    order: Order = ORDERS[0]
    _grams: dict[str, Gram] | None = None
    _orders: dict[tuple[Order, bool, tuple[str, ...], bytes, bytes], tuple[float, Removals]] = field(
        default_factory=dict
    )
    _weights: Mapping[str, tuple[float, float]] | None = None
    _branches: Sequence[tuple[Branch, float, Array]] | None = None

    def alternatives(self) -> tuple[Reconstruction, ...]:
        """Return the same data and sums with other orders of channels."""
        work = sum(len(gram.total) * gram.total.shape[1] ** 3 for gram in (self._grams or {}).values())
        orders = ORDERS[: self.orders] if work <= _WORK else ()
        return tuple(replace(self, order=order) for order in orders if order != self.order)

    def without_branches(
        self, facts: Facts, to_save: float, *, of_params: bool, frozen: Collection[str] = ()
    ) -> tuple[Mapping[str, Array], ...]:
        """Return what some pruned networks put in the place of whole branches: value name -> its mean per channel.

        Those go first that cost the outputs least for what they save; each of the networks goes without more of them.

        Args:
            to_save: of the network's MACs or parameters.
            frozen: nodes that a backend cannot change, as the user knows them.
        """
        if not self.alternatives():
            return ()
        if self._branches is None:
            self._branches = self._measured_branches(facts)
        whole = params_of(facts.graph) if of_params else macs_of(facts.graph)
        held = {node.name for node in facts.graph.nodes if node.origin in frozen}
        found = [branch for branch, _, _ in self._branches if not held & {*branch.nodes, branch.node.name}]
        errors = {branch.value: error for branch, error, _ in self._branches}
        means = {branch.value: mean for branch, _, mean in self._branches}
        ranked = cheapest_first(found, errors, whole)
        return tuple(
            {branch.value: means[branch.value] for branch in chosen}
            for chosen in prefixes(ranked, whole, to_save * sum(whole.values()), _PARTS_BY_BRANCHES)
        )

    def _measured_branches(self, facts: Facts) -> Sequence[tuple[Branch, float, Array]]:
        """Return the branches that there are, what the outputs lose without each, and its mean."""
        found = branches(facts.graph, facts.classes, facts.constants)
        if not found:
            return ()
        feeds = parts(self.data.fitted, (num_measured(self.data.first()),), cuts=self.data.cuts)[0]
        stages = self.opened.over(feeds).original()

        def told(done: int, count: int) -> None:
            self.progress(f"looking at branch {done + 1} of {count}")

        outputs = [name for name in facts.graph.outputs if stages.has(name)]
        measured = errors_of_branches(found, stages, outputs, told)
        return [(branch, *measured[branch.value]) for branch in found if branch.value in measured]

    def error(self, facts: Facts, edits: Edits, result: Any) -> float:
        """Return the error of a pruned network's outputs after a rough fit, of their variance; infinite if it is NaN.

        It is that of samples which the rough fit has not seen: a choice can suit a few samples by chance.
        """
        found = self._rough_error(facts, edits, result)
        return found if np.isfinite(found) else np.inf

    def operands(self, facts: Facts) -> tuple[Operand, ...]:
        """Return the reads of channels that could go; pooled if they are too wide or their product is hidden."""
        found = (o if self.opened.sees(o.output) else replace(o, pooled=True) for o in operands(facts))
        return within(tuple(found), self.memory)

    def grams(self, facts: Facts, found: Sequence[Operand]) -> Mapping[str, Gram]:
        """Return the Gram of each node whose weights can make up for lost channels."""
        if self._grams is None:
            self._grams = summed(facts, found, self.opened.original(), self.progress)
        return self._grams

    def scores(self, facts: Facts, *, of_params: bool, least: float) -> Floats:
        """Return float64[num_classes]: the lowest go first; see ``removals``."""
        if self.order == "l1":
            return score(facts, self.order)
        return self.removals(facts, of_params=of_params, least=least).scores(facts.classes)

    def removals(self, facts: Facts, *, of_params: bool, least: float) -> Removals:
        """Return the order in which channels go, for any budget down to ``least`` of the whole; made once."""
        least = min(least, self.least)
        replaced = tuple(sorted(facts.constants.replaced))
        key = (self.order, of_params, replaced, facts.classes.class_of.tobytes(), facts.classes.pinned.tobytes())
        known = self._orders.get(key)
        if known is None or known[0] > least:
            self._orders[key] = known = least, self._removals(facts, of_params=of_params, least=least)
        return known[1]

    def _removals(self, facts: Facts, *, of_params: bool, least: float) -> Removals:
        found = self.operands(facts)
        by_node = self.grams(facts, found)
        self.progress("choosing channels")
        whole = params_of(facts.graph) if of_params else macs_of(facts.graph)
        by_read = [(operand, matrices(facts, operand, by_node.get(operand.node.name))) for operand in found]
        self._weigh(facts, by_read)
        made = [matrix for _, group in by_read for matrix in group]
        return removals(facts, made, can_go(facts, found, by_node), whole, least - _SLACK)

    def _weigh(self, facts: Facts, by_read: Sequence[tuple[Operand, Sequence[Matrix]]]) -> None:
        """Weigh errors at contractions by their effect on the network's outputs, and by the energy of their own."""
        made = {operand.node.name: found for operand, found in by_read if found}
        if self._weights is None:
            feeds = parts(self.data.fitted, (num_measured(self.data.first()),), cuts=self.data.cuts)[0]
            stages, tensors = self.opened.over(feeds).changeable()
            chosen = [place for place in self._places_as_came(facts, by_read) if place.node.name in made]
            chosen = [place for place in chosen if stages.has(place.operand.value)]
            chosen = [place for place in chosen if tensors(place, place.weight, place.vector)]

            def told(done: int, count: int) -> None:
                self.progress(f"weighing errors of layer {done + 1} of {count}")

            outputs = [name for name in facts.graph.outputs if stages.has(name)]
            self._weights = weights_of_errors(chosen, made, self._grams or {}, stages, tensors, outputs, told)
        effect, evenly = (1.0, 0.0) if isinstance(self.order, str) else self.order
        for name, found in made.items():
            weight, relative = self._weights.get(name, (1.0, 1.0))
            for matrix in found:
                matrix.weigh(weight**effect * relative**evenly)

    def _places_as_came(self, facts: Facts, by_read: Sequence[tuple[Operand, Sequence[Matrix]]]) -> tuple[Place, ...]:
        found = [operand for operand, _ in by_read]
        return places(facts, found, _NO_EDITS, self._grams or {})

    def short_of_data(self, facts: Facts) -> tuple[str, ...]:
        """Return a warning if layers see fewer positions than they have inputs, with a sufficient number of samples."""
        found = self.operands(facts)
        by_node = self.grams(facts, found)
        short = [(o, by_node[o.node.name]) for o in found if o.node.name in by_node]
        short = [(o, gram) for o, gram in short if gram.count < o.width]
        if not short:
            return ()
        worst, gram = max(short, key=lambda item: item[0].width / max(1, item[1].count))
        enough = -(-self.data.num_fitted * worst.width // max(1, gram.count))
        share = f"{worst.node.origin}: {gram.count} for {worst.width}"
        warning = (
            f"{len(short)} of the layers fitted see fewer positions than they have inputs ({share}); "
            f"a ridge keeps their weights near what they were. {enough * 4 // 3 + 1} samples do"
        )
        return (warning,)

    def prepared(
        self, facts: Facts, plan: PrunePlan, wanted: Needs, without: frozenset[str], *, new: bool
    ) -> PrunePlan:
        """Return a plan with a bias wherever a fit needs one, and means folded where only these can be fitted.

        Args:
            without: nodes (by origin) that cannot get a bias.
            new: biases may be added; they count as parameters of a budget.
        """
        folded = {fold.node: fold for fold in plan.folds if fold.kind != "carrier"}
        added = []
        for operand in self.operands(facts):
            name = operand.node.name
            if not operand.biased or name not in wanted.nodes or name in folded or operand.node.origin in without:
                continue
            kind, target = bias_target(facts.graph, operand.node)
            if not target and not new:
                continue
            if operand.takes == "weights" and not target:
                added.append(Fold(name, kind, (), (), target))
            elif operand.takes == "bias":
                added += self._means(facts, operand, plan, kind, target)
        return replace(plan, folds=(*plan.folds, *added))

    def _means(self, facts: Facts, operand: Operand, plan: PrunePlan, kind: Any, target: str) -> Iterable[Fold]:
        gram = self.grams(facts, self.operands(facts)).get(operand.node.name)
        if gram is None:
            return
        from prunec.passes.lowering.lower import keep_mask

        means = (gram.total[:, :-1, -1] / max(1, gram.count)).ravel()
        gone = ~keep_mask(facts.graph, facts.classes, plan)[operand.columns.ravel()]
        gone &= ~operand.read.dead.ravel()[:: operand.read.dead.size // gone.size]
        at = np.flatnonzero(gone)
        if at.size and operand.node.op != "matmul":
            yield Fold(operand.node.name, kind, tuple(at.tolist()), tuple(means[at].tolist()), target)

    def fitted(self, facts: Facts, plan: PrunePlan, edits: Edits, result: Any) -> PrunePlan:
        """Return the plan with the weights of every contraction that can be fitted."""

        def told(done: int, count: int) -> None:
            self.progress(f"fitting layer {done + 1} of {count}")

        before, now = self.opened.original(), self.opened.pruned(result)
        made = self._refits(facts, edits, before, now, Fitting(), told)
        self.progress("")
        return replace(plan, refits=made, exact=False)

    def _rough_error(self, facts: Facts, edits: Edits, result: Any) -> float:
        """Return the error of a pruned network's outputs after a rough fit to some samples, of their variance."""
        asked, judges, of_classes = self._parted()
        few, fits = self.opened.over(asked), dict[str, Array]()
        now, tensors = few.pruned(result)

        def noted(place: Place, weight: Array, vector: Array | None) -> Mapping[str, Array]:
            found = tensors(place, weight, vector)
            fits.update(found)
            return found

        self._refits(facts, edits, few.original(), (now, noted), ROUGH)
        before, (after, _) = judges.original(), judges.pruned(result)
        outputs = [name for name in facts.graph.outputs if before.has(name) and after.has(name)]
        return distance(before.rest(outputs, {}), after.rest(outputs, fits), of_classes=of_classes)

    @property
    def surely(self) -> float:
        """The part of a plan's error below which one without branches is taken.

        It is all of it with many judges: such a plan keeps its widths, which run faster. The errors of a few samples
        say less, about one over the root of their number, and narrow layers fitted roughly to a few look bad.
        """
        judged = self._counts()[1]
        return 1.0 if judged >= _JUDGES_OF_CLASSES else 1.0 - max(1, judged) ** -0.5

    def _counts(self) -> tuple[int, int]:
        """Return how many samples a rough fit gets, and how many judge it."""
        judged = min(_JUDGED_ON, int(self.data.num_fitted * _LEAST_JUDGED))
        asked = min(_TRIED_ON, self.data.num_fitted - judged)
        return asked, min(_JUDGED_ON, self.data.num_fitted - asked)

    def _parted(self) -> tuple[Sequence[Feed], Opened, bool]:
        """Return samples for a rough fit, the network on those that judge it, and whether they judge classes.

        They are others, unless there are too few.
        """
        fitted, cuts = self.data.fitted, self.data.cuts
        asked, judged = self._counts()
        few, others = parts(fitted, (asked, judged), cuts=cuts)
        return few, self.opened.over(others or few), judged >= _JUDGES_OF_CLASSES

    def _refits(
        self,
        facts: Facts,
        edits: Edits,
        before: Stages,
        pruned: tuple[Stages, Tensors],
        how: Fitting,
        told: Callable[[int, int], None] = lambda *_: None,
    ) -> tuple[Refit, ...]:
        now, tensors = pruned
        found = [o for o in self.operands(facts) if before.has(o.value) and now.has(o.value)]
        found = [o for o in found if o.pooled or before.has(o.output)]
        by_node = self.grams(facts, found)
        chosen = tuple(
            place for place in places(facts, found, edits, by_node) if tensors(place, place.weight, place.vector)
        )
        fixed = {name: known for name, known in facts.constants.known.items() if not np.isnan(known).any()}
        return refits(facts.graph, chosen, before, now, how, tensors, told, fixed)


def can_go(facts: Facts, found: Sequence[Operand], by_node: Mapping[str, Gram]) -> Any:
    """Return bool[num_classes]: classes that may go and whose readers all have a known cost."""
    free = ~facts.classes.pinned & facts.classes.is_channel
    for operand in found:
        if operand.node.name not in by_node and not operand.is_depthwise:
            free[operand.columns] = False
    return free


def _view(facts: Facts, operand: Operand) -> View:
    kernel = kernel_of(operand.node, weight_shape(facts, operand.node))
    return View(operand.node, kernel, operand.read.axis, operand.groups, pooled=operand.pooled, taps=operand.taps)


def summed(facts: Facts, found: Sequence[Operand], stages: Stages, progress: Callable[[str], None]) -> dict[str, Gram]:
    """Return the Gram of each operand whose weights can make up for lost channels, by node name."""
    result: dict[str, Gram] = {}
    looked = [o for o in found if o.takes != "nothing" and not o.is_depthwise and stages.has(o.value)]
    stages.expect(operand.value for operand in looked)
    for number, operand in enumerate(looked):
        progress(f"looking at layer {number + 1} of {len(looked)}")
        stages.advance([operand.value])
        view, gram = _view(facts, operand), Gram(operand.groups, operand.width, ones=operand.biased)
        samples = sum(stages.value(operand.value, batch).shape[0] for batch in range(stages.num_batches))
        wanted = max(1, -(-columns_for(operand.width) // max(1, samples)))
        for batch in range(stages.num_batches):
            value = stages.value(operand.value, batch)
            gram.add(view.inputs(value, spread_places(view.num_places(value), wanted, batch)))
        stages.drop([operand.value])
        if not np.isfinite(gram.total).all():
            raise not_finite(operand.node)
        result[operand.node.name] = gram
    return result


def matrices(facts: Facts, operand: Operand, gram: Gram | None) -> list[Matrix]:
    """Return an operand's matrices for the order, one per convolution group."""
    if gram is None:
        return []
    weight = _weight(facts, operand)
    scale = np.abs(stream(facts.graph, operand.node, operand.rows.size).scale).reshape(operand.groups, -1)
    rows, taps = operand.rows, operand.taps
    if operand.pooled:
        weight, rows, scale = pooled(weight, taps), np.repeat(rows, taps, axis=1), np.repeat(scale, taps, axis=1)
        taps = 1
    fixed = operand.takes != "weights"
    result = []
    for group, moment in enumerate(gram.covariance()):
        columns = np.repeat(operand.columns[group], taps)
        moment = moment if fixed else damped(moment, ORDER_RIDGE)
        result.append(Matrix(weight[group], moment, columns, rows[group], scale=scale[group], fixed=fixed))
    return result


def _weight(facts: Facts, operand: Operand) -> Floats:
    """Return float64[groups, rows, columns]."""
    known = facts.constants.weights.get(operand.node.name)
    if known is None:
        return as_matrix(operand.node, facts.graph.params[operand.weight].array)
    taps = known.taps
    return taps.reshape(*taps.shape[:2], -1).astype(np.float64)


def places(facts: Facts, found: Sequence[Operand], edits: Edits, by_node: Mapping[str, Gram]) -> tuple[Place, ...]:
    """Return where to fit: every contraction that still runs and whose weights can be changed."""
    return tuple(
        _place(facts, operand, edits, by_node.get(operand.node.name))
        for operand in found
        if operand.takes == "weights"
        and operand.node.name not in edits.removed
        and not operand.is_depthwise
        and not (operand.pooled and operand.groups > 1)
    )


def _place(facts: Facts, operand: Operand, edits: Edits, prior: Gram | None) -> Place:
    node = operand.node
    rank = len(facts.graph.shape(node.outputs[0]) or ())
    outputs = edits.keeps.get(node.outputs[0], {}).get(channel_axis(node, rank))
    kind, target = bias_target(facts.graph, node) if operand.biased else ("none", "")
    vector = _content(facts, edits, target) if target else edits.new_biases.get(node.name)
    if operand.biased and vector is None:
        operand, kind = replace(operand, biased=False), "none"
    own = bias_of(node)
    beside = _content(facts, edits, own) if own and own != target and kind == "bias" else None
    was = facts.graph.params[target].array if target else None
    return Place(
        operand=operand,
        node=replace(node, attrs={**node.attrs, **edits.attrs.get(node.name, {})}),
        weight=_content(facts, edits, operand.weight),
        kind=kind,
        target=target,
        vector=vector,
        beside=beside,
        was=was if was is None or outputs is None else was[outputs],
        prior=prior,
        inputs=edits.keeps.get(operand.value, {}).get(operand.read.axis),
        outputs=outputs,
        original=facts.graph.params[operand.weight].array,
    )


def _content(facts: Facts, edits: Edits, name: str) -> Array:
    """Return a parameter's content in the pruned network."""
    found = edits.params.get(name)
    return facts.graph.params[name].array if found is None else found
