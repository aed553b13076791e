"""nn.Module -> fx.GraphModule by torch.export, where torch.fx fails.

Owns which sizes stay open, the time that this may take, and what is written back to be readable: BatchNorms, copies,
the regions of no_grad and autocast. What an exported network does not keep is told by lost.py.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import math
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from prunec.frontends.fx.running.arguments import widened
from prunec.frontends.fx.running.checkpoints import followed, notes_of
from prunec.frontends.fx.running.untouched import Untouched
from prunec.frontends.fx.tracing.failures import cannot_run, failure_of, is_transformed, one_line, untraceable
from prunec.frontends.fx.tracing.lost import lost_modes, modes_to_keep
from prunec.frontends.fx.tracing.sizes import NOTES
from prunec.frontends.fx.tracing.switches import begin, end, write_with_finally
from prunec.frontends.fx.tracing.tracer import Tracer

_LOG = logging.getLogger("prunec")

_OPEN_SECONDS = 15.0
"""Processor time for torch.export to keep image sizes open; without, the traced network takes images of the
example's size."""


def export(
    module: nn.Module, inputs: tuple[Any, ...], reason: BaseException | None, untouched: Untouched
) -> fx.GraphModule:
    """Trace a module with torch.export; ``reason`` is why torch.fx could not.

    Raises:
        UntraceableModel, BadInput: it does not either; the module itself does not run.
    """
    places: dict[str, None] = {}
    keep = modes_to_keep(module, inputs, untouched)
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
                        followed(places),
                        torch.set_grad_enabled("no_grad" in keep),  # else switching gradients off would change nothing
                    ):
                        exported = _exported(module, example, shapes, keep)
                    if example is not inputs and _has_fixed_batch(exported):
                        raise TypeError("it takes a batch of that many alone")
                    exported.meta[NOTES] = (*lost_modes(exported, keep), *notes_of([*places]))
                    return exported
                except Exception as error:  # noqa: BLE001  # each attempt may fail in its own way; the last is reported
                    _LOG.debug("torch.export with open axes %s: %s", shapes, one_line(error))
                    last = error
    assert last is not None
    failure = failure_of(module, inputs, untouched)
    if failure is not None and not is_transformed(failure):
        raise cannot_run(inputs, failure)
    raise untraceable(reason, failure or last) from last


def _exported(module: nn.Module, inputs: tuple[Any, ...], shapes: Any, keep: set[str]) -> fx.GraphModule:
    program = torch.export.export(module, inputs, dynamic_shapes=shapes, strict=False)
    parts = [part for part in program.graph_module.modules() if isinstance(part, fx.GraphModule)]
    if any(_is_seen_elsewhere(n) for part in parts for n in part.graph.nodes):
        program = program.run_decompositions({})  # nothing is decomposed, writes become slice_scatter
    # Guards compare with the shapes before pruning; they have no place in a pruned module.
    exported = program.module(check_guards=False)
    assert isinstance(exported, fx.GraphModule)
    if _inline_regions(exported, keep):
        write_with_finally(exported.graph)
    return _plain(exported)


def _has_fixed_batch(exported: fx.GraphModule) -> bool:
    """Tell whether an exported network takes the batch of its example alone: torch.export fixes what it must."""
    given = (n.meta.get("val") for n in exported.graph.find_nodes(op="placeholder"))
    batches = (each.shape[0] for each in given if isinstance(each, Tensor) and each.dim())
    return any(isinstance(size, int) or size.node.maybe_as_int() is not None for size in batches)


def _inline_regions(module: fx.GraphModule, keep: set[str]) -> bool:
    """Put what torch.export hides in modules of its own back between two switches; tell whether there was any."""
    regions = [n for n in module.graph.nodes if n.op == "call_function" and n.target in _REGIONS]
    for n in regions:
        name, num_arguments = _REGIONS[n.target]
        given, inside, operands = n.args[:num_arguments], n.args[num_arguments], n.args[num_arguments + 1 :]
        path = str(inside.target)
        part = module.get_submodule(path)
        assert isinstance(part, fx.GraphModule)
        _inline_regions(part, keep)
        kept = name in keep
        with module.graph.inserting_before(n):
            mode = "enable_grad" if name == "no_grad" and given[0] else name
            begun = begin(module.graph, mode, given) if kept else None
            results = _copied(part, path, operands, module.graph)
            if begun is not None:
                end(module.graph, begun)
        for user in list(n.users):  # a getitem: such a module returns a tuple
            user.replace_all_uses_with(results[user.args[1]])
            module.graph.erase_node(user)
        module.graph.erase_node(n)
        module.graph.erase_node(inside)
    module.graph.lint()
    return bool(regions)


def _copied(part: fx.GraphModule, path: str, operands: Sequence[Any], graph: fx.Graph) -> tuple[Any, ...]:
    """Copy a module's nodes to where a graph is inserting; return what the module returns."""
    copies: dict[fx.Node, Any] = dict(zip(part.graph.find_nodes(op="placeholder"), operands, strict=True))
    for n in part.graph.nodes:
        if n.op == "output":
            return tuple(copies.get(result, result) for result in n.args[0])
        if n.op != "placeholder":
            copies[n] = graph.node_copy(n, copies.__getitem__)
            if n.op in ("get_attr", "call_module"):
                copies[n].target = f"{path}.{n.target}"
    raise AssertionError("a graph ends in its output")


_REGIONS: Mapping[Any, tuple[str, int]] = {
    torch.ops.higher_order.wrap_with_set_grad_enabled: ("no_grad", 1),
    torch.ops.higher_order.wrap_with_autocast: ("autocast", 4),
}
"""Calls of a module in a mode: its name, and the number of arguments before the module."""


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


_LOUD = ("torch._export", "torch.fx.experimental.symbolic_shapes")


@contextlib.contextmanager
def _quiet_logs() -> Iterator[None]:
    """Keep what torch.export logs about sizes that it takes for fixed, or cannot tell, from the user."""
    levels = {name: logging.getLogger(name).level for name in _LOUD}
    for name in _LOUD:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


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
    """Put back what taking out the writes made harder to read: BatchNorms, and copies that return their source.

    What compares a tensor with the trace's (strides, types under autocast) has no place in a pruned module.
    """
    for n in list(module.graph.nodes):
        if n.target is torch.ops.aten._assert_tensor_metadata.default:
            module.graph.erase_node(n)
        elif n.target is torch.ops.aten.copy.default:
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
    # torch.export's tracer cannot be made again when a saved module is loaded; prunec's reads parameters by name too.
    module.graph._tracer_cls = module._tracer_cls = Tracer
    module.recompile()
    return module


def _open_axes(value: Any, fixed: int | None) -> dict[int, Any] | None:
    """Return which axes stay open: all but ``fixed``, or the batch alone where that is None."""
    if not isinstance(value, Tensor):
        return None
    axes = range(value.dim()) if fixed is not None else range(min(1, value.dim()))
    return {axis: torch.export.Dim.AUTO for axis in axes if axis != fixed} or None
