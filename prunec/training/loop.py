"""The steps of one phase: batches in, updates out, a log row now and then, a checkpoint in time.

Owns the training loop and nothing around it: what a phase optimises and watches comes in as a ``Task``, what
phases there are and what happens between them is run.py's. No step waits for the device; log steps do.
"""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Protocol

import torch
from torch import nn

from prunec.errors import CheckFailed
from prunec.training.ema import Ema
from prunec.training.metrics import MetricsFile, Window
from prunec.training.progress import Progress
from prunec.training.setup import Phase, Setup


@dataclass(slots=True)
class State:
    """How far a run has come.

    Args:
        phase: index into the run's phases.
        phase_step: steps done in that phase.
        step: steps done in all.
        facts: what was measured or chosen once (scores, ρ, α, reasons); plain data.
    """

    phase: int = 0
    phase_step: int = 0
    step: int = 0
    facts: dict[str, Any] = field(default_factory=dict)


class Task(Protocol):
    """What a phase optimises and watches."""

    def before_step(self, progress: float) -> None:
        """Set learning rates and ρ; ``progress`` is the share of the phase done, in [0, 1)."""

    def measure(self, progress: float, loss: float) -> Mapping[str, Any]:
        """Return further entries of the log row; may refuse to go on."""

    def stop_reason(self) -> str:
        """Return why the phase should end early; "" to go on."""

    def advice(self) -> list[str]:
        """Return what to tell the user now."""


@dataclass(frozen=True, slots=True, eq=False)
class Tools:
    """What a phase needs to run: the network, its optimiser, its average, and where to report."""

    setup: Setup
    module: nn.Module
    optimizer: torch.optim.Optimizer
    ema: Ema
    window: Window
    metrics: MetricsFile
    progress: Progress
    save: Callable[[], None]


def run_phase(tools: Tools, state: State, phase: Phase, task: Task, interrupt: Interrupt) -> str:
    """Run a phase from where ``state`` says it is; return why it ended early, or "".

    Raises:
        CheckFailed: the loss is no longer a number; the last good checkpoint stays.
        KeyboardInterrupt: the user asked to stop; a checkpoint has been written.
    """
    config = tools.setup.config
    log_every = tools.setup.log_every(phase)
    tools.progress.phase(phase.name, phase.steps, state.phase_step)
    tools.module.train()
    while state.phase_step < phase.steps:
        task.before_step(state.phase_step / phase.steps)
        _step(tools, state)
        if state.step % log_every == 0 or state.phase_step == phase.steps:
            _log(tools, state, phase, task)
            reason = task.stop_reason()
            if reason:
                return reason
        if interrupt.requested:
            tools.save()
            raise KeyboardInterrupt
        if state.step % config.checkpoint_every == 0:
            tools.save()
    return ""


def _step(tools: Tools, state: State) -> None:
    objective = tools.setup.objective
    inputs, targets = tools.setup.batches.at(state.step)
    logits = objective.logits(tools.module(inputs))
    loss = objective.loss(logits, targets)
    tools.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    tools.optimizer.step()
    tools.ema.update()
    tools.window.add(loss, logits, targets)
    state.step += 1
    state.phase_step += 1
    tools.progress.step(state.phase_step)


def _log(tools: Tools, state: State, phase: Phase, task: Task) -> None:
    loss, scores = tools.window.read()
    if not math.isfinite(loss):
        raise CheckFailed(
            f"the loss is not a number at step {state.step} ({phase.name})",
            why="the network diverged",
            do="lower the learning rate (--lr) or rho; the last good checkpoint is in the run folder",
        )
    row = {
        "step": state.step,
        "epoch": round(state.step / tools.setup.batches.steps_per_epoch, 4),
        "phase": phase.name,
        "loss": loss,
        **scores,
        **task.measure(state.phase_step / phase.steps, loss),
    }
    tools.metrics.append(row)
    tools.progress.row(row, tools.setup.full.params)
    for sentence in task.advice():
        state.facts.setdefault("advice", []).append(sentence)
        tools.progress.note(f"advice: {sentence}")


class Interrupt:
    """Turns the first Ctrl-C into a request that is honoured between two steps; the second one is immediate.

    Used as a context manager. Outside the main thread, where signals cannot be caught, it does nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: Any = None

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def _handle(self, _signal: int, _frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
