"""Read a model into the form that the passes work on: a frontend, then the rewrites that free channels.

Owns the combination only. Everything that analyses or prunes a module comes through here, so that
graphs, classes and plans agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from prunec.passes.permutations import fuse_permutations

if TYPE_CHECKING:
    from torch import nn

    from prunec.frontends.fx import Traced


def read_module(module: nn.Module, example_inputs: Sequence[Any], name: str = "") -> Traced:
    """Trace a module (see ``prunec.frontends.fx.trace``) and rewrite its channel shuffles."""
    from prunec.frontends.fx import trace

    traced = trace(module, example_inputs, name)
    return replace(traced, graph=fuse_permutations(traced.graph))
