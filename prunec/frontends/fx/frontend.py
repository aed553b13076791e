"""nn.Module -> Traced: which tracer reads it, and whether what it read is the network.

Owns the choice between torch.fx and torch.export (tracing/), and the batch to record with; recorder.py records. How a
pruned GraphModule is made is in backends/fx/backend.py. The user's module is never changed, and no autograd is
involved: frozen parameters, train or eval mode and no_grad make no difference.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import fx, nn

from prunec.errors import BadInput, PrunecError, UnsupportedModel, UntraceableModel
from prunec.frontends.fx.masks import by_numbers
from prunec.frontends.fx.recorder import WRITTEN, Recorder
from prunec.frontends.fx.running.arguments import widened, with_tensors
from prunec.frontends.fx.running.containers import tensors_in
from prunec.frontends.fx.running.meta import MetaMode, fake_tensors
from prunec.frontends.fx.running.untouched import Untouched, eval_mode
from prunec.frontends.fx.traced import Traced
from prunec.frontends.fx.tracing.attention import follow_modes
from prunec.frontends.fx.tracing.export import export
from prunec.frontends.fx.tracing.failures import (
    calls_functions,
    cannot_run,
    failure_of,
    is_transformed,
    one_line,
    refuse_unbuilt,
    refuse_unreadable,
    untraceable,
)
from prunec.frontends.fx.tracing.lost import fixed_sizes
from prunec.frontends.fx.tracing.sizes import NOTES
from prunec.frontends.fx.tracing.symbolic import candidates, symbolic_trace
from prunec.garbage import collected_later
from prunec.ir.graph import Graph
from prunec.ir.taught import NO_RULES, OpRules

_LOG = logging.getLogger("prunec")


@collected_later()
def trace(module: nn.Module, example_inputs: Sequence[Any], name: str = "", rules: OpRules = NO_RULES) -> Traced:
    """Read a module into the IR.

    Args:
        module: any module that torch.fx or torch.export can trace; it is left as it was.
        example_inputs: positional arguments of forward; tensors of the shape to analyse (any device).
        name: shown in reports.
        rules: ops that the user teaches, see prunec/ir/taught.py.

    Raises:
        UntraceableModel: neither tracer can read it; both reasons are given.
        BadInput: the module cannot run on inputs of this shape, or its forward has layers to build yet.
    """
    modes = {path: sub.training for path, sub in module.named_modules()}
    refuse_unreadable(module)
    untouched = Untouched(module, tuple(example_inputs))
    with untouched.block(on_shapes=True), eval_mode(module), torch.no_grad():
        try:
            found = _read(module, tuple(example_inputs), name, untouched, rules)
        except (UntraceableModel, BadInput):
            refuse_unbuilt(untouched.built)
            raise
    refuse_unbuilt(untouched.built)
    follow_modes(found.module, modes)
    past = (f"{_PAST_TORCH} ({where})" for where in untouched.written_past_torch)
    return replace(found, unsaved=_unsaved(module), notes=(*found.notes, *past))


def _unsaved(module: nn.Module) -> frozenset[str]:
    """Return the buffers that are no part of the state_dict: they were registered with ``persistent=False``."""
    return frozenset(
        f"{path}.{name}" if path else name
        for path, sub in module.named_modules(remove_duplicate=False)
        for name in sub._non_persistent_buffers_set
    )


_PAST_TORCH = "the forward writes into a tensor by numpy or the like, which the traced network does not"


def _read(module: nn.Module, inputs: tuple[Any, ...], name: str, untouched: Untouched, rules: OpRules) -> Traced:
    """Record what torch.fx traces, or what torch.export does where that cannot be recorded."""
    traced_by_fx, reason = symbolic_trace(module, inputs, untouched)
    partly: Traced | None = None
    traced_by_fx = None if traced_by_fx is None else by_numbers(traced_by_fx)
    for candidate in candidates(traced_by_fx, inputs):
        try:
            with untouched.block(on_shapes=True):
                found = _record_any_batch(candidate, inputs, name, rules, exported=False)
        except PrunecError:
            raise
        except Exception as error:  # noqa: BLE001  # any error of the user's forward: torch.export is the second opinion
            _LOG.debug("the graph that torch.fx traced cannot be recorded: %s", one_line(error))
            reason = error
            continue
        if candidate is module:
            return found
        if not _returns_the_same(module, found, untouched):
            reason = TypeError("its forward looks at the types of what it computes, and torch.fx's are not tensors")
            continue
        if not _writes_unseen(found.graph):
            _LOG.debug("the network was read by torch.fx: %d calls", len(found.module.graph.nodes))
            return replace(found, notes=tuple(traced_by_fx.meta.get(NOTES, ()) if traced_by_fx else ()))
        partly = partly or found
    try:
        return _exported(module, inputs, name, reason, untouched, rules)
    except (UntraceableModel, BadInput):
        if partly is not None:
            return partly
        raise


def _exported(
    module: nn.Module,
    inputs: tuple[Any, ...],
    name: str,
    reason: BaseException | None,
    untouched: Untouched,
    rules: OpRules,
) -> Traced:
    _LOG.debug("torch.export is tried, for torch.fx could not: %s", one_line(reason) if reason else "no reason")
    exported = export(module, inputs, reason, untouched)
    try:
        with untouched.block(on_shapes=True):
            found = _record_any_batch(exported, inputs, name, rules, exported=True)
        why = f", for torch.fx could not: {one_line(reason)}" if reason else ""
        fixed = fixed_sizes(module, exported, inputs, untouched)
        return replace(found, notes=(f"the network was read by torch.export{why}", *fixed, *exported.meta[NOTES]))
    except PrunecError:
        raise
    except Exception as error:  # the module's own, or the tracers'? a plain run tells
        failure = failure_of(module, inputs, untouched)
        if failure is not None and is_transformed(failure):
            raise untraceable(reason, failure) from error
        if calls_functions(error) or failure is None:
            raise untraceable(reason, error) from error
        raise cannot_run(inputs, error) from error


def _returns_the_same(module: nn.Module, found: Traced, untouched: Untouched) -> bool:
    """Tell whether the module itself, run on shapes, returns tensors of the shapes that were recorded."""
    graph = found.graph
    shapes = [[size for size in graph.shape(name) or () if isinstance(size, int)] for name in graph.inputs]
    for mode in (MetaMode, fake_tensors):
        try:
            with untouched.block(on_shapes=True), mode():
                arguments = _empty(found.example_inputs, shapes)
                returned = [tuple(tensor.shape) for tensor in tensors_in(module(*arguments))]
        except Exception:  # noqa: BLE001, S112  # a forward that needs values cannot be asked
            continue
        return returned == [graph.shape(name) for name in graph.outputs]
    return True


def _empty(inputs: tuple[Any, ...], shapes: Sequence[Sequence[int]]) -> tuple[Any, ...]:
    rest = iter(shapes)
    return with_tensors(inputs, lambda _, like: torch.empty(next(rest), dtype=like.dtype, device="cpu"))


def _writes_unseen(graph: Graph) -> bool:
    """Tell whether something is read that was written in place through another view: torch.export takes writes out.

    What depends on neither inputs nor parameters has no channels (a mask that is filled window by window).
    """
    told = {*graph.inputs, *(name for name, param in graph.params.items() if not param.literal)}
    for node in graph.nodes:
        if told.isdisjoint(node.inputs):
            continue
        if node.attrs.get("reason") == WRITTEN:
            return True
        told.update(node.outputs)
    return False


def _record_any_batch(
    module: fx.GraphModule, inputs: tuple[Any, ...], name: str, rules: OpRules, *, exported: bool
) -> Traced:
    """Record with a batch that is not 1 where the network allows it."""
    wide = widened(inputs)
    if wide is not inputs:
        try:
            return _record(module, wide, inputs, name, rules, exported=exported)
        except PrunecError:
            raise
        except Exception as error:  # noqa: BLE001  # a network with a hard-coded batch of 1: the example's own batch is next
            _LOG.debug("the example's own batch is tried, for a batch of 3 could not: %s", one_line(error))
    return _record(module, inputs, inputs, name, rules, exported=exported)


def _record(
    module: fx.GraphModule,
    inputs: tuple[Any, ...],
    example_inputs: tuple[Any, ...],
    name: str,
    rules: OpRules,
    *,
    exported: bool,
) -> Traced:
    recorder = Recorder(module, rules)
    try:
        recorder.walk(inputs)
    except PrunecError:
        raise
    except Exception as error:  # noqa: BLE001  # some kernels do not run on the meta device
        _LOG.debug("fake tensors are tried, for the meta device could not: %s", one_line(error))
        with fake_tensors() as fake:
            recorder = Recorder(module, rules, fake)
            recorder.walk(inputs)
    graph = recorder.graph(name or module.__class__.__name__)
    if not graph.outputs:
        do = "let its forward return tensors: alone, in lists, dicts or dataclasses"
        raise UnsupportedModel("the network returns no tensor", do=do)
    return Traced(
        graph=graph,
        module=module,
        results=MappingProxyType(recorder.results),
        example_inputs=example_inputs,
        exported=exported,
        parameters=MappingProxyType(recorder.tensors),
        unused=recorder.origins - {node.origin for node in graph.nodes},
    )
