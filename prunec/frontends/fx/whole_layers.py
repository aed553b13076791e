"""FX nodes that are recorded as one op, because what they decompose to would hide their channels.

Owns linear layers, instance norms, recurrent layers, ``tensor_split``, and modules that prunec does not look into. All
other nodes are recorded aten op by aten op (recorder.py).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from prunec.frontends.fx.ops.call import Emitter, Operand

KNOWN_LEAVES: tuple[type[nn.Module], ...] = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear,
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.InstanceNorm1d, nn.InstanceNorm2d,
    nn.InstanceNorm3d, nn.GroupNorm, nn.LayerNorm, nn.PReLU,
)  # fmt: skip
"""Leaf modules with parameters whose sizes the backend knows how to correct."""

_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_LINEAR = (nn.functional.linear, torch.ops.aten.linear.default)
_RECURRENT = (nn.LSTM, nn.GRU, nn.RNN)
_RECURRENT_OPS = tuple(getattr(torch.ops.aten, name).input for name in ("lstm", "gru", "rnn_tanh", "rnn_relu"))
_RECURRENT_PARAMETERS = ("weight_ih", "bias_ih", "weight_hh", "bias_hh", "weight_hr")


class Recording(Emitter, Protocol):
    """Where nodes are emitted, and what the next of them will be called after."""

    source: str


def whole(n: fx.Node, walk: fx.Interpreter, to: Recording) -> Callable[[Any, Any, Any], None] | None:
    """Return how to record a node as one op instead of op by op; None for op by op."""
    if n.op == "call_function" and n.target is nn.functional.instance_norm:
        return partial(_functional_instance_norm, to)
    if n.op == "call_function" and n.target in _LINEAR:
        return partial(_functional_linear, to)
    if n.op == "call_function" and n.target in _RECURRENT_OPS:
        return partial(_recurrent_op, to)
    if n.target is torch.tensor_split or (n.op == "call_method" and n.target == "tensor_split"):
        return partial(_tensor_split, to)
    if n.op != "call_module":
        return None
    module = walk.fetch_attr(str(n.target))
    if type(module) is nn.Linear:
        return lambda args, _kwargs, result: _linear(to, args[0], module.weight, module.bias, result)
    first = n.args[0] if n.args else None
    if type(module) in _RECURRENT and isinstance(first, fx.Node) and isinstance(walk.env.get(first), Tensor):
        return lambda args, _kwargs, result: _recurrent(to, args, module, result)
    if isinstance(module, _INSTANCE_NORMS):
        return lambda args, _kwargs, result: _instance_norm(to, args[0], module, result)
    if isinstance(module, KNOWN_LEAVES) or not any(True for _ in module.parameters()):
        return None
    return lambda args, kwargs, result: _opaque_module(to, module, args, kwargs, result)


def _instance_norm(to: Recording, x: Tensor, module: Any, result: Tensor) -> None:
    """Record one node: its decomposition merges batch and channels, which would hide the channels."""
    to.source = type(module).__name__
    inputs: list[Operand] = [x, module.weight, module.bias]
    if module.track_running_stats and module.running_mean is not None:
        stats: list[Operand] = [module.running_mean, module.running_var]
        to.emit("batch_norm", inputs + stats, [result], axis=1, eps=module.eps, training=False)
    else:
        to.emit("instance_norm", inputs, [result], axis=1, eps=module.eps)


def _functional_instance_norm(to: Recording, args: Any, kwargs: Any, result: Tensor) -> None:
    names = ("input", "running_mean", "running_var", "weight", "bias", "use_input_stats", "momentum", "eps")
    bound = dict(zip(names, args, strict=False)) | kwargs
    to.source = "instance_norm"
    inputs: list[Operand] = [bound["input"], bound.get("weight"), bound.get("bias")]
    if bound.get("use_input_stats", True):
        to.emit("instance_norm", inputs, [result], axis=1, eps=bound.get("eps", 1e-5))
    else:
        stats: list[Operand] = [bound["running_mean"], bound["running_var"]]
        to.emit("batch_norm", inputs + stats, [result], axis=1, eps=bound.get("eps", 1e-5), training=False)


def _linear(to: Recording, x: Operand, weight: Operand, bias: Operand, result: Tensor) -> None:
    """Record one node: on inputs of rank 3 the decomposition depends on strides and hides the bias."""
    to.source = "aten.linear"
    to.emit("matmul", [x, weight, bias], [result], transpose_b=True)


def _functional_linear(to: Recording, args: Any, kwargs: Any, result: Tensor) -> None:
    bound = dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
    _linear(to, bound["input"], bound["weight"], bound.get("bias"), result)


def _tensor_split(to: Recording, args: Any, kwargs: Any, result: Any) -> None:
    """Record one split: the slices that it decomposes to cannot be rewritten one by one."""
    x = args[0] if args else kwargs.get("input", kwargs.get("self"))
    dim = kwargs.get("dim", args[2] if len(args) > 2 else 0)
    axis = dim % x.dim()
    to.source = "aten.tensor_split"
    to.emit("split", [x], list(result), axis=axis, sizes=[part.shape[axis] for part in result])


def _recurrent(to: Recording, args: Any, module: Any, result: Any) -> None:
    """Record a recurrent module."""
    to.source = type(module).__name__
    x, *states = [leaf for leaf in pytree.tree_leaves(args) if isinstance(leaf, Tensor)]
    layers = [
        [
            [getattr(module, f"{kind}_l{layer}{suffix}", None) for kind in _RECURRENT_PARAMETERS]
            for suffix in ("", "_reverse")[: 2 if module.bidirectional else 1]
        ]
        for layer in range(module.num_layers)
    ]
    _layers(to, x, states, layers, result)


def _recurrent_op(to: Recording, args: Any, _kwargs: Any, result: Any) -> None:
    """Record the op that torch.export makes of a recurrent module: its parameters come as one list."""
    x, states, params, has_biases, num_layers, _, _, both_ways, *_ = args
    to.source = "aten.recurrent"
    given, each = list(params), len(params) // (num_layers * (2 if both_ways else 1))
    rows = [given[at : at + each] for at in range(0, len(given), each)]
    cells = [
        [
            row[0],
            row[2] if has_biases else None,
            row[1],
            row[3] if has_biases else None,
            *row[4 if has_biases else 2 :],
        ]
        for row in rows
    ]
    layers = [cells[at : at + len(cells) // num_layers] for at in range(0, len(cells), len(cells) // num_layers)]
    _layers(to, x, [leaf for leaf in pytree.tree_leaves(states) if isinstance(leaf, Tensor)], layers, result)


def _layers(to: Recording, x: Tensor, states: list[Tensor], layers: list[list[list[Any]]], result: Any) -> None:
    """Record what each layer and direction reads of its input as a matrix product; the state is not followed.

    Args:
        layers: for each layer and direction, its tensors in the order of ``_RECURRENT_PARAMETERS``.
    """
    outputs = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
    reason = "a recurrent state feeds itself"
    current: Operand = x
    parts: list[Operand] = [*states]
    leading = tuple(x.shape[:-1])
    for number, directions in enumerate(layers):
        for cell in directions:
            w_in, b_in, w_state, b_state, w_out = (*cell, None)[:5]
            assert isinstance(w_in, Tensor)
            assert isinstance(w_state, Tensor)
            gates = (*leading, w_in.shape[0])
            parts += to.emit("matmul", [current, w_in, b_in], [gates], transpose_b=True)
            state = to.emit("opaque", [parts[-1]], [(*leading, w_state.shape[1])], reason=reason)[0]
            parts += to.emit("matmul", [state, w_state, b_state], [gates], transpose_b=True)
            parts += [w_out] if isinstance(w_out, Tensor) else []
        if number + 1 < len(layers):
            (current,) = to.emit("opaque", parts, [tuple(outputs[0].shape)], reason=reason)
            parts = []
    to.emit("opaque", parts, outputs, reason=reason)


def _opaque_module(to: Recording, module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
    """Record a leaf module that prunec does not look into: what it touches is pinned."""
    to.source = type(module).__name__
    inputs = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    outputs = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
    reason = f"prunec does not look into {type(module).__name__} modules"
    to.emit("opaque", [*inputs, *module.parameters()], outputs, reason=reason)
