"""How much each parameter element matters to a network's outputs on data, to first order.

Owns the gradients of the ``taylor`` criterion; how they become scores of channels is passes/scores.py's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from prunec.errors import UnsupportedModel
from prunec.frontends.fx import Traced
from prunec.observing import arguments
from prunec.samples import Samples, num_rows
from prunec.validate import evaluating


def module_saliency(traced: Traced, samples: Samples) -> Mapping[str, np.ndarray[Any, Any]]:
    """Return (w · ∂L/∂w)² of every float parameter, averaged over the batches.

    This is the importance of Molchanov et al., CVPR 2019, eq. 8. There are no labels: L is half the squared
    norm of all float outputs, per sample, so ∂L/∂w follows what moves the outputs most. The network runs in
    eval mode; it and its gradients are left as they are, frozen parameters make no difference.

    Returns:
        parameter name -> float64 of its shape.

    Raises:
        UnsupportedModel: no float output depends on the parameters.
    """
    weights = {
        name: tensor.detach().clone().requires_grad_()
        for name, tensor in traced.parameters.items()
        if tensor.is_floating_point() and name in traced.graph.params
    }
    total = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in weights.items()}
    batches = 0
    with evaluating(traced.module), torch.enable_grad():
        fitting = samples.that_run(lambda feed: traced.module(*arguments(traced, feed)), "the network")
        for feed in fitting:
            outputs = torch.func.functional_call(traced.module, weights, tuple(arguments(traced, feed)))
            loss = _half_squared_norm(outputs) / num_rows(feed)
            gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
            for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
                if gradient is not None:
                    total[name] += (weight.detach().double() * gradient.double()).square()
            batches += 1
    return {name: (value / batches).cpu().numpy() for name, value in total.items()}


def _half_squared_norm(outputs: Any) -> torch.Tensor:
    tensors = [
        leaf
        for leaf in pytree.tree_leaves(outputs)
        if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() and leaf.requires_grad
    ]
    if not tensors:
        raise UnsupportedModel(
            "the taylor criterion needs an output that follows the parameters",
            why="no output of floats has a gradient",
            do="use --criterion l1 or gamma",
        )
    return torch.stack([tensor.double().square().sum() for tensor in tensors]).sum() / 2
