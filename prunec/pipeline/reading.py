"""Read a model into the form that the passes work on: a frontend, then the rewrites that free channels.

Everything that analyses or prunes a module uses these functions, so that graphs, classes and plans agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunec.ir.graph import Graph
from prunec.ir.plan import InputSpec
from prunec.ir.taught import NO_RULES, OpRules
from prunec.passes.rewrites.paddings import fuse_paddings
from prunec.passes.rewrites.permutations import fuse_permutations
from prunec.passes.rewrites.sums import mark_sums
from prunec.passes.rewrites.weight_norms import free_weight_norms

if TYPE_CHECKING:
    from torch import nn

    from prunec.frontends.fx.running.arguments import Example
    from prunec.frontends.fx.traced import Traced
    from prunec.frontends.onnx.frontend import OnnxSource, TracedOnnx


def freed(graph: Graph) -> Graph:
    """Return a graph as the passes see it.

    Channel shuffles become Gathers, zero paddings become part of the convolutions, and norms of weights and sums over
    channels are marked.
    """
    return mark_sums(free_weight_norms(fuse_paddings(fuse_permutations(graph))))


def read_module(module: nn.Module, example_inputs: Example, name: str = "", rules: OpRules = NO_RULES) -> Traced:
    """Trace a module (see ``prunec.frontends.fx.frontend.trace``) and rewrite its channel shuffles."""
    from prunec.frontends.fx.frontend import trace
    from prunec.frontends.fx.running.arguments import by_position

    traced = trace(*by_position(module, example_inputs), name, rules)
    return replace(traced, graph=freed(traced.graph))


def read_onnx(
    path: str | Path, input_shapes: Mapping[str, Sequence[int]] | None = None, rules: OpRules = NO_RULES
) -> TracedOnnx:
    """Read an ONNX file (see ``prunec.frontends.onnx.frontend``) and rewrite its channel shuffles."""
    from prunec.frontends.onnx.frontend import load_onnx

    return read_loaded(load_onnx(path), input_shapes or {}, rules)


def read_loaded(model: OnnxSource, input_shapes: Mapping[str, Sequence[int]], rules: OpRules = NO_RULES) -> TracedOnnx:
    """Do the same with a model that ``prunec.frontends.onnx.frontend.load_onnx`` has loaded."""
    from prunec.frontends.onnx.frontend import trace_onnx

    traced = trace_onnx(model, input_shapes, rules)
    return replace(traced, graph=freed(traced.graph))


def open_specs(graph: Graph) -> tuple[InputSpec, ...]:
    """Return a graph's inputs as data; an open size is 0."""
    return tuple(
        InputSpec(name, tuple(size if isinstance(size, int) else 0 for size in value.shape or ()), value.dtype)
        for name, value in ((name, graph.values[name]) for name in graph.inputs)
    )


def input_specs(graph: Graph, example_inputs: Sequence[Any] | Mapping[str, Any]) -> tuple[InputSpec, ...]:
    """Return the tensors among the example inputs, as data."""
    from prunec.frontends.fx.running.arguments import named_tensors

    given = example_inputs.values() if isinstance(example_inputs, Mapping) else example_inputs
    tensors = [tensor for _, tensor in named_tensors(tuple(given))]
    return tuple(
        InputSpec(name, tuple(int(size) for size in tensor.shape), str(tensor.dtype).removeprefix("torch."))
        for name, tensor in zip(graph.inputs, tensors, strict=False)
    )
