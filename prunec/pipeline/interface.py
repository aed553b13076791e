"""The inputs and outputs of a module in the form of a file: flat, named, with open axes."""

from __future__ import annotations

import inspect
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any

from prunec.runtime.sessions import first_line

if TYPE_CHECKING:
    import torch


BATCH = "batch"

OpenAxes = Mapping[str, Mapping[int, str]]
"""Input or output name -> axis -> the symbol of its open size."""


@dataclass(frozen=True, slots=True)
class Interface:
    """The names of inputs and outputs, and which of them have a batch on axis 0."""

    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    batched_inputs: tuple[str, ...]
    batched_outputs: tuple[str, ...]
    open_axes: OpenAxes | None = None
    fixed: str = ""
    """Why the batch is not open although it was allowed to be; else ""."""


def interface_of(
    module: torch.nn.Module,
    arguments: tuple[Any, ...],
    input_names: Sequence[str],
    output_names: Sequence[str],
    dynamic_batch: bool,
) -> Interface:
    """Run the module to see its outputs, and again with another batch size to see which of them change with it.

    Raises:
        BadInput: it does not run on these arguments.
    """
    from prunec.frontends.fx.tracing.failures import cannot_run

    tensors = tensors_among(arguments)
    inputs = tuple(input_names) or names_of_inputs(module, tensors)
    try:
        result = run_once(module, arguments)
    except Exception as error:
        raise cannot_run(arguments, error) from error
    named = _output_names(result, taken=(*inputs, *output_names))
    outputs = (*output_names, *named[len(output_names) :])
    sizes = {tensor.shape[0] for tensor in tensors if tensor.ndim > 0}
    if not dynamic_batch or len(sizes) != 1:
        return Interface(inputs, outputs, (), ())
    size = sizes.pop()
    try:
        rebatched = output_tensors(run_once(module, tuple(rebatch(argument, size + 1) for argument in arguments)))
    except Exception as error:  # noqa: BLE001 - a module that hard-codes its batch raises anything
        why = f"the network itself does not run with a batch of {size + 1} ({first_line(error)})"
        return Interface(inputs, outputs, (), (), fixed=why)
    moved = tuple(
        name
        for name, before, after in zip(outputs, output_tensors(result), rebatched, strict=True)
        if before.ndim > 0 and before.shape[0] == size and after.shape[0] == size + 1
    )
    batched = tuple(name for name, tensor in zip(inputs, tensors, strict=True) if tensor.ndim > 0)
    return Interface(inputs, outputs, batched, moved)


def flattened(module: torch.nn.Module) -> torch.nn.Module:
    """Return a twin of ``module``, sharing everything, whose outputs are a plain tuple of tensors.

    A subclass rather than a wrapper: the parameters keep their names in the file.
    """

    def forward(self: torch.nn.Module, *arguments: Any) -> Any:
        leaves = output_tensors(type(module).forward(self, *arguments))
        return leaves[0] if len(leaves) == 1 else tuple(leaves)

    def fill(namespace: dict[str, Any]) -> None:
        namespace["forward"] = forward

    double = types.new_class(type(module).__name__, (type(module),), exec_body=fill)
    twin: torch.nn.Module = object.__new__(double)
    twin.__dict__.update(module.__dict__)
    return twin


def run_once(module: torch.nn.Module, arguments: tuple[Any, ...]) -> Any:
    """Run a module without gradients, and return its result."""
    import torch

    with torch.no_grad():
        return module(*arguments)


def output_tensors(result: Any) -> list[Any]:
    """Return the tensors of a result, in order; they become the outputs of a file."""
    from prunec.frontends.fx.running.containers import tensors_in

    return tensors_in(result)


def tensors_among(arguments: Sequence[Any]) -> list[Any]:
    """Return the tensors among arguments, in order."""
    import torch

    return [argument for argument in arguments if isinstance(argument, torch.Tensor)]


def rebatch(argument: Any, size: int) -> Any:
    """Return a tensor with ``size`` rows on axis 0, repeating its own."""
    import torch

    if not isinstance(argument, torch.Tensor) or argument.ndim == 0:
        return argument
    rows = torch.arange(size, device=argument.device) % max(1, argument.shape[0])
    return argument.index_select(0, rows)


def names_of_inputs(module: torch.nn.Module, tensors: Sequence[Any]) -> tuple[str, ...]:
    """Name inputs after ``forward``'s parameters; extra ones of a variadic forward get numbers."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    known = [name for name, item in inspect.signature(module.forward).parameters.items() if item.kind in kinds]
    return tuple(known[index] if index < len(known) else f"input_{index}" for index in range(len(tensors)))


def _output_names(result: Any, taken: Sequence[str]) -> tuple[str, ...]:
    """Name outputs after a dict's keys or a dataclass's fields, else "output", "output_1", …; never like an input."""
    leaves = output_tensors(result)
    keys = [str(key) for key in result] if isinstance(result, dict) else []
    if is_dataclass(result):
        keys = [field.name for field in fields(result)]
    if len(keys) != len(leaves):
        keys = ["output" if index == 0 else f"output_{index}" for index in range(len(leaves))]
    return tuple(f"{key}_out" if key in taken else key for key in keys)
