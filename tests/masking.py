"""The original network with removed channels set to zero wherever a contraction reads them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from assertions import outputs_of, relative_error
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from prunec.backends.fx.backend import apply_edits
from prunec.frontends.fx.traced import Traced
from prunec.ir.arrays import Mask
from prunec.passes.lowering.lower import lower
from prunec.passes.reads import Read
from prunec.passes.selection.select import Facts, plan, select
from prunec.pipeline.reading import input_specs


class Masked(fx.Interpreter):
    """Runs a traced network with masks.

    Channels that are constant at a read which absorbs them are left as they are: the plan folds them.
    """

    def __init__(self, traced: Traced, facts: Facts, keep: Mask) -> None:
        super().__init__(traced.module)
        self.masks: dict[str, list[tuple[int, Mask]]] = {}
        for read in facts.reads:
            if read.node.attrs.get("inserted"):
                continue  # what a rewrite put in is no node of the network
            self.masks.setdefault(read.node.origin, []).append((read.index, _gone(read, facts, keep)))

    def run_node(self, n: fx.Node) -> Any:
        if n.name not in self.masks:
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        operands = list(args)
        for index, gone in self.masks[n.name]:
            operands[index] = masked(operands[index], gone)
        return getattr(self, n.op)(n.target, tuple(operands), kwargs)


def _gone(read: Read, facts: Facts, keep: Mask) -> Mask:
    folded = ~np.isnan(read.constant) & read.absorbs
    gone: Mask = ~keep[facts.classes.class_of[read.ids]] & ~folded
    return gone


def masked(x: Tensor, gone: Mask) -> Tensor:
    """Return ``x`` with zeros where ``gone`` (which broadcasts against it) says so."""
    return x.masked_fill(torch.from_numpy(gone.copy()), 0.0)


def some_classes(facts: Facts, seed: int) -> Mask:
    """Remove a third of the classes, but none that a mask on the original network cannot stand for.

    These are the classes that are constant at one reader and vary at another (the plan folds a constant into a bias)
    and those that a rewrite's own layer reads: the original network has no such layer to mask.
    """
    wish = np.random.default_rng(seed).random(facts.classes.num_classes) > 0.35
    for read in facts.reads:
        if read.node.attrs.get("inserted"):
            wish[facts.classes.class_of[read.ids]] = True
        wish[facts.classes.class_of[read.ids[~np.isnan(read.constant) & ~read.fine]]] = True
        owners = facts.classes.class_of[read.ids]
        varies = np.isnan(read.constant)
        for other in facts.reads:
            constant = facts.classes.class_of[other.ids[~np.isnan(other.constant)]]
            wish[np.intersect1d(owners[varies], constant)] = True
    return wish


def error_of_a_plan(traced: Traced, facts: Facts, batch: Tensor, seed: int) -> tuple[float, int]:
    """Return how far the network of a random plan is from the masked one, relative, and how many classes left it.

    Raises:
        CannotRewrite: a call of the network cannot follow; it would be pinned and planned anew.
    """
    selection = select(facts, some_classes(facts, seed))
    made = plan(facts, selection, input_specs(traced.graph, (batch,)))
    pruned = apply_edits(traced, lower(traced.graph, facts.classes, made, facts.constants))
    with torch.no_grad():
        found = Masked(traced, facts, selection.keep).run(batch.clone())
    expected = [leaf for leaf in pytree.tree_leaves(found) if isinstance(leaf, Tensor)]
    return relative_error(expected, outputs_of(pruned, batch)), int((~selection.keep).sum())
