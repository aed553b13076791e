"""How steps are computed: precision, layout, torch.compile, what happens where they are not to be had, and waiting."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from modules.training import tiny
from safetensors.torch import load_file
from torch import nn
from training_bars import Stop, StopAt

from prunec.errors import BadInput
from prunec.training.data.augment import PAPER_AUGMENT, pipeline
from prunec.training.data.batches import Batches
from prunec.training.data.sources import Images
from prunec.training.learning.ema import Ema
from prunec.training.learning.execution import Execution, plan_execution
from prunec.training.learning.objective import Classification
from prunec.training.logs.progress import Silent
from prunec.training.run.run import train_prune
from prunec.training.settings import setup as run_setup
from prunec.training.settings.presets import make_config, resume_config
from prunec.training.settings.setup import choose_device
from prunec.training.sparsity.sparsify import sparsify

CPU = torch.device("cpu")


class Notes(Silent):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


def run(output: Path, progress: Silent | None = None, **given: Any) -> Path:
    """Train on noise for a moment: what is looked at is how, not how well."""
    settings: dict[str, Any] = {
        "model": "modules.training:tiny_digits",
        "data": "digits",
        "steps": 12,
        "batch_size": 32,
    }
    settings |= {"rho": 0.01, "device": "cpu", "log_every": 4, "checkpoint_every": 4, **given}
    train_prune(make_config(str(output), preset="scratch", **settings), progress)
    return output


def test_what_the_device_lacks_is_done_otherwise_with_a_sentence() -> None:
    half = plan_execution(CPU, precision="fp16")
    assert half.dtype is torch.bfloat16
    assert half.scaler is None
    assert half.notes == ("fp16 is for CUDA devices: training in bf16 instead",)
    assert plan_execution(CPU, asked_device="auto").notes[0].startswith("training on the CPU: torch finds no CUDA")
    assert plan_execution(CPU, asked_device="cpu").notes == ()


def test_cuda_that_is_asked_for_and_missing_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BadInput, match="CUDA does not work here") as error:
        run(tmp_path / "run", device="cuda")
    assert "--device cpu" in error.value.do
    assert not (tmp_path / "run").exists()


def test_a_cuda_device_without_kernels_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_kernel(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nmore")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", no_kernel)
    assert choose_device("auto") == CPU
    with pytest.raises(BadInput) as error:
        choose_device("cuda")
    assert error.value.why == "CUDA error: no kernel image is available for execution on the device"


def test_reduced_precision_trains_float32_weights(tmp_path: Path) -> None:
    full, reduced = run(tmp_path / "full"), run(tmp_path / "reduced", precision="bf16")
    weights, others = load_file(full / "pruned.safetensors"), load_file(reduced / "pruned.safetensors")
    assert all(value.dtype == torch.float32 for value in others.values() if value.is_floating_point())
    assert any(weights[name].shape != others[name].shape or not weights[name].equal(others[name]) for name in weights)


def test_channels_last_trains_the_same_network_and_resumes_to_the_same_bits(tmp_path: Path) -> None:
    class Stop(Silent):
        def row(self, row: Any, full_params: int) -> None:
            if row["step"] == 8:
                raise RuntimeError

    whole = run(tmp_path / "whole", channels_last=True)
    with pytest.raises(RuntimeError):
        run(tmp_path / "again", Stop(), channels_last=True)
    train_prune(resume_config(str(tmp_path / "again")))
    assert (tmp_path / "again" / "pruned.safetensors").read_bytes() == (whole / "pruned.safetensors").read_bytes()


def test_what_does_not_compile_runs_as_it_is_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(module: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
        def fail(inputs: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no C++ compiler\nand more")

        return fail

    plain = run(tmp_path / "plain")
    monkeypatch.setattr(torch, "compile", broken)
    notes = Notes()
    fallen = run(tmp_path / "fallen", notes, compile=True)
    said = "torch.compile fails here, so the network runs as it is: RuntimeError: no C++ compiler"
    assert notes.texts.count(said) == 2  # the network, and the pruned network
    assert (fallen / "pruned.safetensors").read_bytes() == (plain / "pruned.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compiled_steps_train_the_network_that_eager_ones_do(tmp_path: Path) -> None:
    notes = Notes()
    compiled, plain = run(tmp_path / "compiled", notes, compile=True), run(tmp_path / "plain")
    if any("torch.compile fails here" in text for text in notes.texts):
        pytest.skip("torch.compile does not work on this machine")
    weights, others = load_file(compiled / "pruned.safetensors"), load_file(plain / "pruned.safetensors")
    assert all(torch.allclose(weights[name], others[name], rtol=1e-2, atol=1e-3) for name in weights)


@pytest.fixture
def no_waiting() -> Iterator[Callable[[], None]]:
    """Calling it makes every wait for the CUDA device an error until the test ends."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_no_step_waits_for_the_cuda_device(no_waiting: Callable[[], None], precision: Any) -> None:
    device = torch.device("cuda")
    execution = plan_execution(device, precision=precision)
    module, example_inputs = tiny()
    execution.place(module).train()
    pixels = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8)
    images = Images(pixels, torch.randint(0, 2, (40,))).to(device)
    made = pipeline("standardise", PAPER_AUGMENT, (0.5,) * 3, (0.2,) * 3, 3)
    batches, objective = Batches(images, 8, made, seed=0), Classification(("a", "b"))
    on_device = tuple(tensor.to(device) for tensor in example_inputs)
    base = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)
    ista, ema = sparsify(module, on_device, base, rho=1e-3), Ema(module, 0.9)
    forward = execution.forward(module, print)

    def step(number: int) -> None:
        inputs, targets = batches.at(number)
        with execution.autocast():
            outputs = forward(inputs)
        loss = objective.loss(objective.logits(outputs).float(), targets)
        ista.zero_grad(set_to_none=True)
        execution.backward(loss)
        execution.step(ista)
        ema.update()

    for number in range(3):  # the first steps set up libraries and buffers
        step(number)
    no_waiting()
    for number in range(3, 8):  # over the end of an epoch
        step(number)


def test_a_resumed_run_keeps_the_loss_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scaler that began anew would leave out steps after every stop."""

    def with_scaler(device: torch.device, **given: Any) -> Execution:
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=3)
        return dataclasses.replace(plan_execution(device, **given), scaler=scaler)

    monkeypatch.setattr(run_setup, "plan_execution", with_scaler)
    whole = run(tmp_path / "whole")
    with pytest.raises(Stop):
        run(tmp_path / "killed", StopAt(10))
    train_prune(resume_config(str(tmp_path / "killed")))
    ends = [torch.load(tmp_path / name / "checkpoint" / "state.pt", weights_only=True) for name in ("whole", "killed")]
    assert ends[0]["scaler"]["scale"] == 8.0 * 2 ** (12 // 3)
    assert ends[1]["scaler"] == ends[0]["scaler"]
    assert (tmp_path / "killed" / "pruned.safetensors").read_bytes() == (whole / "pruned.safetensors").read_bytes()
