"""How much each parameter element matters to a network's outputs on data, to first order.

Owns the gradients of the ``taylor`` criterion; how they become scores of channels is passes/selection/criteria.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from prunec.data.observing import arguments
from prunec.data.samples import Looked, num_rows
from prunec.errors import UnsupportedModel
from prunec.frontends.fx.running.containers import tensors_in
from prunec.frontends.fx.running.untouched import untouched
from prunec.frontends.fx.traced import Traced
from prunec.frontends.onnx.frontend import TracedOnnx
from prunec.importer.build import to_tensor
from prunec.runtime.modules import evaluating
from prunec.runtime.probes import Feed

Saliency = Mapping[str, np.ndarray[Any, Any]]
"""Parameter name -> the importance of each of its elements, float64."""


def module_saliency(traced: Traced, samples: Looked) -> Saliency:
    """Return (w · ∂L/∂w)² of every float parameter, averaged over the batches.

    This is the importance of Molchanov et al., CVPR 2019, eq. 8. There are no labels: L is half the squared
    norm of all float outputs, per sample, so ∂L/∂w is large for weights that move the outputs most. The network runs
    in eval mode; it and its gradients do not change, and frozen parameters count too.

    Returns:
        parameter name -> float64 of its shape.

    Raises:
        UnsupportedModel: no float output depends on the parameters.
    """
    # Buffers have no gradients: running statistics, and what a forward writes into.
    learned = {name for name, tensor in traced.parameters.items() if isinstance(tensor, torch.nn.Parameter)}
    weights = {name: traced.parameters[name] for name in traced.graph.params.keys() & learned}
    return _saliency(traced.module, weights, lambda feed: arguments(traced, feed), samples)


def onnx_saliency(traced: TracedOnnx, samples: Looked) -> Saliency:
    """Return the same for the tensors of an ONNX file, by an equivalent torch module.

    Raises:
        UnsupportedModel: an op has no gradient; the message names node and op.
    """
    from prunec.importer.module import to_module

    first = samples.first()
    imported = to_module(traced.source, {name: value.shape for name, value in first.items()})

    def positional(feed: Feed) -> list[Any]:
        return [to_tensor(feed[name]) for name in imported.input_names]

    found = _saliency(imported.module, dict(imported.module.named_parameters()), positional, samples)
    result = {}
    for name, origin in imported.origins.items():
        values = found.get(origin.parameter)
        if values is not None:
            result[name] = values.T if origin.transposed else values
    return result


def _saliency(
    module: torch.nn.Module,
    parameters: Mapping[str, torch.Tensor],
    positional: Callable[[Feed], list[Any]],
    samples: Looked,
) -> Saliency:
    weights = {
        name: tensor.detach().clone().requires_grad_()
        for name, tensor in parameters.items()
        if tensor.is_floating_point()
    }
    total = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in weights.items()}
    batches = 0
    with untouched(module), evaluating(module), torch.enable_grad():
        fitting = samples.that_run(lambda feed: module(*positional(feed)), "the network")
        for feed in fitting:
            outputs = torch.func.functional_call(module, weights, tuple(positional(feed)))
            loss = _half_squared_norm(outputs) / num_rows(feed)
            gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
            for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
                if gradient is not None:
                    total[name] += (weight.detach().double() * gradient.double()).square()
            batches += 1
    return {name: (value / batches).cpu().numpy() for name, value in total.items()}


def _half_squared_norm(outputs: Any) -> torch.Tensor:
    tensors = [leaf for leaf in tensors_in(outputs) if leaf.is_floating_point() and leaf.requires_grad]
    if not tensors:
        raise UnsupportedModel(
            "the taylor criterion needs an output that depends on the parameters",
            why="no float output has a gradient",
            do="use --criterion l1 or gamma",
        )
    return torch.stack([tensor.double().square().sum() for tensor in tensors]).sum() / 2
