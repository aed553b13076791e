"""``prunec train-prune``: the whole job, from a network and data to a smaller network, checked.

Owns the order: measure, rescale, warm up, ISTA, undo, remove, fine-tune, write. Each step is a module
of its own; what can be wrong with a run is found in setup.py, what it leaves behind is written by results.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from prunec.apply import apply_plan
from prunec.errors import Interrupted, WriteFailed
from prunec.files import RunFolder
from prunec.plan import PrunePlan
from prunec.report import PruneReport
from prunec.training import checkpoint as checkpoints
from prunec.training import latency, layer_times, milestones
from prunec.training.batches import plain_batches
from prunec.training.batchnorm import reestimate
from prunec.training.budget import Goal, Sizer, in_words, refreshed
from prunec.training.checkpoint import Checkpoint, rng_state, set_rng_state
from prunec.training.config import RunConfig
from prunec.training.controller import Controller, restarted
from prunec.training.ema import Ema
from prunec.training.evaluate import evaluate
from prunec.training.execution import Forward
from prunec.training.fitting import GammaHistory, fit, set_gammas
from prunec.training.footprint import check_alive, keep_mask, zero_gammas
from prunec.training.ista import Ista
from prunec.training.loop import Interrupt, State, Tools, diverged, resume_command, run_phase
from prunec.training.metrics import MetricsFile, NoMetrics, Window
from prunec.training.objective import Segmentation
from prunec.training.pictures import found_masks
from prunec.training.progress import Progress, Silent
from prunec.training.ranks import joined
from prunec.training.removal import base_optimizer, remove
from prunec.training.rescale import Rescaling
from prunec.training.results import RunResult, write_results
from prunec.training.setup import Setup, continue_run_folder, prepare, start_run_folder, try_step, weighed
from prunec.training.sparsity import build
from prunec.training.tasks import FineTune, Sparsify, gamma_values
from prunec.training.tensorboard import Curves
from prunec.training.tuning import Choice, choose_alpha, choose_rho_in_time, gamma_facts

ISTA, FINETUNE = 1, 2
"""Indices of the phases."""
_STATISTICS_BATCHES = 20


def train_prune(config: RunConfig, progress: Progress | None = None) -> RunResult:
    """Train a network towards sparsity, remove what became constant, fine-tune, export and check.

    Processes that torchrun started train together (see ranks.py); each returns the result, rank 0 writes.

    Args:
        config: see RunConfig; make one with presets.make_config, or presets.resume_config to go on.
        progress: told what happens; nothing is shown without it.

    Returns:
        What the run folder's summary.json says.

    Raises:
        PrunecError: the settings, the data or the network cannot be used: nothing was written.
        CheckFailed: the run failed a check (no channels left, loss not a number, budget not met, the
            exported network differs).
        Interrupted: stopped by the user or the system; says how to go on.
        WriteFailed: the disk is full; what was saved before is whole.
    """
    progress = progress if progress is not None else Silent()
    try:
        with joined(config.device) as ranks, _own_randomness(), Interrupt() as interrupt:
            setup = ranks.agree(lambda: prepare(config, ranks))
            if ranks.rank > 0:
                progress = Silent()
            try:
                return _Run(setup, progress, interrupt).run()
            except (Interrupted, WriteFailed) as stop:
                raise _with_the_way_on(stop, config) from stop
    finally:
        progress.close()


def _with_the_way_on(stop: Interrupted | WriteFailed, config: RunConfig) -> Interrupted | WriteFailed:
    """Return the error with the command that goes on with the run, where there is a checkpoint to go on from."""
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
    """Seed torch's ambient generator (dropout draws from it) for the run, and give the caller's back."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        yield


