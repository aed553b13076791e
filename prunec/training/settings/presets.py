"""Named recipes: the paper's, the demo's, and the defaults.

Owns ``PRESETS`` and the rule that turns a preset and the user's settings into a RunConfig.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from prunec.errors import BadInput
from prunec.files import RunFolder, read_json
from prunec.models import find
from prunec.training.settings.config import CHANGEABLE, RunConfig, check


@dataclass(frozen=True, slots=True)
class Preset:
    """A recipe: ``settings`` are fields of RunConfig. ``needs`` names options the user must add."""

    name: str
    description: str
    settings: Mapping[str, Any]
    needs: tuple[str, ...] = ()


def _paper(steps: tuple[int, int], **settings: Any) -> dict[str, Any]:
    """The paper's CIFAR-10 pipeline: ISTA from scratch, then fine-tuning; (ISTA, fine-tuning) steps."""
    ista, finetune = steps
    return {
        "data": "",
        "normalise": "standardise",
        "augment": "paper",
        "batch_size": 125,
        "steps": ista + finetune,
        "shares": (0.0, ista / (ista + finetune), finetune / (ista + finetune)),
        "lr": 0.01,
        "gamma_lr": 0.01,
        "finetune_lr": 0.01,
        "alpha": 1.0,
        "rho_warmup": 0.0,
        "stop_on_plateau": False,
        "log_every": 100,
        **settings,
    }


_ALL = (
    Preset(
        "digits",
        "the demo: a small network on scikit-learn's handwritten digits, about a minute on 2 CPU cores",
        {
            "arch": "digits",
            "data": "digits",
            "normalise": "standardise",
            "augment": "shift",
            "batch_size": 64,
            "epochs": 30,
            "shares": (0.12, 0.53, 0.35),
            "lr": 0.05,
            "gamma_lr": 0.2,
            "finetune_lr": 0.05,
            "rho": 0.05,
            "alpha": 1.0,
            "multiple_of": 16,
            "ema_decay": 0.98,
            "log_every": 22,
        },
    ),
    Preset(
        "segnet-demo",
        "the segmentation network on digits pasted onto photographs, at 64x64: some minutes on 2 CPU cores",
        {
            "arch": "segnet",
            "data": "digits-on-photos",
            "input_shape": (3, 64, 64),
            "normalise": "imagenet",
            "augment": "crop-flip",
            "batch_size": 8,
            "steps": 240,
            "shares": (0.35, 0.35, 0.3),
            "lr": 0.05,
            # Thousands of channels share the loss: gammas have small gradients, so λρ is small and the step makes up.
            "gamma_lr": 12.0,
            "finetune_lr": 0.05,
            "alpha": 1.0,
            "target_macs": 0.5,
            "ema_decay": 0.95,
            "log_every": 12,
        },
    ),
    Preset(
        "segnet",
        "the paper's foreground segmentation: α 0.01, μ 2e-5, ρ 0.5, batch 24",
        {
            "arch": "segnet",
            "data": "",
            "normalise": "imagenet",
            "augment": "scene",
            "batch_size": 24,
            "epochs": 60,
            "shares": (0.0, 0.6, 0.4),
            "lr": 0.01,
            "gamma_lr": 2e-5,
            "finetune_lr": 0.01,
            "alpha": 0.01,
            "rho": 0.5,
            "rho_warmup": 0.0,
            "log_every": 50,
        },
        needs=("data",),
    ),
    Preset(
        "segment",
        "any segmentation network from scratch, on images with masks (the default of segnet with --data)",
        {
            "data": "",
            "normalise": "imagenet",
            "augment": "crop-flip",
            "batch_size": 16,
            "epochs": 60,
            "lr": 0.05,
            "gamma_lr": 0.1,
            "finetune_lr": 0.05,
            "alpha": 1.0,
            "ema_decay": 0.98,
        },
        needs=("data",),
    ),
    Preset(
        "scratch",
        "any network from scratch: warm-up, ISTA with a chosen ρ, fine-tuning (the default without --weights)",
        {"epochs": 60, "augment": "crop-flip", "lr": 0.05, "finetune_lr": 0.02, "alpha": 1.0},
    ),
    Preset(
        "pretrained",
        "a network with weights: ISTA with chosen ρ and α, fine-tuning (the default with --weights and --onnx)",
        {
            "epochs": 12,
            "shares": (0.0, 0.6, 0.4),
            "normalise": "imagenet",
            "augment": "crop-flip",
            "lr": 0.01,
            "finetune_lr": 0.02,
            "weight_decay": 1e-4,
            "log_every": 50,
        },
        needs=("weights", "data"),
    ),
    Preset(
        "resnet20-pretrained",
        "ResNet-20 with CIFAR-10 weights, inner channels only: α 0.1, μ 0.01, ρ 0.02",
        {
            "arch": "resnet20",
            "data": "",
            "epochs": 12,
            "shares": (0.0, 0.6, 0.4),
            "normalise": "imagenet",
            "augment": "crop-flip",
            "residual": "keep",
            "lr": 0.01,
            "gamma_lr": 0.01,
            "finetune_lr": 0.02,
            "weight_decay": 1e-4,
            "alpha": 0.1,
            "rho": 0.02,
            "log_every": 50,
        },
        needs=("weights", "data"),
    ),
    Preset(
        "convnet-a",
        "the paper's ConvNet on CIFAR-10, model A: ρ 0.0002 for 30,000 steps, then 0.001",
        _paper((60_000, 20_000), arch="convnet", rho=0.0002, rho_factors=(1.0, 5.0)),
        needs=("data",),
    ),
    Preset(
        "convnet-b",
        "the paper's ConvNet, model B: model A's steps, then ρ 0.002",
        _paper((90_000, 20_000), arch="convnet", rho=0.0002, rho_factors=(1.0, 5.0, 10.0)),
        needs=("data",),
    ),
    Preset(
        "convnet-c",
        "the paper's ConvNet, model C: model B's steps, then ρ 0.004",
        _paper((120_000, 20_000), arch="convnet", rho=0.0002, rho_factors=(1.0, 5.0, 10.0, 20.0)),
        needs=("data",),
    ),
    Preset(
        "resnet20-a",
        "the paper's ResNet-20 on CIFAR-10, inner channels only: ρ 0.001 for 30,000 steps, then 0.005",
        _paper((60_000, 20_000), arch="resnet20", rho=0.001, rho_factors=(1.0, 5.0), residual="keep"),
        needs=("data",),
    ),
    Preset(
        "resnet20-b",
        "the paper's smaller ResNet-20: ρ 0.001 for 30,000 steps, then 0.01",
        _paper((60_000, 20_000), arch="resnet20", rho=0.001, rho_factors=(1.0, 10.0), residual="keep"),
        needs=("data",),
    ),
)

