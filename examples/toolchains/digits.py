"""A small network trained on handwritten digits, for the examples beside this file.

The penalty on its BatchNorm scales brings some a quarter of its channels to zero: those are what the examples
remove, and the function stays. Training takes some ten seconds on one core.
"""

from __future__ import annotations

import functools
import io
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import prunec


class Net(nn.Module):
    """conv-BN-ReLU three times, with a residual sum in the middle, and a linear head."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = (
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
        )
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32[N, 1, 8, 8] -> float32[N, 10]."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(x + self.bn2(self.conv2(x)))
        x = F.relu(self.bn3(self.conv3(x)))
        scores: torch.Tensor = self.head(x.mean((2, 3)))
        return scores


@dataclass(frozen=True)
class Digits:
    """A trained network, and data that it has seen and not seen."""

    network: Net
    train: torch.Tensor
    test: torch.Tensor
    labels: torch.Tensor

    @property
    def example(self) -> tuple[torch.Tensor]:
        return (self.test[:1],)


@functools.cache
@torch.enable_grad()
def trained(width: int = 24, epochs: int = 14, rho: float = 0.005) -> Digits:
    """Train towards sparsity with SGD and ISTA; the same network each time it is asked for."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    digits = load_digits()
    images = torch.from_numpy(digits.images / 16).float().unsqueeze(1)
    labels = torch.from_numpy(digits.target)
    order = torch.randperm(len(images))
    train, test = order[:1437], order[1437:]
    network = Net(width)
    sgd = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    optimizer = prunec.sparsify(network, (images[:1],), sgd, rho=rho)
    for epoch in range(epochs):
        if epoch == epochs - 3:
            for group in optimizer.param_groups:
                group["lr"] = 0.01
        for batch in train[torch.randperm(len(train))].split(64):
            optimizer.zero_grad()
            F.cross_entropy(network(images[batch]), labels[batch]).backward()
            optimizer.step()
    return Digits(network.eval(), images[train], images[test], labels[test])


def exported(digits: Digits) -> onnx.ModelProto:
    """Return the network as an ONNX model in memory, BatchNorms kept, the batch open."""
    buffer = io.BytesIO()
    torch.onnx.export(
        digits.network,
        digits.example,
        buffer,
        dynamo=False,
        input_names=["image"],
        output_names=["scores"],
        dynamic_axes={"image": {0: "batch"}, "scores": {0: "batch"}},
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=False,
    )
    return onnx.load_from_string(buffer.getvalue())


def run(model: onnx.ModelProto, images: torch.Tensor) -> np.ndarray:
    """Return the scores that ONNX Runtime computes, float32[N, 10]."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (scores,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    return np.asarray(scores)


def accuracy(scores: np.ndarray, labels: torch.Tensor) -> float:
    """Return the percentage of images whose highest score is at their label."""
    return 100 * float((scores.argmax(1) == labels.numpy()).mean())
