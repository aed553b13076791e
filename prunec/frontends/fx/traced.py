"""What reading a module gives: its Graph, the traced GraphModule, and the way back from one to the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from prunec.ir.graph import Graph


@dataclass(frozen=True, slots=True)
class Ref:
    """Stands for a tensor in ``Traced.results``: the IR value or parameter of that name."""

    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Traced:
    """A module as IR, with the way back.

    Args:
        graph: the IR.
        module: the traced GraphModule; it shares parameters with the user's module.
        results: FX node name -> its result, tensors replaced by ``Ref``; numbers as they were.
        example_inputs: what it was traced with.
        exported: True where torch.fx could not trace it and torch.export did.
        parameters: parameter and buffer names -> the tensors themselves.
        unused: FX nodes that compute something no output depends on.
        unsaved: buffers of the user's module that its state_dict leaves out.
        notes: what a person should know of how it was read.
    """

    graph: Graph
    module: fx.GraphModule
    results: Mapping[str, Any]
    example_inputs: tuple[Any, ...]
    exported: bool
    parameters: Mapping[str, Tensor]
    unused: frozenset[str]
    unsaved: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
