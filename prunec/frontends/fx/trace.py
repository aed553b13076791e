"""nn.Module -> fx.GraphModule with torch.fx; where that fails exporting.py asks torch.export.

Owns the trace, what it is told about optional arguments, and the errors when no tracer reads a network.
What a graph's nodes mean is recorded in frontend.py. Each run of the user's forward is a block of its own that leaves
nothing behind (untouched.py).
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import logging
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from prunec.errors import BadInput, UntraceableModel
from prunec.frontends.fx.arguments import named_tensors, with_tensors
from prunec.frontends.fx.attention import expand
from prunec.frontends.fx.checkpoints import is_asked_for, notes_of
from prunec.frontends.fx.containers import tensors_in
from prunec.frontends.fx.functional import Tracer, functional, has_writes
from prunec.frontends.fx.meta import fake_tensors
from prunec.frontends.fx.reachable import LIBRARIES
from prunec.frontends.fx.regions import Regions
from prunec.frontends.fx.sizes import NOTES, Sizes
from prunec.frontends.fx.untouched import Untouched

_LOG = logging.getLogger("prunec")
_TRACE_BATCH = 3
"""Batch size to trace with when the example has 1: a size that is told apart from broadcasting."""


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


def untraceable(fx_error: BaseException | None, export_error: BaseException) -> UntraceableModel:
    """Return the error of a network that neither tracer reads."""
    by_fx = one_line(fx_error) if fx_error else "its graph cannot be run"
    return UntraceableModel(
        "the network can be read neither by torch.fx nor by torch.export",
        why=f"torch.fx: {by_fx}; torch.export: {one_line(export_error)}",
        do="mark what cannot be traced with torch.fx.wrap, or give the network as an ONNX file",
    )


def cannot_run(inputs: tuple[Any, ...], error: BaseException) -> BadInput:
    """Return the error of a network that its inputs do not fit."""
    shapes = ", ".join("x".join(map(str, tensor.shape)) for _, tensor in named_tensors(inputs)) or "none"
    return BadInput(
        f"the network cannot run on an input of shape {shapes}",
        why=one_line(error),
        do="give the shape that it expects with --input-shape",
    )


def one_line(error: BaseException) -> str:
    """Return an error's first line, and the line of the user's code that led to it."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"[:300] + _where(error)


def _where(error: BaseException) -> str:
    """Return " (file.py:12, in forward)" for the innermost frame that belongs to no library; "" where there is none."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    theirs = [frame for frame in frames if str(frame.f_globals.get("__name__", "")).partition(".")[0] not in LIBRARIES]
    theirs = [frame for frame in theirs if not frame.f_code.co_filename.startswith("<")]
    if not theirs:
        return ""
    code = theirs[-1].f_code
    line = next(line for frame, line in traceback.walk_tb(error.__traceback__) if frame is theirs[-1])
    return f" ({Path(code.co_filename).name}:{line}, in {code.co_name})"


def fixed_sizes(
    module: nn.Module, traced: fx.GraphModule, inputs: tuple[Any, ...], untouched: Untouched
) -> tuple[str, ...]:
    """Return a note where a network takes images of other sizes and its traced graph does not.

    Both are run on shapes, at twice the example's size. A forward that needs values cannot be asked.
    """
    larger = with_tensors(inputs, lambda _, t: t.new_empty([*t.shape[:2], *(2 * s for s in t.shape[2:])], device="cpu"))
    if all(tensor.dim() < 3 for _, tensor in named_tensors(inputs)):
        return ()
    shapes: list[list[torch.Size] | None] = []
    for network in (module, traced):
        try:
            with untouched.block(on_shapes=True), fake_tensors() as fake, torch.no_grad():
                shapes.append([tensor.shape for tensor in tensors_in(network(*_on_shapes(larger, fake)))])
        except Exception as error:  # noqa: BLE001  # whatever a forward raises
            _LOG.debug("at twice the size it does not run: %s", one_line(error))
            shapes.append(None)
    if shapes[0] is None or shapes[0] == shapes[1]:
        return ()
    sizes = ", ".join("x".join(map(str, tensor.shape)) for _, tensor in named_tensors(inputs))
    return (f"the traced network takes inputs of the example's size alone ({sizes}): its forward computes with sizes",)


@contextlib.contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Put every submodule in eval mode for the time of the trace, then each back as it was."""
    modes = [(sub, sub.training) for sub in module.modules()]
    try:
        for sub, _ in modes:
            sub.training = False
        yield
    finally:
        for sub, mode in modes:
            sub.training = mode


