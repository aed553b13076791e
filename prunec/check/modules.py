"""A torch module as something to compare: feeds in, arrays out, in its own precision or in double.

Owns the way from positional arguments to named inputs and back. What is compared is comparison.py's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from prunec.check.comparison import Run
from prunec.check.double_module import InDouble, stored_tensors
from prunec.check.referee import DoubleRun
from prunec.frontends.fx.containers import tensors_in
from prunec.runtime.probes import Array, Feed, InputKind


def module_kinds(example_inputs: Sequence[Any]) -> tuple[InputKind, ...]:
    """Return the tensors among positional arguments; each is called by its position. bfloat16 is fed as float32."""
    return tuple(
        InputKind(str(index), tuple(value.shape), _fed_as(value.dtype))
        for index, value in enumerate(example_inputs)
        if isinstance(value, torch.Tensor)
    )


def _fed_as(dtype: torch.dtype) -> str:
    return "float32" if dtype == torch.bfloat16 else str(dtype).removeprefix("torch.")


def module_run(module: torch.nn.Module, example_inputs: Sequence[Any]) -> Run:
    """Return a function from feeds to the module's tensor outputs, flattened in order."""

    def run(values: Feed) -> list[Array]:
        arguments = _arguments(module, example_inputs, values)
        with torch.no_grad(), _without_fused_transformers():
            return [_array(tensor) for tensor in tensors_in(module(*arguments))]

    return run


def double_run(module: torch.nn.Module, example_inputs: Sequence[Any]) -> DoubleRun:
    """Return the same function in double precision; the module is left as it is."""

    def run(values: Feed, *, nudged: bool = False) -> list[Array]:
        arguments = _arguments(module, example_inputs, values)
        double = InDouble(stored_tensors(module), nudged=nudged)
        with torch.no_grad(), _without_fused_transformers(), _attributes_kept(module), double:
            outputs = tensors_in(module(*arguments))
        return [_array(tensor) for tensor in outputs]

    return run


def _arguments(module: torch.nn.Module, example_inputs: Sequence[Any], values: Feed) -> list[Any]:
    device = next((tensor.device for tensor in stored_tensors(module)), torch.device("cpu"))
    return [
        torch.from_numpy(values[str(index)]).to(device, value.dtype) if str(index) in values else value
        for index, value in enumerate(example_inputs)
    ]


def _array(tensor: torch.Tensor) -> Array:
    tensor = tensor.detach().cpu()
    if tensor.dtype != torch.bfloat16:
        return np_array(tensor)
    from ml_dtypes import bfloat16

    return np_array(tensor.float()).astype(bfloat16)


def np_array(tensor: torch.Tensor) -> Array:
    """Return a CPU tensor of one of numpy's own types as an array."""
    array: Array = tensor.numpy()
    return array


@contextlib.contextmanager
def _attributes_kept(module: torch.nn.Module) -> Iterator[None]:
    """Put back every attribute that a forward assigns within the block (`self.count += 1`): it would be a double."""
    saved = [
        (part, dict(vars(part)), dict(part._parameters), dict(part._buffers), dict(part._modules))
        for part in module.modules()
    ]
    try:
        yield
    finally:
        for part, attributes, parameters, buffers, modules in saved:
            vars(part).clear()
            vars(part).update(attributes)
            for store, old in ((part._parameters, parameters), (part._buffers, buffers), (part._modules, modules)):
                store.clear()
                store.update(old)  # type: ignore[arg-type]  # each store gets its own kind back


@contextlib.contextmanager
def _without_fused_transformers() -> Iterator[None]:
    """Run torch.nn's attention as it runs in training: its fused kernels take any number in a mask for True."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
