"""A module out as an ONNX file, written whole or not at all.

Owns the choice of exporter and the names in the file. Checking the result is prunec/check/validate.py's.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import sys
import types
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunec.check.budget import CHECK_TIME, Tell
from prunec.check.validate import evaluating, validate_module_against_onnx
from prunec.errors import UnsupportedModel, ValidationFailed
from prunec.files import replacing
from prunec.report.findings import Validation
from prunec.runtime.sessions import first_line

if TYPE_CHECKING:
    import torch

_BATCH = "batch"

OpenAxes = Mapping[str, Mapping[int, str]]
"""Input or output name -> axis -> the symbol of its open size."""


@dataclass(frozen=True, slots=True)
class _Interface:
    """What goes in and comes out: names, and which of them have a batch on axis 0."""

    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    batched_inputs: tuple[str, ...]
    batched_outputs: tuple[str, ...]
    open_axes: OpenAxes | None = None


def export_onnx(
    module: torch.nn.Module,
    example_inputs: Sequence[Any],
    path: str | Path,
    *,
    input_names: Sequence[str] = (),
    output_names: Sequence[str] = (),
    dynamic_batch: bool = True,
    open_axes: OpenAxes | None = None,
    opset: int = 17,
) -> None:
    """Write ``module`` to ``path`` as ONNX.

    The tracing exporter is tried first (it is quick and folds BatchNorm), torch.export's where that
    fails. The module is exported in eval mode and left as it was.

    Args:
        module: what to export; dict, tuple and nested outputs are flattened in order.
        example_inputs: its positional arguments; tensors become inputs, anything else a constant.
        path: written atomically.
        input_names: one per tensor; by default the parameters of ``forward``.
        output_names: of the first output tensors; the others have the keys of a dict, else "output", "output_1", …
        dynamic_batch: leave axis 0 open where the module itself follows it.
        open_axes: leave open just these axes instead: input or output name -> axis -> its symbol. The caller
            knows that the module follows them.
        opset: of the file; the second exporter starts at 18.

    Raises:
        UnsupportedModel: neither exporter takes the module.
    """
    arguments = tuple(example_inputs)
    with evaluating(module), _quiet():
        interface = _interface(module, arguments, input_names, output_names, dynamic_batch)
        if open_axes is not None:
            interface = replace(interface, open_axes=open_axes)
        flat = _flattened(module)
        with replacing(path) as aside:
            try:
                _export_traced(flat, arguments, aside, interface, opset)
            except Exception as first:  # noqa: BLE001 - exporters raise anything; the second one decides
                _export_second(flat, arguments, aside, interface, opset, first)


def export_checked(
    module: torch.nn.Module,
    example_inputs: Sequence[Any],
    path: str | Path,
    *,
    original: torch.nn.Module | None = None,
    tolerance: float = 1e-4,
    input_names: Sequence[str] = (),
    output_names: Sequence[str] = (),
    open_axes: OpenAxes | None = None,
    check_time: float = CHECK_TIME,
    progress: Tell | None = None,
) -> Validation:
    """Write ``module`` to ``path`` as ONNX once ONNX Runtime has agreed with it; else write nothing.

    Args:
        module: what to export.
        example_inputs: its positional arguments.
        path: written atomically, after the check.
        original: compare the file with this module instead (the network before pruning).
        tolerance: largest relative error that passes.
        input_names, output_names, open_axes: see export_onnx.
        check_time, progress: see validate_onnx.

    Raises:
        UnsupportedModel: neither exporter takes the module.
        ValidationFailed: the outputs differ by more than the tolerance.
    """
    names = tuple(input_names) or _input_names(module, _tensors(example_inputs))
    with replacing(path) as aside:
        export_onnx(module, example_inputs, aside, input_names=names, output_names=output_names, open_axes=open_axes)
        result = validate_module_against_onnx(
            original if original is not None else module,
            aside,
            example_inputs,
            input_names=names,
            tolerance=tolerance,
            check_time=check_time,
            progress=progress,
        )
        if not result.passed:
            worst = max(result.families, key=result.families.__getitem__)
            raise ValidationFailed(
                f"the exported network's outputs differ by {result.max_rel_error:.2g} (relative)",
                why=f"more than the tolerance of {tolerance:g}; worst with {worst} inputs",
                do="nothing was written; --no-validate skips this check",
            )
    return result


def _export_traced(
    module: torch.nn.Module, arguments: tuple[Any, ...], path: Path, interface: _Interface, opset: int
) -> None:
    import torch

    batched = (*interface.batched_inputs, *interface.batched_outputs)
    axes: OpenAxes = {name: {0: _BATCH} for name in batched} if interface.open_axes is None else interface.open_axes
    torch.onnx.export(
        module,
        arguments,
        str(path),
        dynamo=False,
        opset_version=opset,
        input_names=list(interface.input_names),
        output_names=list(interface.output_names),
        dynamic_axes={name: dict(symbols) for name, symbols in axes.items()} or None,
    )


def _export_second(
    module: torch.nn.Module,
    arguments: tuple[Any, ...],
    path: Path,
    interface: _Interface,
    opset: int,
    first: Exception,
) -> None:
    try:
        _export_dynamo(module, arguments, path, interface, max(opset, 18))
    except ImportError as error:
        raise UnsupportedModel(
            "the network cannot be exported to ONNX",
            why=f"the tracing exporter: {first_line(first)}",
            do="install onnxscript (pip install 'prunec[export]'): a second exporter is then tried",
        ) from error
    except Exception as error:
        raise UnsupportedModel(
            "the network cannot be exported to ONNX",
            why=f"the tracing exporter: {first_line(first)}; the torch.export one: {first_line(_root(error))}",
            do="remove or replace what the messages name",
        ) from error


def _export_dynamo(
    module: torch.nn.Module, arguments: tuple[Any, ...], path: Path, interface: _Interface, opset: int
) -> None:
    import torch

    # torch.export takes a size of 1 for a constant: give it a batch of 2.
    tensors = iter(interface.input_names)
    shapes: list[Any] = []
    doubled: list[Any] = []
    dim = torch.export.Dim(_BATCH, min=1)
    for argument in arguments:
        is_batched = isinstance(argument, torch.Tensor) and next(tensors) in interface.batched_inputs
        shapes.append({0: dim} if is_batched else None)
        doubled.append(_rebatch(argument, 2) if is_batched else argument)
    torch.onnx.export(
        module,
        tuple(doubled),
        str(path),
        dynamo=True,
        external_data=False,
        opset_version=opset,
        input_names=list(interface.input_names),
        output_names=list(interface.output_names),
        # One level deeper than it looks: the flattened module's forward takes *arguments.
        dynamic_shapes=(tuple(shapes),) if interface.batched_inputs else None,
        verbose=False,
    )


def _root(error: BaseException) -> BaseException:
    """Return the cause at the bottom: the exporter wraps it in advice to its own developers."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _interface(
    module: torch.nn.Module,
    arguments: tuple[Any, ...],
    input_names: Sequence[str],
    output_names: Sequence[str],
    dynamic_batch: bool,
) -> _Interface:
    """Run the module to see its outputs, and once more with another batch to see which follow it."""
    tensors = _tensors(arguments)
    inputs = tuple(input_names) or _input_names(module, tensors)
    result = _run(module, arguments)
    named = _output_names(result, taken=(*inputs, *output_names))
    outputs = (*output_names, *named[len(output_names) :])
    sizes = {tensor.shape[0] for tensor in tensors if tensor.ndim > 0}
    if not dynamic_batch or len(sizes) != 1:
        return _Interface(inputs, outputs, (), ())
    size = sizes.pop()
    try:
        rebatched = _leaves(_run(module, tuple(_rebatch(argument, size + 1) for argument in arguments)))
    except Exception:  # noqa: BLE001 - a module that hard-codes its batch raises anything
        return _Interface(inputs, outputs, (), ())
    moved = tuple(
        name
        for name, before, after in zip(outputs, _leaves(result), rebatched, strict=True)
        if before.ndim > 0 and before.shape[0] == size and after.shape[0] == size + 1
    )
    batched = tuple(name for name, tensor in zip(inputs, tensors, strict=True) if tensor.ndim > 0)
    return _Interface(inputs, outputs, batched, moved)


