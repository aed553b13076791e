"""Edits: everything that a backend has to do to carry a plan out. Pure data, framework-free.

Owns the data type only. passes/lowering/lower.py makes it from a graph and a plan; backends/ carry it out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prunec.ir.arrays import Array
from prunec.ir.graph import Shape


@dataclass(frozen=True, slots=True, eq=False)
class Edits:
    """Everything that a backend has to do.

    Args:
        params: parameter name -> its new content, in its own dtype. Only those that change.
        new_biases: contraction (node name) without a bias -> the bias to give it, in the weight's dtype.
        attrs: node name -> the canonical attributes that change.
        constant_inputs: (node name, input index) -> tensor to read there from now on.
        dropped_inputs: concat (node name) -> operands that have no channels left.
        replaced: value -> the value that it now equals (an Add of zeros, a Concat of one operand).
        removed: names of nodes that nothing needs any more; not those in ``replaced``.
        shapes: value or parameter -> its new shape, where it changes.
        keeps: value or parameter -> {axis: indices that stay}, where it changes.
    """

    params: Mapping[str, Array]
    new_biases: Mapping[str, Array]
    attrs: Mapping[str, Mapping[str, Any]]
    constant_inputs: Mapping[tuple[str, int], Array]
    dropped_inputs: Mapping[str, tuple[int, ...]]
    replaced: Mapping[str, str]
    removed: frozenset[str]
    shapes: Mapping[str, Shape]
    keeps: Mapping[str, Mapping[int, Array]]


class CannotRewrite(Exception):
    """A node of the user's model whose sizes a backend cannot change: its channels have to stay.

    Args:
        origin: the node's name, as ``Node.origin`` has it.
        reason: shown to the user with the pin.
    """

    def __init__(self, origin: str, reason: str) -> None:
        super().__init__(origin, reason)
        self.origin = origin
        self.reason = reason
