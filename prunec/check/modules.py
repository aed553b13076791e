"""A torch module as a function from feeds to arrays, in its own precision or in double.

Owns the conversion between positional arguments and named inputs. comparison.py compares.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from prunec.check.comparison import Run
from prunec.check.double_module import InDouble, stored_tensors
from prunec.check.referee import DoubleRun
from prunec.frontends.fx.running.arguments import fed_as, named_tensors, with_tensors
from prunec.frontends.fx.running.containers import tensors_in
from prunec.frontends.fx.running.untouched import Untouched
from prunec.ir.arrays import Array
from prunec.runtime.probes import Feed, InputKind


def module_kinds(example_inputs: Sequence[Any]) -> tuple[InputKind, ...]:
    """Return the tensors among positional arguments, named by position: "0", or "0.image" for one inside a dict."""
    return tuple(InputKind(name, tuple(t.shape), fed_as(t.dtype)) for name, t in named_tensors(example_inputs))


def module_run(module: torch.nn.Module, example_inputs: Sequence[Any]) -> Run:
    """Return a function from feeds to the module's tensor outputs, flattened in order."""
    untouched = Untouched(module, tuple(example_inputs))

    def run(values: Feed) -> list[Array]:
        arguments = _arguments(module, example_inputs, values)
        with untouched.block(), torch.no_grad(), _without_fused_transformers():
            # Copied, because a network may return its own buffer, which is restored afterwards.
            return [_array(tensor.clone()) for tensor in tensors_in(module(*arguments))]

    return run


def double_run(module: torch.nn.Module, example_inputs: Sequence[Any]) -> DoubleRun:
    """Return the same function in double precision; the module is left as it is."""
    untouched = Untouched(module, tuple(example_inputs))

    def run(values: Feed, *, nudged: bool = False) -> list[Array]:
        arguments = _arguments(module, example_inputs, values)
        double = InDouble(stored_tensors(module), nudged=nudged)
        with untouched.block(), torch.no_grad(), _without_fused_transformers(), double:
            outputs = tensors_in(module(*arguments))
        return [_array(tensor) for tensor in outputs]

    return run


def _arguments(module: torch.nn.Module, example_inputs: Sequence[Any], values: Feed) -> tuple[Any, ...]:
    device = next((tensor.device for tensor in stored_tensors(module)), torch.device("cpu"))
    return with_tensors(example_inputs, lambda name, like: torch.from_numpy(values[name]).to(device, like.dtype))


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
def _without_fused_transformers() -> Iterator[None]:
    """Run torch.nn's attention as in training, since its fused kernels take every number in a mask for True."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