class _Run:
    """One run; mutable, and lives inside one call of ``train_prune``."""

    def __init__(self, setup: Setup, progress: Progress, interrupt: Interrupt) -> None:
        self.setup, self.progress, self.interrupt = setup, progress, interrupt
        self.config, self.ranks = setup.config, setup.ranks
        self.state = State()
        self.plan: PrunePlan | None = None
        self.window = Window(setup.device, setup.objective, setup.ranks)
        self.controller: Controller | None = None
        self.history = GammaHistory(setup.sparsity)
        self.module: nn.Module = setup.module
        self.teacher: nn.Module | None = None
        self.forward: Forward = setup.module
        self.optimizer: torch.optim.Optimizer
        self.ema: Ema

    def run(self) -> RunResult:
        for sentence in self.setup.execution.notes:
            self.progress.note(sentence)
        resumed = self._resumed()
        if resumed is None:
            self._measure_layers()
            self._measure_latency()
            self.ranks.on_main(lambda: start_run_folder(self.setup.folder, self.config))
            torch.manual_seed(self.config.seed + self.ranks.rank)
        else:
            self.state = _state_of(resumed)
            self._take_in_changes(checkpoints.changed_settings(resumed, self.config))
        self._weigh()
        self.metrics = self._open_log()
        with self.interrupt.between_steps():
            while True:
                self.setup = replace(self.setup, goals=self._goals())
                self._to_fine_tuned(resumed)
                if self.state.milestone + 1 >= len(self.config.milestones):
                    break
                resumed = self._next_milestone()
        return self._finish()

    def _goals(self) -> tuple[Goal, ...]:
        """Return the budget that the run is on its way to."""
        if "latency" in self.state.facts:
            return latency.goals(self.state.facts["latency"])
        return milestones.goals_at(self.config, self.state.milestone)

    def _measure_layers(self) -> None:
        """Find out what λ is to follow; it is kept, so that a resumed run has the same."""
        if self.config.penalty == "latency":
            self.progress.note("measuring how long each layer takes, in ONNX Runtime on this machine's CPU")
            found = self.ranks.on_main(lambda: layer_times.measure(self.setup.sparsity.graph))
            self.state.facts["layers"] = {"rates": found.rates, "said": found.said}

    def _weigh(self) -> None:
        if "layers" in self.state.facts:
            self.setup = weighed(self.setup, self.state.facts["layers"]["rates"])
            self.history = GammaHistory(self.setup.sparsity)

    def _measure_latency(self) -> None:
        """Find the MACs budget that stands for the latency asked for; it is kept, so that a resumed run has it."""
        asked = self.config.target_latency
        if asked is not None:
            self.progress.note("measuring how long pruned networks take, in ONNX Runtime on this machine's CPU")
            self.state.facts["latency"] = self.ranks.on_main(lambda: latency.begin(self.setup, asked))

    def _to_fine_tuned(self, resumed: Checkpoint | None) -> None:
        """Train towards sparsity, remove, fine-tune; or go on with where ``resumed`` is in that."""
        if self.state.phase < FINETUNE:
            self._train_sparse(resumed)
            self._remove()
            resumed = None
        else:
            assert resumed is not None, "a run begins with its first phase"
            self._rebuild(resumed)
        self._finetune(resumed)

    def _next_milestone(self) -> Checkpoint:
        """Write a milestone's result, and return the state from which ISTA goes on to the next one."""
        self._finish_milestone()
        kept = checkpoints.load(self.setup.folder, self.config, milestone=True)
        reached = self.state.facts["milestones"]
        step = self.state.step
        self.state = _state_of(kept)
        self.state.phase, self.state.phase_step, self.state.step = ISTA, 0, step
        self.state.milestone += 1
        self.state.facts["milestones"] = reached
        self.state.facts["rho"] = kept["facts"]["rho_reached"]
        kept["controller"] = restarted(kept["controller"])
        self.plan = self.teacher = None
        self.module = self.setup.module.to(self.setup.device)
        return kept

    def _finish_milestone(self) -> RunResult:
        share = self.config.milestones[self.state.milestone]
        result = self._settled_result(lambda: milestones.open_folder(self.setup, self.state.milestone))
        self.state.facts.setdefault("milestones", []).append(milestones.entry(result, share))
        return result

    def _resumed(self) -> Checkpoint | None:
        """Return the checkpoint to go on from; a run killed before its first one starts anew."""
        if self.config.resume and checkpoints.exists(self.setup.folder):
            return checkpoints.load(self.setup.folder, self.config)
        return None

    def _open_log(self) -> MetricsFile | NoMetrics | Curves:
        folder, step = self.setup.folder, self.state.step
        if self.ranks.rank > 0:
            return NoMetrics()
        file = MetricsFile(folder.metrics, step)
        return Curves(file, folder.tensorboard, step) if self.config.tensorboard else file

    def _take_in_changes(self, changed: Sequence[str]) -> None:
        """Go on with settings that ``--resume`` was given anew."""
        facts = self.state.facts
        self.ranks.on_main(lambda: continue_run_folder(self.setup.folder, self.config))
        if "rho" in changed and self.config.rho is not None:
            facts["rho"] = self.config.rho
        for name in changed:
            sentence = f"{name.replace('_', '-')} {getattr(self.config, name)} from step {self.state.step} on: given"
            facts.setdefault("reasons", []).append(sentence)
            self.progress.note(sentence)

    # --- warm-up and ISTA ---------------------------------------------------------------------------

    def _train_sparse(self, resumed: Checkpoint | None) -> None:
        setup = self.setup
        facts = self.state.facts
        if resumed is None:
            if self.config.pretrained:
                self._score("before")
                self._keep_teacher()
            self._choose()
        if resumed is None:
            if facts["alpha"] != 1.0:
                rescaling = Rescaling.of(self.module, setup.scaling, facts["alpha"])
                rescaling.apply(self.module, _on(setup.example_inputs, setup.device))
            values = gamma_values(setup.sparsity, self.module)
            self.history.observe(values)
            facts["top"] = max(float(abs(v).max()) for v in values.values()) * 1.25 or 1.0
        ista = build(setup.sparsity, self.module, base_optimizer(self.module, self.config, self.config.lr), rho=0.0)
        self.optimizer, self.ema = ista, Ema(self.module, self.config.ema_decay)
        first = self.state.milestone == 0
        self.controller = Controller(
            facts["rho"],
            self.config.rho_factors if first else (1.0,),
            self.config.rho_warmup if first else 0.0,
            bool(setup.goals),
            self.config.stop_on_plateau,
            setup.objective.chance_loss,
            self.config.on_symptom,
        )
        self._restore(resumed)
        if self.state.phase_step == 0:
            # Shows before the first step that a checkpoint can be written, whatever quotas there are.
            self._save()
        self._ready_forward()
        while self.state.phase < FINETUNE:
            self._run_sparse_phase(ista)
        # Gammas are equal on all ranks, running statistics are not.
        self.ranks.copy_state(self.module)
        if self.state.milestone + 1 < len(self.config.milestones):
            facts["rho_reached"] = ista.rho
            self._save(milestone=True)
        self._meet_budget()
        # Of the α that the run has ended with: adjusting may have lowered it.
        Rescaling.of(self.module, setup.scaling, facts["alpha"]).undo()

    def _rescale(self, factor: float) -> None:
        """Multiply α while ISTA goes on. The optimiser's memory was of weights of another size: it starts anew."""
        rescaling = Rescaling.of(self.module, self.setup.scaling, factor)
        inputs = _on(self.setup.example_inputs, self.setup.device)
        self.ema.change_both(lambda: rescaling.apply(self.module, inputs))
        self.optimizer.state.clear()
        self.state.facts["alpha"] *= factor

    def _meet_budget(self) -> None:
        """Bring the network to its budget: give back what went beyond it, take what is missing."""
        if not self.setup.goals:
            return
        setup, plan = self.setup, self.setup.sparsity
        self.history.observe(gamma_values(plan, self.module))
        sizer = replace(setup.sizer, graph=refreshed(plan.graph, self.module))
        if "latency" in self.state.facts:
            self._correct_latency(sizer)
            setup = self.setup
        chosen = fit(self.history, sizer, setup.goals, setup.full)
        set_gammas(plan, self.module, self.history.values, chosen.gone)
        wanted = "may be, for the latency" if "latency" in self.state.facts else "were asked for"
        said = (
            f"budget: {in_words(setup.goals, chosen.size, setup.full, wanted)} are left; of {int(chosen.gone.sum())} "
            f"channel classes that go, {chosen.forced} had not reached zero, and {chosen.revived} that had stay"
        )
        self.state.facts["reasons"].append(said)
        self.progress.note(said)

    def _correct_latency(self, sizer: Sizer) -> None:
        """Move the MACs budget to where the network that fits it takes the time asked for."""
        before = self.state.facts["latency"]
        now, said = self.ranks.on_main(lambda: latency.correct(self.setup, self.history, sizer, before))
        self.state.facts["latency"] = now
        self.setup = replace(self.setup, goals=self._goals())
        self.state.facts["reasons"].append(said)
        self.progress.note(said)

    def _run_sparse_phase(self, ista: Ista) -> None:
        is_ista = self.setup.phases[self.state.phase].name == "ista"
        task = Sparsify(
            self.setup,
            self.module,
            ista,
            self.controller if is_ista else None,
            self.history,
            self._rescale,
            lr=self.config.lr,
            gamma_lr=self.config.gamma_lr or self.config.lr,
            top=self.state.facts["top"],
        )
        self._run_phase(task)
        # From scratch, the measure is the network as it was before the penalty or, for want of a warm-up,
        # the unpruned network after ISTA.
        trained = is_ista or self.setup.phases[0].steps > 0
        if trained and "before" not in self.state.facts.get("scores", {}):
            with self.ema.swapped_in():
                self._score("before")
                self._keep_teacher()
        if self.state.phase < FINETUNE:
            self._save()

    def _keep_teacher(self) -> None:
        """Keep the network as it is now, if fine-tuning is to distil from it."""
        if self.config.distill:
            state = self.module.state_dict()
            self.ranks.on_main(lambda: checkpoints.save_teacher(self.setup.folder, state))

    def _choose(self) -> None:
        """Fix α and ρ: what was given, or what the rules say, with the reason."""
        setup, config = self.setup, self.config
        facts = gamma_facts(setup.sparsity, gamma_values(setup.sparsity, self.module))
        mu = config.gamma_lr or config.lr
        if config.alpha is not None:
            alpha = Choice(config.alpha, "given")
        elif config.pretrained:
            alpha = choose_alpha(facts, mu, config.rho, setup.objective.chance_loss)
        else:
            alpha = Choice(1.0, "training starts from scratch")
        if config.rho is not None:
            rho = Choice(config.rho, "given")
        else:
            rho = choose_rho_in_time(facts, alpha.value, setup.objective.chance_loss, mu, setup.phases[ISTA].steps)
        chosen = self.state.facts
        chosen["alpha"], chosen["rho"] = alpha.value, rho.value
        chosen["reasons"] = [*setup.notes, f"alpha {alpha.value:g}: {alpha.reason}", f"rho {rho.value:g}: {rho.reason}"]
        if "layers" in chosen:
            chosen["reasons"].append(chosen["layers"]["said"])
        if "latency" in chosen:
            chosen["reasons"].append(latency.in_words(chosen["latency"]))
        if alpha.value != 1.0 and setup.scaling.blocked:
            blocked = ", ".join(dict.fromkeys(b.node.origin or b.node.name for b in setup.scaling.blocked[:5]))
            chosen["reasons"].append(f"not rescaled, because a factor does not pass: the channels at {blocked}")
        for sentence in chosen["reasons"]:
            self.progress.note(sentence)

    # --- removal ------------------------------------------------------------------------------------

    def _remove(self) -> None:
        setup = self.setup
        plan = setup.sparsity
        keep = keep_mask(plan, zero_gammas(plan, gamma_values(plan, self.module)))
        check_alive(plan.graph, plan.classes, keep, self.state.facts["rho"])
        finetune_steps = setup.phases[FINETUNE].steps
        if not finetune_steps:
            self._settle_statistics()
        self.module.to("cpu")
        report = self._apply_removal(finetune_steps)
        setup.execution.place(self.module)
        if finetune_steps:
            # Constants folded into biases shift what the BatchNorms behind them see at the borders.
            self._settle_statistics()
        facts = self.state.facts
        facts["report"] = report.to_json_dict()
        self._score("removed")
        left = report.after.params / report.before.params
        self.progress.note(f"removed {report.removed_channels} channels: {left:.1%} of the parameters are left")
        if self.plan is not None and self.plan.is_empty:
            facts["reasons"].append(_NOTHING_REMOVED)
            self.progress.note(_NOTHING_REMOVED)

    def _apply_removal(self, finetune_steps: int) -> PruneReport:
        """Replace the network by the pruned one. Rank 0 plans; the others carry out its plan."""
        found: list[nn.Module] = []

        def work() -> tuple[str, PruneReport]:
            pruned = remove(self.module, self.setup.example_inputs, self.config, finetune_steps)
            found.append(pruned.module)
            return pruned.plan.to_json(), pruned.report

        text, report = self.ranks.on_main(work)
        self.plan = PrunePlan.from_json(text)
        self.module = found[0] if found else apply_plan(self.module, self.plan)
        return report

    def _rebuild(self, resumed: Checkpoint) -> None:
        self.plan = PrunePlan.from_json(resumed["plan"])
        self.module = self.setup.execution.place(apply_plan(self.module.to("cpu"), self.plan))

    # --- fine-tuning --------------------------------------------------------------------------------

    def _finetune(self, resumed: Checkpoint | None) -> None:
        self.optimizer = base_optimizer(self.module, self.config, self.config.finetune_lr)
        self.ema = Ema(self.module, self.config.ema_decay)
        self.controller = None
        self._restore(resumed)
        self._ready_forward()
        if resumed is None:
            self._save()
        if self.config.distill:
            self.teacher = checkpoints.load_teacher(self.setup.folder, self.setup.module).to(self.setup.device)
        after = self.state.facts["report"]["after"]
        self._run_phase(FineTune(self.setup, self.optimizer, after["params"], after["macs"]))

    def _finish(self) -> RunResult:
        if self.config.milestones:
            last = self._finish_milestone()
            entries = self.state.facts["milestones"]
            return self.ranks.on_main(lambda: milestones.conclude(self.setup, last, entries))
        return self._settled_result(lambda: self.setup)

    def _settled_result(self, setup: Callable[[], Setup]) -> RunResult:
        """Bring the network to its last form, score it, and write it where ``setup`` says."""
        if self.setup.phases[FINETUNE].steps and self.config.ema_decay:
            self.ema.copy_to_module()
        self._settle_statistics()
        self._score("after")
        assert self.plan is not None, "removal comes before the end"
        module, plan, facts = self.module.to("cpu").eval(), self.plan, self.state.facts
        return self.ranks.on_main(lambda: write_results(setup(), module, plan, facts, self.progress))

    # --- shared -------------------------------------------------------------------------------------

    def _run_phase(self, task: Sparsify | FineTune) -> None:
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
                self._save,
                self.teacher,
            )
            reason = run_phase(tools, self.state, phase, task, self.interrupt)
            if reason:
                self.state.facts.setdefault("reasons", []).append(
                    f"{phase.name} ended at step {self.state.step}: {reason}"
                )
                self.progress.note(f"{phase.name} ended: {reason}")
        self.state.phase += 1
        self.state.phase_step = 0

    def _ready_forward(self) -> None:
        """Make the forward pass of training steps: on this device, with the same gradients on all ranks."""
        together = self.module
        if self.ranks.size > 1:
            whole = self.state.phase < FINETUNE
            unused = self.setup.has_unused if whole else try_step(together, self.setup.batches, self.setup.objective)
            together = self.ranks.parallel(together, unused)
        self.forward = self.setup.execution.forward(together, self.progress.note)

    def _score(self, moment: str) -> None:
        """Measure the network as it is now; ``moment`` is one of results.MOMENTS."""
        setup = self.setup
        data = setup.data
        self.ranks.copy_state(self.module)
        scores = evaluate(self.module, data.test, setup.pipeline, setup.objective, data.image_shape, self.ranks)
        self.state.facts.setdefault("scores", {})[moment] = scores
        if isinstance(setup.objective, Segmentation):
            masks = found_masks(self.module, setup.data.test, setup.pipeline, setup.objective)
            self.state.facts.setdefault("masks", {})[moment] = masks

    def _settle_statistics(self) -> None:
        batches = plain_batches(self.setup.data.train, self.setup.pipeline, self.config.batch_size, _STATISTICS_BATCHES)
        reestimate(self.module, (inputs for inputs, _ in batches))

    def _save(self, *, milestone: bool = False) -> None:
        if not _all_finite(self.module):
            raise diverged(self.config.output, self.state.step, self.setup.phases[self.state.phase].name)
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
            "window": self.window.state_dict(),
            "controller": self.controller.state_dict() if self.controller is not None else {},
            "history": self.history.state_dict(),
            "facts": self.state.facts,
            "plan": self.plan.to_json() if self.plan is not None else "",
            "rng": self.ranks.gather(rng_state(self.setup.device)),
        }
        self.metrics.flush_to_disk()
        self.ranks.on_main(lambda: checkpoints.save(self.setup.folder, checkpoint, milestone=milestone))

    def _restore(self, resumed: Checkpoint | None) -> None:
        if resumed is None:
            return
        self.module.load_state_dict(resumed["module"])
        self.optimizer.load_state_dict(resumed["optimizer"])
        self.ema.load_state_dict(resumed["ema"])
        self.window.load_state_dict(resumed["window"])
        if self.controller is not None:
            self.controller.load_state_dict(resumed["controller"])
        self.history.load_state_dict(resumed["history"])
        if len(resumed["rng"]) == self.ranks.size:
            set_rng_state(resumed["rng"][self.ranks.rank])
        else:
            self.progress.note(f"the run goes on with {self.ranks.size} processes; it had {len(resumed['rng'])}")
            torch.manual_seed(self.config.seed + self.state.step * self.ranks.size + self.ranks.rank)


def _state_of(checkpoint: Checkpoint) -> State:
    return State(
        checkpoint["phase"],
        checkpoint["phase_step"],
        checkpoint["step"],
        checkpoint["milestone"],
        checkpoint["facts"],
    )


def _all_finite(module: nn.Module) -> bool:
    """Tell whether every parameter is a number; waits for the device once."""
    largest = torch._foreach_norm([p.detach() for p in module.parameters()], ord=math.inf)
    return bool(torch.stack([value.float() for value in largest]).isfinite().all())


_NOTHING_REMOVED = "no channel was removed: no gamma reached zero; raise rho, lower alpha or train longer"


def _on(inputs: tuple[torch.Tensor, ...], device: torch.device) -> tuple[torch.Tensor, ...]:
    return tuple(tensor.to(device) for tensor in inputs)
