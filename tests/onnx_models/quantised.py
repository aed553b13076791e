"""Small integer networks: written out op by op, and made from floats by ONNX Runtime's own quantiser."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnx_models.nets import Array, Net

MICROSOFT = "com.microsoft"
CHANNELS = 8
SILENT = (1, 2, 5, 6)
ZERO = 128
"""Zero point of every activation of ``IntegerNet``."""


class IntegerNet(Net):
    """A network under construction whose values are uint8 with one scale; methods return names of values."""

    def __init__(self, opset: int = 17, per_channel: bool = False) -> None:
        super().__init__(opset)
        self.per_channel = per_channel
        self.scale = self.const(np.float32(0.02))
        self.zero = self.const(np.uint8(ZERO))

    def start(self) -> str:
        """Add a float input and its quantisation."""
        return str(self.op("QuantizeLinear", self.input("x", [2, 3, 6, 6]), self.scale, self.zero))

    def end(self, value: str) -> None:
        """Dequantise ``value``; that is the output."""
        self.output(self.op("DequantizeLinear", value, self.scale, self.zero))

    def integers(self, *shape: int, silent: Sequence[int] = ()) -> Array:
        """Draw an int8 weight; the filters in ``silent`` are zero.

        Below 64 no pair of products exceeds 16 bits, where ONNX Runtime saturates on processors without VNNI.
        """
        weight = self.rng.integers(-60, 61, shape).astype(np.int8)
        weight[list(silent)] = 0
        return weight

    def weight_scale(self, count: int, channels_read: int) -> str:
        """Store a weight's scale: one, or one per output channel."""
        size = 0.02 / np.sqrt(channels_read * 9)
        if self.per_channel:
            return self.const(self.rng.uniform(0.5 * size, 1.5 * size, count), np.float32)
        return self.const(np.float32(size))

    def weight_zero(self, count: int) -> str:
        return self.const(np.zeros(count if self.per_channel else (), np.int8))

    def qlinear_conv(
        self,
        x: str,
        c_in: int,
        c_out: int,
        kernel: int = 3,
        silent: Sequence[int] = (),
        bias: bool = True,
        **attrs: Any,
    ) -> str:
        """Add QLinearConv, without padding unless ``pads`` says so."""
        per_group = c_in // attrs.get("group", 1)
        weight = self.const(self.integers(c_out, per_group, kernel, kernel, silent=silent), stem="w")
        inputs = [x, self.scale, self.zero, weight, self.weight_scale(c_out, per_group), self.weight_zero(c_out)]
        inputs += [self.scale, self.zero]
        if bias:
            inputs.append(self.const(self.rng.integers(-20000, 20001, c_out), np.int32, stem="b"))
        return str(self.op("QLinearConv", *inputs, **attrs))

    def contrib(self, kind: str, *inputs: str, **attrs: Any) -> str:
        return str(self.op(kind, *inputs, domain=MICROSOFT, **attrs))

    @property
    def same(self) -> tuple[str, str]:
        """The scale and zero point of every activation."""
        return self.scale, self.zero


def float_cnn(opset: int = 13) -> onnx.ModelProto:
    """Return a CNN with a residual, a concat, a depthwise and a grouped convolution, a Gemm and a MatMul."""
    net = Net(opset)
    first = net.op("Relu", net.conv(net.input("x", ["n", 3, 12, 12]), 3, 16))
    second = net.op("Relu", net.conv(first, 16, 16))
    total = net.op("Add", net.conv(second, 16, 16), first)
    deep = net.op("Relu", net.conv(total, 16, 16, group=16))
    left = net.op("LeakyRelu", net.conv(deep, 16, 8, 1))
    right = net.op("Sigmoid", net.conv(deep, 16, 16, group=4))
    pooled = net.op("AveragePool", net.op("Concat", left, right, axis=1), kernel_shape=[2, 2], strides=[2, 2])
    flat = net.op("Flatten", net.op("GlobalAveragePool", net.op("Relu", net.conv(pooled, 24, 20))))
    weight, bias = net.const(net.weight(24, 20), stem="w"), net.const(net.weight(24), stem="b")
    hidden = net.op("Relu", net.op("Gemm", flat, weight, bias, transB=1))
    net.output(net.op("MatMul", hidden, net.const(net.weight(24, 5), stem="w")))
    return net.model()


QUANTISED = {
    f"{form}-{grain}": (form, grain)
    for form in ("qdq", "qoperator", "dynamic")
    for grain in ("per-tensor", "per-channel", "unsigned")
}
"""Name -> (how ONNX Runtime's quantiser writes the network, what has a scale of its own)."""


def quantised_cnn(name: str, folder: Path) -> Path:
    """Quantise ``float_cnn`` in one of the forms of QUANTISED; return the file."""
    from onnxruntime import quantization as ort

    form, grain = QUANTISED[name]
    source, result = folder / "float.onnx", folder / f"{name}.onnx"
    onnx.save(float_cnn(), source)
    logging.disable(logging.WARNING)  # the quantiser advises on every call
    try:
        kind = ort.QuantType.QUInt8 if grain == "unsigned" else ort.QuantType.QInt8
        settings = {"per_channel": grain == "per-channel", "weight_type": kind, "reduce_range": grain != "unsigned"}
        if form == "dynamic":
            ort.quantize_dynamic(source, result, **settings)
        else:
            style = ort.QuantFormat.QDQ if form == "qdq" else ort.QuantFormat.QOperator
            settings["activation_type"] = ort.QuantType.QUInt8
            ort.quantize_static(source, result, _Noise(), quant_format=style, **settings)
    finally:
        logging.disable(logging.NOTSET)
    return result


class _Noise:
    """The calibration data."""

    def __init__(self) -> None:
        self._batches: Iterator[dict[str, Array]] = iter(noise() for _ in range(4))

    def get_next(self) -> dict[str, Array] | None:
        return next(self._batches, None)


def noise(seed: int = 0) -> dict[str, Array]:
    """Return an input for ``float_cnn``."""
    return {"x": np.random.default_rng(seed).standard_normal((2, 3, 12, 12)).astype(np.float32)}
