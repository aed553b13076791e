"""What a network read by torch.export does not keep, in notes to a person: other sizes, no_grad, autocast."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from prunec.frontends.fx.running.arguments import named_tensors, with_tensors
from prunec.frontends.fx.running.containers import tensors_in
from prunec.frontends.fx.running.meta import fake_tensors
from prunec.frontends.fx.running.untouched import Untouched
from prunec.frontends.fx.tracing.failures import one_line

_LOG = logging.getLogger("prunec")


def fixed_sizes(
    module: nn.Module, traced: fx.GraphModule, inputs: tuple[Any, ...], untouched: Untouched
) -> tuple[str, ...]:
    """Return a note where a network takes images of other sizes and its traced graph does not.

    Both are run on shapes, at twice the example's size. A forward that needs values cannot be asked.
    """
    larger = with_tensors(inputs, lambda _, t: t.new_empty([*t.shape[:2], *(2 * s for s in t.shape[2:])], device="cpu"))
    if all(tensor.dim() < 3 for _, tensor in named_tensors(inputs)):
        return ()
    shapes: list[list[torch.Size] | None] = []
    for network in (module, traced):
        try:
            with untouched.block(on_shapes=True), fake_tensors() as fake, torch.no_grad():
                shapes.append([tensor.shape for tensor in tensors_in(network(*_on_shapes(larger, fake)))])
        except Exception as error:  # noqa: BLE001  # whatever a forward raises
            _LOG.debug("at twice the size it does not run: %s", one_line(error))
            shapes.append(None)
    if shapes[0] is None or shapes[0] == shapes[1]:
        return ()
    sizes = ", ".join("x".join(map(str, tensor.shape)) for _, tensor in named_tensors(inputs))
    return (f"the traced network takes inputs of the example's size alone ({sizes}): its forward computes with sizes",)


def _on_shapes(inputs: tuple[Any, ...], fake: FakeTensorMode) -> tuple[Any, ...]:
    return with_tensors(inputs, lambda _, tensor: fake.from_tensor(tensor))


def _modes(module: nn.Module, inputs: tuple[Any, ...], untouched: Untouched) -> set[str]:
    """Return the modes that a forward switches: those in which its functions of torch are called."""
    watching = _Watching()
    try:
        with (
            untouched.block(on_shapes=True),
            fake_tensors() as fake,
            torch.inference_mode(False),
            torch.enable_grad(),
            watching,
        ):
            module(*_on_shapes(inputs, fake))
    except Exception as error:  # noqa: BLE001  # a forward that needs values cannot be asked to its end
        _LOG.debug("on shapes it does not run: %s", one_line(error))
    return watching.seen


def modes_to_keep(module: nn.Module, inputs: tuple[Any, ...], untouched: Untouched) -> set[str]:
    """Return the modes that a forward switches in eval mode and in training: others are no part of the network."""
    seen = _modes(module, inputs, untouched)
    if not seen:
        return seen
    with untouched.block(on_shapes=True):
        for sub in module.modules():
            sub.training = True
        return seen & _modes(module, inputs, untouched)


def lost_modes(exported: fx.GraphModule, keep: set[str]) -> tuple[str, ...]:
    """Return a note for each mode that the exported graph should switch and does not.

    Where writes are taken out, torch.export also writes the casts of autocast out: they are kept.
    """
    switched = {str(getattr(n.target, "__name__", "")) for n in exported.graph.nodes}
    lost = keep - {"autocast"} - ({"no_grad"} if "_set_grad_enabled" in switched else set())
    return tuple(f"{mode} inside its forward is not kept in the traced network: {_INSTEAD}" for mode in sorted(lost))


_INSTEAD = "before training, freeze what it protects with requires_grad_(False)"


class _Watching(TorchFunctionMode):
    """Notes the modes in which functions of torch are called."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.is_inference_mode_enabled():
            self.seen.add("inference_mode")
        elif not torch.is_grad_enabled():
            self.seen.add("no_grad")
        if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
            self.seen.add("autocast")
        return func(*args, **(kwargs or {}))
