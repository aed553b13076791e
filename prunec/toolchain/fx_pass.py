"""A pass for torch.fx's PassManager: a GraphModule in, a smaller GraphModule out.

Owns the form that torch.fx.passes asks for, and the shapes in ``node.meta``: names, ``nn_module_stack`` and entries of
other passes stay, while ``val`` and ``tensor_meta`` are computed again, since sizes changed.

    pipeline = PassManager(passes=[PruneChannels((images,)), other_pass])
    smaller = pipeline(torch.fx.symbolic_trace(network)).graph_module
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.passes.fake_tensor_prop import FakeTensorProp
from torch.fx.passes.infra.pass_base import PassBase, PassResult
from torch.fx.passes.shape_prop import ShapeProp

from prunec import api
from prunec.frontends.fx.running.arguments import positional
from prunec.ir.plan import PrunePlan
from prunec.report.findings import PruneReport

_SHAPES = {"val", "tensor_meta"}


class PruneChannels(PassBase):
    """Remove channels from a GraphModule.

    Args:
        example_inputs: positional inputs of the network, or its only one, for the sizes and the check.
        options: as for ``prunec.prune_module``; without any, only provably constant or dead channels are removed, and
            the function stays.

    After a call ``plan`` and ``report`` say what was done.
    """

    def __init__(self, example_inputs: Tensor | Sequence[Any], **options: Any) -> None:
        super().__init__()
        self.example_inputs = positional(example_inputs)
        self.options = options
        self.plan: PrunePlan | None = None
        self.report: PruneReport | None = None

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Return the pruned GraphModule, or the given one if nothing could be removed."""
        found = api.prune_module(graph_module, self.example_inputs, **self.options)
        self.plan, self.report = found.plan, found.report
        if not found.report.removed_channels:
            return PassResult(graph_module, False)
        _note_shapes(found.module, self.example_inputs)
        return PassResult(found.module, True)


def _note_shapes(module: fx.GraphModule, inputs: tuple[Any, ...]) -> None:
    """Update the shapes in ``node.meta`` of nodes that have them."""
    noted = set().union(*(node.meta.keys() & _SHAPES for node in module.graph.nodes))
    for node in module.graph.nodes:
        for key in _SHAPES:
            node.meta.pop(key, None)
    if not noted:
        return
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        fakes = [mode.from_tensor(value) if hasattr(value, "shape") else value for value in inputs]
    if "tensor_meta" in noted:
        ShapeProp(module, fake_mode=mode).propagate(*fakes)
    if "val" in noted:
        FakeTensorProp(module, mode=mode).propagate_dont_convert_inputs(*fakes)
    else:
        for node in module.graph.nodes:
            node.meta.pop("val", None)
