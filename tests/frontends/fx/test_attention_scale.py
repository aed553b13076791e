"""Attention divides by the root of a head's size. Smaller heads still divide by what the weights were trained with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from assertions import assert_same_function
from onnx_models.masks import prune_at_random
from onnx_models.nets import Net, assert_pruned_agrees, num_removed
from torch import Tensor, nn
from torch.nn import functional as F

from prunec.api import prune_module

TOKENS, HEADS, SIZE, SILENT = 16, 4, 8, (1, 3, 4)
WIDTH = HEADS * SIZE


class Attending(nn.Module):
    """Queries and keys of which some channels are zero in every head."""

    def __init__(self, attend: Callable[[Tensor, Tensor, Tensor], Tensor], heads: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attend, self.heads = attend, heads
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        for linear in (self.q, self.k):
            linear.weight.data.view(HEADS, SIZE, WIDTH)[:, list(SILENT)] = 0
            linear.bias.data.view(HEADS, SIZE)[:, list(SILENT)] = 0

    def forward(self, x: Tensor) -> Tensor:
        parts = [linear(x) for linear in (self.q, self.k, self.v)]
        if self.heads:
            parts = [part.view(-1, TOKENS, HEADS, SIZE).transpose(1, 2) for part in parts]
        y = self.attend(*parts)
        return self.out(y.transpose(1, 2).reshape(-1, TOKENS, WIDTH) if self.heads else y)  # type: ignore[no-any-return]


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query=q, key=k, value=v, is_causal=True)


def masked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril())


def scaled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, scale=0.7)


@pytest.mark.parametrize("heads", [True, False])
@pytest.mark.parametrize("attend", [F.scaled_dot_product_attention, causal, masked, scaled])
def test_modules_compute_the_same(attend: Callable[..., Tensor], heads: bool) -> None:
    net = Attending(attend, heads).eval()
    x = torch.randn(2, TOKENS, WIDTH, generator=torch.Generator().manual_seed(0))
    result = prune_module(net, (x,), validate=False)
    assert result.report.removed_channels == 2 * HEADS * len(SILENT)
    assert_same_function(net, result.module, x)


def attending(silent: tuple[int, ...] = (), **attrs: float) -> onnx.ModelProto:
    net = Net(23, ir_version=10)
    x = net.input("x", [2, TOKENS, WIDTH])

    def heads(gone: tuple[int, ...]) -> str:
        weight = net.weight(WIDTH, HEADS, SIZE) * 4
        weight[:, :, list(gone)] = 0
        y = net.op("MatMul", x, net.const(weight.reshape(WIDTH, WIDTH)))
        return str(net.op("Transpose", net.op("Reshape", y, net.ints(0, 0, HEADS, SIZE)), perm=[0, 2, 1, 3]))

    y = net.op("Attention", heads(silent), heads(silent), heads(()), **attrs)
    y = net.op("Reshape", net.op("Transpose", y, perm=[0, 2, 1, 3]), net.ints(0, 0, WIDTH))
    net.output(net.op("MatMul", y, net.const(net.weight(WIDTH, 5))), shape=[2, TOKENS, 5])
    return net.model()


@pytest.mark.parametrize("attrs", [{}, {"scale": 0.7}, {"is_causal": 1}])
def test_files_compute_the_same(attrs: dict[str, float], tmp_path: Path) -> None:
    _, made, pruned = assert_pruned_agrees(attending(SILENT, **attrs), tmp_path)
    assert num_removed(made) == 2 * HEADS * len(SILENT)
    node = next(node for node in pruned.graph.node if node.op_type == "Attention")
    scale = next(attribute.f for attribute in node.attribute if attribute.name == "scale")
    assert scale == np.float32(attrs.get("scale", SIZE**-0.5))


@pytest.mark.parametrize("attrs", [{}, {"scale": 0.7}])
def test_any_channels_of_its_heads_can_go(attrs: dict[str, float]) -> None:
    for seed in range(4):
        _, facts, keep = prune_at_random(attending(**attrs), seed)
        assert (~keep & facts.classes.is_channel).any()


def merged_with_an_open_batch() -> onnx.ModelProto:
    """Heads beside the images of an open batch, as PyTorch's attention has them: [L, N, 32] -> [L, 4·N, 8] and back."""
    net = Net(17)
    x = net.op("Relu", net.conv(net.input("x", ["N", 3, 4, 4]), 3, WIDTH))
    x = net.op("Transpose", net.op("Reshape", x, net.ints(0, WIDTH, TOKENS)), perm=[2, 0, 1])
    batch = net.op("Slice", net.op("Shape", x), net.ints(1), net.ints(2))
    heads = net.op("Mul", batch, net.ints(HEADS))
    x = net.op("Reshape", x, net.op("Concat", net.ints(TOKENS), heads, net.ints(SIZE), axis=0))
    x = net.op("Sigmoid", net.op("Transpose", x, perm=[1, 0, 2]))
    x = net.op("Transpose", x, perm=[1, 0, 2])
    x = net.op("Reshape", x, net.op("Concat", net.ints(TOKENS), batch, net.ints(WIDTH), axis=0))
    net.output(net.op("MatMul", x, net.const(net.weight(WIDTH, 5))), shape=[TOKENS, "N", 5])
    return net.model()


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_heads_merged_with_an_open_batch_lose_the_same_channels(batch: int) -> None:
    _, facts, keep = prune_at_random(merged_with_an_open_batch(), batch, {"N": batch})
    assert (~keep & facts.classes.is_channel).any()
