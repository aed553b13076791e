"""Prune first, then quantise: ONNX Runtime's static quantisation (QDQ) of the whole and of the pruned network.

Run it with `python examples/toolchains/quantise_after.py`.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import digits
import onnx
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

import prunec


class Images(CalibrationDataReader):
    """Feeds some images, one batch at a time."""

    def __init__(self, images: torch.Tensor) -> None:
        self.batches = iter([{"image": batch.numpy()} for batch in images.split(32)])

    def get_next(self) -> dict[str, object] | None:
        return next(self.batches, None)


def main() -> None:
    """Print size, accuracy and agreement with the original for each of the four networks."""
    logging.getLogger().setLevel(logging.ERROR)
    data = digits.trained()
    whole = digits.exported(data)
    pruned = prunec.prune_model(whole).model
    expected = digits.run(whole, data.test)
    models = {"as it was": whole, "pruned": pruned}
    models |= {f"{name}, int8": quantised(model, data.train[:256]) for name, model in models.items()}
    for name, model in models.items():
        scores = digits.run(model, data.test)
        agreement = 100 * (scores.argmax(1) == expected.argmax(1)).mean()
        right = digits.accuracy(scores, data.labels)
        print(f"{name:<16} {model.ByteSize():>7,} bytes  accuracy {right:.1f}%  agrees on {agreement:.1f}%")


def quantised(model: onnx.ModelProto, images: torch.Tensor) -> onnx.ModelProto:
    """Return a model with int8 weights and activations, between QuantizeLinear and DequantizeLinear."""
    with tempfile.TemporaryDirectory() as folder:
        ready, done = Path(folder) / "ready.onnx", Path(folder) / "int8.onnx"
        quant_pre_process(model, str(ready))
        quantize_static(
            str(ready),
            str(done),
            Images(images),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
        )
        return onnx.load(done)


if __name__ == "__main__":
    main()
