"""The kinds of ONNX models in memory, and how each is written to a file and read again.

Owns that table. A model is pruned by way of a file, so it keeps what a file keeps, and the check is the
same. Large weights are written to the disk one at a time and mapped from there, so memory holds no second copy of the
user's weights besides the pruned ones. Libraries are not imported: if the user has a model of one, it is loaded.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import numpy as np
import onnx
from google.protobuf.message import Message  # type: ignore[import-untyped]  # protobuf ships no types
from onnx import TensorProto

from prunec.errors import BadInput
from prunec.frontends.onnx.loading.wire import MIN_BYTES, refer

DATA = ".data"
"""The suffix of the file of large weights."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of model.

    Args:
        library: the package that defines it.
        name: the class, inside that package.
        write: writes a model to a path, with ``<path>.data`` beside it; the model does not change.
        read: reads the model at a path into memory; the original model supplies what a file cannot hold.
    """

    library: str
    name: str
    write: Callable[[Any, Path], None]
    read: Callable[[Path, Any], Any]

    def holds(self, model: object) -> bool:
        """Tell whether a model is of this kind."""
        library = sys.modules.get(self.library)
        return library is not None and isinstance(model, getattr(library, self.name))

    def __str__(self) -> str:
        return f"{self.library}.{self.name}"


def kind_of(model: object) -> Kind | None:
    """Return a model's kind; None if it is not in ``KINDS``."""
    return next((kind for kind in KINDS if kind.holds(model)), None)


def of_torch(model: object, name: str = "nn.Module") -> bool:
    """Tell whether a model is an instance of a class of torch, without loading torch."""
    found: Any = sys.modules.get("torch")
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is not None and isinstance(model, found)


# --- onnx.ModelProto ------------------------------------------------------------------------------------


def _write_proto(model: onnx.ModelProto, path: Path) -> None:
    elsewhere = next((t.name for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL), None)
    if elsewhere is not None:
        raise BadInput(
            f"the data of the tensor {elsewhere!r} lie in another file, and a message does not say in which folder",
            do="load it whole (onnx.load does by default), or use prunec.prune_onnx with the path of the .onnx file",
        )
    shell = onnx.ModelProto()
    _copy_fields(model, shell, but="graph")
    _copy_fields(model.graph, shell.graph, but="initializer")
    with _data(path).open("wb") as file:
        shell.graph.initializer.extend(_outside(tensor, path, file) for tensor in model.graph.initializer)
    path.write_bytes(shell.SerializeToString())


def _read_proto(path: Path, _model: onnx.ModelProto) -> onnx.ModelProto:
    return onnx.load(path)


def _copy_fields(source: Message, target: Message, but: str) -> None:
    target.SetInParent()
    for field, value in source.ListFields():
        if field.name == but:
            continue
        if isinstance(value, str | bytes | int | float):
            setattr(target, field.name, value)
        else:
            getattr(target, field.name).MergeFrom(value)


def _outside(tensor: TensorProto, path: Path, file: IO[bytes]) -> TensorProto:
    """Return a tensor whose raw data, if large, have been written to a file; otherwise the tensor itself."""
    data = tensor.raw_data
    if len(data) < MIN_BYTES:
        return tensor
    shell = TensorProto()
    _copy_fields(tensor, shell, but="raw_data")
    refer(shell, _data(path).name, file.tell(), len(data))
    file.write(data)
    return shell


def _data(path: Path) -> Path:
    return path.with_name(path.name + DATA)


# --- onnx_ir.Model --------------------------------------------------------------------------------------


def _write_ir(model: Any, path: Path) -> None:
    _library("onnx_ir").save(model, path, external_data=_data(path).name, size_threshold_bytes=MIN_BYTES - 1)
    written = onnx.load(path, load_external_data=False)
    held = [(tensor, model.graph.initializers[tensor.name].const_value) for tensor in written.graph.initializer]
    for tensor, _ in held:
        _each_once(tensor.metadata_props)  # onnx_ir writes metadata twice that value and tensor share
    for node, old in zip(written.graph.node, model.graph, strict=True):
        held += [(a.t, old.attributes[a.name].as_tensor()) for a in node.attribute if a.type == a.TENSOR]
    for tensor, source in held:
        location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
        if location and location != _data(path).name:  # small weights, and those of Constant nodes, stay where they are
            del tensor.external_data[:]
            tensor.ClearField("data_location")
            tensor.raw_data = source.tobytes()
    path.write_bytes(written.SerializeToString())


