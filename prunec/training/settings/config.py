"""RunConfig: everything that decides the outcome of a ``prunec train-prune`` run. Pure data.

Owns the type, its checks and its JSON form (the run folder's config.json). Where the values come from is
in presets.py; what they do is in run.py.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from prunec.errors import BadInput
from prunec.passes.sparsity.penalty import PENALTIES, PenaltyKind
from prunec.training.budget.goals import Goal
from prunec.training.data.augment import AUGMENTS, Normalise
from prunec.training.learning.execution import Precision
from prunec.training.sparsity.sparsify import Residual
from prunec.training.sparsity.symptoms import OnSymptom

Border = Literal["auto", "exact", "bias"]

OptimizerKind = Literal["sgd", "nesterov", "adamw"]

Criterion = Literal["l1", "reconstruct", "auto"]

FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class RunConfig:
    """The settings of one run.

    Args:
        output: the run folder.
        arch, model, onnx: a built-in architecture, ``package.module:factory``, or an ONNX file; one of the three.
        restore_batchnorm: ``auto`` puts folded BatchNorms back into an ONNX network, ``never`` does not.
        weights: a state dict to start from; "" trains from scratch.
        input_shape: (C, H, W) of the images a ``model`` takes; () asks the model.
        data: ``digits``, ``digits-on-photos`` or a folder; see training.data.load.
        data_memory: GiB of decoded images to keep in memory; a folder that needs more is read while training.
        preset: the preset that filled in the other settings, for the record.
        normalise, augment: see training.augment.
        batch_size: images per step.
        accumulate: batches whose gradients are added up for one step.
        optimizer: ``sgd``, ``nesterov`` or ``adamw``, for everything but the penalised gammas.
        distill: weight of the unpruned network's answers in the loss of fine-tuning, in [0, 1]; 0 leaves them out.
            None takes distill.WEIGHT if the network comes with weights that know the data, else 0.
        drive_beta: also shrink the betas of channels whose gamma is zero to zero, so that no constant remains.
        epochs, steps: length of the whole run, in passes over the training images or in steps; ``steps`` wins.
        shares: how the run is divided among warm-up (no penalty), ISTA and fine-tuning. A run from weights to a budget
            may do without ISTA: then all channels are removed at once.
        criterion: how a budget is met if too few gammas are zero: ``l1`` removes the channels with the smallest
            filters, ``reconstruct`` those that the others can best make up for on training images, and fits the others;
            ``auto``: what was better of both for such a budget and length (removal.criterion_of).
        lr, momentum, weight_decay: SGD while the penalty is on, and before.
        gamma_lr: μ, step size of the penalised gammas; None takes ``lr``, or chooses one for a network with weights.
        finetune_lr: where fine-tuning's cosine decay starts.
        rho: ρ, weight of the penalty; None chooses one.
        alpha: α of γ–W rescaling; None chooses one.
        rho_warmup: share of the ISTA steps over which ρ rises from 0.
        rho_factors: continuation: the ISTA steps are divided evenly among ρ times each of these.
        penalty, residual: see training.sparsify.
        keep: shell patterns of parameters and nodes whose channels stay.
        border: how constants of removed channels meet zero padding; ``auto`` is ``bias`` when fine-tuning
            follows (as in the paper) and ``exact`` when it does not.
        multiple_of: layers keep a multiple of this many channels where they can: 16 suits ONNX Runtime's CPU kernels.
        target_macs, target_params: share of MACs or parameters to reach, in (0, 1); ρ is adjusted for that.
        target_latency: share of the unpruned network's latency to reach, in (0, 1), measured in ONNX Runtime on this
            machine's CPU; it becomes a share of the MACs, see run/time_budget.py.
        milestones: falling shares of the MACs at which a copy of the network is pruned and fine-tuned, each in a
            folder of its own; the steps of ISTA and of fine-tuning are divided evenly among them.
        on_symptom: the reaction to a symptom of wrong settings: ``warn`` or ``stop``; see symptoms.py.
        stop_on_plateau: end the ISTA phase early when loss, sparsity and lasso have settled.
        ema_decay: of the moving average that is used to report accuracy; 0 turns it off.
        seed: of everything random.
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: of training steps: ``fp32``, ``bf16`` or ``fp16`` (CUDA only).
        channels_last: NHWC memory layout while training; None uses it where it is faster.
        compile: run training steps through torch.compile.
        tensorboard: write the log as TensorBoard curves too.
        log_every: steps.
        checkpoint_every: steps; None: at the first row of the log after a minute.
        resume: continue from the run folder's checkpoint.
        force: replace an existing run.
    """

    output: str
    arch: str = ""
    model: str = ""
    onnx: str = ""
    restore_batchnorm: str = "auto"
    weights: str = ""
    input_shape: tuple[int, ...] = ()
    data: str = "digits"
    data_memory: float = 4.0
    preset: str = ""
    normalise: Normalise = "standardise"
    augment: str = "none"
    batch_size: int = 125
    accumulate: int = 1
    optimizer: OptimizerKind = "sgd"
    distill: float | None = None
    drive_beta: bool = False
    epochs: float | None = None
    steps: int | None = None
    shares: tuple[float, float, float] = (0.3, 0.4, 0.3)
    criterion: Criterion = "l1"
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    gamma_lr: float | None = None
    finetune_lr: float = 0.02
    rho: float | None = None
    alpha: float | None = None
    rho_warmup: float = 0.1
    rho_factors: tuple[float, ...] = (1.0,)
    penalty: PenaltyKind = "memory"
    residual: Residual = "group"
    keep: tuple[str, ...] = ()
    border: Border = "auto"
    multiple_of: int = 1
    target_macs: float | None = None
    target_params: float | None = None
    target_latency: float | None = None
    milestones: tuple[float, ...] = ()
    on_symptom: OnSymptom = "warn"
    stop_on_plateau: bool = True
    ema_decay: float = 0.999
    seed: int = 0
    device: str = "auto"
    precision: Precision = "fp32"
    channels_last: bool | None = None
    compile: bool = False
    tensorboard: bool = False
    log_every: int = 20
    checkpoint_every: int | None = None
    resume: bool = False
    force: bool = False

    @property
    def goals(self) -> tuple[Goal, ...]:
        """The budget; () if there is none, or if it has to be measured."""
        given = (("macs", self.target_macs), ("params", self.target_params))
        return tuple(Goal(name, share) for name, share in given if share is not None)

    @property
    def model_spec(self) -> str:
        """What prunec.lookup.resolve takes."""
        return self.arch or self.model or self.onnx

    @property
    def pretrained(self) -> bool:
        """Whether the network comes with weights, rather than from a seed."""
        return bool(self.weights or self.onnx)

    @property
    def focuses(self) -> bool:
        """Whether the run goes from weights to a budget without a given ρ, α or μ: see focus.py."""
        budgeted = bool(self.goals or self.milestones or self.target_latency)
        return self.pretrained and budgeted and all(value is None for value in (self.rho, self.alpha, self.gamma_lr))

    def to_json_dict(self) -> dict[str, Any]:
        """Return the settings as JSON data, without those that only say how this process was started."""
        document = {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}
        for name in _STARTING:
            del document[name]
        return {"format": "prunec-run", "version": FORMAT_VERSION, **document}

    @classmethod
    def from_json_dict(cls, document: Mapping[str, Any], *, output: str, resume: bool = False) -> RunConfig:
        """Read ``to_json_dict``'s document; the folder may have moved meanwhile.

        Raises:
            BadInput: not such a document, or of another version.
        """
        if document.get("format") != "prunec-run" or document.get("version") != FORMAT_VERSION:
            raise BadInput("the folder's config.json is not one of this prunec", do="start a new run in another folder")
        names = {field.name for field in dataclasses.fields(cls)} - set(_STARTING)
        given = {name: _tupled(value) for name, value in document.items() if name in names}
        unknown = set(document) - names - {"format", "version"}
        if unknown:
            raise BadInput(f"config.json has settings that this prunec does not know: {', '.join(sorted(unknown))}")
        return check(cls(output=output, resume=resume, **given))

    def to_json(self) -> str:
        """Return ``to_json_dict`` as a text, for checkpoints."""
        return json.dumps(self.to_json_dict(), sort_keys=True)


CHANGEABLE = (
    "lr",
    "gamma_lr",
    "finetune_lr",
    "rho",
    "device",
    "precision",
    "channels_last",
    "compile",
    "tensorboard",
    "data_memory",
    "log_every",
    "checkpoint_every",
)
"""Settings that ``--resume`` may change, because a checkpoint fits all the same."""
_STARTING = ("output", "resume", "force")
_UNIT_INTERVAL = ("target_macs", "target_params", "target_latency")
_POSITIVE = (
    "data_memory",
    "batch_size",
    "accumulate",
    "epochs",
    "steps",
    "lr",
    "gamma_lr",
    "finetune_lr",
    "alpha",
    "log_every",
    "checkpoint_every",
    "multiple_of",
)
_NOT_NEGATIVE = ("momentum", "weight_decay", "rho", "rho_warmup", "ema_decay", "seed")


def check(config: RunConfig) -> RunConfig:
    """Return ``config`` if its values make sense together.

    Raises:
        BadInput: naming the setting, what is wrong with it and what it may be.
    """
    if sum(map(bool, (config.arch, config.model, config.onnx))) != 1:
        raise BadInput("give exactly one of --arch, --model and --onnx", do="`prunec archs` lists the architectures")
    for option, value in (("--arch", config.arch), ("--model", config.model)):
        if value.lower().endswith(".onnx"):
            raise BadInput(f"{option} {value} is an ONNX file", do=f"give it with --onnx {value}")
    if config.onnx and not config.onnx.lower().endswith(".onnx"):
        raise BadInput(
            f"--onnx {config.onnx} is not an .onnx file",
            do="built-in architectures are given with --arch, your own network with --model package.module:factory",
        )
    if config.onnx and config.weights:
        raise BadInput("an ONNX file has its own weights", do="leave --weights out")
    _choose("restore_batchnorm", config.restore_batchnorm, ("auto", "never"))
    if config.restore_batchnorm != "auto" and not config.onnx:
        raise BadInput("--restore-batchnorm is for ONNX files", do="give --onnx FILE, or leave it out")
    if config.epochs is None and config.steps is None:
        raise BadInput("the run has no length", do="give --epochs, --steps or a preset")
    for name in _POSITIVE:
        _require(name, getattr(config, name), lambda value: 0 < value < math.inf, "a positive number")
    for name in _NOT_NEGATIVE:
        _require(name, getattr(config, name), lambda value: 0 <= value < math.inf, "0 or more")
    for name in _UNIT_INTERVAL:
        _require(name, getattr(config, name), lambda value: 0 < value < 1, "between 0 and 1, such as 0.5")
    _check_targets(config)
    _require("distill", config.distill, lambda value: 0 <= value <= 1, "a weight between 0 and 1, such as 0.5")
    if config.optimizer == "nesterov" and not config.momentum:
        raise BadInput("nesterov needs a momentum", do="give a momentum, or the optimizer sgd")
    _choose("optimizer", config.optimizer, get_args(OptimizerKind))
    _require("momentum", config.momentum, lambda value: value < 1, "below 1")
    _require("ema_decay", config.ema_decay, lambda value: value < 1, "below 1")
    _require("rho_warmup", config.rho_warmup, lambda value: value <= 1, "a share of the ISTA steps")
    shares = config.shares
    shares_fit = len(shares) == 3 and all(0 <= share < math.inf for share in shares)
    needed = shares_fit and (shares[1] > 0 or (config.focuses and shares[2] > 0))
    wanted = "three shares, of which ISTA's is not 0 (it may be from weights to a budget): 0.3,0.4,0.3"
    _require("shares", shares, lambda _: needed, wanted)
    if config.distill and not shares[2]:
        raise BadInput("distill works while fine-tuning, and this run has none", do="leave it out, or change shares")
    factors_fit = bool(config.rho_factors) and min(config.rho_factors) > 0
    _require("rho_factors", config.rho_factors, lambda _: factors_fit, "positive factors")
    _choose("criterion", config.criterion, get_args(Criterion))
    _choose("penalty", config.penalty, PENALTIES)
    _choose("residual", config.residual, get_args(Residual))
    _choose("on_symptom", config.on_symptom, get_args(OnSymptom))
    _choose("border", config.border, get_args(Border))
    _choose("normalise", config.normalise, get_args(Normalise))
    _choose("augment", config.augment, tuple(AUGMENTS))
    _choose("device", config.device, ("auto", "cpu", "cuda"))
    _choose("precision", config.precision, get_args(Precision))
    if config.input_shape and (len(config.input_shape) != 3 or min(config.input_shape) < 1):
        raise BadInput(
            f"the input shape is {config.input_shape}", do="give channels, height and width: --input-shape 1x3x32x32"
        )
    return config


def _check_targets(config: RunConfig) -> None:
    shares = config.milestones
    if config.criterion == "reconstruct" and not (config.goals or shares):
        raise BadInput(
            "the criterion reconstruct needs a budget of MACs or parameters",
            why="it chooses channels if too few gammas are zero; a budget of time is met by timing the choices of l1",
            do="give --target-macs, --target-params or --milestones, or leave --criterion out",
        )
    falling = all(a > b for a, b in zip((1.0, *shares), (*shares, 0.0), strict=True))
    _require("milestones", shares, lambda _: falling, "falling shares of the MACs between 1 and 0: 0.7,0.5,0.3")
    if config.target_latency is not None and config.goals:
        raise BadInput(
            "target-latency excludes the other targets",
            why="it becomes a share of the MACs, whichever takes that long",
            do="leave target-macs and target-params out",
        )
    if shares and (config.goals or config.target_latency is not None):
        raise BadInput("milestones and a target exclude each other", do="make the target the last of the milestones")


def _require(name: str, value: Any, holds: Any, wanted: str) -> None:
    if value is not None and not holds(value):
        raise BadInput(f"{name.replace('_', '-')} is {value}", do=f"give {wanted}")


def _choose(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise BadInput(
            f"there is no {name.replace('_', '-')} called {value!r}", do=f"choose one of: {', '.join(known)}"
        )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
