"""nn.Module -> fx.GraphModule by torch.export, where torch.fx fails.

Owns which sizes stay open, the time that this may take, and what is written back to be readable. What an exported
network does not keep is told by lost.py.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import math
import time
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from prunec.frontends.fx.running.arguments import widened
from prunec.frontends.fx.running.untouched import Untouched
from prunec.frontends.fx.tracing.failures import cannot_run, failure_of, one_line, untraceable

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


def _exported(module: nn.Module, inputs: tuple[Any, ...], shapes: Any) -> fx.GraphModule:
    program = torch.export.export(module, inputs, dynamic_shapes=shapes, strict=False)
    if any(_is_seen_elsewhere(n) for n in program.graph.nodes):
        program = program.run_decompositions({})  # nothing is decomposed, writes become slice_scatter
    # Guards compare with the shapes before pruning; they have no place in a pruned module.
    exported = program.module(check_guards=False)
    assert isinstance(exported, fx.GraphModule)
    return _plain(exported)


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