PRESETS: Mapping[str, Preset] = MappingProxyType({preset.name: preset for preset in _ALL})


def make_config(output: str, *, preset: str = "", **given: Any) -> RunConfig:
    """Make a RunConfig from the given settings, then the preset's, then RunConfig's defaults.

    Args:
        output: the run folder.
        preset: a name; "" takes ``digits`` for the architecture of that name (or when no network is
            named), ``segnet-demo`` or, with data, ``segment`` for a segmentation architecture, ``pretrained``
            if weights or an ONNX file are given, else ``scratch``.
        given: fields of RunConfig; those that are None count as not given.

    Raises:
        BadInput: there is no such preset, something it needs is missing, epochs and steps are both given, or a value
            makes no sense.
    """
    given = {name: value for name, value in given.items() if value is not None and value != ""}
    if "epochs" in given and "steps" in given:
        raise BadInput("the run has two lengths", do="give --epochs or --steps, not both")
    name = preset or _default(given)
    if name not in PRESETS:
        raise BadInput(f"there is no preset called {name!r}", do=f"choose one of: {', '.join(PRESETS)}")
    chosen = PRESETS[name]
    settings = dict(chosen.settings)
    if "model" in given or "onnx" in given:
        settings.pop("arch", None)
    if "epochs" in given:
        settings.pop("steps", None)
    if "target_latency" in given:
        settings.pop("target_macs", None)
    if given.get("optimizer") == "adamw":
        settings.update(_for_adamw(settings, from_scratch=not (given.get("weights") or given.get("onnx"))))
    settings.update(given)
    if name == "pretrained" and RunConfig(output, **settings).focuses:
        settings.update({key: value for key, value in _to_a_budget(settings).items() if key not in given})
    for need in chosen.needs:
        if not settings.get(need) and not (need == "weights" and settings.get("onnx")):
            raise BadInput(f"the preset {name} needs --{need}", why=chosen.description, do=_HOW_TO_GIVE[need])
    return check(RunConfig(output=output, preset=name, **settings))


