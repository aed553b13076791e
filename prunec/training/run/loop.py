"""The steps of one phase: batches, updates, log rows and checkpoints.

Owns the training loop only: a ``Task`` says what a phase optimises and watches; run.py owns the
phases and what happens between them. No step waits for the device; log steps do.
"""

from __future__ import annotations

import math
import os
import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Protocol

import torch
from torch import nn

from prunec.errors import CheckFailed, Interrupted
from prunec.training.learning.distill import Teacher
from prunec.training.learning.ema import Ema
from prunec.training.learning.execution import Forward
from prunec.training.logs.metrics import MetricsFile, NoMetrics, Window
from prunec.training.logs.progress import Progress
from prunec.training.logs.tensorboard import Curves
from prunec.training.run.record import Record
from prunec.training.settings.setup import Phase, Setup

CHECKPOINT_SECONDS = 60.0
"""Between two checkpoints, unless their steps are given: on a fast device one takes as long as several steps."""


@dataclass(slots=True)
class State:
    """The position of a run.

    Args:
        phase: index into the run's phases.
        phase_step: steps done in that phase.
        step: steps done in all.
        milestone: number of the milestone that the run is on its way to; 0 without milestones.
        record: what was measured and chosen.
    """

    phase: int = 0
    phase_step: int = 0
    step: int = 0
    milestone: int = 0
    record: Record = field(default_factory=Record)


class Task(Protocol):
    """What a phase optimises and watches."""

    def before_step(self, progress: float) -> None:
        """Set learning rates and ρ; ``progress`` is the share of the phase done, in [0, 1)."""

    def measure(self, progress: float, loss: float) -> Mapping[str, Any]:
        """Return further entries of the log row; may raise an error that ends the run."""

    def stop_reason(self) -> str:
        """Return why the phase should end early; "" to continue."""

    def advice(self) -> list[str]:
        """Return what to tell the user now."""

    def failure(self) -> CheckFailed | None:
        """Return the error with which the run should end now, after writing its checkpoint."""


@dataclass(frozen=True, slots=True, eq=False)
class Tools:
    """What a phase needs to run: the network, its optimiser, its average, and where to report.

    ``forward`` computes the same as ``module`` and leaves equal gradients on all ranks. ``teacher`` is the network to
    distil from.
    """

    setup: Setup
    module: nn.Module
    forward: Forward
    optimizer: torch.optim.Optimizer
    ema: Ema
    window: Window
    metrics: MetricsFile | NoMetrics | Curves
    progress: Progress
    save: Callable[[], None]
    teacher: Teacher | None = None


def run_phase(tools: Tools, state: State, phase: Phase, task: Task, interrupt: Interrupt) -> str:
    """Run a phase from the position in ``state``; return why it ended early, or "".

    Raises:
        CheckFailed: the loss is no longer a number (the last good checkpoint stays), or the task says so.
        Interrupted: a stop was asked for; a checkpoint has been written.
    """
    config = tools.setup.config
    log_every = tools.setup.log_every(phase)
    tools.progress.phase(phase.name, phase.steps, state.phase_step)
    tools.module.train()
    saved = time.monotonic()
    while state.phase_step < phase.steps:
        task.before_step(state.phase_step / phase.steps)
        _step(tools, state)
        if state.step % log_every == 0 or state.phase_step == phase.steps:
            _log(tools, state, phase, task)
            failure = task.failure()
            if failure is not None:
                tools.save()
                raise failure
            reason = task.stop_reason()
            if reason:
                return reason
        asked = _stop_asked(tools, state, log_every, interrupt)
        if asked or _is_due(tools, state, log_every, saved):
            tools.save()
            saved = time.monotonic()
        if asked:
            how = resume_command(config.output)
            raise Interrupted(f"interrupted at step {state.step}, and saved; go on with: {how}", asked)
    return ""


