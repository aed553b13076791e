"""A contraction as a matrix product: its weight times what it sees is what it gives, for every kind and border."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from prunec.fitting.grams import Gram, View, Window, spread_places
from prunec.ir.graph import Node
from prunec.passes.fitting.operands import as_matrix, from_matrix, pooled, unpooled


def check(node: Node, weight: torch.Tensor, x: torch.Tensor, y: torch.Tensor, axis: int, groups: int = 1) -> None:
    array = weight.detach().numpy()
    matrix = as_matrix(node, array)
    np.testing.assert_array_equal(from_matrix(node, matrix, array.shape), array)
    kernel = array.shape[2:] if node.op != "matmul" else ()
    view = View(node, kernel, axis, groups)
    count = view.num_places(x.numpy())
    for places in (np.arange(count), spread_places(count, max(1, count // 2), 3)):
        seen, given = view.inputs(x.numpy(), places), view.outputs(y.detach().numpy(), places)
        np.testing.assert_allclose(matrix @ seen, given, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("how", [(3, 2, 1, 1, 2), (5, 1, 0, 1, 1), (3, 1, 2, 2, 1), (1, 2, 0, 1, 4), (4, 3, 2, 1, 2)])
def test_convolutions(rank: int, how: tuple[int, int, int, int, int]) -> None:
    kernel, stride, padding, dilation, groups = how
    torch.manual_seed(0)
    make = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
    layer = make(4, 8, kernel, stride, padding, dilation, groups, bias=False).double()
    attrs: dict[str, Any] = {"strides": [stride] * rank, "pads": [padding] * 2 * rank, "dilations": [dilation] * rank}
    node = Node("n", "conv", ("x", "w"), ("y",), MappingProxyType({**attrs, "conv_groups": groups}))
    x = torch.randn(2, 4, *(9, 8, 7)[:rank], dtype=torch.float64)
    check(node, layer.weight, x, layer(x), 1, groups)


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize(
    "how", [(3, 2, 1, 1, 1, 1), (2, 2, 0, 0, 1, 2), (4, 2, 3, 0, 2, 1), (3, 3, 0, 2, 1, 4), (1, 2, 0, 0, 1, 1)]
)
def test_transposed_convolutions(rank: int, how: tuple[int, int, int, int, int, int]) -> None:
    kernel, stride, padding, extra, dilation, groups = how
    torch.manual_seed(0)
    make = (nn.ConvTranspose1d, nn.ConvTranspose2d)[rank - 1]
    layer = make(4, 8, kernel, stride, padding, extra, groups, bias=False, dilation=dilation).double()
    attrs: dict[str, Any] = {
        "strides": [stride] * rank, "pads": [padding] * 2 * rank, "dilations": [dilation] * rank,
        "output_padding": [extra] * rank, "conv_groups": groups,
    }  # fmt: skip
    x = torch.randn(2, 4, *(6, 5)[:rank], dtype=torch.float64)
    node = Node("n", "conv_transpose", ("x", "w"), ("y",), MappingProxyType(attrs))
    check(node, layer.weight, x, layer(x), 1, groups)


def test_cropping_is_padding_below_zero() -> None:
    layer = nn.Conv2d(4, 8, 3, bias=False).double()
    attrs = {"strides": [1, 1], "pads": [-1, 0, -2, 1], "dilations": [1, 1], "conv_groups": 1}
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    y = layer(nn.functional.pad(x, (0, 1, -1, -2)))
    check(Node("n", "conv", ("x", "w"), ("y",), MappingProxyType(attrs)), layer.weight, x, y, 1)


@pytest.mark.parametrize("shape", [(5, 6), (2, 7, 6), (2, 3, 4, 6)])
def test_matrix_products(shape: tuple[int, ...]) -> None:
    weight, x = torch.randn(6, 3, dtype=torch.float64), torch.randn(*shape, dtype=torch.float64)
    check(Node("n", "matmul", ("x", "w"), ("y",)), weight, x, x @ weight, len(shape) - 1)
    swapped = Node("n", "matmul", ("x", "w"), ("y",), MappingProxyType({"transpose_b": True}))
    check(swapped, weight.T.contiguous(), x, x @ weight, len(shape) - 1)


def test_pooled_weights_come_back() -> None:
    matrix = np.random.default_rng(0).random((2, 3, 20))
    assert pooled(matrix, 4).shape == (2, 12, 5)
    np.testing.assert_array_equal(unpooled(pooled(matrix, 4), 4), matrix)


@pytest.mark.parametrize("ones", [True, False])
def test_a_gram_summed_up_in_parts_is_that_of_all(ones: bool) -> None:
    columns = np.random.default_rng(0).standard_normal((2, 5, 40)) + 3
    gram = Gram(2, 5, ones=ones)
    for part in np.split(columns, 4, axis=2):
        gram.add(part)
    centred = columns - columns.mean(axis=2, keepdims=True) if ones else columns
    np.testing.assert_allclose(gram.covariance(), centred @ centred.swapaxes(1, 2) / 40, rtol=1e-9, atol=1e-9)
    assert gram.count == 40


def test_a_stretched_input_that_is_cropped_to_its_own_size_is_stretched_all_the_same() -> None:
    attrs: dict[str, Any] = {"strides": [2], "pads": [0, 2], "dilations": [1], "output_padding": [0]}
    window = Window.of(Node("n", "conv_transpose", ("x", "w"), ("y",), MappingProxyType(attrs)), (1,))
    assert window.patches(np.array([[[1.0, 2.0, 3.0]]]), np.arange(3)).tolist() == [[[1.0, 0.0, 2.0]]]
