"""``prunec train-prune``: the whole job, from a network and data to a smaller network, checked.

Owns the order (measure, train towards sparsity, remove, fine-tune, write) and resuming. setup.py checks everything
beforehand, context.py has the shared state, sparsifying.py warm-up and ISTA, and results.py writes the results.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from prunec.errors import Interrupted, WriteFailed
from prunec.files import RunFolder
from prunec.ir.plan import PrunePlan
from prunec.pipeline.apply import apply_plan
from prunec.training.budget.footprint import check_alive, keep_mask, zero_gammas
from prunec.training.budget.goals import Goal
from prunec.training.budget.landing import GammaHistory
from prunec.training.learning.distill import Teacher
from prunec.training.learning.ema import Ema
from prunec.training.learning.ranks import joined
from prunec.training.logs.progress import Progress, Silent
from prunec.training.run import checkpoint as checkpoints
from prunec.training.run import milestones, removing, time_budget
from prunec.training.run.checkpoint import Checkpoint
from prunec.training.run.context import Context, state_of
from prunec.training.run.loop import Interrupt, resume_command
from prunec.training.run.results import RunResult, write_results
from prunec.training.run.sparsifying import train_sparse
from prunec.training.run.tasks import FineTune
from prunec.training.settings.config import RunConfig
from prunec.training.settings.focus import focused
from prunec.training.settings.removal import base_optimizer
from prunec.training.settings.setup import (
    FINETUNE,
    ISTA,
    Setup,
    continue_run_folder,
    prepare,
    start_run_folder,
)
from prunec.training.sparsity.controller import restarted
from prunec.training.sparsity.sparsify import gamma_values


def train_prune(config: RunConfig, progress: Progress | None = None) -> RunResult:
    """Train a network towards sparsity, remove what became constant, fine-tune, export and check.

    Processes that torchrun started train together (see ranks.py); each returns the result, rank 0 writes.

    Args:
        config: see RunConfig; make one with presets.make_config, or presets.resume_config to continue a run.
        progress: receives what happens; nothing is shown without it.

    Returns:
        The content of the run folder's summary.json.

    Raises:
        PrunecError: the settings, the data or the network cannot be used: nothing was written.
        CheckFailed: the run failed a check (no channels left, loss not a number, budget not met, the
            exported network differs).
        Interrupted: stopped by the user or the system; the message says how to continue.
        WriteFailed: the disk is full; files saved before are intact.
    """
    progress = progress if progress is not None else Silent()
    try:
        with joined(config.device) as ranks, _own_randomness(), Interrupt() as interrupt:
            if ranks.rank > 0:
                progress = Silent()
            tell = progress.note
            setup = ranks.agree(lambda: prepare(config, ranks, tell))
            try:
                return _Run(setup, progress, interrupt).run()
            except (Interrupted, WriteFailed) as stop:
                raise _with_resume_command(stop, config) from stop
    finally:
        progress.close()


def _with_resume_command(stop: Interrupted | WriteFailed, config: RunConfig) -> Interrupted | WriteFailed:
    """Return the error with the command that continues the run, if there is a checkpoint."""
    if not checkpoints.exists(RunFolder(Path(config.output))):
        return stop
    how = resume_command(config.output)
    if isinstance(stop, WriteFailed):
        return WriteFailed(stop.what, why=stop.why, do=f"free some space, then go on from the last checkpoint: {how}")
    if str(stop):
        return stop
    return Interrupted(f"interrupted; go on from the last checkpoint with: {how}", stop.exit_status - 128)


@contextmanager
def _own_randomness() -> Iterator[None]:
    """Seed torch's ambient generator (dropout uses it) for the run, and restore the caller's afterwards."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        yield


