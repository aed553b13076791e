"""The state that all parts of a run share: the network, its optimiser and average, the log and the run folder.

Owns saving and restoring checkpoints, running one phase, scoring, and re-estimating BatchNorm statistics. The order of
the phases is run.py's; warm-up, ISTA and the budget are sparsifying.py's.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from prunec.ir.plan import PrunePlan
from prunec.training.budget.landing import GammaHistory
from prunec.training.data.batches import sampled_batches
from prunec.training.learning.batchnorm import enough_batches, reestimate
from prunec.training.learning.distill import Teacher
from prunec.training.learning.ema import Ema
from prunec.training.learning.execution import Forward
from prunec.training.learning.objective import Segmentation
from prunec.training.logs.metrics import MetricsFile, NoMetrics, Window
from prunec.training.logs.pictures import found_masks
from prunec.training.logs.progress import Progress
from prunec.training.logs.tensorboard import Curves
from prunec.training.run import checkpoint as checkpoints
from prunec.training.run.checkpoint import Checkpoint, rng_state, set_rng_state
from prunec.training.run.evaluate import evaluate
from prunec.training.run.loop import Interrupt, State, Tools, diverged, run_phase
from prunec.training.run.record import Record
from prunec.training.run.tasks import FineTune, Sparsify
from prunec.training.settings.setup import Setup, try_step
from prunec.training.sparsity.controller import Controller


class Context:
    """The present state of a run; mutable, and lives inside one call of ``train_prune``.

    Args:
        setup: replaced when the budget changes, or when channels are removed from the network.
        progress: receives what happens.
        interrupt: knows whether a stop was asked for.
    """

    def __init__(self, setup: Setup, progress: Progress, interrupt: Interrupt) -> None:
        self.setup, self.progress, self.interrupt = setup, progress, interrupt
        self.config, self.ranks = setup.config, setup.ranks
        self.state = State()
        self.plan: PrunePlan | None = None
        self.window = Window(setup.device, setup.objective, setup.ranks)
        self.metrics: MetricsFile | NoMetrics | Curves = NoMetrics()
        self.controller: Controller | None = None
        self.history = GammaHistory(setup.sparsity)
        self.module: nn.Module = setup.module
        self.teacher: Teacher | None = None
        self.forward: Forward = setup.module
        self.optimizer: torch.optim.Optimizer
        self.ema: Ema

    def tell(self, sentence: str) -> None:
        """Show a sentence, and keep it among the reasons that the summary gives."""
        self.state.record.reasons.append(sentence)
        self.progress.note(sentence)

    def open_log(self) -> None:
        """Open metrics.jsonl (and TensorBoard's curves) if this process writes them."""
        folder, step = self.setup.folder, self.state.step
        if self.ranks.rank == 0:
            file = MetricsFile(folder.metrics, step)
            self.metrics = Curves(file, folder.tensorboard, step) if self.config.tensorboard else file

    def run_phase(self, task: Sparsify | FineTune) -> None:
        """Run the phase from where it is to its end."""
        phase = self.setup.phases[self.state.phase]
        if phase.steps:
            tools = Tools(
                self.setup,
                self.module,
                self.forward,
                self.optimizer,
                self.ema,
                self.window,
                self.metrics,
                self.progress,
                self.save,
                self.teacher,
            )
            reason = run_phase(tools, self.state, phase, task, self.interrupt)
            if reason:
                self.state.record.reasons.append(f"{phase.name} ended at step {self.state.step}: {reason}")
                self.progress.note(f"{phase.name} ended: {reason}")
        self.state.phase += 1
        self.state.phase_step = 0

    def ready_forward(self) -> None:
        """Prepare the forward pass of training steps: on this device, with the same gradients on all ranks."""
        together = self.module
        if self.ranks.size > 1:
            as_given = together is self.setup.module
            unused = self.setup.has_unused if as_given else try_step(together, self.setup.batches, self.setup.objective)
            together = self.ranks.parallel(together, unused)
        self.forward = self.setup.execution.forward(together, self.progress.note)

    def score(self, moment: str) -> None:
        """Measure the network as it is now; ``moment`` is one of results.MOMENTS."""
        setup = self.setup
        data = setup.data
        self.ranks.copy_state(self.module)
        scores = evaluate(self.module, data.test, setup.pipeline, setup.objective, data.image_shape, self.ranks)
        self.state.record.scores[moment] = scores
        if isinstance(setup.objective, Segmentation):
            masks = found_masks(self.module, setup.data.test, setup.pipeline, setup.objective)
            self.state.record.masks[moment] = masks

    def settle_statistics(self) -> None:
        """Measure the BatchNorms' statistics again, on augmented images, because the weights were trained on these."""
        config, data = self.config, self.setup.data
        most = enough_batches(config.batch_size, data.image_shape)
        batches = sampled_batches(data.train, self.setup.pipeline, config.batch_size, most, config.seed, augmented=True)
        reestimate(self.module, (inputs for inputs, _ in batches))

    def save(self, *, milestone: bool = False) -> None:
        """Write a checkpoint.

        Args:
            milestone: separately, as the state from which ISTA continues after a milestone.

        Raises:
            CheckFailed: a weight is not a number; the previous checkpoint stays.
        """
        if not _all_finite(self.module):
            raise diverged(self.config.output, self.state.step, self.setup.phases[self.state.phase].name)
        scaler = self.setup.execution.scaler
        checkpoint: Checkpoint = {
            "version": checkpoints.FORMAT_VERSION,
            "config": self.config.to_json(),
            "phase": self.state.phase,
            "phase_step": self.state.phase_step,
            "step": self.state.step,
            "milestone": self.state.milestone,
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else {},
            "window": self.window.state_dict(),
            "controller": self.controller.state_dict() if self.controller is not None else {},
            "history": self.history.state_dict(),
            "record": self.state.record.to_plain(),
            "plan": self.plan.to_json() if self.plan is not None else "",
            "rng": self.ranks.gather(rng_state(self.setup.device)),
        }
        self.metrics.flush_to_disk()
        self.ranks.on_main(lambda: checkpoints.save(self.setup.folder, checkpoint, milestone=milestone))

    def restore(self, resumed: Checkpoint | None) -> None:
        """Load a checkpoint into a network and an optimiser of the same form; None changes nothing."""
        if resumed is None:
            return
        self.module.load_state_dict(resumed["module"])
        self.optimizer.load_state_dict(resumed["optimizer"])
        self.ema.load_state_dict(resumed["ema"])
        if self.setup.execution.scaler is not None and resumed["scaler"]:
            self.setup.execution.scaler.load_state_dict(resumed["scaler"])
        self.window.load_state_dict(resumed["window"])
        if self.controller is not None:
            self.controller.load_state_dict(resumed["controller"])
        self.history.load_state_dict(resumed["history"])
        if len(resumed["rng"]) == self.ranks.size:
            set_rng_state(resumed["rng"][self.ranks.rank])
        else:
            self.progress.note(f"the run goes on with {self.ranks.size} processes; it had {len(resumed['rng'])}")
            torch.manual_seed(self.config.seed + self.state.step * self.ranks.size + self.ranks.rank)


def state_of(checkpoint: Checkpoint) -> State:
    """Return the position of a checkpoint's run."""
    return State(
        checkpoint["phase"],
        checkpoint["phase_step"],
        checkpoint["step"],
        checkpoint["milestone"],
        Record.of_plain(checkpoint["record"]),
    )


def _all_finite(module: nn.Module) -> bool:
    """Tell whether every parameter is a number; waits for the device once."""
    largest = torch._foreach_norm([p.detach() for p in module.parameters()], ord=math.inf)
    return bool(torch.stack([value.float() for value in largest]).isfinite().all())
