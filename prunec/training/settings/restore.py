"""Putting folded BatchNorms back behind their layers, without changing the function.

Chooses the layers and the values. A deployed file has its BatchNorms folded into convolutions, but
ISTA needs gammas. With γ = σ and β = μ of the layer's outputs over data, and running statistics μ and σ², a BatchNorm
is the identity at inference, and like any other in training.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from prunec.passes.channels import channels
from prunec.passes.sparsity.gammas import gammas
from prunec.pipeline.reading import read_module
from prunec.runtime.modules import evaluating

_LAYERS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear,
)  # fmt: skip
_NORMS: Mapping[int, type[nn.Module]] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
_SUFFIX = "_norm"


@dataclass(slots=True)
class _Moments:
    """Sums over a layer's outputs, per channel, in float64; ``rank`` is that of the outputs."""

    rank: int
    count: int
    total: Tensor
    squares: Tensor

    def norm(self, eps: float = 1e-5) -> nn.Module:
        """Return the BatchNorm that is the identity at inference."""
        mean = self.total / self.count
        variance = (self.squares / self.count - mean.square()).clamp(min=0)
        made: Any = _NORMS[self.rank](mean.numel(), eps=eps)
        with torch.no_grad():
            made.running_mean.copy_(mean)
            made.running_var.copy_(variance)
            made.weight.copy_((variance.float() + eps).sqrt())
            made.bias.copy_(mean)
        norm: nn.Module = made
        return norm


def restore_batchnorm(
    module: fx.GraphModule, batches: Iterable[Tensor], keep: tuple[str, ...] = ()
) -> tuple[fx.GraphModule, tuple[str, ...]]:
    """Return the network with a BatchNorm behind every layer that has none and whose channels could go.

    Args:
        module: left as it is.
        batches: inputs of the network, float[N, C, H, W]; one or more.
        keep: shell patterns of layers to leave alone.

    Returns:
        the network, which computes the same in eval mode, and the names of the layers that got a BatchNorm.
    """
    moments, example = _measured(module, batches)
    if not moments or example is None:
        return module, ()
    everywhere = _with_norms(module, moments, set(moments))
    graph = read_module(everywhere, (example[:1],)).graph
    useful = {gamma.param for gamma in gammas(graph, channels(graph, keep)) if gamma.prunable.any()}
    chosen = {name for name in moments if f"{_attribute(name)}.weight" in useful}
    return _with_norms(module, moments, chosen), tuple(name for name in moments if name in chosen)


def _measured(module: fx.GraphModule, batches: Iterable[Tensor]) -> tuple[dict[str, _Moments], Tensor | None]:
    found: dict[str, _Moments] = {}
    candidates = {node.name: str(node.target) for node in module.graph.nodes if _lacks_norm(module, node)}

    class Measuring(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            if n.name in candidates and result.dim() in _NORMS:
                _add(found, candidates[n.name], result)
            return result

    example = None
    with evaluating(module), torch.no_grad():
        for batch in batches:
            example = batch
            Measuring(module).run(batch)
    return found, example


def _lacks_norm(module: fx.GraphModule, node: fx.Node) -> bool:
    """Tell whether a node is a layer of several channels whose output is read, but not by a BatchNorm or the output."""
    if node.op != "call_module":
        return False
    layer = module.get_submodule(str(node.target))
    if not isinstance(layer, _LAYERS) or int(layer.weight.shape[0]) < 2:
        return False
    calls = sum(other.op == "call_module" and other.target == node.target for other in module.graph.nodes)
    normed = any(
        user.op == "call_module" and isinstance(module.get_submodule(str(user.target)), nn.modules.batchnorm._BatchNorm)
        for user in node.users
    )
    return calls == 1 and not normed and any(user.op != "output" for user in node.users)


def _add(found: dict[str, _Moments], name: str, result: Tensor) -> None:
    values = result.double()
    axes = tuple(axis for axis in range(values.dim()) if axis != 1)
    part = _Moments(values.dim(), values.numel() // values.shape[1], values.sum(axes), values.square().sum(axes))
    before = found.get(name)
    if before is None:
        found[name] = part
    elif before.rank == part.rank:
        before.count += part.count
        before.total += part.total
        before.squares += part.squares


def _with_norms(module: fx.GraphModule, moments: Mapping[str, _Moments], chosen: set[str]) -> fx.GraphModule:
    """Return a copy with the chosen layers' BatchNorms in place."""
    result = copy.deepcopy(module)
    for node in list(result.graph.nodes):
        name = str(node.target)
        if node.op != "call_module" or name not in chosen:
            continue
        device = next(result.get_submodule(name).parameters()).device
        result.add_submodule(_attribute(name), moments[name].norm().to(device).train(result.training))
        with result.graph.inserting_after(node):
            norm = result.graph.call_module(_attribute(name), (node,))
        node.replace_all_uses_with(norm, delete_user_cb=lambda user, norm=norm: user is not norm)
    result.recompile()
    return result


def _attribute(layer: str) -> str:
    return f"{layer}{_SUFFIX}"
