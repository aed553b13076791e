"""What comes out of an op on the meta device, told without running it: the tables SHORTCUTS and IMMATERIAL.

torch computes these there by many smaller ops in Python, at up to milliseconds a call. Where operands are not plain, or
do not fit each other, a rule says nothing, and torch is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor


def _like(tensor: Tensor) -> Tensor:
    """Do what torch.empty_like does, which takes ten times as long on the meta device."""
    if not tensor.is_contiguous():
        return torch.empty_like(tensor)
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _new(like: Tensor, sizes: Sequence[int]) -> Tensor:
    return torch.empty(sizes, dtype=like.dtype, device="meta")


def _like_first(args: Sequence[Any]) -> Any:
    """An elementwise op on floats: the result is laid out as the operand is."""
    return _like(args[0]) if args[0].is_floating_point() else None


def _first(args: Sequence[Any]) -> Any:
    """The same in place."""
    return args[0] if args[0].is_floating_point() else None


def _batch_norm(args: Sequence[Any]) -> Any:
    """In evaluation with the network's statistics, all in the precision in which torch computes; or in training."""
    x, weight, bias, mean, var, training, *_ = args
    computed = torch.float64 if x.dtype == torch.float64 else torch.float32
    vectors = [each for each in (weight, bias, mean, var) if each is not None]
    if x.dim() < 2 or any(tuple(each.shape) != (x.shape[1],) for each in vectors):
        return None
    if training and (not _plain(x) or any(each.dtype != computed for each in (x, *vectors))):
        return None
    if not training and (mean is None or var is None or not mean.dtype == var.dtype == computed):
        return None
    return _like(x), *(torch.empty((x.shape[1],), dtype=computed, device="meta") for _ in range(2))


def _plain(tensor: Tensor) -> bool:
    """Tell whether a tensor lies as torch lays out a new one of its sizes, and not also with its channels last."""
    if not tensor.is_floating_point() or not tensor.is_contiguous():
        return False
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.dim())
    return last is None or not tensor.is_contiguous(memory_format=last)


def _binary(args: Sequence[Any]) -> Any:
    """A number, or a tensor of the same precision that is spread over the first."""
    x, other = args
    if isinstance(other, int | float):
        return _like_first(args)
    if not _plain(x) or not isinstance(other, Tensor):
        return None
    spread = x.shape[x.dim() - other.dim() :] if other.dim() <= x.dim() else ()
    over = other.dim() <= x.dim() and all(b in (a, 1) for a, b in zip(spread, other.shape, strict=True))
    return _like(x) if over and other.dtype == x.dtype and other.is_contiguous() else None


def _softmax(args: Sequence[Any]) -> Any:
    x, dim, *dtype = args
    fits = _plain(x) and -x.dim() <= dim < x.dim() and not any(dtype)
    return _like(x) if fits else None


