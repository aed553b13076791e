"""Writing ONNX models: atomic, weights straight from where they lie, external data where the source had it.

Owns the file form of an ``OnnxSource``. Nothing is assembled in memory: the message is written in pieces,
big tensors from the source's memory map or the pruned arrays. Does not know what changed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import TensorProto

from prunec.backends.onnx.surgeon import MEMORY
from prunec.errors import BadInput
from prunec.files import disk_reason, write_failed
from prunec.frontends.onnx.frontend import OnnxSource
from prunec.frontends.onnx.loading.load import MAX_FILE_BYTES
from prunec.frontends.onnx.loading.wire import Piece, refer, splice

_ALIGNMENT = 4096
"""External data start at page boundaries, so that runtimes can map them."""


@contextlib.contextmanager
def staged_onnx(source: OnnxSource, path: str | Path) -> Iterator[Path]:
    """Write a model beside ``path`` and yield where; when the block ends well, it takes its place.

    When the block raises (a check of the written file failed), nothing remains. A model whose source
    had external data, or that is too large for one file, gets a second file ``<name>.data``.

    Raises:
        BadInput: the folder cannot be written to.
        WriteFailed: the disk is full, over quota or read-only.
    """
    final = Path(os.path.realpath(path))
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{final.stem[:40]}.", dir=final.parent))
    except OSError as error:
        raise BadInput(f"cannot write in the folder {final.parent}", why=error.strerror or str(error)) from error
    try:
        staged = folder / final.name
        write_onnx(source, staged)
        del source  # a block may have need of the memory
        yield staged
        # The data go first: a model never stands without them.
        for file in sorted(folder.iterdir(), key=lambda file: file == staged):
            _flush(file)
            os.replace(file, final.parent / file.name)
    except OSError as error:
        reason = disk_reason(error)
        if reason:
            raise write_failed(final, reason) from error
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def save_onnx(source: OnnxSource | onnx.ModelProto, path: str | Path) -> None:
    """Write a model to ``path``, atomically; see ``staged_onnx``."""
    with staged_onnx(source if isinstance(source, OnnxSource) else OnnxSource(source), path):
        pass


def stored_bytes(source: OnnxSource) -> int:
    """Return the size of the file that a model was read from, together with the external data that it refers to."""
    assert source.path is not None, "the model was not read from a file"
    lengths = [0]
    if _has_external_data(source):
        outside = (tensor for tensor in _tensors(source.model) if tensor.data_location == TensorProto.EXTERNAL)
        entries = (
            entry for tensor in outside if _location(tensor) != source.path.name for entry in tensor.external_data
        )
        lengths = [int(entry.value) for entry in entries if entry.key == "length"]
    return source.path.stat().st_size + sum(lengths)


def model_bytes(source: OnnxSource) -> bytes:
    """Return the whole model as one message, weights inside; for models that fit in memory twice."""
    return b"".join(_pieces(source))


def write_onnx(source: OnnxSource, path: Path) -> None:
    """Write a model to ``path`` (not atomically), and its external data, if it has any, beside it."""
    pieces = None if _has_external_data(source) else _pieces(source)
    if pieces is None or sum(map(len, pieces)) > MAX_FILE_BYTES:
        pieces = [_with_data_file(source, path.with_name(f"{path.name}.data")).SerializeToString()]
    with path.open("wb") as file:
        file.writelines(pieces)


def _pieces(source: OnnxSource) -> list[Piece]:
    return splice(source.model.SerializeToString(), source.files.read)


def _has_external_data(source: OnnxSource) -> bool:
    own = source.path.name if source.path is not None else ""
    return any(
        _location(tensor) != own and not _location(tensor).startswith(MEMORY)
        for tensor in _tensors(source.model)
        if tensor.data_location == TensorProto.EXTERNAL
    )


def _with_data_file(source: OnnxSource, path: Path) -> onnx.ModelProto:
    """Write the big tensors to ``path``, one after another; return the model that refers to it."""
    model = onnx.ModelProto()
    model.CopyFrom(source.model)
    with path.open("wb") as file:
        for tensor in _tensors(model):
            if tensor.data_location != TensorProto.EXTERNAL:
                continue
            data = source.files.read(tensor)
            file.write(b"\0" * (-file.tell() % _ALIGNMENT))
            refer(tensor, path.name, file.tell(), len(data))
            file.write(data)
    return model


def _tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Yield the tensors that may lie outside the message: initializers and Constant nodes, subgraphs included."""
    graphs = [model.graph]
    while graphs:
        graph = graphs.pop()
        yield from graph.initializer
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.TENSOR:
                    yield attribute.t
                elif attribute.type == onnx.AttributeProto.GRAPH:
                    graphs.append(attribute.g)
                elif attribute.type == onnx.AttributeProto.GRAPHS:
                    graphs.extend(attribute.graphs)


def _location(tensor: TensorProto) -> str:
    return next((entry.value for entry in tensor.external_data if entry.key == "location"), "")


def _flush(path: Path) -> None:
    """Ask the system to put a file on disk before it takes its name."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
