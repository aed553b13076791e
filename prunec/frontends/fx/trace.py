"""nn.Module -> fx.GraphModule: torch.fx first, torch.export where that fails.

Owns the two tracers, what they are told about optional arguments, and the errors when neither reads a network.
What a graph's nodes mean is recorded in fx.py. Each run of the user's forward is a block of its own that leaves
nothing behind (untouched.py).
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import itertools
import logging
import math
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from prunec.errors import BadInput, UntraceableModel
from prunec.frontends.fx.arguments import named_tensors, with_tensors
from prunec.frontends.fx.attention import expand
from prunec.frontends.fx.containers import tensors_in
from prunec.frontends.fx.functional import Tracer, functional, has_writes
from prunec.frontends.fx.meta import fake_tensors
from prunec.frontends.fx.reachable import LIBRARIES
from prunec.frontends.fx.regions import Regions
from prunec.frontends.fx.sizes import NOTES, Sizes
from prunec.frontends.fx.untouched import Untouched

_LOG = logging.getLogger("prunec")
_OPEN_SECONDS = 15.0
"""Processor time for torch.export to keep image sizes open; without, the traced network takes images of the
example's size."""
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
    if only_here and not ignored:
        return _traced(module, inputs, untouched, buffers=buffers, sized=sized, ignored=tuple(only_here))
    for node in graph.nodes:
        node.type = None if isinstance(node.type, str) else node.type  # annotations that are text cannot be pickled
    traced = fx.GraphModule(_with_constants(module, made), graph, type(module).__name__)
    traced.meta[NOTES] = () if tracer.sizes is None else tracer.sizes.notes
    return traced


def _modes_in_training(
    module: nn.Module, concrete: dict[str, Any], untouched: Untouched, tracer: Tracer, seen: set[str]
) -> set[str]:
    """Return which of the modes seen (no_grad …) are on while the network trains, too; all where that cannot be told.

    ``set_grad_enabled(self.training)`` switches gradients off in eval mode: a pruned network must still train.
    """
    if not seen:
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


def export(
    module: nn.Module, inputs: tuple[Any, ...], reason: BaseException | None, untouched: Untouched
) -> fx.GraphModule:
    """Trace a module with torch.export; ``reason`` is why torch.fx could not.

    Raises:
        UntraceableModel, BadInput: it does not either; the module itself does not run.
    """
    # All sizes but the channels stay open where the network allows it, so that the result runs at other sizes too.
    last: BaseException | None = None
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()), _quiet_logs():
        warnings.simplefilter("ignore")  # torch.export warns, and prints graphs, while it tries
        wide = widened(inputs)
        for example in (wide,) if wide is inputs else (wide, inputs):
            open_sizes, open_batch = (
                pytree.tree_map(functools.partial(_open_axes, fixed=fixed), example) for fixed in (1, None)
            )
            for shapes in (open_sizes, open_batch, None) if example is inputs else (open_sizes, open_batch):
                try:
                    with (
                        untouched.block(on_shapes=True),
                        _Deadline(_OPEN_SECONDS if shapes is open_sizes else math.inf),
                    ):
                        return _exported(module, example, shapes)
                except Exception as error:  # noqa: BLE001  # each attempt may fail in its own way; the last is reported
                    _LOG.debug("torch.export with open axes %s: %s", shapes, one_line(error))
                    last = error
    assert last is not None
    failure = failure_of(module, inputs, untouched)
    if failure is not None:
        raise cannot_run(inputs, failure)
    raise untraceable(reason, last) from last


