"""The networks of the table, each pruned once: tests read the result and leave it as it is."""

from __future__ import annotations

import functools

from torch import nn

from modules.networks import NETWORKS, make
from prunec.api import Pruned, prune_module

NOTHING_TO_REMOVE = {"convnext", "attention", "shared_module", "in_place"}
"""Networks of the table in which no channel can go, each for a reason of its own."""


@functools.cache
def prune(name: str) -> tuple[nn.Module, Pruned]:
    """Prune a network of the table once; tests read the result and leave it as it is."""
    net = make(name)
    return net, prune_module(net, NETWORKS[name].inputs(), validate=False)