def _flattened(module: torch.nn.Module) -> torch.nn.Module:
    """Return ``module``'s double, sharing everything, whose outputs are a plain tuple of tensors.

    A subclass rather than a wrapper: the parameters keep their names in the file.
    """

    def forward(self: torch.nn.Module, *arguments: Any) -> Any:
        leaves = _leaves(type(module).forward(self, *arguments))
        return leaves[0] if len(leaves) == 1 else tuple(leaves)

    def fill(namespace: dict[str, Any]) -> None:
        namespace["forward"] = forward

    double = types.new_class(type(module).__name__, (type(module),), exec_body=fill)
    twin: torch.nn.Module = object.__new__(double)
    twin.__dict__.update(module.__dict__)
    return twin


def _run(module: torch.nn.Module, arguments: tuple[Any, ...]) -> Any:
    import torch

    with torch.no_grad():
        return module(*arguments)


def _leaves(result: Any) -> list[Any]:
    from prunec.frontends.fx.containers import tensors_in

    return tensors_in(result)


def _tensors(arguments: Sequence[Any]) -> list[Any]:
    import torch

    return [argument for argument in arguments if isinstance(argument, torch.Tensor)]


def _rebatch(argument: Any, size: int) -> Any:
    """Return a tensor with ``size`` rows on axis 0, repeating its own."""
    import torch

    if not isinstance(argument, torch.Tensor) or argument.ndim == 0:
        return argument
    rows = torch.arange(size, device=argument.device) % max(1, argument.shape[0])
    return argument.index_select(0, rows)


def _input_names(module: torch.nn.Module, tensors: Sequence[Any]) -> tuple[str, ...]:
    """Name inputs after ``forward``'s parameters; extra ones of a variadic forward are counted."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    known = [name for name, item in inspect.signature(module.forward).parameters.items() if item.kind in kinds]
    return tuple(known[index] if index < len(known) else f"input_{index}" for index in range(len(tensors)))


def _output_names(result: Any, taken: Sequence[str]) -> tuple[str, ...]:
    """Name outputs after a dict's keys or a dataclass's fields, else "output", "output_1", …; never like an input."""
    leaves = _leaves(result)
    keys = [str(key) for key in result] if isinstance(result, dict) else []
    if is_dataclass(result):
        keys = [field.name for field in fields(result)]
    if len(keys) != len(leaves):
        keys = ["output" if index == 0 else f"output_{index}" for index in range(len(leaves))]
    return tuple(f"{key}_out" if key in taken else key for key in keys)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' deprecation notes, progress lines and graph dumps from the user.

    A failing export dumps the whole graph from C++, to stdout, past Python's streams; it is sent to
    stderr, which has no buffer that could outlive this block, and stderr is closed off at the descriptor.
    """
    import torch

    set_stream = getattr(torch._C, "_jit_set_onnx_log_output_stream", None)
    if set_stream is not None:
        set_stream("stderr")
    sys.stderr.flush()
    saved = os.dup(2)
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        open(os.devnull, "wb") as nowhere,
    ):
        warnings.simplefilter("ignore")
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
