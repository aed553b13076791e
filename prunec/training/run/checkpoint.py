"""The checkpoint of a run: everything that the next step depends on, in one file that is replaced atomically.

Owns the file's form. A run killed at any moment continues from the last complete checkpoint,
with the same result bit for bit on the CPU. The file cannot run code: it is read with weights_only.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import nn

from prunec.errors import BadInput
from prunec.files import RunFolder, replacing
from prunec.training.learning.ema import EmaState
from prunec.training.logs.metrics import WindowState
from prunec.training.settings.config import CHANGEABLE, RunConfig

FORMAT_VERSION = 4
_NAME = "state.pt"
_ISTA_NAME = "ista.pt"
_TEACHER_NAME = "teacher.pt"


class Checkpoint(TypedDict):
    """See the run's own types for the parts.

    ``phase`` is the phase's number, ``phase_step`` the steps done in it, ``step`` those of the whole run,
    ``milestone`` the number of the next one; ``plan`` is the plan's JSON once channels have been removed, else "";
    ``rng`` the ambient generators of each rank, ``scaler`` the loss scale of float16.
    """

    version: int
    config: str
    phase: int
    phase_step: int
    step: int
    milestone: int
    module: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    ema: EmaState
    scaler: dict[str, Any]
    window: WindowState
    controller: dict[str, Any]
    history: dict[str, Any]
    record: dict[str, Any]
    plan: str
    rng: list[dict[str, torch.Tensor]]


def save(folder: RunFolder, checkpoint: Checkpoint, *, milestone: bool = False) -> None:
    """Replace the folder's checkpoint in one step.

    Args:
        milestone: save it separately, as the state from which ISTA continues after a milestone.
    """
    folder.checkpoint.mkdir(exist_ok=True)
    # Written through a Python file, because torch's own writer hides why a write failed.
    with replacing(folder.checkpoint / (_ISTA_NAME if milestone else _NAME)) as aside, open(aside, "wb") as file:
        torch.save(dict(checkpoint), file)


def save_teacher(folder: RunFolder, state: Mapping[str, torch.Tensor]) -> None:
    """Save the network that fine-tuning is to distil from."""
    folder.checkpoint.mkdir(exist_ok=True)
    with replacing(folder.checkpoint / _TEACHER_NAME) as aside, open(aside, "wb") as file:
        torch.save(dict(state), file)


def load_teacher(folder: RunFolder, module: nn.Module) -> nn.Module:
    """Return a copy of ``module`` with the saved values, in eval mode.

    Raises:
        BadInput: the file is missing or damaged.
    """
    path = folder.checkpoint / _TEACHER_NAME
    teacher = copy.deepcopy(module)
    try:
        teacher.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # unpickling a damaged file raises anything
        raise _unreadable(path, error) from error
    return teacher.eval().requires_grad_(False)


def rng_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Return the states of torch's ambient generators, which dropout uses."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_rng_state(state: Mapping[str, torch.Tensor]) -> None:
    """Restore the generators from ``rng_state``; the device may be another now."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def exists(folder: RunFolder) -> bool:
    """Tell whether the folder has a checkpoint."""
    return (folder.checkpoint / _NAME).is_file()


def load(folder: RunFolder, config: RunConfig, *, milestone: bool = False) -> Checkpoint:
    """Read the folder's checkpoint, onto the CPU.

    Args:
        config: the settings that the run continues with.
        milestone: the one that was saved separately.

    Raises:
        BadInput: there is none, it is damaged, of another version, or of other settings.
    """
    path = folder.checkpoint / (_ISTA_NAME if milestone else _NAME)
    if not path.is_file():
        raise BadInput(f"{folder.path} has no checkpoint to resume from", do="start the run without --resume")
    try:
        state: Checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        version, _ = state["version"], state["config"]
    except Exception as error:  # unpickling a damaged file raises anything
        raise _unreadable(path, error) from error
    if version != FORMAT_VERSION:
        raise BadInput(f"the checkpoint {path} has format version {version}", do="resume with the prunec that wrote it")
    other = [name for name in changed_settings(state, config) if name not in CHANGEABLE]
    if other:
        raise BadInput(
            f"the checkpoint {path} belongs to other settings: {', '.join(other)}",
            why="a resumed run must end as if it had never stopped",
            do="resume without other options, or start a new run in another folder",
        )
    return state


def changed_settings(checkpoint: Checkpoint, config: RunConfig) -> list[str]:
    """Return the names of the settings in which ``config`` differs from the run that wrote the checkpoint."""
    before, now = json.loads(checkpoint["config"]), json.loads(config.to_json())
    return sorted(name for name in {*before, *now} if before.get(name) != now.get(name))


def _unreadable(path: Path, error: Exception) -> BadInput:
    return BadInput(
        f"cannot read the checkpoint {path}", why=str(error).strip().partition("\n")[0], do="start the run afresh"
    )
