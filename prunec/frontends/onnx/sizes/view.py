"""One node as the ONNX tables see it: attributes as plain Python, inputs with their shapes and known data.

Owns the reading of settings that are attributes in some opsets and inputs in others.
Knows no op; read infer.py next.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import onnx

from prunec.frontends.onnx.loading.nodes import SourceNode
from prunec.ir.arrays import Array
from prunec.ir.graph import Dim, Shape, Value


class FileFacts:
    """What is known of the values so far; grows while the frontend walks the nodes.

    Attributes:
        values: shape and type by name.
        known: contents by name: numbers, or (object arrays) items of symbols.py.
        roots: for known contents that hold a number of channels, or something computed from one: the values
            whose shapes were read for it.
        marks: for the same contents, bool of their shape: which elements those are. Open sizes are never
            marked, for pruning does not change them.
        repeated: known contents that ConstantOfShape, or the expansion of one element, made, and views of them:
            their number can be rewritten, as that of stored numbers cannot.
        centred: (integers, their zero point) -> the value of their difference, where one node makes both.
        pieces: sequence -> the values that it is made of, where that is followed (ops/sequences.py).
        unpooled: indices of maxima that are only unpooled with (ops/unpool.py).
        fixed_sizes: the sizes are the file's own, not ones that the user chose for open axes.
    """

    def __init__(self, fixed_sizes: bool = True) -> None:
        self.fixed_sizes = fixed_sizes
        self.values: dict[str, Value] = {}
        self.known: dict[str, Array] = {}
        self.roots: dict[str, frozenset[str]] = {}
        self.marks: dict[str, Array] = {}
        self.repeated: set[str] = set()
        self.centred: dict[tuple[str, str], str] = {}
        self.pieces: dict[str, tuple[str, ...]] = {}
        self.unpooled: frozenset[str] = frozenset()

    def shape(self, name: str) -> Shape | None:
        array = self.known.get(name)
        if array is not None:
            return tuple(array.shape)
        value = self.values.get(name)
        return value.shape if value is not None else None

    def unsettled(self, name: str) -> Array | None:
        """Return bool of the shape of ``name``: elements that pruning may change without prunec knowing to what.

        None where nothing is known of the contents.
        """
        array = self.known.get(name)
        if array is None:
            return None
        if array.dtype != object or name not in self.marks:
            return np.zeros(array.shape, np.bool_)
        numbers = np.array([isinstance(value, int | float) for value in array.ravel()], np.bool_)
        return self.marks[name] & ~numbers.reshape(array.shape)

    def constant(self, name: str) -> Array | None:
        """Return the contents of ``name`` where all of it is numbers."""
        array = self.known.get(name)
        return array if array is not None and array.dtype != object else None


class View:
    """A node together with the facts about its inputs."""

    __slots__ = ("attrs", "facts", "inputs", "node", "op", "outputs")

    def __init__(self, node: SourceNode, facts: FileFacts) -> None:
        self.node = node
        self.facts = facts
        self.op = node.op
        self.inputs = node.inputs
        self.outputs = node.outputs
        self.attrs = node.attrs

    def has(self, index: int) -> bool:
        """Tell whether input ``index`` is there."""
        return index < len(self.inputs) and bool(self.inputs[index])

    def shape(self, index: int) -> Shape | None:
        """Return the shape of input ``index``."""
        return self.facts.shape(self.inputs[index]) if self.has(index) else None

    def rank(self, index: int = 0) -> int | None:
        """Return the rank of input ``index``."""
        shape = self.shape(index)
        return None if shape is None else len(shape)

    def out_shape(self, index: int = 0) -> Shape | None:
        """Return the shape of output ``index``, as far as it is known by now."""
        return self.facts.shape(self.outputs[index]) if index < len(self.outputs) else None

    def data(self, index: int) -> Array | None:
        """Return what is known of input ``index``: numbers or items."""
        return self.facts.known.get(self.inputs[index]) if self.has(index) else None

    def constant(self, index: int) -> Array | None:
        """Return input ``index`` where all of it is numbers."""
        return self.facts.constant(self.inputs[index]) if self.has(index) else None

    def setting(self, name: str, index: int) -> list[Any] | None:
        """Return attribute ``name``, or input ``index`` in the opsets that made it one, as a list of items.

        None where it is absent or not known; ``has`` tells which.
        """
        value = self.attrs.get(name)
        if value is not None:
            return list(value) if isinstance(value, list) else [value]
        data = self.data(index)
        return None if data is None else data.ravel().tolist()

    def cuts(self) -> list[Cut] | None:
        """Return Slice's cuts; None where the axes are not known."""
        starts, ends, axes, steps = (self.setting(name, slot) for slot, name in enumerate(SLICE_SETTINGS, start=1))
        count = len(starts) if starts is not None else at(self.shape(1), 0)
        if axes is None and not self.has(3) and isinstance(count, int):
            axes = list(range(count))
        where, rank = ints(axes), self.rank()
        if where is None or rank is None:
            return None
        step_default = None if self.has(4) else 1
        return [
            Cut(axis % rank, _pick(starts, place, None), _pick(ends, place, None), _pick(steps, place, step_default))
            for place, axis in enumerate(where)
        ]

    def axis(self, default: int, rank: int | None = None, name: str = "axis") -> int | None:
        """Return an axis attribute, not negative; None where that needs a rank that is unknown."""
        return positive(self.attrs.get(name, default), self.rank() if rank is None else rank)


class Cut(NamedTuple):
    """One axis of a Slice; what is not a known number is None or an item of onnx_symbols."""

    axis: int
    start: Any
    end: Any
    step: Any


SLICE_SETTINGS = ("starts", "ends", "axes", "steps")
"""Slice's settings: attributes before opset 10 (without steps), inputs 1 to 4 after."""


def _pick(values: list[Any] | None, place: int, default: int | None) -> Any:
    return values[place] if values is not None and place < len(values) else default


def positive(axis: int, rank: int | None) -> int | None:
    """Count a negative axis from the front."""
    if axis >= 0:
        return axis
    return None if rank is None else axis + rank


def ints(values: list[Any] | None) -> list[int] | None:
    """Return the values as ints; None where one is not a number."""
    if values is None or not all(isinstance(value, int | float) for value in values):
        return None
    return [int(value) for value in values]


def known_dims(shape: Shape | None) -> tuple[int, ...] | None:
    """Return a shape of numbers only, or None."""
    if shape is None or not all(isinstance(size, int) for size in shape):
        return None
    return tuple(size for size in shape if isinstance(size, int))


def at(shape: Shape | None, axis: int | None) -> Dim:
    """Return one size of a shape that may be unknown."""
    return shape[axis] if shape is not None and axis is not None and -len(shape) <= axis < len(shape) else None


def type_shape(kind: onnx.TypeProto) -> Shape | None:
    """Return a tensor type's shape; sizes without a meaning are None."""
    tensor = kind.tensor_type
    if not tensor.HasField("shape"):
        return None
    dims: list[Dim] = []
    for dim in tensor.shape.dim:
        # Exporters write 0 and -1 for "any".
        size = dim.dim_value
        if size > 0:
            dims.append(size)
        else:
            name = dim.dim_param
            dims.append(name if name not in _NO_NAMES else None)
    return tuple(dims)


_NO_NAMES = ("", "?", "*", "None", "none", "-1", "unk", "unknown", "Unknown")
"""What exporters write as the name of any open size: two of these need not be equal."""
