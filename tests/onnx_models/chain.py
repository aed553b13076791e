"""Two convolutions, half of the first one's channels silent."""

from __future__ import annotations

import onnx

from onnx_models.nets import Net

CHANNELS = 8
SILENT = (1, 2, 5, 6)


def chain(net: Net, shape: tuple[int | str, ...] = (1, 3, 6, 6)) -> onnx.ModelProto:
    x = net.conv(net.input("x", list(shape)), 3, CHANNELS, silent=SILENT)
    net.output(net.conv(net.op("Relu", x), CHANNELS, 4))
    return net.model()
