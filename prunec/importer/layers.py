"""ONNX -> torch: convolutions, matrix products, pools and normalisations. Each function is one row.

Owns the layers with parameters and windows; the table is in module.py. Reference: the ONNX operator
specification, and ContribOperators.md for com.microsoft.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx, nn

from prunec.frontends.onnx.ops.compute import window
from prunec.frontends.onnx.sizes.view import View, at, known_dims
from prunec.importer.build import Builder, Unconvertible, to_tensor

_CONVS: tuple[Any, ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED: tuple[Any, ...] = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS: tuple[Any, ...] = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_MAX_POOLS: tuple[Any, ...] = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
_AVERAGE_POOLS: tuple[Any, ...] = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
_ADAPTIVE: tuple[Any, ...] = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)

ACTIVATIONS = {"Relu": torch.relu, "Sigmoid": torch.sigmoid, "Tanh": torch.tanh}


def conv(view: View, b: Builder) -> fx.Node:
    """Conv, and FusedConv's convolution: a layer; pads that differ at the two ends become a separate padding."""
    weight, bias = b.content(view, 1), b.optional(view, 2)
    settings, x = _window(view, b, weight.shape[2:])
    made = _CONVS[weight.ndim - 3](
        weight.shape[1] * view.attrs.get("group", 1),
        weight.shape[0],
        tuple(weight.shape[2:]),
        stride=tuple(settings["strides"]),
        padding=tuple(settings["pads"]),
        dilation=tuple(settings["dilations"]),
        groups=view.attrs.get("group", 1),
        bias=bias is not None,
    )
    _fill(made, weight=weight, bias=bias)
    return b.layer(view, made, x, weight=(1, False), bias=(2, False))


def fused_conv(view: View, b: Builder) -> fx.Node:
    """com.microsoft.FusedConv: a convolution, a sum (input 3) and an activation."""
    found = conv(view, b)
    if view.has(3):
        found = b.call(torch.add, found, b.input(view, 3))
    return activated(view, b, found)


def activated(view: View, b: Builder, x: fx.Node) -> fx.Node:
    """Apply the activation that a fused node names."""
    name = view.attrs.get("activation", "")
    params = view.attrs.get("activation_params") or []
    if not name:
        return x
    if name in ACTIVATIONS:
        return b.call(ACTIVATIONS[name], x)
    if name == "LeakyRelu":
        return b.call(F.leaky_relu, x, params[0] if params else 0.01)
    if name == "Clip" and len(params) == 2:
        return b.call(torch.clamp, x, params[0], params[1])
    if name == "HardSigmoid" and len(params) == 2:
        return b.call(torch.clamp, b.call(torch.add, b.call(torch.mul, x, params[0]), params[1]), 0.0, 1.0)
    raise Unconvertible(f"its activation {name} is not known")


def conv_transpose(view: View, b: Builder) -> fx.Node:
    """ConvTranspose; if its pads differ at the two ends, a slice crops the output instead."""
    weight, bias = b.content(view, 1), b.optional(view, 2)
    count = weight.ndim - 2
    extra = view.attrs.get("output_padding") or [0] * count
    strides = view.attrs.get("strides") or [1] * count
    dilations = view.attrs.get("dilations") or [1] * count
    pads = _transposed_pads(view, weight.shape[2:], strides, dilations, extra)
    extra = [have + max(0, -more) for have, more in zip(extra, pads[count:], strict=True)]
    begin, end = pads[:count], [max(0, pad) for pad in pads[count:]]
    if any(have >= max(s, d) for have, s, d in zip(extra, strides, dilations, strict=True)):
        raise Unconvertible("its output is larger than it computes")
    even = begin == end
    made = _TRANSPOSED[count - 1](
        weight.shape[0],
        weight.shape[1] * view.attrs.get("group", 1),
        tuple(weight.shape[2:]),
        stride=tuple(strides),
        padding=tuple(begin) if even else 0,
        output_padding=tuple(extra),
        groups=view.attrs.get("group", 1),
        bias=bias is not None,
        dilation=tuple(dilations),
    )
    _fill(made, weight=weight, bias=bias)
    found = b.layer(view, made, b.input(view, 0), weight=(1, False), bias=(2, False))
    if even:
        return found
    cuts = tuple(slice(low or None, -high or None) for low, high in zip(begin, end, strict=True))
    return b.call(operator.getitem, found, (slice(None), slice(None), *cuts))


