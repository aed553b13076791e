"""The protobuf wire format of an ONNX file: taking big tensors out of it, and putting them back.

A protobuf parser copies every byte it reads and Python's copies a ``bytes`` field again on each access,
so a plain load holds the weights several times. ``cut`` gives the same message with each big tensor's
data replaced by an external-data reference into the file that it came from (the ONNX format's own
means); ``splice`` is its inverse and gives pieces to write one after another, so weights go from file
to file without being held. Knows field numbers, not what models mean; load.py and the backend use
it. The wire format: https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import onnx

MIN_BYTES = 1024
"""Tensors below this stay in the message: they are shapes, scales and biases."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_EXTERNAL = b"\x70\x01"
"""How TensorProto.data_location = EXTERNAL is written; a message without these bytes has no reference in it."""
_DATA_TYPE, _FLOAT_DATA, _RAW_DATA, _DOUBLE_DATA = 2, 4, 9, 10

Piece = bytes | memoryview


class DamagedMessage(ValueError):
    """The bytes do not follow the wire format."""


@dataclass(frozen=True, slots=True)
class _Path:
    """Which fields of a message to go into; no fields: the message is a TensorProto."""

    fields: Mapping[int, _Path]


_TENSOR = _Path(MappingProxyType({}))
# ModelProto.graph (7) . { initializer (5) | node (1) . attribute (5) . t (5) }
_GRAPH = _Path(MappingProxyType({5: _TENSOR, 1: _Path(MappingProxyType({5: _Path(MappingProxyType({5: _TENSOR}))}))}))
MODEL: _Path = _Path(MappingProxyType({7: _GRAPH}))


def cut(data: memoryview, location: str) -> bytes:
    """Return the ModelProto in ``data`` with every tensor of ``MIN_BYTES`` or more left in the file.

    Args:
        data: the whole file.
        location: the file's name, which the references will hold (with offset and length).

    Raises:
        DamagedMessage: a length points past the end of its message, or a tag is not one.
    """
    return b"".join(_cut(data, 0, len(data), MODEL, location))


def splice(message: bytes, resolve: Callable[[onnx.TensorProto], Piece | None]) -> list[Piece]:
    """Return pieces that, written one after another, are ``message`` with tensor data put back.

    Args:
        message: a serialised ModelProto.
        resolve: the data of an external tensor; None leaves the reference as it is.
    """
    return _splice(message, 0, len(message), MODEL, resolve)


def _cut(data: memoryview, start: int, end: int, path: _Path, location: str) -> Iterator[Piece]:
    copied = start
    for number, wire, at, payload, stop in _fields(data, start, end):
        inner = path.fields.get(number)
        if inner is None or wire != _BYTES or stop - payload < MIN_BYTES:
            continue
        yield data[copied:at]
        copied = stop
        if inner is _TENSOR:
            body = _cut_tensor(data, payload, stop, location)
        else:
            body = b"".join(_cut(data, payload, stop, inner, location))
        yield _tag(number, len(body))
        yield body
    yield data[copied:end]


def _cut_tensor(data: memoryview, start: int, end: int, location: str) -> bytes:
    """Return a TensorProto's bytes with its data, where that is one plain block, as a reference."""
    kept: list[Piece] = []
    block: tuple[int, int] | None = None
    copied = start
    numbers: dict[int, int] = {}
    for number, wire, at, payload, stop in _fields(data, start, end):
        if number == _DATA_TYPE and wire == _VARINT:
            numbers[number] = _varint(data, payload, end)[0]
        # Packed floats and doubles lie in the file as raw data does: little-endian, side by side.
        plain = number == _RAW_DATA or number in (_FLOAT_DATA, _DOUBLE_DATA)
        if plain and wire == _BYTES and stop - payload >= MIN_BYTES:
            if block is not None:
                return bytes(data[start:end])  # data in two blocks: rare and legal, left to the parser
            block = (payload, stop)
            numbers[0] = number
            kept.append(data[copied:at])
            copied = stop
    kept.append(data[copied:end])
    expected = {_FLOAT_DATA: onnx.TensorProto.FLOAT, _DOUBLE_DATA: onnx.TensorProto.DOUBLE}.get(numbers.get(0, 0))
    if block is None or (expected is not None and numbers.get(_DATA_TYPE) != expected):
        return bytes(data[start:end])
    tensor = onnx.TensorProto()
    tensor.ParseFromString(b"".join(kept))
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return bytes(data[start:end])
    refer(tensor, location, block[0], block[1] - block[0])
    rest: bytes = tensor.SerializeToString()
    return rest


def refer(tensor: onnx.TensorProto, location: str, offset: int, length: int) -> None:
    """Make ``tensor`` an external tensor whose data are ``length`` bytes at ``offset`` of a file."""
    tensor.data_location = onnx.TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, str(value)


def _splice(
    message: bytes, start: int, end: int, path: _Path, resolve: Callable[[onnx.TensorProto], Piece | None]
) -> list[Piece]:
    data = memoryview(message)
    pieces: list[Piece] = []
    copied = start
    for number, wire, at, payload, stop in _fields(data, start, end):
        inner = path.fields.get(number)
        if inner is None or wire != _BYTES or message.find(_EXTERNAL, payload, stop) < 0:
            continue
        if inner is _TENSOR:
            body = _splice_tensor(message[payload:stop], resolve)
        else:
            body = _splice(message, payload, stop, inner, resolve)
        if body is None:
            continue
        pieces.append(data[copied:at])
        pieces.append(_tag(number, sum(map(len, body))))
        pieces.extend(body)
        copied = stop
    pieces.append(data[copied:end])
    return pieces


def _splice_tensor(data: bytes, resolve: Callable[[onnx.TensorProto], Piece | None]) -> list[Piece] | None:
    tensor = onnx.TensorProto()
    tensor.ParseFromString(data)
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return None
    content = resolve(tensor)
    if content is None:
        return None
    del tensor.external_data[:]
    tensor.ClearField("data_location")
    return [tensor.SerializeToString(), _tag(_RAW_DATA, len(content)), content]


def _fields(data: memoryview, start: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield (field number, wire type, start of the tag, start of the payload, end) for each field."""
    at = start
    while at < end:
        key, payload = _varint(data, at, end)
        wire = key & 7
        if wire == _BYTES:
            length, payload = _varint(data, payload, end)
            stop = payload + length
        elif wire == _VARINT:
            stop = _varint(data, payload, end)[1]
        elif wire == _FIXED64:
            stop = payload + 8
        elif wire == _FIXED32:
            stop = payload + 4
        else:
            raise DamagedMessage(f"byte {at} starts a field of wire type {wire}, which does not exist")
        if stop > end or key < 8:
            raise DamagedMessage(f"the field at byte {at} does not end inside its message")
        yield key >> 3, wire, at, payload, stop
        at = stop


def _varint(data: memoryview, at: int, end: int) -> tuple[int, int]:
    """Read a base-128 number; return it and where it ends."""
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise DamagedMessage(f"the number at byte {at} has no end")


def _tag(number: int, length: int) -> bytes:
    """Return the tag and length of a length-delimited field."""
    return _encode(number << 3 | _BYTES) + _encode(length)


def _encode(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
