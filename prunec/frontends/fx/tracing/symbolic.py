"""nn.Module -> fx.GraphModule by torch.fx, the tracer that is tried first.

Owns what torch.fx is told about optional arguments, buffers and modes, and the graphs that are worth recording. Where
it fails, export.py is tried. Each run of the user's forward is a block of its own that leaves nothing behind
(running/untouched.py).
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import itertools
import logging
import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, fx, nn

from prunec.frontends.fx.running.checkpoints import is_asked_for, notes_of
from prunec.frontends.fx.running.untouched import Untouched
from prunec.frontends.fx.running.unwritten import unwritten
from prunec.frontends.fx.tracing.attention import expand
from prunec.frontends.fx.tracing.failures import one_line
from prunec.frontends.fx.tracing.functional import functional, has_writes
from prunec.frontends.fx.tracing.regions import Regions
from prunec.frontends.fx.tracing.remembered import Memory
from prunec.frontends.fx.tracing.sizes import NOTES, Answers, AsksForValues, Sizes
from prunec.frontends.fx.tracing.tracer import Tracer, wrapped_at
from prunec.frontends.fx.tracing.values import drop_unread, whatever_it_sees

_LOG = logging.getLogger("prunec")


class _Lost(Exception):
    """A write into the module's memory that happened while its forward was traced, and is not in the graph."""


def candidates(module: fx.GraphModule | None, inputs: Sequence[Any]) -> list[fx.GraphModule]:
    """Return what to record, best first: attention written out, without writes in place, then as it was traced."""
    if module is None:
        return []
    found = [module]
    rewritten = functional(module)
    if rewritten is not None:
        found.insert(0, rewritten)
    with contextlib.suppress(Exception):  # a network that does not run: recording it will say why
        expanded = expand(found[0], inputs)
        found = [*([] if expanded is None else [expanded]), *found]
    return found


def symbolic_trace(
    module: nn.Module, inputs: Sequence[Any], untouched: Untouched
) -> tuple[fx.GraphModule | None, BaseException | None]:
    """Trace a module with torch.fx; return its graph, or None and why there is none.

    A forward that decides by sizes is followed as the example's sizes decide, where it cannot be traced for all; one
    that asks for values, where they make no difference.
    """
    if isinstance(module, fx.GraphModule):
        return module, None
    path = wrapped_at(module)
    if path:
        inside, why = symbolic_trace(module.get_submodule(path), inputs, untouched)
        return None if inside is None else _under(path, inside), why
    reason: BaseException | None = None
    writes = asks = False
    ways = (True, False) if _reads_buffers(module) else (False, True)
    for stage, buffers in itertools.product(("any size", "these sizes", "these sizes, any values"), ways):
        if (stage != "any size" and writes) or (stage.endswith("values") and not asks):
            break  # it can be traced; numbers in place of sizes change nothing
        if buffers and not ways[0] and not isinstance(reason, _Lost):
            continue
        trace = functools.partial(_traced, module, inputs, untouched, buffers=buffers, sized=stage != "any size")
        try:
            if stage == "these sizes":
                made = _whatever_it_remembers(trace, module)
            else:
                made = whatever_it_sees(trace) if stage.endswith("values") else trace(None)
            if not has_writes(made):
                return made, None
            rewritten = functional(made)
            if rewritten is not None and not has_writes(rewritten):
                return rewritten, None
            reason, writes = TypeError("it writes into a part of a tensor that something else may see"), True
        except Exception as error:  # noqa: BLE001  # whatever the user's forward raises on proxies means "not traceable"
            _LOG.debug("torch.fx cannot trace the network: %s", one_line(error))
            reason, asks = error, asks or isinstance(error, AsksForValues)
    return None, reason


def _whatever_it_remembers(trace: Callable[..., fx.GraphModule], module: nn.Module) -> fx.GraphModule:
    """Trace a forward as if it had seen other sizes before; as it is, where that makes a difference."""
    memory = Memory(module)
    try:
        return trace(None, memory=memory)
    except Exception as error:
        if not memory.forgets:
            raise
        _LOG.debug("what the forward remembers is a part of the network: %s", one_line(error))
        return trace(None)


