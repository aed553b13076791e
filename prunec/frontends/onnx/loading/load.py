"""An .onnx file -> OnnxSource: the model without its big weights, and the way to them.

Owns reading, the checks that no hostile or damaged file gets past, and tensors as numpy arrays. Weights
stay in the file (memory-mapped) and are read when something looks at them. Does not look at nodes;
read nodes.py next, wire.py for how weights are left out.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # protobuf ships no types
from onnx import TensorProto, helper, numpy_helper

from prunec.errors import BadInput
from prunec.files import kind_of
from prunec.frontends.onnx.loading.wire import DamagedMessage, cut
from prunec.ir.arrays import Array

MAX_FILE_BYTES = 2**31 - 1
"""Protobuf's own limit for one message; larger models keep their weights in external data."""

_MOST_DENSE = 2**29
"""Numbers that a sparse tensor may stand for: a few bytes of a hostile file must not fill the memory."""


class WeightFiles:
    """The files of one folder that tensors' data lie in, opened once and memory-mapped, read-only.

    Args:
        folder: where locations start; None: the model came from memory and has no folder.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._open: dict[str, mmap.mmap | memoryview] = {}

    def add(self, location: str, data: mmap.mmap | memoryview) -> None:
        """Take in a file that is already open, or memory that stands for one."""
        self._open[location] = data

    def with_more(self) -> WeightFiles:
        """Return a copy that can be added to."""
        more = WeightFiles(self.folder)
        more._open.update(self._open)
        return more

    def read(self, tensor: TensorProto) -> memoryview:
        """Return the bytes of an external tensor, without copying them.

        Raises:
            BadInput: the location is outside the folder, missing or too short.
        """
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        try:
            offset = int(entries.get("offset", "0"))
            length = int(entries["length"]) if "length" in entries else -1
        except ValueError as error:
            raise _bad_tensor(
                tensor, f"its external data have offset {entries.get('offset')!r} and length {entries.get('length')!r}"
            ) from error
        data = self._open.get(location)
        if data is None:
            data = self._open[location] = self._map(tensor, location)
        stop = len(data) if length < 0 else offset + length
        if offset < 0 or offset > stop or stop > len(data):
            raise _bad_tensor(
                tensor,
                f"it should lie at bytes {offset} to {stop} of {location!r}, which has {len(data)}",
                "fetch the file again, it may be cut short",
            )
        return memoryview(data)[offset:stop]

    def let_go(self) -> None:
        """Give back the memory that what was read takes; it is read from the files again where it is needed."""
        for data in self._open.values():
            if isinstance(data, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
                data.madvise(mmap.MADV_DONTNEED)

    def _map(self, tensor: TensorProto, location: str) -> mmap.mmap:
        if self.folder is None:
            raise _bad_tensor(
                tensor, "its data lie in another file", "give the path of the .onnx file instead of the loaded model"
            )
        path = self.folder / location
        if not location or not path.resolve().is_relative_to(self.folder.resolve()):
            raise _bad_tensor(
                tensor,
                f"its external data point outside the model's folder: {location!r}",
                "do not use this file, or move its data beside it and save it again",
            )
        if not path.is_file():
            raise _bad_tensor(tensor, f"there is no file {path}", "put the model's data file beside it")
        return _map_file(path)


@dataclass(frozen=True, slots=True, eq=False)
class OnnxSource:
    """A model as it was read.

    Args:
        model: the file's message; tensors of ``onnx_wire.MIN_BYTES`` or more are references into the file.
        files: where those and external data are found.
        path: the file; None for a model from memory.
    """

    model: onnx.ModelProto
    files: WeightFiles = field(default_factory=lambda: WeightFiles(None))
    path: Path | None = None

    def array(self, tensor: TensorProto) -> Array:
        """Return a tensor's data, read-only and not copied where that is possible; see ``tensor_array``."""
        return tensor_array(tensor, self.files)

    def dense(self, tensor: onnx.SparseTensorProto) -> Array:
        """Return what a sparse tensor stands for; see ``sparse_array``."""
        return sparse_array(tensor, self.files)


def load_onnx(path: str | Path) -> OnnxSource:
    """Read an .onnx file.

    Memory and time do not grow with the weights: they are mapped, not read.

    Raises:
        BadInput: there is no such file, or it is empty, cut short, too large or not an ONNX model.
    """
    path = Path(path)
    if not path.exists():
        raise BadInput(f"there is no file {path}", do="check the path")
    if not path.is_file():
        raise BadInput(f"{path} is not a file", do="give the path of an .onnx file")
    try:
        size = path.stat().st_size
        if size == 0:
            raise BadInput(f"{path} is empty", do="fetch or export the model again")
        if size > MAX_FILE_BYTES:
            raise BadInput(
                f"{path} has {size} bytes",
                why="an ONNX file holds at most 2 GiB; larger weights belong in external data",
                do="save it with onnx.save(model, path, save_as_external_data=True)",
            )
        data = _map_file(path)
    except OSError as error:
        raise BadInput(f"cannot read {path}", why=error.strerror or str(error)) from error
    model = _parse(path, data)
    files = WeightFiles(path.parent)
    files.add(path.name, data)
    return OnnxSource(model, files, path)


def _parse(path: Path, data: mmap.mmap) -> onnx.ModelProto:
    model = onnx.ModelProto()
    try:
        model.ParseFromString(cut(memoryview(data), path.name))
    except (DamagedMessage, DecodeError, RecursionError) as error:
        other = kind_of(path, data[:64])
        if other is not None:
            raise BadInput(f"{path} is not an ONNX model", why=f"it is {other[0]}", do=other[1]) from error
        raise BadInput(
            f"{path} is not an ONNX model, or it is damaged",
            why=str(error) or "its bytes are not a protobuf message of that kind",
            do="fetch or export the model again (a pointer of Git LFS is a small text file: run git lfs pull)",
        ) from error
    if not model.HasField("graph"):
        raise BadInput(f"{path} is not an ONNX model", why="it holds no graph", do="give the path of an .onnx file")
    return model


