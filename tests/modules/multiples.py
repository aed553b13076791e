"""Networks in which filters are multiples of other filters: the multiples put into any module with convolutions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


def put_multiples(net: nn.Module, seed: int, *, copies: bool = False, share: float = 1.0) -> int:
    """Make rows of weights multiples of an earlier row of the same layer and group, normalisations behind them alike.

    Args:
        copies: all factors are 1, and what follows has the same parameters.
        share: of the layers, how many get multiples.

    Returns:
        How many rows.
    """
    generator = torch.Generator().manual_seed(seed)
    made = 0
    with torch.no_grad():
        modules = list(net.modules())
        for module, following in zip(modules, [*modules[1:], nn.Identity()], strict=True):
            if type(module) in CONVOLUTIONS and float(torch.rand((), generator=generator)) < share:
                made += _in_layer(module, following, generator, copies)
    return made


def _in_layer(layer: nn.Module, norm: nn.Module, generator: torch.Generator, copies: bool) -> int:
    axis, groups = int(isinstance(layer, nn.ConvTranspose2d)), int(getattr(layer, "groups", 1))
    weight = layer.weight.transpose(0, axis)  # type: ignore[operator]  # a layer with a weight
    width, made = weight.shape[0] // (1 if axis else groups), 0
    for row in range(1, weight.shape[0]):
        if row % width == 0 or torch.rand((), generator=generator) < 0.5:
            continue
        source = row - 1 - int(torch.randint(row % width, (), generator=generator))
        factor = 1.0 if copies else float(torch.rand((), generator=generator, dtype=torch.float64) * 3 + 0.1)
        make_multiple(layer, norm, row, source, factor)
        made += 1
    return made


def make_multiple(layer: nn.Module, norm: nn.Module, row: int, source: int, factor: float) -> None:
    """Make one row of a layer, as a BatchNorm behind it leaves it, a multiple of another one."""
    axis = int(isinstance(layer, nn.ConvTranspose2d))
    weight = layer.weight.transpose(0, axis)  # type: ignore[operator]  # a layer with a weight
    outs, groups = weight.shape[0], int(getattr(layer, "groups", 1)) if axis else 1
    weight[row] = factor * weight[source]
    for start in range(0, outs * groups, outs):  # a grouped transposed convolution has each row in every group
        _scale_rest(layer, norm, start + row, start + source, factor)


def _scale_rest(layer: nn.Module, norm: nn.Module, row: int, source: int, factor: float) -> None:
    if isinstance(layer.bias, Tensor):
        layer.bias[row] = factor * layer.bias[source]
    if not isinstance(norm, nn.BatchNorm2d | nn.InstanceNorm2d) or norm.weight is None:
        return
    if isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None:
        if factor == 1.0:
            norm.running_var[row] = norm.running_var[source]
            norm.weight[row] = norm.weight[source]
        norm.running_mean[row] = factor * norm.running_mean[source]
        scales = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        if scales[source] != 0:
            norm.bias[row] = factor * scales[row] / scales[source] * norm.bias[source]
        elif factor == 1.0:
            norm.bias[row] = norm.bias[source]
    else:
        norm.weight[row], norm.bias[row] = norm.weight[source], norm.bias[source]
