"""Exporting a module as an ONNX file, which is written completely or not at all.

Owns the choice of exporter and the names in the file. Checking the result is prunec/check/validate.py's.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunec.check.clock import CHECK_TIME, Tell
from prunec.check.comparison import gap
from prunec.check.validate import validate_module_against_onnx
from prunec.errors import PrunecError, UnsupportedModel, ValidationFailed
from prunec.files import replacing
from prunec.pipeline.interface import (
    BATCH,
    Interface,
    OpenAxes,
    flattened,
    interface_of,
    names_of_inputs,
    output_tensors,
    rebatch,
    run_once,
    tensors_among,
)
from prunec.report.findings import Validation
from prunec.runtime.modules import evaluating
from prunec.runtime.sessions import first_line, open_runner

if TYPE_CHECKING:
    import torch

    from prunec.frontends.fx.running.arguments import Example
    from prunec.frontends.fx.running.untouched import Untouched


def export_onnx(
    module: torch.nn.Module,
    example_inputs: Example,
    path: str | Path,
    *,
    input_names: Sequence[str] = (),
    output_names: Sequence[str] = (),
    dynamic_batch: bool = True,
    open_axes: OpenAxes | None = None,
    opset: int = 17,
) -> tuple[str, ...]:
    """Write ``module`` to ``path`` as ONNX; return notes about the file, which are issued as warnings too.

    The tracing exporter is tried first (it is quick and folds BatchNorm), torch.export's if that
    fails. The module is exported in eval mode and left as it was.

    Args:
        module: what to export; dict, tuple and nested outputs are flattened in order.
        example_inputs: its arguments, a sequence by position or a dict by name; tensors become inputs, anything else
            a constant.
        path: written atomically.
        input_names: one per tensor; by default the parameters of ``forward``.
        output_names: of the first output tensors; the others have the keys of a dict, else "output", "output_1", …
        dynamic_batch: leave axis 0 open if both the module and the file work with any batch size. Otherwise the file
            gets the batch size of the example, and there is a warning.
        open_axes: leave only these axes open instead: input or output name -> axis -> its symbol. The caller
            knows that the module works with any size there.
        opset: of the file; the second exporter starts at 18.

    Raises:
        UnsupportedModel: neither exporter takes the module.
        BadInput: the module does not run on the example.
    """
    from prunec.frontends.fx.running.arguments import by_position
    from prunec.frontends.fx.running.untouched import Untouched

    module, arguments = by_position(module, example_inputs)
    untouched = Untouched(module, arguments)
    # A tracer recognises parameters by identity, so they must not be replaced: their contents are saved instead.
    with _memory_kept(module, arguments), untouched.block(on_shapes=True), evaluating(module), _quiet():
        interface = interface_of(module, arguments, input_names, output_names, dynamic_batch)
        if open_axes is not None:
            interface = replace(interface, open_axes=open_axes, fixed="")
        with replacing(path) as aside:
            fixed = _export(module, arguments, aside, interface, opset, untouched)
    notes = (_fixed_note(arguments, fixed),) if fixed else ()
    for note in notes:
        warnings.warn(note, stacklevel=2)
    return notes


def _export(
    module: torch.nn.Module,
    arguments: tuple[Any, ...],
    path: Path,
    interface: Interface,
    opset: int,
    untouched: Untouched,
) -> str:
    """Write with an open batch if that works, else with a fixed one; return the reason for a fixed one."""
    flat = flattened(module)
    if interface.open_axes is not None or not interface.batched_inputs:
        _write(flat, arguments, path, interface, opset, untouched)
        return interface.fixed
    try:
        _write(flat, arguments, path, interface, opset, untouched)
        why = _lost_batch(module, arguments, path, interface)
    except UnsupportedModel as error:
        why = f"it cannot be exported with an open one ({error.why[:_LONGEST_WHY]})"
    if why:
        _write(flat, arguments, path, replace(interface, batched_inputs=(), batched_outputs=()), opset, untouched)
    return why


@contextlib.contextmanager
def _memory_kept(module: torch.nn.Module, arguments: tuple[Any, ...]) -> Iterator[None]:
    """Restore the values of parameters, buffers and arguments that a forward overwrites."""
    import torch

    stored = (*module.parameters(), *module.buffers(), *tensors_among(arguments))
    tensors = [tensor for tensor in stored if not (torch.nn.parameter.is_lazy(tensor) or tensor.is_meta)]
    saved = [tensor.detach().clone() for tensor in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, before in zip(tensors, saved, strict=True):
                if tensor.shape == before.shape and not torch.equal(tensor, before):
                    tensor.copy_(before)


def _write(
    module: torch.nn.Module,
    arguments: tuple[Any, ...],
    path: Path,
    interface: Interface,
    opset: int,
    untouched: Untouched,
) -> None:
    try:
        with untouched.block(on_shapes=True):
            _export_traced(module, arguments, path, interface, opset)
    except Exception as first:  # noqa: BLE001 - exporters raise anything; the second one decides
        _export_second(module, arguments, path, interface, opset, first)


def _fixed_note(arguments: tuple[Any, ...], why: str) -> str:
    size = next(tensor.shape[0] for tensor in tensors_among(arguments) if tensor.ndim > 0)
    return (
        f"the batch of the ONNX file is fixed at {size}: {why}; for another size export again with an example of that "
        f"size (--input-shape on the command line, example_inputs in Python)"
    )


def _lost_batch(module: torch.nn.Module, arguments: tuple[Any, ...], path: Path, interface: Interface) -> str:
    """Return how a file goes wrong at other batch sizes than the example's, which a tracer may write as numbers.

    "" if it is right, or if that cannot be found out: it does not run, or differs from the module at any batch.
    """
    try:
        runner = open_runner(path, "the exported network", "cpu", optimise=False)
    except PrunecError:
        return ""
    size = next(tensor.shape[0] for tensor in tensors_among(arguments) if tensor.ndim > 0)
    for count in (size, size + 1):
        inputs = tuple(rebatch(argument, count) for argument in arguments)
        known = {name for name, _, _ in runner.inputs}
        values = zip(interface.input_names, (_array(tensor) for tensor in tensors_among(inputs)), strict=True)
        try:
            found = runner({name: value for name, value in values if name in known})
            wrong = _disagreement([_array(leaf) for leaf in output_tensors(run_once(module, inputs))], found)
        except Exception as error:  # noqa: BLE001 - onnxruntime's exceptions have no common base class
            wrong = first_line(error)[:_LONGEST_WHY]
        if wrong:
            return "" if count == size else f"with an open one the file is wrong at a batch of {count} ({wrong})"
    return ""


_LONGEST_WHY = 160
"""Exporters write whole graphs into their messages; the first sentence says what it is about."""

_SAME_FUNCTION = 1e-2
"""Outputs of a file and of its module that are this close, relative to the largest, are no other function."""


def _disagreement(expected: Sequence[Any], found: Sequence[Any]) -> str:
    for x, y in zip(expected, found, strict=True):
        if x.shape != y.shape:
            return f"an output has the shape {y.shape} instead of {x.shape}"
        if gap(x, y.astype(x.dtype)).over() > _SAME_FUNCTION:
            return "an output has other values"
    return ""


def _array(tensor: torch.Tensor) -> Any:
    return tensor.detach().cpu().numpy()


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
    """Write ``module`` to ``path`` as ONNX if the outputs in ONNX Runtime agree with the module's; else write nothing.

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
    names = tuple(input_names) or names_of_inputs(module, tensors_among(example_inputs))
    with replacing(path) as aside:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is among the result's notes
            notes = export_onnx(
                module, example_inputs, aside, input_names=names, output_names=output_names, open_axes=open_axes
            )
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
    return replace(result, notes=(*notes, *result.notes))


def _export_traced(
    module: torch.nn.Module, arguments: tuple[Any, ...], path: Path, interface: Interface, opset: int
) -> None:
    import torch

    batched = (*interface.batched_inputs, *interface.batched_outputs)
    axes: OpenAxes = {name: {0: BATCH} for name in batched} if interface.open_axes is None else interface.open_axes
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
    interface: Interface,
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
            do="remove or replace the ops that the messages name",
        ) from error


def _export_dynamo(
    module: torch.nn.Module, arguments: tuple[Any, ...], path: Path, interface: Interface, opset: int
) -> None:
    import torch

    # torch.export takes a size of 1 for a constant: give it a batch of 2.
    tensors = iter(interface.input_names)
    shapes: list[Any] = []
    doubled: list[Any] = []
    dim = torch.export.Dim(BATCH, min=1)
    for argument in arguments:
        is_batched = isinstance(argument, torch.Tensor) and next(tensors) in interface.batched_inputs
        shapes.append({0: dim} if is_batched else None)
        doubled.append(rebatch(argument, 2) if is_batched else argument)
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
    """Return the innermost cause, which the exporter wraps in advice to its own developers."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


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