def _traced(
    module: nn.Module,
    inputs: Sequence[Any],
    untouched: Untouched,
    answers: Answers | None,
    *,
    buffers: bool,
    sized: bool,
    memory: Memory | None = None,
    ignored: tuple[str, ...] = (),
) -> fx.GraphModule:
    """Trace a module as it is in eval mode; ``ignored`` are modes that are on in eval mode alone."""
    parameters = list(inspect.signature(module.forward).parameters.values())
    optional = [p for p in parameters[len(inputs) :] if p.default is not inspect.Parameter.empty]
    concrete = {p.name: p.default for p in optional if p.kind is not inspect.Parameter.VAR_KEYWORD}
    concrete |= {p.name: None for p, given in zip(parameters, inputs, strict=False) if given is None}
    sizes = Sizes(module, inputs, answers, memory) if sized else None
    tracer = Tracer(buffers=buffers, regions=Regions(ignored), sizes=sizes)
    with warnings.catch_warnings(), untouched.block():
        warnings.simplefilter("ignore")  # the user's forward may warn about tracing itself
        graph = tracer.trace(module, concrete_args=concrete or None)
        made = {n.target: _plain_constant(getattr(module, n.target)) for n in graph.nodes if _is_made(n, module)}
    lost = untouched.lost_write(_held(graph, module, made))
    if lost:
        raise _Lost(f"torch.fx would lose a write into a tensor of the module ({lost})")
    again = Tracer(buffers=buffers, sizes=Sizes(module, inputs, answers and Answers()) if sized else None)
    only_here = tracer.regions.seen - _modes_in_training(module, concrete, untouched, again, tracer.regions.seen)
    places = [*(tracer.regions.checkpoints | again.regions.checkpoints)]
    if only_here and not ignored:
        asked = answers and answers.again()
        anew = memory and Memory(module)
        return _traced(
            module, inputs, untouched, asked, buffers=buffers, sized=sized, memory=anew, ignored=tuple(only_here)
        )
    drop_unread(graph)
    names = {p.name for p in parameters}
    for node in graph.find_nodes(op="placeholder"):  # torch.fx numbers what is fixed; users call it by its name
        if node.target not in names and node.target.removesuffix("_1") in concrete:
            node.target = node.target.removesuffix("_1")
    for node in graph.nodes:
        node.type = None if isinstance(node.type, str) else node.type  # annotations that are text cannot be pickled
    traced = unwritten(_with_constants(module, made), graph, type(module).__name__)
    plain = (f"the network returns or passes a {name}: a plain dict in the traced network" for name in tracer.plain)
    own = (
        f"{name} defines its own gradient: the traced network has that of what the forward computes "
        "(zero where it rounds)"
        for name in tracer.regions.functions
    )
    traced.meta[NOTES] = (*(() if tracer.sizes is None else tracer.sizes.notes), *notes_of(places), *plain, *own)
    return traced


def _under(path: str, inside: fx.GraphModule) -> fx.GraphModule:
    """Return a traced network with the names that it has inside of a wrapper."""
    graph = copy.deepcopy(inside.graph)
    for n in graph.nodes:
        if n.op in ("get_attr", "call_module"):
            n.target = f"{path}.{n.target}"
    holder = nn.Module()
    holder.add_module(path, inside)
    made = unwritten(holder, graph, inside.__class__.__name__)
    made.meta.update(inside.meta)
    return made


def _modes_in_training(
    module: nn.Module, concrete: dict[str, Any], untouched: Untouched, tracer: Tracer, seen: set[str]
) -> set[str]:
    """Return which of the modes seen (no_grad …) are on while the network trains, too; all where that cannot be told.

    ``set_grad_enabled(self.training)`` switches gradients off in eval mode: a pruned network must still train.
    """
    if not seen and not (untouched.checkpoints and is_asked_for(module)):
        return seen
    try:
        with warnings.catch_warnings(), untouched.block():
            warnings.simplefilter("ignore")
            for sub in module.modules():
                sub.training = True
            tracer.trace(module, concrete_args=concrete or None)
    except Exception as error:  # noqa: BLE001  # whatever the user's forward raises on proxies
        _LOG.debug("torch.fx cannot trace the network in training mode: %s", one_line(error))
        return seen
    return tracer.regions.seen & seen


def _plain_constant(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) and not value.is_leaf else value


def _is_made(n: fx.Node, module: nn.Module) -> bool:
    """Tell whether a node reads a constant that torch.fx has hung on the module for the time of the trace."""
    return n.op == "get_attr" and str(n.target).startswith("_tensor_constant") and hasattr(module, str(n.target))


def _held(graph: fx.Graph, module: nn.Module, made: Mapping[Any, Any]) -> list[Tensor]:
    """Return the tensors that a graph reads off a module, and the constants that were made."""
    reads = {n.target for n in graph.find_nodes(op="get_attr")} - set(made)
    found = [*made.values(), *(operator.attrgetter(str(name))(module) for name in reads)]
    return [value for value in found if isinstance(value, Tensor)]


def _with_constants(module: nn.Module, constants: dict[Any, Any]) -> nn.Module:
    """Return what holds the module's own parts, and constants beside them."""
    holder = nn.Module()
    vars(holder).update(vars(module))
    vars(holder).update(constants)
    return holder


def _reads_buffers(module: nn.Module) -> bool:
    """Tell whether a forward of the user's own may compute with a buffer (a mask, frozen statistics).

    As a proxy it stays the buffer that it is; read as a tensor, what is computed from it becomes a constant
    without a name. A forward that branches on its content can only be traced the second way.
    """
    return any(sub._buffers and not type(sub).__module__.startswith("torch.nn.") for sub in module.modules())