def _convolution(args: Sequence[Any]) -> Any:
    """One that is not transposed, with sizes that fit; torch tells what is wrong with others."""
    x, weight, bias, stride, padding, dilation, transposed, _, groups = args
    if transposed or x.dim() != weight.dim() or x.shape[1] != weight.shape[1] * groups or not x.shape[1]:
        return None
    if weight.shape[0] % groups or (bias is not None and tuple(bias.shape) != (weight.shape[0],)):
        return None
    axes = range(x.dim() - 2)
    stride, padding, dilation = (
        [each[min(axis, len(each) - 1)] for axis in axes] for each in (stride, padding, dilation)
    )
    reach = (step * (size - 1) for step, size in zip(dilation, weight.shape[2:], strict=True))
    rest = [size + 2 * pad - far - 1 for size, pad, far in zip(x.shape[2:], padding, reach, strict=True)]
    if not rest or min(rest) < 0:
        return None
    return x.new_empty(
        (x.shape[0], weight.shape[0], *(size // step + 1 for size, step in zip(rest, stride, strict=True)))
    )


def _addmm(args: Sequence[Any]) -> Any:
    bias, a, b = args
    if not a.dim() == b.dim() == 2 or a.shape[1] != b.shape[0] or tuple(bias.shape) != (b.shape[1],):
        return None
    return _new(a, (a.shape[0], b.shape[1])) if bias.dtype == a.dtype == b.dtype else None


def _cat(args: Sequence[Any]) -> Any:
    tensors, dim = args[0], args[1] if len(args) > 1 else 0
    first = tensors[0]
    if first.dim() < 2 or not all(_plain(each) and each.dtype == first.dtype for each in tensors):
        return None
    axis = dim % first.dim()
    sizes = [[*each.shape] for each in tensors]
    total = sum(each[axis] for each in sizes)
    for each in sizes:
        each[axis] = total
    return _new(first, sizes[0]) if all(each == sizes[0] for each in sizes) else None


def _layer_norm(args: Sequence[Any]) -> Any:
    x, shape, weight, bias, _ = args
    kept = x.dim() - len(shape)
    fits = list(x.shape[kept:]) == list(shape) and all(
        each is None or (list(each.shape) == list(shape) and each.dtype == x.dtype) for each in (weight, bias)
    )
    if not fits or not _plain(x) or x.dtype not in (torch.float32, torch.float64) or kept < 0:
        return None
    sizes = (*x.shape[:kept], *[1] * len(shape))
    return _like(x), _new(x, sizes), _new(x, sizes)


def _group_norm(args: Sequence[Any]) -> Any:
    x, weight, bias, batch, channels, spatial, groups, _ = args
    if not _plain(x) or x.dtype not in (torch.float32, torch.float64) or channels % groups:
        return None
    if x.numel() != batch * channels * spatial or x.shape[:2] != (batch, channels):
        return None
    if any(each is not None and (tuple(each.shape) != (channels,) or each.dtype != x.dtype) for each in (weight, bias)):
        return None
    return _like(x), _new(x, (batch, groups)), _new(x, (batch, groups))


def _mean(args: Sequence[Any]) -> Any:
    """Over some axes that are named once each; torch tells what is wrong with others."""
    x, axes, *keep = args
    if not _plain(x) or not axes or any(not -x.dim() <= axis < x.dim() for axis in axes):
        return None
    gone = {axis % x.dim() for axis in axes}
    if len(gone) < len(axes):
        return None
    kept = [1 if axis in gone else size for axis, size in enumerate(x.shape)]
    return _new(x, kept if any(keep) else [size for axis, size in enumerate(kept) if axis not in gone])


def _resized(args: Sequence[Any]) -> Any:
    x, sizes = args[:2]
    return _new(x, (*x.shape[:2], *sizes)) if _plain(x) and x.numel() and min(sizes) > 0 else None


_ELEMENTWISE = ("relu", "hardtanh", "hardswish", "hardsigmoid", "mish", "silu", "elu", "leaky_relu", "gelu", "sigmoid",
                "tanh")  # fmt: skip
IMMATERIAL = frozenset({"alpha", "beta", "approximate"})
"""Arguments by name that change no size and no type."""
SHORTCUTS: Mapping[Any, Callable[[Sequence[Any]], Any]] = MappingProxyType(
    {
        **{getattr(torch.ops.aten, name).default: _like_first for name in _ELEMENTWISE},
        **{getattr(torch.ops.aten, f"{name}_").default: _first for name in _ELEMENTWISE},
        **{getattr(torch.ops.aten, name).Tensor: _binary for name in ("add", "sub", "mul", "div")},
        torch.ops.aten.mul.Scalar: _binary,
        torch.ops.aten._safe_softmax.default: _softmax,
        torch.ops.aten.native_batch_norm.default: _batch_norm,
        torch.ops.aten.convolution.default: _convolution,
        torch.ops.aten.addmm.default: _addmm,
        torch.ops.aten.cat.default: _cat,
        torch.ops.aten.native_layer_norm.default: _layer_norm,
        torch.ops.aten.native_group_norm.default: _group_norm,
        torch.ops.aten.mean.dim: _mean,
        torch.ops.aten.upsample_bilinear2d.default: _resized,
    }
)
"""Op -> what comes out of it, from its arguments by position, with tensors on the meta device."""
