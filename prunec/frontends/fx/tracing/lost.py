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


def lost_modes(module: nn.Module, inputs: tuple[Any, ...], untouched: Untouched) -> tuple[str, ...]:
    """Return a note where a forward that torch.export reads switches gradients off or casts: it keeps neither."""
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
    return tuple(
        f"{mode} inside its forward is not kept in the traced network: {instead}"
        for mode, instead in _INSTEAD.items()
        if mode in watching.seen
    )


_INSTEAD = {
    "no_grad": "before training, freeze what it protects with requires_grad_(False)",
    "inference_mode": "before training, freeze what it protects with requires_grad_(False)",
    "autocast": "call the network under autocast",
}


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