def _transposed_pads(
    view: View, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], extra: Sequence[int]
) -> list[int]:
    """Return a transposed convolution's pads; those that follow from an output size are computed."""
    count, mode = len(kernel), view.attrs.get("auto_pad", "NOTSET")
    if not view.attrs.get("output_shape") and mode in ("NOTSET", "VALID"):
        return list((view.attrs.get("pads") if mode == "NOTSET" else None) or [0] * 2 * count)
    begin, end = [], []
    for axis in range(count):
        old, new = at(view.shape(0), axis + 2), at(view.out_shape(), axis + 2)
        if not isinstance(old, int) or not isinstance(new, int):
            raise Unconvertible("its padding follows from open sizes")
        total = strides[axis] * (old - 1) + extra[axis] + (kernel[axis] - 1) * dilations[axis] + 1 - new
        # A negative total means additional rows or columns at the end, like output_padding.
        half = 0 if total < 0 else total // 2 if mode == "SAME_UPPER" else total - total // 2
        begin.append(half)
        end.append(total - half)
    return begin + end


def gemm(view: View, b: Builder) -> fx.Node:
    """Gemm with stored weights: a linear layer."""
    if view.attrs.get("transA") or b.values.get(view.inputs[1]) is not None:
        raise Unconvertible("it multiplies two computed matrices")
    alpha, beta = view.attrs.get("alpha", 1.0), view.attrs.get("beta", 1.0)
    weight, bias = b.content(view, 1), b.optional(view, 2)
    plain = bool(view.attrs.get("transB"))
    made = nn.Linear(weight.shape[int(plain)], weight.shape[1 - int(plain)], bias=bias is not None)
    weight = alpha * (weight if plain else weight.T)
    if bias is not None:
        bias = beta * np.broadcast_to(bias.reshape(-1), (weight.shape[0],))
    _fill(made, weight=weight, bias=bias)
    return activated(view, b, b.layer(view, made, b.input(view, 0), weight=(1, not plain), bias=(2, False)))


def matmul(view: View, b: Builder) -> fx.Node:
    """MatMul: a linear layer if the second matrix is stored, else a product."""
    if view.inputs[1] in b.values or view.rank(1) != 2 or view.inputs[0] not in b.values:
        return b.call(torch.matmul, b.input(view, 0, trained=True), b.input(view, 1, trained=True))
    weight = b.content(view, 1)
    made = nn.Linear(weight.shape[0], weight.shape[1], bias=False)
    _fill(made, weight=weight.T)
    return b.layer(view, made, b.input(view, 0), weight=(1, True))


def batch_norm(view: View, b: Builder) -> fx.Node:
    """BatchNormalization with stored statistics."""
    rank = view.rank()
    if rank is None or not 2 <= rank <= 5:
        raise Unconvertible("the rank of its input is not known")
    if view.attrs.get("training_mode") or view.attrs.get("spatial", 1) == 0:
        raise Unconvertible("it is written for training, or normalises every position by itself")
    gamma, beta, mean, var = (b.content(view, index) for index in range(1, 5))
    made = _NORMS[rank - 2](gamma.size, eps=view.attrs.get("epsilon", 1e-5))
    _fill(made, weight=gamma, bias=beta, running_mean=mean, running_var=var)
    return b.layer(
        view,
        made,
        b.input(view, 0),
        weight=(1, False),
        bias=(2, False),
        running_mean=(3, False),
        running_var=(4, False),
    )


def instance_norm(view: View, b: Builder) -> fx.Node:
    """InstanceNormalization."""
    rank = view.rank() or 0
    if not 3 <= rank <= 5:
        raise Unconvertible("the rank of its input is not known")
    kinds: tuple[Any, ...] = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
    gamma, beta = b.content(view, 1), b.content(view, 2)
    made = kinds[rank - 3](gamma.size, eps=view.attrs.get("epsilon", 1e-5), affine=True)
    _fill(made, weight=gamma, bias=beta)
    return b.layer(view, made, b.input(view, 0), weight=(1, False), bias=(2, False))


def group_norm(view: View, b: Builder) -> fx.Node:
    """GroupNormalization with a scale per channel (opset 21)."""
    gamma, beta, groups = b.content(view, 1), b.content(view, 2), view.attrs["num_groups"]
    channels = at(view.shape(0), 1)
    if gamma.size != channels:
        raise Unconvertible("its scales are per group")
    made = nn.GroupNorm(groups, gamma.size, eps=view.attrs.get("epsilon", 1e-5))
    _fill(made, weight=gamma, bias=beta)
    return b.layer(view, made, b.input(view, 0), weight=(1, False), bias=(2, False))


def layer_norm(view: View, b: Builder) -> fx.Node:
    """LayerNormalization over the last axes."""
    gamma, beta = b.content(view, 1), b.optional(view, 2)
    made = nn.LayerNorm(tuple(gamma.shape), eps=view.attrs.get("epsilon", 1e-5), bias=beta is not None)
    axis, rank = view.axis(-1), view.rank()
    if axis is None or rank is None or rank - axis != gamma.ndim:
        raise Unconvertible("its scale does not span the axes that it normalises")
    _fill(made, weight=gamma, bias=beta)
    return b.layer(view, made, b.input(view, 0), weight=(1, False), bias=(2, False))


