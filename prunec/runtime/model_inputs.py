"""What an ONNX model takes: a shape and a dtype for every input, from the file, the user, or what usually fits.

Owns sizes for axes that a file leaves open, and shapes that users give by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prunec.errors import BadInput, UnsupportedModel
from prunec.runtime.probes import InputKind, Slot
from prunec.runtime.sessions import Model, Runner

_NUMPY_TYPES = {"float": "float32", "double": "float64"}

# Tried in turn for sizes that a file leaves open, until the first model runs.
_SIZES = (224, 64, 320, 32, 128, 16)


def input_kinds(
    runner: Runner,
    shapes: Mapping[str, Sequence[int]] | None = None,
    *,
    batch: int = 1,
    channels: int = 3,
    size: int = 224,
) -> tuple[InputKind, ...]:
    """Return a concrete shape and dtype for every input of a model.

    Args:
        runner: the model.
        shapes: the user's shapes by input name; the key "" is the only (or the next) input.
        batch: for an open first axis.
        channels: for an open axis 1 of an input that looks like images.
        size: for any other open axis. One symbol gets one size.

    Raises:
        BadInput: a name that is no input, or a shape that the model does not allow.
        UnsupportedModel: an input that is not a numeric tensor.
    """
    given = name_shapes([name for name, _, _ in runner.inputs], shapes or {})
    symbols: dict[str, int] = {}
    kinds = []
    for name, shape, onnx_type in runner.inputs:
        wanted = given.get(name)
        if wanted is not None:
            _check_shape(name, shape, wanted)
        filled = wanted if wanted is not None else _fill(shape, batch, channels, size, symbols)
        kinds.append(InputKind(name, filled, _dtype(name, onnx_type)))
    return tuple(kinds)


def slots(runner: Runner, shapes: Mapping[str, Sequence[int]] | None = None) -> tuple[Slot, ...]:
    """Return what a user's samples must fill: every input, with sizes left open where file and user leave them.

    Raises:
        BadInput, UnsupportedModel: see ``input_kinds``.
    """
    given = name_shapes([name for name, _, _ in runner.inputs], shapes or {})
    found = []
    for name, shape, onnx_type in runner.inputs:
        wanted = given.get(name)
        if wanted is not None:
            _check_shape(name, shape, wanted)
            # A batch size that the user gives is one to start from: samples bring their own.
            shape = (shape[0] if shape else None, *wanted[1:])
        found.append(Slot(name, shape, _dtype(name, onnx_type)))
    return tuple(found)


def name_shapes(names: Sequence[str], shapes: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """Give each shape its input: the key "" stands for the first input that is not named.

    Raises:
        BadInput: a key is not an input's name.
    """
    for key in shapes:
        if key and key not in names:
            raise BadInput(f"the model has no input {key!r}", why=f"its inputs: {', '.join(names) or 'none'}")
    given = {key: tuple(int(size) for size in shape) for key, shape in shapes.items() if key}
    if "" in shapes:
        free = [name for name in names if name not in given]
        if not free:
            raise BadInput("there is a shape too many", why=f"inputs: {', '.join(names) or 'none'}")
        given[free[0]] = tuple(int(size) for size in shapes[""])
    return given


def first_channels(model: Model) -> int:
    """Return how many channels the first convolution of an ONNX model takes, 3 where none tells."""
    graph = _skeleton(model)
    dims = {tensor.name: tensor.dims for tensor in graph.initializer}
    for node in graph.node:
        weight = dims.get(node.input[1], []) if node.op_type == "Conv" and len(node.input) > 1 else []
        if len(weight) > 1:
            return int(weight[1]) * next((entry.i for entry in node.attribute if entry.name == "group"), 1)
    return 3


def external_bytes(path: Path) -> int:
    """Return the size of the weights that an ONNX file keeps in other files."""
    found = ({entry.key: entry.value for entry in tensor.external_data} for tensor in _skeleton(path).initializer)
    lengths = (entries.get("length", "") for entries in found if entries.get("location") != path.name)
    return sum(int(length) for length in lengths if length.isdecimal())


def _skeleton(model: Model) -> Any:
    """Return the graph of a model that ONNX Runtime has taken, without its weights."""
    import onnx

    from prunec.frontends.onnx.loading.load import load_onnx

    if isinstance(model, bytes):
        return onnx.load_from_string(model).graph
    try:
        return load_onnx(model).model.graph
    except BadInput:  # ONNX Runtime's own formats (.ort): nothing can be told from them
        return onnx.GraphProto()


def candidate_sizes(runner: Runner, shapes: Mapping[str, Sequence[int]] | None) -> tuple[int, ...]:
    """Return the sizes worth trying for a model's open axes: one where none is open."""
    first = input_kinds(runner, shapes, size=_SIZES[0])
    return _SIZES if first != input_kinds(runner, shapes, size=_SIZES[1]) else _SIZES[:1]


def _dtype(name: str, onnx_type: str) -> str:
    inner = onnx_type.removeprefix("tensor(").removesuffix(")")
    dtype = _NUMPY_TYPES.get(inner, inner)
    try:
        kind = np.dtype(dtype).kind
    except TypeError:
        kind = "O"
    if inner == "string" or kind not in "fiub":
        raise UnsupportedModel(f"input {name!r} is a {onnx_type}", why="inputs are made for tensors of numbers")
    return dtype


def _check_shape(name: str, shape: Sequence[int | str | None], wanted: Sequence[int]) -> None:
    # ONNX Runtime reports no sizes for an input of unknown rank, as for a number.
    fits = not shape or (
        len(shape) == len(wanted)
        and all(not isinstance(size, int) or size == given for size, given in zip(shape, wanted, strict=True))
    )
    if not fits:
        text = "x".join(str(size) if isinstance(size, int) else "?" for size in shape)
        raise BadInput(
            f"input {name!r} cannot be {'x'.join(map(str, wanted))}",
            why=f"the model says {text}",
            do="change --input-shape",
        )


def _fill(
    shape: Sequence[int | str | None], batch: int, channels: int, size: int, symbols: dict[str, int]
) -> tuple[int, ...]:
    last = shape[-1] if shape else None
    channels_last = isinstance(last, int) and last <= 4
    filled = []
    for axis, dim in enumerate(shape):
        if isinstance(dim, int):
            filled.append(dim)
            continue
        is_channel = axis == 1 and len(shape) >= 4 and not channels_last
        value = batch if axis == 0 and len(shape) > 1 else channels if is_channel else size
        # "None" and "?" are how some exporters write "unknown", not a symbol.
        filled.append(symbols.setdefault(dim, value) if dim not in (None, "", "None", "?") else value)
    return tuple(filled)