def _each_once(entries: Any) -> None:
    once = {entry.key: entry.value for entry in entries}
    if len(once) < len(entries):
        del entries[:]
        for key, value in once.items():
            entries.add(key=key, value=value)


def _read_ir(path: Path, model: Any) -> Any:
    ir = _library("onnx_ir")
    result = ir.from_proto(onnx.load(path))  # its own loader leaves the tensors of Constant nodes in the file
    nodes = {node.name: node for node in model.graph if node.name}
    values = {value.name: value for value in _values(model.graph)}
    pairs: list[tuple[Any, Any]] = [(result, model), (result.graph, model.graph)]
    pairs += [(node, nodes[node.name]) for node in result.graph if node.name in nodes]
    pairs += [(value, values[value.name]) for value in _values(result.graph) if value.name in values]
    for new, old in pairs:
        new.meta.update(old.meta)
    return result


def _values(graph: Any) -> Iterable[Any]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


# --- onnx_graphsurgeon.Graph ----------------------------------------------------------------------------


def _write_graph(graph: Any, path: Path) -> None:
    gs = _library("onnx_graphsurgeon")
    shell = graph.copy()  # new nodes and tensors, the same weights
    shell.functions = [function.copy() for function in graph.functions]
    for part in (shell, *shell.functions):
        part.import_domains = None if part.import_domains is None else list(part.import_domains)  # exporting adds to it
    shell.producer_name, shell.producer_version = graph.producer_name, graph.producer_version
    with _data(path).open("wb") as file:
        for tensor in shell.tensors().values():
            if isinstance(tensor, gs.Constant):
                _move_outside(tensor, path, file)
    try:
        model = gs.export_onnx(shell)
        if graph.ir_version is None:  # else it would be onnx's newest, which runtimes may not know
            model.ir_version = onnx.helper.find_min_ir_version_for(model.opset_import, ignore_unknown=True)
    except Exception as error:
        why = " ".join(str(error).split())
        raise BadInput("onnx_graphsurgeon cannot export the graph", why=why, do="fix what that names") from error
    path.write_bytes(model.SerializeToString())


def _move_outside(tensor: Any, path: Path, file: IO[bytes]) -> None:
    """Write a constant's weights, if they are large, to a file, and refer to that instead."""
    values, lazy = tensor._values, _library("onnx_graphsurgeon.ir.tensor")
    if isinstance(values, lazy.SparseValues):
        return
    if isinstance(values, lazy.LazyValues):
        shell = _outside(values.tensor, path, file)
        if shell is values.tensor:
            shell = TensorProto()
            shell.CopyFrom(values.tensor)  # exporting writes the constant's name into it
    elif (
        values.nbytes >= MIN_BYTES and isinstance(tensor.export_dtype, np.dtype) and tensor.export_dtype == values.dtype
    ):
        number = onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
        shell = TensorProto(name=tensor.name, data_type=number, dims=values.shape)
        refer(shell, _data(path).name, file.tell(), values.nbytes)
        file.write(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
    else:
        return
    tensor.values = lazy.LazyValues(shell)


def _read_graph(path: Path, graph: Any) -> Any:
    result = _library("onnx_graphsurgeon").import_onnx(onnx.load(path))
    for said in ("name", "doc_string", "producer_name", "producer_version", "ir_version"):
        setattr(result, said, getattr(graph, said))
    return result


def _library(name: str) -> ModuleType:
    """Return a library that is loaded, because a model of it was given."""
    return sys.modules[name]


KINDS = (
    Kind("onnx", "ModelProto", _write_proto, _read_proto),
    Kind("onnx_ir", "Model", _write_ir, _read_ir),
    Kind("onnx_graphsurgeon", "Graph", _write_graph, _read_graph),
)