def widened(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return inputs with a batch that is told apart from broadcasting, where all tensors among them have 1."""
    tensors = [tensor for _, tensor in named_tensors(inputs)]
    if not tensors or not all(t.dim() > 1 and t.shape[0] == 1 for t in tensors):
        return inputs
    return with_tensors(inputs, lambda _, tensor: tensor.expand(_TRACE_BATCH, *tensor.shape[1:]).contiguous())


def _exported(module: nn.Module, inputs: tuple[Any, ...], shapes: Any) -> fx.GraphModule:
    program = torch.export.export(module, inputs, dynamic_shapes=shapes, strict=False)
    if any(_is_seen_elsewhere(n) for n in program.graph.nodes):
        program = program.run_decompositions({})  # nothing is decomposed, writes become slice_scatter
    # Guards compare with the shapes before pruning; they have no place in a pruned module.
    exported = program.module(check_guards=False)
    assert isinstance(exported, fx.GraphModule)
    return _plain(exported)


def _on_shapes(inputs: tuple[Any, ...], fake: FakeTensorMode) -> tuple[Any, ...]:
    return with_tensors(inputs, lambda _, tensor: fake.from_tensor(tensor))


def lost_modes(module: nn.Module, inputs: tuple[Any, ...], untouched: Untouched) -> tuple[str, ...]:
    """Return a note where a forward that torch.export reads switches gradients off or casts: it keeps neither."""
    watching = _Watching()
    try:
        with (
            untouched.block(on_shapes=True),
            fake_tensors() as fake,
            torch.inference_mode(False),
            torch.enable_grad(),
            watching,
        ):
            module(*_on_shapes(inputs, fake))
    except Exception as error:  # noqa: BLE001  # a forward that needs values cannot be asked to its end
        _LOG.debug("on shapes it does not run: %s", one_line(error))
    return tuple(
        f"{mode} inside its forward is not kept in the traced network: {instead}"
        for mode, instead in _INSTEAD.items()
        if mode in watching.seen
    )


_INSTEAD = {
    "no_grad": "before training, freeze what it protects with requires_grad_(False)",
    "inference_mode": "before training, freeze what it protects with requires_grad_(False)",
    "autocast": "call the network under autocast",
}


class _Watching(TorchFunctionMode):
    """Notes the modes in which functions of torch are called."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.is_inference_mode_enabled():
            self.seen.add("inference_mode")
        elif not torch.is_grad_enabled():
            self.seen.add("no_grad")
        if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
            self.seen.add("autocast")
        return func(*args, **(kwargs or {}))


class _Deadline(TorchFunctionMode):
    """Gives up after some seconds of this thread's own processor time, at the next call of torch.

    Padding that is computed from open sizes (TensorFlow's SAME) nests formulas in each other until torch.export
    takes minutes per layer. Time that other work on the machine takes does not count: it must not decide at which
    sizes the traced network can run.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._end = time.thread_time() + seconds

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if time.thread_time() > self._end:
            raise TimeoutError("the formulas of its sizes become too long")
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def _quiet_logs() -> Iterator[None]:
    """Keep what torch.export logs about sizes that it takes for fixed from the user."""
    log = logging.getLogger("torch._export")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _is_seen_elsewhere(n: fx.Node) -> bool:
    """Tell whether a node writes in place into memory that another view shows: the recorder cannot follow that."""
    if not isinstance(n.target, torch._ops.OpOverload) or not n.target._schema.is_mutable:
        return False
    written = n.args[0] if n.args else None
    return isinstance(written, fx.Node) and any(_is_view(other) for other in (written, *written.users))


def _is_view(n: fx.Node) -> bool:
    if not isinstance(n.target, torch._ops.OpOverload):
        return False
    aliases = (out.alias_info for out in n.target._schema.returns)
    return any(alias is not None and not alias.is_write for alias in aliases)


def _plain(module: fx.GraphModule) -> fx.GraphModule:
    """Put back what taking out the writes made harder to read: BatchNorms, and copies that return their source."""
    for n in list(module.graph.nodes):
        if n.target is torch.ops.aten.copy.default:
            before, source = (operand.meta.get("val") for operand in n.args[:2])
            if before is not None and (before.shape, before.dtype) == (source.shape, source.dtype):
                n.replace_all_uses_with(n.args[1])
                module.graph.erase_node(n)
        elif n.target is torch.ops.aten._native_batch_norm_legit_no_training.default:
            x, gamma, beta, mean, var, momentum, eps = n.args
            with module.graph.inserting_before(n):
                norm = module.graph.call_function(
                    torch.ops.aten.batch_norm.default, (x, gamma, beta, mean, var, False, momentum, eps, False)
                )
            for user in list(n.users):
                user.replace_all_uses_with(norm)  # a getitem of the first output, the only one there is in eval mode
                module.graph.erase_node(user)
            module.graph.erase_node(n)
    module.recompile()
    return module


def _open_axes(value: Any, fixed: int | None) -> dict[int, Any] | None:
    """Return which axes stay open: all but ``fixed``, or the batch alone where that is None."""
    if not isinstance(value, Tensor):
        return None
    axes = range(value.dim()) if fixed is not None else range(min(1, value.dim()))
    return {axis: torch.export.Dim.AUTO for axis in axes if axis != fixed} or None


def failure_of(module: nn.Module, inputs: tuple[Any, ...], untouched: Untouched) -> BaseException | None:
    """Return the error of a plain forward pass, None when it runs."""
    try:
        with untouched.block():
            module(*inputs)
    except Exception as error:  # noqa: BLE001  # the user's forward may raise anything
        return error
    return None
