"""Parameters of a module set to new tensors: what torch hangs on them (masks, norms, recurrent weights) follows."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from prunec.frontends.fx.running.untouched import eval_mode


def parameter_like(like: Tensor, content: Tensor, dtype: str = "") -> nn.Parameter:
    """Return a parameter of this content, with the device and requires_grad of ``like``, and its dtype or ``dtype``."""
    kind = getattr(torch, dtype) if dtype else like.dtype
    return nn.Parameter(content.to(device=like.device, dtype=kind), requires_grad=like.requires_grad)


def held_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by name, shared ones by each of their names."""
    return {
        f"{path}.{name}" if path else name: tensor
        for path, sub in module.named_modules(remove_duplicate=False)
        for name, tensor in (*sub._parameters.items(), *sub._buffers.items())
        if tensor is not None
    }


def set_parameters(module: nn.Module, contents: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Replace parameters and buffers by name (dtype, device and requires_grad stay); shared ones stay shared.

    Args:
        contents: handed over: an array that has memory of its own becomes the tensor's.
    """
    tensors, modules = held_tensors(module), dict(module.named_modules(remove_duplicate=False))
    names: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        names.setdefault(id(tensor), []).append(name)
    taken: set[int] = set()
    for name, content in contents.items():
        old = tensors[name]
        own = content.flags.owndata and content.flags.writeable and content.flags.c_contiguous
        array = content if own and id(content) not in taken else np.array(content)
        taken.add(id(content))
        new: Tensor = torch.from_numpy(array).to(device=old.device, dtype=old.dtype)
        if isinstance(old, nn.Parameter):
            new = nn.Parameter(new, requires_grad=old.requires_grad)
        for alias in names[id(old)]:
            owner_name, _, attribute = alias.rpartition(".")
            owner = modules[owner_name]
            if isinstance(new, nn.Parameter):
                owner._parameters[attribute] = new
            else:
                owner._buffers[attribute] = new


def leave_unsaved(module: nn.Module, names: Iterable[str]) -> None:
    """Leave buffers out of the state_dict: torch.fx registers what it copies without saying so."""
    held = dict(module.named_modules(remove_duplicate=False))
    for owner, _, attribute in (name.rpartition(".") for name in names):
        if owner in held and attribute in held[owner]._buffers:
            held[owner]._non_persistent_buffers_set.add(attribute)


def refresh_modules(module: nn.Module) -> None:
    """Make the size attributes of every layer agree with its tensors (in_channels, num_features …)."""
    with eval_mode(module), torch.no_grad():  # a weight that is computed may be so with a step of power iteration
        for sub in module.modules():
            _compute_anew(sub)
            _refresh(sub)


def _refresh(sub: nn.Module) -> None:
    weight = getattr(sub, "weight", None)
    if isinstance(sub, nn.modules.conv._ConvNd) and weight is not None:
        first, second = weight.shape[0], weight.shape[1] * sub.groups
        sub.out_channels, sub.in_channels = (second, first) if sub.transposed else (first, second)
    elif isinstance(sub, nn.Linear):
        sub.out_features, sub.in_features = sub.weight.shape
    elif isinstance(sub, nn.modules.batchnorm._NormBase):
        sized = next((t for t in (sub.weight, sub.running_mean) if isinstance(t, Tensor)), None)
        sub.num_features = sub.num_features if sized is None else sized.shape[0]
    elif isinstance(sub, nn.GroupNorm) and weight is not None:
        sub.num_channels = weight.shape[0]
    elif isinstance(sub, nn.RNNBase):
        first = sub.weight_ih_l0
        sub.input_size = first.shape[1] if isinstance(first, Tensor) else sub.input_size
        sub._init_flat_weights()  # it keeps a list of its parameters
    elif isinstance(sub, nn.PReLU):
        sub.num_parameters = sub.weight.shape[0]


def _compute_anew(sub: nn.Module) -> None:
    """Let hooks that make a weight in front of each call (weight norms, masks) make it from the new parameters."""
    for hook in sub._forward_pre_hooks.values():
        if isinstance(hook, BasePruningMethod | SpectralNorm | WeightNorm):
            hook(sub, ())


def delete_unused_modules(module: fx.GraphModule) -> None:
    """Drop the modules that no node calls or reads from: torch's own method compares each with each."""
    names = [name for name, _ in module.named_modules()]
    called = {str(n.target) for n in module.graph.nodes if n.op == "call_module"}
    read = called | {str(n.target) for n in module.graph.nodes if n.op == "get_attr"}
    used = {around for name in read for around in _around(name)}
    for name in names:
        if name not in used and called.isdisjoint(_around(name)):
            module.delete_submodule(name)


def _around(name: str) -> Iterator[str]:
    """Yield the names of what a module or tensor is in, the outermost first, and its own."""
    return itertools.accumulate(name.split("."), "{}.{}".format)


def delete_unused_tensors(module: fx.GraphModule) -> None:
    """Drop parameters and buffers of the root that no node reads any more."""
    read = {str(n.target) for n in module.graph.nodes if n.op == "get_attr"}
    called = {str(n.target) for n in module.graph.nodes if n.op == "call_module"}
    for name, _ in (*module.named_parameters(), *module.named_buffers()):
        owner_name, _, attribute = name.rpartition(".")
        if owner_name not in called and name not in read and called.isdisjoint(_around(owner_name)):
            delattr(module.get_submodule(owner_name), attribute)