class _Run(Context):
    """One run, from the beginning or from a checkpoint."""

    def run(self) -> RunResult:
        for sentence in self.setup.execution.notes:
            self.progress.note(sentence)
        resumed = self._resumed()
        if resumed is None:
            self._measure_latency()
            self.ranks.on_main(lambda: start_run_folder(self.setup.folder, self.config))
            torch.manual_seed(self.config.seed + self.ranks.rank)
        else:
            self._resume_from(resumed)
        self.open_log()
        with self.interrupt.between_steps():
            while True:
                self.setup = replace(self.setup, goals=self._goals())
                self._to_fine_tuned(resumed)
                if self.state.milestone + 1 >= len(self.config.milestones):
                    break
                resumed = self._next_milestone()
        return self._finish()

    def _resumed(self) -> Checkpoint | None:
        """Return the checkpoint to resume from; a run killed before its first one starts from the beginning."""
        if self.config.resume and checkpoints.exists(self.setup.folder):
            return checkpoints.load(self.setup.folder, self.config)
        return None

    def _resume_from(self, resumed: Checkpoint) -> None:
        """Resume from a checkpoint, with the settings that were changed."""
        self.state = state_of(resumed)
        record = self.state.record
        self.setup = focused(self.setup, record.focus)
        self.history = GammaHistory(self.setup.sparsity)
        self.ranks.on_main(lambda: continue_run_folder(self.setup.folder, self.config))
        changed = checkpoints.changed_settings(resumed, self.config)
        if "rho" in changed and self.config.rho is not None:
            record.rho = self.config.rho
        late = self.state.phase >= FINETUNE and self.state.milestone + 1 >= len(self.config.milestones)
        for name in changed:
            said = f"{name.replace('_', '-')} {getattr(self.config, name)} from step {self.state.step} on: given"
            without_effect = late and name in ("lr", "gamma_lr", "rho")
            self.tell(f"{said}, without effect: fine-tuning goes by finetune-lr" if without_effect else said)

    def _goals(self) -> tuple[Goal, ...]:
        """Return the run's present budget."""
        if self.state.record.latency is not None:
            return time_budget.goals(self.state.record.latency)
        return milestones.goals_at(self.config, self.state.milestone)

    def _measure_latency(self) -> None:
        """Find the MACs budget for the latency asked for, and save it for a resumed run."""
        asked = self.config.target_latency
        if asked is not None:
            self.progress.note("measuring how long pruned networks take, in ONNX Runtime on this machine's CPU")
            self.state.record.latency = self.ranks.on_main(lambda: time_budget.begin(self.setup, asked))

    def _to_fine_tuned(self, resumed: Checkpoint | None) -> None:
        """Train towards sparsity, remove, fine-tune; or continue from where ``resumed`` is."""
        if self.state.phase < FINETUNE:
            train_sparse(self, resumed)
            self._remove()
            resumed = None
        else:
            assert resumed is not None, "a run begins with its first phase"
            self._rebuild(resumed)
        self._finetune(resumed)

    # --- milestones ---------------------------------------------------------------------------------

    def _next_milestone(self) -> Checkpoint:
        """Write a milestone's result, and return the state from which ISTA continues to the next one."""
        self._finish_milestone()
        kept = checkpoints.load(self.setup.folder, self.config, milestone=True)
        reached = self.state.record.milestones
        step = self.state.step
        self.state = state_of(kept)
        self.state.phase, self.state.phase_step, self.state.step = ISTA, 0, step
        self.state.milestone += 1
        self.state.record.milestones = reached
        self.state.record.rho = self.state.record.rho_reached
        kept["controller"] = restarted(kept["controller"])
        self.plan = self.teacher = None
        self.module = self.setup.execution.place(self.setup.module)
        return kept

    def _finish_milestone(self) -> RunResult:
        share = self.config.milestones[self.state.milestone]
        result = self._settled_result(lambda: milestones.open_folder(self.setup, self.state.milestone))
        self.state.record.milestones.append(milestones.entry(result, share))
        return result

    # --- removal ------------------------------------------------------------------------------------

    def _remove(self) -> None:
        setup = self.setup
        plan = setup.sparsity
        keep = keep_mask(plan, zero_gammas(plan, gamma_values(plan, self.module)))
        check_alive(plan.graph, plan.classes, keep, self.state.record.rho)
        finetune_steps = setup.phases[FINETUNE].steps
        if not finetune_steps:
            self.settle_statistics()
        self.module.to("cpu")
        report = removing.remove(self, finetune_steps)
        setup.execution.place(self.module)
        if finetune_steps:
            # Constants folded into biases shift what the BatchNorms behind them see at the borders.
            self.settle_statistics()
        self.state.record.report = report
        self.score("removed")
        left = report["after"]["params"] / report["before"]["params"]
        self.progress.note(f"removed {report['removed_channels']} channels: {left:.1%} of the parameters are left")
        if self.plan is not None and self.plan.is_empty:
            self.tell(_NOTHING_REMOVED)

    def _rebuild(self, resumed: Checkpoint) -> None:
        self.plan = PrunePlan.from_json(resumed["plan"])
        self.module = self.setup.execution.place(apply_plan(self.setup.module.to("cpu"), self.plan))

    # --- fine-tuning --------------------------------------------------------------------------------

    def _finetune(self, resumed: Checkpoint | None) -> None:
        self.optimizer = base_optimizer(self.module, self.config, self.config.finetune_lr)
        self.ema = Ema(self.module, self.config.ema_decay)
        self.controller = None
        self.restore(resumed)
        self.ready_forward()
        if resumed is None:
            self.save()
        weight = self.state.record.distill
        if weight and self.setup.phases[FINETUNE].steps:
            execution = self.setup.execution
            module = execution.place(checkpoints.load_teacher(self.setup.folder, self.setup.module))
            self.teacher = Teacher(execution.forward(module, self.progress.note), weight, self.setup.objective)
        after = self.state.record.report["after"]
        self.run_phase(FineTune(self.setup, self.optimizer, after["params"], after["macs"]))

    # --- the end ------------------------------------------------------------------------------------

    def _finish(self) -> RunResult:
        if self.config.milestones:
            last = self._finish_milestone()
            entries = self.state.record.milestones
            return self.ranks.on_main(lambda: milestones.conclude(self.setup, last, entries))
        return self._settled_result(lambda: self.setup)

    def _settled_result(self, setup: Callable[[], Setup]) -> RunResult:
        """Bring the network to its final form, score it, and write it to the folder of ``setup``."""
        if self.setup.phases[FINETUNE].steps and self.config.ema_decay:
            self.ema.copy_to_module()
        self.settle_statistics()
        self.score("after")
        assert self.plan is not None, "removal comes before the end"
        module, plan, record = self.module.to("cpu").eval(), self.plan, self.state.record
        return self.ranks.on_main(lambda: write_results(setup(), module, plan, record, self.progress))


_NOTHING_REMOVED = "no channel was removed: no gamma reached zero; raise rho, lower alpha or train longer"