def _for_adamw(settings: Mapping[str, Any], *, from_scratch: bool) -> dict[str, Any]:
    """Return AdamW's own step sizes; the penalised gammas, which it does not update, keep those of the recipe."""
    gamma_lr = settings.get("gamma_lr", settings.get("lr") if from_scratch else None)
    return {"lr": 1e-3, "finetune_lr": 1e-3, "weight_decay": 0.01, "gamma_lr": gamma_lr}


_HOW_TO_GIVE = {
    "data": "give a folder: train/CLASS/* and test/CLASS/* images, CIFAR-10's batches, or images/ with masks/",
    "weights": "give a state dict: --weights FILE.safetensors",
}


def resume_config(output: str, **changes: Any) -> RunConfig:
    """Read the settings of the run in ``output``, to continue it.

    Args:
        output: the run folder.
        changes: settings to continue with: those that the run has already, or others of config.CHANGEABLE; None and ""
            change nothing.

    Raises:
        BadInput: the folder holds no run, or a setting differs that cannot change.
    """
    given = {name: value for name, value in changes.items() if value is not None and value != ""}
    if not holds_run(output):
        raise BadInput(f"{output} holds no run to resume", do="give the folder of a run, or start one without --resume")
    config = RunConfig.from_json_dict(read_json(RunFolder(Path(output)).config), output=output, resume=True)
    unknown = [name for name in given if not hasattr(config, name)]
    if unknown:
        raise BadInput(
            f"there is no setting called {', '.join(unknown)}", do=f"what may change: {', '.join(CHANGEABLE)}"
        )
    new = {name: value for name, value in given.items() if not _same(value, getattr(config, name))}
    fixed = {name: value for name, value in new.items() if name not in CHANGEABLE}
    if fixed:
        differ = (
            f"{name} {_shown(value)} (the run has {_shown(getattr(config, name))})" for name, value in fixed.items()
        )
        raise BadInput(
            f"--resume goes on with the settings of the run, and these are others: {', '.join(differ)}",
            do=f"leave them out, or start a new run in another folder; what may change: {', '.join(CHANGEABLE)}",
        )
    return check(dataclasses.replace(config, **new))


def holds_run(output: str) -> bool:
    """Tell whether a folder has a run to continue."""
    return RunFolder(Path(output)).config.is_file()


def _same(one: Any, other: Any) -> bool:
    """Tell whether two settings are equal, however their numbers and sequences are written."""
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return tuple(one) == tuple(other)
    return bool(one == other)


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(str, value)) or "none"
    return "none" if value is None or value == "" else str(value)


_BATCH = 125
"""Images per step for which the rate of ``pretrained`` was measured."""


def _to_a_budget(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults of a run from weights to a budget; docs/training.md says why.

    Channels are removed at once, by ``reconstruct`` or, for a mild budget and long fine-tuning, ``l1``, and every step
    is fine-tuning. Smaller batches get a proportionally smaller rate: with the rate of large ones they destroy what the
    network still knows.
    """
    found: dict[str, Any] = {"shares": (0.0, 0.0, 1.0)}
    if not settings.get("target_latency"):
        found["criterion"] = "auto"
    images = settings.get("batch_size", _BATCH) * settings.get("accumulate", 1)
    if settings.get("optimizer") != "adamw" and 0 < images < _BATCH:
        found["finetune_lr"] = float(f"{settings['finetune_lr'] * images / _BATCH:.2g}")
    return found


def _default(given: Mapping[str, Any]) -> str:
    if given.get("onnx"):
        return "pretrained"
    if given.get("arch") == "digits" or not (given.get("arch") or given.get("model")):
        return "digits"
    architecture = find(given.get("arch") or "")
    if architecture is not None and architecture.task == "segmentation" and not given.get("weights"):
        return "segment" if given.get("data") else "segnet-demo"
    return "pretrained" if given.get("weights") else "scratch"