def _stop_asked(tools: Tools, state: State, log_every: int, interrupt: Interrupt) -> int:
    """Return the signal that asked for a stop, or 0: the same on all ranks, which therefore agree at log steps only."""
    ranks = tools.setup.ranks
    if ranks.size == 1:
        return interrupt.requested
    return max(ranks.gather(interrupt.requested)) if state.step % log_every == 0 else 0


def _is_due(tools: Tools, state: State, log_every: int, saved: float) -> bool:
    """Tell whether a checkpoint should be written now; ``saved`` is when the last one was. The same on all ranks."""
    every = tools.setup.config.checkpoint_every
    if every is not None:
        return state.step % every == 0
    if state.step % log_every:
        return False
    return tools.setup.ranks.on_main(lambda: time.monotonic() - saved >= CHECKPOINT_SECONDS)


def resume_command(output: str) -> str:
    """Return the command line that continues the run in ``output``."""
    return f"prunec train-prune -o {shlex.quote(output)} --resume"


def _step(tools: Tools, state: State) -> None:
    inputs, targets = tools.setup.batches.at(state.step)
    tools.optimizer.zero_grad(set_to_none=True)
    losses, logits = _gradients(tools, inputs, targets)
    tools.setup.execution.step(tools.optimizer)
    tools.ema.update()
    tools.window.add(losses, logits, targets)
    state.step += 1
    state.phase_step += 1
    tools.progress.step(state.phase_step)


def _gradients(tools: Tools, inputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the batch's gradients, part by part if they are accumulated; return mean loss and logits."""
    parts, execution = tools.setup.config.accumulate, tools.setup.execution
    outputs: list[torch.Tensor] = []
    total = torch.zeros((), device=inputs.device)
    for part, wanted in zip(inputs.tensor_split(parts), targets.tensor_split(parts), strict=True):
        with execution.autocast():
            output = tools.forward(part)
        logits = tools.setup.objective.logits(output).float()
        # Each image counts the same, so that the sum over parts is the mean over the batch.
        loss = _loss(tools, part, logits, wanted) * (tools.setup.batches.loss_weight * len(wanted) / len(targets))
        execution.backward(loss)
        total = total + loss.detach()
        outputs.append(logits.detach())
    return total, outputs[0] if parts == 1 else torch.cat(outputs)


def _loss(tools: Tools, inputs: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    if tools.teacher is None:
        return tools.setup.objective.loss(logits, targets)
    with tools.setup.execution.autocast():
        return tools.teacher.loss(inputs, logits, targets)


def _log(tools: Tools, state: State, phase: Phase, task: Task) -> None:
    loss, scores = tools.window.read()
    if not math.isfinite(loss):
        raise diverged(tools.setup.config.output, state.step, phase.name)
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
        state.record.advice.append(sentence)
        tools.progress.note(f"advice: {sentence}")


def diverged(output: str, step: int, phase: str) -> CheckFailed:
    """Return the error of a run whose loss has become NaN or infinite."""
    return CheckFailed(
        f"the loss is not a number at step {step} ({phase})",
        why="the network diverged",
        do=f"go on from the last good checkpoint with a smaller learning rate or rho: {resume_command(output)} --lr LR",
    )


class Interrupt:
    """Turns the first Ctrl-C or SIGTERM into a request that takes effect between two steps; a second stops at once.

    A launcher may forward a Ctrl-C as SIGTERM to processes that have received it already; that is not a second one.

    Used as a context manager. Outside the main thread, where signals cannot be caught, it does nothing.
    """

    def __init__(self) -> None:
        self.requested = 0
        self._patient = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)

    @contextmanager
    def between_steps(self) -> Iterator[None]:
        """Within the block, a stop only sets ``requested`` (the signal's number, else 0).

        Elsewhere signals stop the run at once.
        """
        self._patient = True
        try:
            yield
        finally:
            self._patient = False
        if self.requested:
            raise Interrupted("", self.requested)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if not self._patient or self.requested == number:
            raise Interrupted("", number)
        if self.requested:
            return
        self.requested = number
        # This may run between any two instructions, so it must not take a lock or use a buffer.
        os.write(2, b"\nstopping after this step, with a checkpoint; once more to stop at once\n")
