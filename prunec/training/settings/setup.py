"""RunConfig -> Setup: model, data, device and run folder, all checked before the first step.

Owns the checks of everything that can be wrong with a run before it starts, before any file is written.
"""

from __future__ import annotations

import contextlib
import copy
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunec.errors import BadInput, PrunecError, UnsupportedModel
from prunec.files import RunFolder, check_folder, check_name, check_space, clear_asides, is_aside, write_json
from prunec.frontends.fx.tracing.failures import refuse_unreadable
from prunec.lookup import resolve
from prunec.passes.channels import channels
from prunec.passes.sparsity.scaling import Scaling, scalable
from prunec.pipeline.reading import read_module
from prunec.runtime.modules import evaluating
from prunec.training.budget.footprint import Size, size_under
from prunec.training.budget.goals import Goal, Sizer, excess
from prunec.training.budget.landing import not_met, smallest
from prunec.training.data.augment import AUGMENTS, Pipeline, pipeline
from prunec.training.data.batches import Batches
from prunec.training.data.sets import ImageSet, load
from prunec.training.learning.execution import Execution, plan_execution
from prunec.training.learning.objective import Objective, make_objective, num_logits
from prunec.training.learning.ranks import Ranks
from prunec.training.logs.tensorboard import require_tensorboard
from prunec.training.settings.config import RunConfig
from prunec.training.settings.onnx_network import Interface, load_network, prepared_network
from prunec.training.settings.removal import border_of
from prunec.training.sparsity.controller import BUDGET_READINGS
from prunec.training.sparsity.sparsify import Sparsity, plan_sparsity, require_some