def _map_file(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def sparse_array(tensor: onnx.SparseTensorProto, files: WeightFiles) -> Array:
    """Return the dense array that a sparse tensor stands for.

    Its indices are places in the flat array, int64[NNZ], or one per axis, int64[NNZ, rank].

    Raises:
        BadInput: they do not fit its dims or its values.
    """
    shape = tuple(tensor.dims)
    if any(size < 0 for size in shape) or math.prod(shape) > _MOST_DENSE:
        raise _bad_tensor(tensor.values, f"it is sparse, and its dims are {list(shape)}")
    values, indices = tensor_array(tensor.values, files), tensor_array(tensor.indices, files)
    fits = indices.shape in ((values.size,), (values.size, len(shape))) and indices.dtype == np.int64
    bounds = math.prod(shape) if indices.ndim == 1 else np.array(shape)
    if not fits or (indices < 0).any() or (indices >= bounds).any():
        raise _bad_tensor(
            tensor.values,
            f"it is sparse, of dims {list(shape)} with {values.size} values, and its indices, of dims "
            f"{list(indices.shape)}, do not fit",
            "check the file with onnx.checker.check_model",
        )
    array = np.zeros(shape, values.dtype)
    array[np.unravel_index(indices, shape) if indices.ndim == 1 else tuple(indices.T)] = values.ravel()
    array.flags.writeable = False
    return array


def tensor_array(tensor: TensorProto, files: WeightFiles) -> Array:
    """Return a tensor's data as a read-only array of the tensor's own precision.

    Raises:
        BadInput: the dims and the data do not fit each other, or the data cannot be found.
    """
    shape = tuple(tensor.dims)
    count = math.prod(shape)
    if any(size < 0 for size in shape) or count > 2**62:
        raise _bad_tensor(tensor, f"its dims are {list(shape)}")
    if tensor.HasField("segment"):
        raise _bad_tensor(tensor, "it is stored in segments", "save it again with a current onnx")
    external = tensor.data_location == TensorProto.EXTERNAL
    dtype = _PLAIN.get(tensor.data_type)
    if dtype is None or not (external or tensor.HasField("raw_data")):
        return _general_array(tensor, shape, files)
    data: memoryview | bytes = files.read(tensor) if external else tensor.raw_data
    if len(data) != count * dtype.itemsize:
        raise _bad_tensor(
            tensor,
            f"its dims {list(shape)} of {dtype.name} need {count * dtype.itemsize} bytes, and it has {len(data)}",
            "fetch or export the model again",
        )
    if count == 0:
        return np.zeros(shape, dtype)
    return np.frombuffer(data, dtype).reshape(shape)


def _general_array(tensor: TensorProto, shape: tuple[int, ...], files: WeightFiles) -> Array:
    """Read the forms that need unpacking: typed fields, numbers of less than a byte, strings."""
    field = _TYPED_FIELDS.get(tensor.data_type)
    if field is not None and tensor.data_location != TensorProto.EXTERNAL:
        values = getattr(tensor, field)
        if len(values) == math.prod(shape):
            array = np.array(values, _PLAIN[tensor.data_type]).reshape(shape)
            array.flags.writeable = False
            return array
    if tensor.data_location == TensorProto.EXTERNAL:
        whole = TensorProto()
        whole.CopyFrom(tensor)
        whole.ClearField("data_location")
        del whole.external_data[:]
        whole.raw_data = bytes(files.read(tensor))
        tensor = whole
    held = tensor.ByteSize()
    if math.prod(shape) > 4 * held:  # a sub-byte number takes at least a quarter of a byte
        raise _bad_tensor(
            tensor, f"its dims are {list(shape)}, and its data have {held} bytes", "fetch or export the model again"
        )
    try:
        array = numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError) as error:
        raise _bad_tensor(tensor, str(error), "fetch or export the model again") from error
    array.flags.writeable = False
    return array


def _bad_tensor(tensor: TensorProto, why: str, do: str = "") -> BadInput:
    return BadInput(f"cannot read the tensor {tensor.name!r}", why=why, do=do)


def dtype_name(elem_type: int) -> str:
    """Return numpy's name of an ONNX element type ("float32"); "" for types that numpy lacks."""
    return _NAMES.get(elem_type, "")


_NAMES: Mapping[int, str] = MappingProxyType(
    {
        number: np.dtype(helper.tensor_dtype_to_np_dtype(number)).name
        for name, number in TensorProto.DataType.items()
        if name not in ("UNDEFINED", "STRING")
    }
)
_WHOLE_BYTES = (
    "FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64",
    "BOOL", "COMPLEX64", "COMPLEX128", "FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ",
)  # fmt: skip
_PLAIN: Mapping[int, np.dtype[Any]] = MappingProxyType(
    {
        number: np.dtype(helper.tensor_dtype_to_np_dtype(number)).newbyteorder("<")
        for name, number in TensorProto.DataType.items()
        if name in _WHOLE_BYTES
    }
)
"""Types whose raw data is numpy's own memory layout."""
_TYPED_FIELDS: Mapping[int, str] = MappingProxyType(
    {
        TensorProto.FLOAT: "float_data",
        TensorProto.DOUBLE: "double_data",
        TensorProto.INT64: "int64_data",
        TensorProto.INT32: "int32_data",
    }
)
