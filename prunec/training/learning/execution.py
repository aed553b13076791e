"""How a step is computed on its device: precision, memory layout, torch.compile.

Owns the choices, what is done instead if the device cannot, and the sentences that say so. Scores and the
exported network are always float32; only training steps run in lower precision.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

Precision = Literal["fp32", "bf16", "fp16"]

Forward = Callable[[torch.Tensor], Any]


@dataclass(frozen=True, slots=True, eq=False)
class Execution:
    """How training steps run.

    Args:
        device: where.
        dtype: of convolutions and matrix products; None is float32 throughout.
        channels_last: activations and weights in NHWC order.
        compiles: through torch.compile.
        scaler: keeps float16 gradients from vanishing; else None.
        notes: sentences about requests that could not be met as given.
    """

    device: torch.device
    dtype: torch.dtype | None
    channels_last: bool
    compiles: bool
    scaler: torch.amp.GradScaler | None
    notes: tuple[str, ...]

    def place(self, module: nn.Module) -> nn.Module:
        """Move a module to the device and memory layout of training steps; returns the same module."""
        module.to(self.device)
        if self.channels_last:
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack this form
        return module

    def forward(self, module: nn.Module, note: Callable[[str], None]) -> Forward:
        """Return the forward function of training steps; calls ``note`` if ``module`` cannot be compiled."""
        compute = _compiled(module, note) if self.compiles else module
        if not self.channels_last:
            return compute
        return lambda inputs: compute(inputs.contiguous(memory_format=torch.channels_last))

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context of a forward pass."""
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def backward(self, loss: torch.Tensor) -> None:
        """Add a loss's gradients to those there are."""
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Update. With a scaler this waits for the device, and skips the update if a gradient overflowed."""
        if self.scaler is None:
            optimizer.step()
            return
        self.scaler.step(optimizer)
        self.scaler.update()


def plan_execution(
    device: torch.device,
    *,
    asked_device: str = "",
    precision: Precision = "fp32",
    channels_last: bool | None = None,
    compiles: bool = False,
) -> Execution:
    """Adapt the requested execution to the device.

    Args:
        asked_device: ``auto`` if the run chose ``device``.
        channels_last: None takes it on CUDA in reduced precision, because tensor cores want it.
    """
    notes = []
    if asked_device == "auto" and device.type == "cpu":
        notes.append("training on the CPU: torch finds no CUDA device that works")
    dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    if dtype is torch.float16 and device.type == "cpu":
        notes.append("fp16 is for CUDA devices: training in bf16 instead")
        dtype = torch.bfloat16
    if dtype is torch.bfloat16 and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        notes.append("this CUDA device has no bf16: training in fp16 instead")
        dtype = torch.float16
    last = channels_last if channels_last is not None else device.type == "cuda" and dtype is not None
    scaler = torch.amp.GradScaler(device.type) if dtype is torch.float16 else None
    return Execution(device, dtype, last, compiles, scaler, tuple(notes))


def _compiled(module: nn.Module, note: Callable[[str], None]) -> Forward:
    """Return the compiled module; one that fails to compile runs as it is.

    Only the first call is guarded: a later failure is an error of the run.
    """
    fast: Forward = torch.compile(module)
    chosen: list[Forward] = []

    def forward(inputs: torch.Tensor) -> Any:
        if chosen:
            return chosen[0](inputs)
        try:
            result = fast(inputs)
            chosen.append(fast)
        except Exception as error:  # noqa: BLE001 - compilers fail in many ways, all of them survivable
            reason = str(error).strip().partition("\n")[0]
            note(f"torch.compile fails here, so the network runs as it is: {type(error).__name__}: {reason[:200]}")
            chosen.append(module)
            result = module(inputs)
        return result

    return forward


def send(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Move small host values to a device without waiting for it."""
    if device.type != "cuda" or values.is_cuda:
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