def symbolic_trace(
    module: nn.Module, inputs: Sequence[Any], untouched: Untouched
) -> tuple[fx.GraphModule | None, BaseException | None]:
    """Trace a module with torch.fx; return its graph, or None and why there is none.

    A forward that decides by sizes is followed as the example's sizes decide, where it cannot be traced for all.
    """
    if isinstance(module, fx.GraphModule):
        return module, None
    reason: BaseException | None = None
    writes = False
    ways = (True, False) if _reads_buffers(module) else (False,)
    for sized, buffers in itertools.product((False, True), ways):
        if sized and writes:
            break  # it can be traced; numbers in place of sizes change nothing
        try:
            made = _traced(module, inputs, untouched, buffers=buffers, sized=sized)
            if not has_writes(made):
                return made, None
            rewritten = functional(made)
            if rewritten is not None and not has_writes(rewritten):
                return rewritten, None
            reason, writes = TypeError("it writes into a part of a tensor that something else may see"), True
        except Exception as error:  # noqa: BLE001  # whatever the user's forward raises on proxies means "not traceable"
            _LOG.debug("torch.fx cannot trace the network: %s", one_line(error))
            reason = error
    return None, reason


def refuse_unreadable(module: nn.Module) -> None:
    """Check that a module is code, and that every parameter has a shape.

    Raises:
        BadInput: a ScriptModule, a module prepared for quantisation, or a lazy layer that has not seen an input yet.
    """
    for name, sub in module.named_modules():
        if isinstance(sub, torch.jit.ScriptModule):
            what = f"its submodule {name}" if name else "the module"
            raise BadInput(
                f"{what} is a ScriptModule",
                why="what torch.jit compiled has no Python code to trace",
                do="give the module that it was made from, with its weights, or export it to ONNX and prune the file",
            )
        if type(sub).__module__.startswith(("torch.ao.nn.qat", "torch.ao.nn.intrinsic.qat", "torch.ao.quantization")):
            raise BadInput(
                f"the module is prepared for quantisation-aware training ({name or 'itself'}: {type(sub).__name__})",
                why="its fake quantisers follow the network as it is, and their scales are of its channels",
                do="prune the float network first, and prepare the pruned one; or convert it, export it to ONNX and "
                "prune the file",
            )
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
            raise BadInput(
                f"the parameter {name} has no shape yet",
                why="it belongs to a lazy layer, which gets its shape from the first input",
                do="run the network once on an example input",
            )


def _traced(
    module: nn.Module,
    inputs: Sequence[Any],
    untouched: Untouched,
    *,
    buffers: bool,
    sized: bool,
    ignored: tuple[str, ...] = (),
) -> fx.GraphModule:
    """Trace a module as it is in eval mode; ``ignored`` are modes that are on in eval mode alone."""
    parameters = list(inspect.signature(module.forward).parameters.values())
    optional = [p for p in parameters[len(inputs) :] if p.default is not inspect.Parameter.empty]
    concrete = {p.name: p.default for p in optional if p.kind is not inspect.Parameter.VAR_KEYWORD}
    tracer = Tracer(buffers=buffers, regions=Regions(ignored), sizes=Sizes(module, inputs) if sized else None)
    with warnings.catch_warnings(), untouched.block():
        warnings.simplefilter("ignore")  # the user's forward may warn about tracing itself
        graph = tracer.trace(module, concrete_args=concrete or None)
        made = {n.target: _plain_constant(getattr(module, n.target)) for n in graph.nodes if _is_made(n, module)}
    again = Tracer(buffers=buffers, sizes=Sizes(module, inputs) if sized else None)
    only_here = tracer.regions.seen - _modes_in_training(module, concrete, untouched, again, tracer.regions.seen)
    places = [
        *tracer.regions.checkpoints,
        *(p for p in again.regions.checkpoints if p not in tracer.regions.checkpoints),
    ]
    if only_here and not ignored:
        return _traced(module, inputs, untouched, buffers=buffers, sized=sized, ignored=tuple(only_here))
    for node in graph.nodes:
        node.type = None if isinstance(node.type, str) else node.type  # annotations that are text cannot be pickled
    traced = fx.GraphModule(_with_constants(module, made), graph, type(module).__name__)
    traced.meta[NOTES] = (*(() if tracer.sizes is None else tracer.sizes.notes), *notes_of(places))
    return traced


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


def widened(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return inputs with a batch that is told apart from broadcasting, where all tensors among them have 1."""
    tensors = [tensor for _, tensor in named_tensors(inputs)]
    if not tensors or not all(t.dim() > 1 and t.shape[0] == 1 for t in tensors):
        return inputs
    return with_tensors(inputs, lambda _, tensor: tensor.expand(_TRACE_BATCH, *tensor.shape[1:]).contiguous())


def _on_shapes(inputs: tuple[Any, ...], fake: FakeTensorMode) -> tuple[Any, ...]:
    return with_tensors(inputs, lambda _, tensor: fake.from_tensor(tensor))


def failure_of(module: nn.Module, inputs: tuple[Any, ...], untouched: Untouched) -> BaseException | None:
    """Return the error of a plain forward pass, None when it runs."""
    try:
        with untouched.block():
            module(*inputs)
    except Exception as error:  # noqa: BLE001  # the user's forward may raise anything
        return error
    return None
