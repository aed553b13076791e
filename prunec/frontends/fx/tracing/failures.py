"""The errors of a network that cannot be read, or not run: messages to a person, with the line of their code."""

from __future__ import annotations

import traceback
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import DynamicOutputShapeException
from torch.ao.nn.quantized import FloatFunctional, FXFloatFunctional
from torch.ao.nn.quantized.modules.linear import LinearPackedParams
from torch.ao.quantization.stubs import DeQuantStub, QuantStub, QuantWrapper
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from prunec.errors import BadInput, UntraceableModel
from prunec.frontends.fx.running.arguments import named_tensors
from prunec.frontends.fx.running.reachable import LIBRARIES
from prunec.frontends.fx.running.untouched import Untouched
from prunec.frontends.fx.tracing.sizes import AsksForValues


def untraceable(fx_error: BaseException | None, export_error: BaseException) -> UntraceableModel:
    """Return the error of a network that neither tracer reads."""
    by_fx = one_line(fx_error) if fx_error else "its graph cannot be run"
    if isinstance(fx_error, AsksForValues):
        return UntraceableModel(
            f"{str(fx_error).removesuffix(_where(fx_error))}{_where(fx_error)}",
            why="what a network does has to be the same for all inputs of a size, or prunec would prune one case of "
            f"several; torch.export: {one_line(export_error)}",
            do="compute what both ways give and choose with torch.where, or take the decision out of the forward",
        )
    if calls_functions(export_error):
        return UntraceableModel(
            "the forward calls functions through torch.cond, torch.while_loop or the like",
            why="what a network does has to be the same for all inputs of a size",
            do="compute what both ways give and choose with torch.where, or take the choice out of the forward",
        )
    transformed = next((error for error in (fx_error, export_error) if error and is_transformed(error)), None)
    if transformed is not None:
        return UntraceableModel(
            f"the forward calls torch.vmap or another function of torch.func{_where(transformed)}",
            why="they run a function on tensors that stand for other ones, which no tracer can follow",
            do="write the computation out on the whole tensors (most layers and functions take a batch as they are), "
            "or prune the part of the network in front of it",
        )
    if isinstance(export_error, DynamicOutputShapeException):
        return UntraceableModel(
            f"a size depends on values: {export_error.func} (an index by a mask, nonzero, unique)",
            why="prunec has to know how large every tensor is",
            do="index with a mask or numbers made once, in __init__, and kept as a buffer, or compute all and choose "
            "with torch.where",
        )
    return UntraceableModel(
        "the network can be read neither by torch.fx nor by torch.export",
        why=f"torch.fx: {by_fx}; torch.export: {one_line(export_error)}",
        do="mark what cannot be traced with torch.fx.wrap, or give the network as an ONNX file",
    )


def calls_functions(error: BaseException) -> bool:
    """Tell whether torch gave up at an op that takes functions: modes that watch a network do not bear it."""
    return isinstance(error, NotImplementedError) and "HigherOrderOperator" in str(error)


def is_transformed(error: BaseException) -> bool:
    """Tell whether an error came up inside of a function that torch.func transforms: prunec's modes do not bear it."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(frame.f_globals.get("__name__") in _TRANSFORMS for frame in frames)


_TRANSFORMS = frozenset(f"torch._functorch.{name}" for name in ("apis", "vmap", "eager_transforms"))


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


def refuse_unreadable(module: nn.Module) -> None:
    """Check that a module is code, and that every parameter has a shape and values.

    Raises:
        BadInput: a ScriptModule, a module that is quantised or prepared for it, a lazy layer that has not seen an
            input yet, or one on the meta device.
    """
    for name, sub in module.named_modules():
        if isinstance(sub, torch.jit.ScriptModule):
            what = f"its submodule {name}" if name else "the module"
            raise BadInput(
                f"{what} is a ScriptModule",
                why="what torch.jit compiled has no Python code to trace",
                do="give the module that it was made from, with its weights, or export it to ONNX and prune the file",
            )
        _refuse_quantised(name or "itself", sub)
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
            raise BadInput(
                f"the parameter {name} has no shape yet",
                why="it belongs to a lazy layer, which gets its shape from the first input",
                do="run the network once on an example input",
            )
        if tensor.is_meta:
            raise BadInput(
                f"the parameter {name} has no values: it is on the meta device",
                why="prunec decides by values which channels can go",
                do="load the weights (load_state_dict(..., assign=True)), or make the network on a device that holds "
                "values (net.to_empty(device='cpu') leaves them to be filled)",
            )


def refuse_unbuilt(names: Collection[str]) -> None:
    """Refuse a forward that made parameters: in each run other ones, which are random.

    Raises:
        BadInput: there are some.
    """
    if names:
        first = next(iter(names))
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise BadInput(
            f"the forward makes parameters of its own: {first}{more}",
            why="layers that are built in the first run have no weights before it",
            do="run the network once on an example input before, and load its weights",
        )


def _refuse_quantised(name: str, sub: nn.Module) -> None:
    """Refuse what PyTorch's quantisation has prepared or converted; its stubs alone change nothing."""
    if isinstance(sub, _FLOAT):
        return
    kind, home = type(sub).__name__, type(sub).__module__
    if home.startswith(_CONVERTED) or (isinstance(sub, fx.GraphModule) and any(map(_is_quantised, sub.graph.nodes))):
        raise BadInput(
            f"the module is quantised already ({name}: {kind})",
            why="its weights are packed integers, which prunec does not take channels from",
            do="prune the float network first, and quantise the pruned one; or export it to ONNX with QuantizeLinear "
            "nodes and prune the file",
        )
    if home.startswith(_PREPARED):
        raise BadInput(
            f"the module is prepared for quantisation ({name}: {kind})",
            why="its fake quantisers and observers follow the network as it is: their scales are of its channels",
            do="prune the float network first, and prepare the pruned one; or convert it, export it to ONNX and "
            "prune the file",
        )


def _is_quantised(n: fx.Node) -> bool:
    """Tell whether a node of a converted graph calls an op on integers."""
    return str(getattr(n.target, "namespace", "")) in ("quantized", "quantized_decomposed")


_FLOAT = (QuantStub, DeQuantStub, QuantWrapper, FloatFunctional, FXFloatFunctional, LinearPackedParams)
_CONVERTED = (
    "torch.ao.nn.quantized.modules",
    "torch.ao.nn.quantized.reference",
    "torch.ao.nn.intrinsic.quantized.modules",
)
_PREPARED = ("torch.ao.nn.qat", "torch.ao.nn.intrinsic.qat", "torch.ao.quantization", "torchao.quantization.qat")
"""Where the classes of prepared and of converted networks come from. Layers with a dynamic scale are float outside."""


def failure_of(module: nn.Module, inputs: tuple[Any, ...], untouched: Untouched) -> BaseException | None:
    """Return the error of a plain forward pass, None when it runs."""
    try:
        with untouched.block():
            module(*inputs)
    except Exception as error:  # noqa: BLE001  # the user's forward may raise anything
        return error
    return None
