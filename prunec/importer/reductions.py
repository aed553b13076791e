"""ONNX -> torch: reductions and softmax. Each function is one row; the table is in module.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from prunec.frontends.onnx.sizes.view import View
from prunec.importer.build import Builder, Row, Unconvertible, numbers, sizes


def softmax(function: Callable[..., Any]) -> Row:
    """Return the row of Softmax or LogSoftmax; before opset 13 it runs over all axes from the given one."""

    def row(view: View, b: Builder) -> fx.Node:
        old = view.node.version < 13
        rank, axis = view.rank(), view.axis(1 if old else -1)
        if rank is None or axis is None:
            raise Unconvertible("the rank of its input is not known")
        x = b.input(view, 0)
        if not old or axis == rank - 1 or math.prod(sizes(view.shape(0), "its shape")[axis:] or [1]) == 1:
            return b.call(function, x, dim=axis)
        flat = b.call(function, b.call(torch.flatten, x, axis), dim=axis)
        return b.call(torch.unflatten, flat, axis, tuple(sizes(view.shape(0), "its shape")[axis - 1 :]))

    return row


def reduce(
    function: Callable[..., Any], before: Callable[..., Any] | None = None, after: Callable[..., Any] | None = None
) -> Row:
    """Return the row of a reduction, with a function before and after it; without axes it runs over all of them."""

    def row(view: View, b: Builder) -> fx.Node:
        rank, x = view.rank(), b.input(view, 0)
        axes = view.setting("axes", 1)
        if rank is None or (axes is None and view.has(1)):
            raise Unconvertible("its axes are computed, or the rank of its input is not known")
        if not axes:
            if view.attrs.get("noop_with_empty_axes"):
                return x
            axes = list(range(rank))
        if before is not None:
            x = b.call(before, x)
        keep = bool(view.attrs.get("keepdims", 1))
        found = b.call(function, x, tuple(axis % rank for axis in numbers(axes, "its axes")), keepdim=keep)
        return found if after is None else b.call(after, found)

    return row


def arg_reduce(function: Callable[..., Any]) -> Row:
    """Return the row of ArgMax or ArgMin."""

    def row(view: View, b: Builder) -> fx.Node:
        if view.attrs.get("select_last_index"):
            raise Unconvertible("it takes the last of equal values")
        return b.call(function, b.input(view, 0), dim=view.axis(0), keepdim=bool(view.attrs.get("keepdims", 1)))

    return row
