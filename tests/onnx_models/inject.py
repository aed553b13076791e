"""Make channels of an ONNX model constant: the ground truth for removal on files from the field."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from prunec.errors import PrunecError
from prunec.ir.arrays import Array
from prunec.runtime import model_inputs, sessions
from prunec.runtime.probes import Feed, feed

SCALES = (1.0, 0.3, 0.1, 0.03)
"""Sizes of the injected constants, as a multiple of the usual, that ``inject_alive`` tries in turn."""

ALIVE = 0.03
"""An output is alive that follows its input by this fraction of what it did before the injection."""


ZERO = 1e-6
"""A filter counts as zero when none of its weights is above this fraction of the layer's median filter.

A filter's magnitude is that of its largest weight.
"""


@dataclass(frozen=True, slots=True)
class Injection:
    """What was made constant: how many channels, and with constants of what size (1 is usual).

    ``alive`` tells whether the outputs still follow the input; where they do not, agreement says nothing.
    """

    channels: int
    scale: float
    alive: bool


def inject_alive(model: onnx.ModelProto, fraction: float = 0.3, seeds: int = 3) -> Injection:
    """Inject constants, in place, such that the outputs still follow the input.

    A detector's sigmoid can be driven to zero everywhere by large constants, where any two networks
    agree. Sizes and seeds are tried until every output that moved with the input before still does.
    """
    randomize(model)
    before, feeds = _movement(model)
    found, best = model, Injection(0, 0.0, alive=False)
    for scale in SCALES:
        for seed in range(seeds):
            tried = onnx.ModelProto()
            tried.CopyFrom(model)
            count = inject(tried, fraction, seed, scale)
            after, _ = _movement(tried, feeds)
            alive = all(b >= ALIVE * a for a, b in zip(before, after, strict=True)) and (any(after) or not any(before))
            if alive or not best.channels:
                found, best = tried, Injection(count, scale, alive)
            if alive:
                model.CopyFrom(found)
                return best
    model.CopyFrom(found)
    return best


def _movement(model: onnx.ModelProto, feeds: list[Feed] | None = None) -> tuple[list[float], list[Feed]]:
    """Return by how much each float output differs (largest absolute difference) between inputs, and these."""
    runner = sessions.open_runner(model.SerializeToString(), "the model", "cpu", optimise=False)
    feeds = feeds or _feeds(runner)
    runs = zip(*(runner(values) for values in feeds), strict=True)
    same = [each for each in runs if each[0].dtype.kind == "f" and len({values.shape for values in each}) == 1]
    return [float(np.abs(np.stack(each[1:]) - each[0]).max()) for each in same], feeds


def _feeds(runner: sessions.Runner) -> list[Feed]:
    """Return images of two ranges: a network that was trained on one may be silent on the other."""
    for size in model_inputs.candidate_sizes(runner, None):
        kinds = model_inputs.input_kinds(runner, None, size=size)
        feeds = [feed(kinds, family, seed) for family in ("image", "pixels") for seed in (0, 1)]
        try:
            runner(feeds[0])
        except PrunecError:
            raise
        except Exception:  # noqa: BLE001 - onnxruntime's exceptions have no common base class
            continue
        return feeds
    raise AssertionError("no input was found that the model takes")


def inject(model: onnx.ModelProto, fraction: float = 0.3, seed: int = 0, scale: float = 1.0) -> int:
    """Make a fraction of the channels of every Conv constant, in place; return how many.

    Gamma 0 with a random beta where a BatchNormalization or InstanceNormalization follows, else a zero filter
    with a random bias; their standard deviations are 0.3 and 0.1, times ``scale``. (A zero filter in front of
    an InstanceNormalization would put the original to the test, which then divides the rounding of a constant
    channel's mean by the root of its epsilon.) Weights that the file makes with ConstantOfShape are drawn at
    random first: one repeated value says nothing.
    """
    tensors = _Tensors(model, np.random.default_rng(seed))
    tensors.make_random()
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {value.name for value in model.graph.output}
    total, done = 0, set()
    for node in [node for node in model.graph.node if node.op_type in ("Conv", "FusedConv")]:
        weight = tensors.get(node.input[1])
        if weight is None or node.input[1] in done:
            continue
        done.add(node.input[1])
        chosen = tensors.rng.choice(len(weight), int(len(weight) * fraction), replace=False)
        after = readers.get(node.output[0], [])
        normalised = len(after) == 1 and after[0].op_type in _NORMALISATIONS and node.output[0] not in outputs
        if normalised and tensors.get(after[0].input[1]) is not None:
            tensors.change(after[0].input[1], lambda gamma, chosen=chosen: _put(gamma, chosen, 0))
            beta = tensors.rng.standard_normal(chosen.size) * 0.3 * scale
            tensors.change(after[0].input[2], lambda old, chosen=chosen, beta=beta: _put(old, chosen, beta))
        else:
            tensors.change(node.input[1], lambda old, chosen=chosen: _put(old, chosen, 0))
            bias = tensors.rng.standard_normal(chosen.size) * 0.1 * scale
            tensors.change_bias(node, len(weight), lambda old, chosen=chosen, bias=bias: _put(old, chosen, bias))
        total += chosen.size
    return total


def randomize(model: onnx.ModelProto, seed: int = 0) -> bool:
    """Draw the weights that a file makes with ConstantOfShape, in place; tell whether there were any."""
    return _Tensors(model, np.random.default_rng(seed)).make_random()


def zero_filters(model: onnx.ModelProto) -> dict[str, list[int]]:
    """Return convolution -> its output channels whose filters, or whose BatchNormalization's gammas, are zero."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].type == onnx.AttributeProto.TENSOR:
            stored[node.output[0]] = node.attribute[0].t
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found: dict[str, list[int]] = {}
    for node in model.graph.node:
        if node.op_type not in ("Conv", "FusedConv") or node.input[1] not in stored:
            continue
        zero = _zeros(numpy_helper.to_array(stored[node.input[1]]))
        after = readers.get(node.output[0], [])
        if len(after) == 1 and after[0].op_type == "BatchNormalization" and after[0].input[1] in stored:
            zero = zero | _zeros(numpy_helper.to_array(stored[after[0].input[1]]))
        if zero.any():
            found[node.name or node.output[0]] = np.flatnonzero(zero).tolist()
    return found


def _zeros(weight: Array) -> np.ndarray[Any, np.dtype[np.bool_]]:
    size = np.abs(weight.astype(np.float64)).reshape(len(weight), -1).max(axis=1)
    zero: np.ndarray[Any, np.dtype[np.bool_]] = size <= ZERO * np.median(size)
    return zero


def _put(array: Array, places: Array, values: float | Array) -> Array:
    array = np.array(array)
    array[places] = values
    return array


class _Tensors:
    """A model's stored tensors, whatever way they are stored."""

    def __init__(self, model: onnx.ModelProto, rng: np.random.Generator) -> None:
        self.model = model
        self.rng = rng
        self.stored = {tensor.name: tensor for tensor in model.graph.initializer}
        self.makers = {name: node for node in model.graph.node for name in node.output}
        for node in model.graph.node:
            if node.op_type == "Constant":
                for attribute in node.attribute:
                    if attribute.type == onnx.AttributeProto.TENSOR:
                        self.stored[node.output[0]] = attribute.t

    def get(self, name: str) -> Array | None:
        tensor = self.stored.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def change(self, name: str, change: Callable[[Array], Array]) -> None:
        array = self.get(name)
        assert array is not None, f"{name} is not stored"
        tensor = self.stored[name]
        new = numpy_helper.from_array(change(array).astype(array.dtype), tensor.name)
        tensor.CopyFrom(new)

    def change_bias(self, node: onnx.NodeProto, size: int, change: Callable[[Array], Array]) -> None:
        if len(node.input) > 2 and node.input[2] in self.stored:
            self.change(node.input[2], change)
            return
        # No bias, or one that an exporter shares through an Identity: a new one.
        name = f"{node.output[0]}_injected"
        made = helper.make_node(
            "Constant", [], [name], value=numpy_helper.from_array(change(np.zeros(size, np.float32)))
        )
        self.model.graph.node.insert(0, made)
        if len(node.input) < 3:
            node.input.append(name)
        else:
            node.input[2] = name

    def make_random(self) -> bool:
        """Draw the weights that ConstantOfShape makes, as initialisation would; tell whether there were any."""
        made = False
        # Random logits are large; a softmax of them says the same class for every input.
        logits = {node.input[0] for node in self.model.graph.node if node.op_type == "Softmax"}
        for node in list(self.model.graph.node):
            for slot, name in enumerate(node.input):
                maker = self.makers.get(name)
                if maker is not None and maker.op_type == "Reshape":  # an old exporter's way to a matrix
                    maker = self.makers.get(maker.input[0])
                if maker is None or maker.op_type != "ConstantOfShape" or node.op_type not in _PARAMETERS:
                    continue
                shape = self.get(maker.input[0])
                if shape is not None and np.prod(shape) < 3e7:
                    drawn = self._draw(node.op_type, slot, tuple(shape))
                    self._become(maker, drawn * np.float32(0.02) if node.output[0] in logits else drawn)
                    made = True
        return made

    def _draw(self, op: str, slot: int, shape: tuple[int, ...]) -> Array:
        if op == "BatchNormalization":
            return np.full(shape, 1.0 if slot in (1, 4) else 0.0, np.float32)
        if slot == 1:
            return (self.rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)
        return np.zeros(shape, np.float32)

    def _become(self, node: onnx.NodeProto, array: Array) -> None:
        node.op_type = "Constant"
        del node.input[:]
        del node.attribute[:]
        node.attribute.append(helper.make_attribute("value", numpy_helper.from_array(array)))
        self.stored[node.output[0]] = node.attribute[0].t


_NORMALISATIONS = ("BatchNormalization", "InstanceNormalization")

_PARAMETERS = ("Conv", "BatchNormalization", "Gemm", "MatMul")