def local_response_norm(view: View, b: Builder) -> fx.Node:
    """LRN across channels."""
    a = view.attrs
    return b.call(
        F.local_response_norm,
        b.input(view, 0),
        a["size"],
        a.get("alpha", 1e-4),
        a.get("beta", 0.75),
        a.get("bias", 1.0),
    )


def max_pool(view: View, b: Builder) -> fx.Node:
    """MaxPool; pads that differ at the two ends, or are large, become a padding with minus infinity."""
    if len([name for name in view.outputs if name]) > 1:
        raise Unconvertible("its indices are read")
    kernel = view.attrs["kernel_shape"]
    settings, x = _window(view, b, kernel, value=float("-inf"), most=[size // 2 for size in kernel])
    return b.call(
        _MAX_POOLS[len(kernel) - 1],
        x,
        tuple(kernel),
        stride=tuple(settings["strides"]),
        padding=tuple(settings["pads"]),
        dilation=tuple(settings["dilations"]),
        ceil_mode=bool(view.attrs.get("ceil_mode", 0)),
    )


def average_pool(view: View, b: Builder) -> fx.Node:
    """AveragePool; if the pads at the two ends differ, a stored divisor excludes padded zeros."""
    kernel = view.attrs["kernel_shape"]
    counted = bool(view.attrs.get("count_include_pad", 0))
    pads = window(view, kernel)["pads"]
    settings, x = _window(view, b, kernel, most=[size // 2 for size in kernel])
    if any(step != 1 for step in settings["dilations"]):
        raise Unconvertible("it is dilated")
    apart = [*settings["pads"], *settings["pads"]] != list(pads)
    pool = functools.partial(
        _AVERAGE_POOLS[len(kernel) - 1],
        kernel_size=tuple(kernel),
        stride=tuple(settings["strides"]),
        padding=tuple(settings["pads"]),
        ceil_mode=bool(view.attrs.get("ceil_mode", 0)),
        count_include_pad=counted or apart,
    )
    found = b.call(pool.func, x, **pool.keywords)
    if not apart or counted:
        return found
    extent = (view.shape(0) or ())[2:]
    known = known_dims(extent)
    if known is None:
        raise Unconvertible("its pads differ at the two ends, and the size of its input is open")
    share = pool(F.pad(torch.ones(1, 1, *known), _flat_pads(pads)))
    return b.call(torch.div, found, b.stored(f"{view.node.name}_share", share.numpy()))


def global_average_pool(view: View, b: Builder) -> fx.Node:
    """GlobalAveragePool."""
    rank = view.rank() or 0
    if not 3 <= rank <= 5:
        raise Unconvertible("the rank of its input is not known")
    return b.call(_ADAPTIVE[rank - 3], b.input(view, 0), 1)


def global_max_pool(view: View, b: Builder) -> fx.Node:
    """GlobalMaxPool."""
    rank = view.rank()
    if rank is None:
        raise Unconvertible("the rank of its input is not known")
    return b.call(torch.amax, b.input(view, 0), tuple(range(2, rank)), keepdim=True)


def _window(
    view: View, b: Builder, kernel: Sequence[int], value: float = 0.0, most: Sequence[int] | None = None
) -> tuple[dict[str, Any], fx.Node]:
    """Return strides, dilations and one pad per axis, and the input, padded beforehand if one pad is not enough."""
    settings = window(view, list(kernel))
    x = b.input(view, 0)
    if settings.get("auto_pad") and not all(isinstance(size, int) for size in (view.shape(0) or (0, "?"))[2:]):
        raise Unconvertible("its SAME padding depends on open sizes")
    count = len(kernel)
    begin, end = settings["pads"][:count], settings["pads"][count:]
    fits = most is None or all(pad <= limit for pad, limit in zip(begin, most, strict=True))
    if begin != end or not fits:
        x = b.call(F.pad, x, _flat_pads(settings["pads"]), value=value)
        begin = [0] * count
    return {**settings, "pads": begin}, x


def _flat_pads(pads: Sequence[int]) -> tuple[int, ...]:
    """Return pads (begin..., end...) in the order of torch.nn.functional.pad: pairs, the last axis first."""
    count = len(pads) // 2
    return tuple(pads[place] for axis in range(count - 1, -1, -1) for place in (axis, axis + count))


def _fill(module: nn.Module, **arrays: Any) -> None:
    with torch.no_grad():
        for name, array in arrays.items():
            if array is not None:
                getattr(module, name).copy_(to_tensor(np.ascontiguousarray(array)))