WARMUP, ISTA, FINETUNE = 0, 1, 2
"""Indices of a run's phases."""
_LOG_BYTES = 16 << 20
"""Bytes for metrics.jsonl and the report."""


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of the run: ``warmup``, ``ista`` or ``finetune``; 0 steps skip it."""

    name: str
    steps: int


@dataclass(frozen=True, slots=True, eq=False)
class Setup:
    """Everything that a run needs.

    Args:
        config: its settings.
        folder: the run folder.
        ranks: the processes that train together.
        device: where it trains.
        execution: how its steps are computed there.
        has_unused: some trainable parameter gets no gradient.
        module: the network to train, on the device, in training mode.
        example_inputs: zeros of two images, on the CPU.
        data: on the device.
        objective: loss and scores.
        pipeline, batches: how images become inputs.
        phases: warm-up, ISTA, fine-tuning.
        sparsity: which gammas of ``module`` are penalised, and λ.
        scaling: where γ–W rescaling of ``module`` is possible.
        full: the size of ``module``.
        interface: names and open axes of the exported file.
        notes: sentences about how the network was prepared.
        goals: the budget, the last of several; () if there is none.
        sizer: counts what removal would leave.
    """

    config: RunConfig
    folder: RunFolder
    ranks: Ranks
    device: torch.device
    execution: Execution
    has_unused: bool
    module: nn.Module
    example_inputs: tuple[torch.Tensor, ...]
    data: ImageSet
    objective: Objective
    pipeline: Pipeline
    batches: Batches
    phases: tuple[Phase, Phase, Phase]
    sparsity: Sparsity
    scaling: Scaling
    full: Size
    goals: tuple[Goal, ...]
    sizer: Sizer
    interface: Interface
    notes: tuple[str, ...]

    def log_every(self, phase: Phase) -> int:
        """Return the steps between two log rows; under a budget, ρ is adjusted at ISTA's log rows."""
        if phase == self.phases[ISTA] and self.goals:
            return max(1, min(self.config.log_every, phase.steps // BUDGET_READINGS))
        return self.config.log_every


def prepare(config: RunConfig, ranks: Ranks, tell: Callable[[str], None] = lambda _: None) -> Setup:
    """Load and check everything a run needs.

    Args:
        tell: called with a sentence before anything that may take long.

    Raises:
        BadInput, UnsupportedModel, UntraceableModel, MissingDependency: saying what is wrong.
    """
    folder = RunFolder(Path(config.output))
    check_run_folder(folder, config)
    if config.tensorboard:
        require_tensorboard()
    device = ranks.device or choose_device(config.device)
    network = load_network(Path(config.onnx), config.input_shape) if config.onnx else None
    module, image_shape = (network.module, network.image_shape) if network is not None else _model(config)
    _check_disk(folder, module)
    example_inputs = (torch.zeros(2, *image_shape),)
    output = _output(module, example_inputs)
    data = load(config.data, image_shape, num_logits=num_logits(output), memory=round(config.data_memory * 2**30))
    objective = make_objective(output, data.task, data.classes, data.shares)
    images = pipeline(config.normalise, AUGMENTS[config.augment], data.mean, data.std, image_shape[0])
    notes: tuple[str, ...] = ()
    if network is not None:
        module, notes = prepared_network(network, data, images, config, tell)
    graph = read_module(module, example_inputs, config.model_spec).graph
    sparsity = plan_sparsity(
        graph,
        channels(graph, config.keep),
        module,
        kind=config.penalty,
        residual=config.residual,
        drive_all=config.drive_beta,
    )
    require_some(sparsity)
    data = data.to(device)
    _check_shares(config.batch_size, len(data.train), ranks)
    batches = Batches(
        data.train, _images_per_step(config, len(data.train)), images, config.seed, ranks.rank, ranks.size
    )
    full = size_under(graph, sparsity.classes, sparsity.penalised | True)
    phases = plan_phases(config, batches.steps_per_epoch)
    sizer = Sizer(graph, sparsity, border_of(config, phases[FINETUNE].steps), config.multiple_of)
    goals = config.goals or tuple(Goal("macs", share) for share in config.milestones[-1:])
    _check_budget(goals, sizer, full)
    execution = plan_execution(
        device,
        asked_device=config.device,
        precision=config.precision,
        channels_last=config.channels_last,
        compiles=config.compile,
    )
    execution.place(module).train()
    has_unused = try_step(module, batches, objective)
    return Setup(
        config=config,
        folder=folder,
        ranks=ranks,
        device=device,
        execution=execution,
        has_unused=has_unused,
        module=module,
        example_inputs=example_inputs,
        data=data,
        objective=objective,
        pipeline=images,
        batches=batches,
        phases=phases,
        sparsity=sparsity,
        scaling=scalable(graph, sparsity.classes, sparsity.gammas, sparsity.penalised),
        full=full,
        goals=goals,
        sizer=sizer,
        interface=network.interface if network is not None else Interface(),
        notes=notes,
    )


def try_step(module: nn.Module, batches: Batches, objective: Objective) -> bool:
    """Make a training step without its update, and tell whether some trainable parameter has no gradient after it.

    The step is made on a copy; torch's ambient generators do not change.

    Raises:
        BadInput, UnsupportedModel: the network does not train on a batch of this data.
    """
    inputs, targets = batches.at(0)
    try:
        trial = copy.deepcopy(module).train()
    except Exception:  # noqa: BLE001 - not everything can be copied; the run itself will tell
        return True
    try:
        with torch.random.fork_rng(devices=[inputs.device] if inputs.is_cuda else []):
            loss = objective.loss(objective.logits(trial(inputs)), targets)
            loss.backward()
    except torch.OutOfMemoryError as error:
        raise BadInput("the device's memory is too small for a training step", do="lower --batch-size") from error
    except PrunecError:
        raise
    except Exception as error:  # the user's forward may raise anything
        raise UnsupportedModel(
            f"the network fails in training mode on a batch of shape {'x'.join(map(str, inputs.shape))}",
            why=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
            do="BatchNorm needs two values per channel: give a larger --batch-size, if that is it; --debug shows where",
        ) from error
    if not bool(loss.isfinite()):
        raise BadInput(
            "the network's loss is not a number before the first step",
            why="its weights, or values that it computes, are not finite",
            do="check the weights file, or how the network initialises itself",
        )
    return any(p.grad is None for p in trial.parameters() if p.requires_grad)


def _check_shares(batch_size: int, num_images: int, ranks: Ranks) -> None:
    if min(batch_size, num_images) < ranks.size:
        raise BadInput(
            f"{ranks.size} processes cannot share a batch of {min(batch_size, num_images)} images",
            why="--batch-size counts the images of all processes together",
            do="give a larger --batch-size, or start fewer processes",
        )


def _images_per_step(config: RunConfig, images: int) -> int:
    wanted = config.batch_size * config.accumulate
    if config.accumulate > 1 and wanted > images:
        raise BadInput(
            f"{config.accumulate} batches of {config.batch_size} are {wanted} images; there are {images} to train on",
            do="lower --accumulate or --batch-size",
        )
    return wanted


def plan_phases(config: RunConfig, steps_per_epoch: int) -> tuple[Phase, Phase, Phase]:
    """Divide the run's steps among its phases; ISTA has at least one if it has a share.

    With milestones, the ISTA and fine-tuning phases are those of one milestone.
    """
    if config.steps is not None:
        total = config.steps
    else:
        assert config.epochs is not None, "RunConfig.check asks for a length"
        total = max(1, round(config.epochs * steps_per_epoch))
    whole = sum(config.shares)
    warmup, finetune = (int(total * config.shares[index] / whole) for index in (0, 2))
    parts = max(1, len(config.milestones))
    if not config.shares[1]:
        return Phase("warmup", warmup), Phase("ista", 0), Phase("finetune", (total - warmup) // parts)
    ista = max(1, (total - warmup - finetune) // parts)
    return Phase("warmup", warmup), Phase("ista", ista), Phase("finetune", finetune // parts)


def choose_device(asked: str) -> torch.device:
    """Return the device to train on; ``auto`` takes CUDA if it works.

    Raises:
        BadInput: CUDA is asked for and does not work.
    """
    if asked == "cpu":
        return torch.device("cpu")
    reason = _cuda_fault()
    if not reason:
        return torch.device("cuda")
    if asked == "auto":
        return torch.device("cpu")
    raise BadInput("CUDA does not work here", why=reason, do="use --device cpu or auto, or see `prunec doctor`")


def _cuda_fault() -> str:
    """Return why CUDA cannot be used, or "". It is tried, since this torch may lack kernels for the device."""
    if not torch.cuda.is_available():
        return "torch finds no CUDA device" if torch.version.cuda else "this torch is built without CUDA"
    try:
        torch.ones(2, device="cuda").sum().item()
    except RuntimeError as error:
        return str(error).strip().partition("\n")[0]
    return ""


def _model(config: RunConfig) -> tuple[nn.Module, tuple[int, int, int]]:
    """Build the network from the seed, load its weights, and return it with its input's (C, H, W)."""
    torch.manual_seed(config.seed)
    shapes = {"": (2, *config.input_shape)} if config.input_shape else {}
    weights = Path(config.weights) if config.weights else None
    resolved = resolve.resolve(config.model_spec, shapes, weights=weights)
    if isinstance(resolved, resolve.OnnxModel):
        raise BadInput("train-prune takes modules, not ONNX files", do="give --arch or --model package.module:factory")
    inputs = resolved.example_inputs
    if len(inputs) != 1 or not isinstance(inputs[0], torch.Tensor) or inputs[0].dim() != 4:
        raise UnsupportedModel(
            f"{config.model_spec} does not take one image tensor",
            why="train-prune feeds float32[N, C, H, W] images and nothing else",
            do="train it in a loop of your own with prunec.sparsify, then use prunec prune",
        )
    _, channels_in, height, width = inputs[0].shape
    return resolved.module, (channels_in, height, width)


def _output(module: nn.Module, example_inputs: Sequence[torch.Tensor]) -> Any:
    try:
        with torch.no_grad(), evaluating(module):
            return module(*example_inputs)
    except Exception as error:  # the user's forward may raise anything
        raise BadInput(
            f"the network cannot run on an input of shape {'x'.join(map(str, example_inputs[0].shape))}",
            why=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
            do="give the shape that it expects with --input-shape",
        ) from error


def _check_budget(goals: Sequence[Goal], sizer: Sizer, full: Size) -> None:
    """Check before the first step that pins leave room for the budget."""
    if goals:
        gammas = {gamma.param: sizer.graph.params[gamma.param].array for gamma in sizer.plan.gammas}
        least = smallest(sizer, gammas)
        if excess(goals, least, full) > 0:
            raise not_met(goals, least, full)


def check_run_folder(folder: RunFolder, config: RunConfig) -> None:
    """Check that the run can be written and would not destroy another; changes nothing.

    Raises:
        BadInput: a run is there (without resume or force), something else is, or it cannot be written.
    """
    path = folder.path
    check_name(path)
    if config.resume:
        if not folder.config.is_file():
            raise BadInput(f"{path} holds no run to resume", do="start it without --resume")
        check_folder(path)
        return
    if path.exists() and not path.is_dir():
        raise BadInput(f"the output {path} is a file", do="give a folder")
    if path.is_dir() and not all(map(is_aside, path.iterdir())) and not config.force:
        if folder.config.is_file():
            what, do = "already holds a run", "give another folder, --resume to go on, or --force to replace the run"
        else:
            what, do = "is not empty", "give another folder, or --force to put the run beside the other files"
        raise BadInput(f"the folder {path} {what}", do=do)
    _check_inputs_stay(folder, config)
    check_folder(_existing(path))


def _check_inputs_stay(folder: RunFolder, config: RunConfig) -> None:
    """Check that the run does not read what it replaces.

    Raises:
        BadInput: the network, its weights or the data are a file or folder that the run deletes and writes anew.
    """
    replaced = [each.resolve() for each in (*_results(folder), *_made(folder))]
    for given in (config.onnx, config.weights, config.data):
        place = Path(given).resolve()
        if given and any(place.is_relative_to(each) for each in replaced):
            raise BadInput(
                f"the run reads {given}, which lies where it writes its results",
                why="it would be gone before the first step",
                do="give another folder for the run, or move the file",
            )


def _results(folder: RunFolder) -> tuple[Path, ...]:
    made = (folder.metrics, folder.summary, folder.plan, folder.weights, folder.onnx, folder.report, folder.pictures)
    return (*made, folder.config)


def _made(folder: RunFolder) -> tuple[Path, ...]:
    return (folder.checkpoint, folder.tensorboard, *folder.path.glob("milestone-*"))


def _existing(path: Path) -> Path:
    """Return ``path`` or the nearest of its parents that is there."""
    return next(parent for parent in (path.resolve(), *path.resolve().parents) if parent.is_dir())


def _check_disk(folder: RunFolder, module: nn.Module) -> None:
    """Check that checkpoints and results will fit.

    A checkpoint holds the weights, their average and up to two moments of the optimiser, and is complete before the
    previous one is deleted; then come the ONNX file, the weights and a log.
    """
    refuse_unreadable(module)
    tensors = (*module.parameters(), *module.buffers())
    weights = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    check_space(_existing(folder.path), (2 * 4 + 2) * weights + _LOG_BYTES, "the run")


def start_run_folder(folder: RunFolder, config: RunConfig) -> None:
    """Make the folder, delete files of a replaced run, and write the settings."""
    folder.path.mkdir(parents=True, exist_ok=True)
    clear_asides(folder.path)
    for file in _results(folder):
        with contextlib.suppress(FileNotFoundError):
            file.unlink()
    for made in _made(folder):
        if made.is_dir():
            shutil.rmtree(made)
    write_json(folder.config, config.to_json_dict())


def continue_run_folder(folder: RunFolder, config: RunConfig) -> None:
    """Delete files that a killed process was writing, and write the settings that the run continues with."""
    for path in (folder.path, folder.checkpoint):
        clear_asides(path)
    write_json(folder.config, config.to_json_dict())
