"""Two processes that train one network, started by torchrun: the same gammas and plans, and one writer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from modules.training import tiny
from safetensors.torch import save_file
from training_bars import assert_same_run, write_bars

from prunec.errors import MissingDependency
from prunec.training.data.augment import NO_AUGMENT, pipeline
from prunec.training.data.batches import Batches, plain_batches
from prunec.training.data.sets import Images
from prunec.training.learning.ranks import joined

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch has no torch.distributed here")
TESTS = Path(__file__).parents[2]


def torchrun(*arguments: str, processes: int = 2) -> subprocess.CompletedProcess[str]:
    launcher = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS)}
    return subprocess.run(
        (sys.executable, *launcher, *arguments),
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def of_ranks(output: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    first, second = (torch.load(f"{output}-rank{rank}.pt", weights_only=True) for rank in (0, 1))
    return first, second


@pytest.fixture(scope="module")
def bars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bars(tmp_path_factory.mktemp("bars"), 30, 6)


def test_a_loop_of_ones_own_under_ddp_keeps_the_gammas_equal(tmp_path: Path) -> None:
    result = torchrun(str(TESTS / "ranks_program.py"), "loop", str(tmp_path / "loop"))
    assert result.returncode == 0, result.stderr
    first, second = of_ranks(tmp_path / "loop")
    assert first["mean"] != second["mean"]
    assert torch.equal(first["gammas"], second["gammas"])
    assert (first["gammas"] == 0).any()
    assert (first["gammas"] != 0).any()
    assert json.loads(first["plan"])["keeps"] == json.loads(second["plan"])["keeps"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, bars: Path) -> Path:
    """A run of two ranks that nobody stopped."""
    pytest.importorskip("accelerate")
    output = tmp_path_factory.mktemp("whole") / "run"
    result = torchrun(str(TESTS / "ranks_program.py"), "run", str(output), str(bars))
    assert result.returncode == 0, result.stderr
    return output


def test_two_ranks_end_with_one_network(whole: Path) -> None:
    assert_one_network(whole)


def assert_one_network(output: Path) -> None:
    first, second = of_ranks(output)
    assert first["plan"] == second["plan"]
    assert first["module"].keys() == second["module"].keys()
    weights = [name for name in first["module"] if "running" not in name]
    assert all(torch.equal(first["module"][name], second["module"][name]) for name in weights)
    assert not torch.equal(first["rng"], second["rng"])  # dropout is each rank's own


MORE: dict[str, dict[str, Any]] = {
    "milestones": {"milestones": [0.7, 0.5], "rho": None, "distill": 0.3, "accumulate": 2, "steps": 80},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_two_ranks_end_with_one_network_after(tmp_path: Path, bars: Path, name: str) -> None:
    pytest.importorskip("accelerate")
    output = tmp_path / "run"
    result = torchrun(str(TESTS / "ranks_program.py"), "run", str(output), str(bars), json.dumps(MORE[name]))
    assert result.returncode == 0, result.stderr
    assert_one_network(output)
    summary = json.loads((output / "summary.json").read_text())
    assert [entry["target"] for entry in summary["milestones"]] == MORE[name].get("milestones", [])


@pytest.mark.slow
def test_two_ranks_put_the_penalty_on_the_same_channels(tmp_path: Path, bars: Path) -> None:
    pytest.importorskip("accelerate")
    torch.manual_seed(0)
    save_file(tiny()[0].state_dict(), tmp_path / "weights.safetensors")
    settings = {"preset": "pretrained", "weights": str(tmp_path / "weights.safetensors"), "target_macs": 0.5}
    settings |= {"rho": None, "gamma_lr": None}
    output = tmp_path / "run"
    result = torchrun(str(TESTS / "ranks_program.py"), "run", str(output), str(bars), json.dumps(settings))
    assert result.returncode == 0, result.stderr
    assert_one_network(output)
    reasons = json.loads((output / "summary.json").read_text())["reasons"]
    assert any(reason.startswith("the penalty is on the ") for reason in reasons)


@pytest.mark.slow
def test_two_ranks_that_are_killed_go_on_to_the_same_bits(tmp_path: Path, whole: Path, bars: Path) -> None:
    program, output = str(TESTS / "ranks_program.py"), tmp_path / "run"
    killed = torchrun(program, "run", str(output), str(bars), "--stop")
    assert killed.returncode != 0
    assert not (output / "pruned.onnx").exists()
    resumed = torchrun(program, "run", str(output), str(bars), "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(output, whole)


@pytest.mark.slow
def test_the_command_line_speaks_once_and_tells_an_error_once(tmp_path: Path, bars: Path) -> None:
    pytest.importorskip("accelerate")
    command = (
        "-m",
        "prunec",
        "train-prune",
        "--model",
        "modules.training:tiny",
        "--data",
        str(bars),
        "--device",
        "cpu",
    )
    options = ("--steps", "6", "--batch-size", "12", "-o", str(tmp_path / "run"))
    done = torchrun(*command, *options, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["output"] == str(tmp_path / "run")
    assert done.stderr.count("warm-up: ") == 1
    refused = torchrun(*command, *options)
    assert refused.returncode != 0
    assert refused.stderr.count("already holds a run") == 1


def test_the_ranks_share_every_batch_among_them() -> None:
    pixels = torch.arange(20, dtype=torch.uint8)[:, None, None, None].expand(20, 1, 2, 2).contiguous()
    images = Images(pixels, torch.arange(20))
    made = pipeline("dataset", NO_AUGMENT, (0.0,), (1.0,), 1)
    whole = Batches(images, 7, made, seed=3)
    shares = [Batches(images, 7, made, 3, rank, 3) for rank in range(3)]
    for step in range(4):
        found = torch.cat([share.at(step)[1] for share in shares])
        assert torch.equal(found, whole.at(step)[1])
    assert [share.loss_weight for share in shares] == pytest.approx([2 * 3 / 7, 2 * 3 / 7, 3 * 3 / 7])
    # The mean over the ranks of their weighted means is the mean over the batch.
    means = [float(share.at(0)[0].mean()) * share.loss_weight for share in shares]
    assert sum(means) / 3 == pytest.approx(float(whole.at(0)[0].mean()))
    tested = [targets for rank in range(3) for _, targets in plain_batches(images, made, 4, rank=rank, size=3)]
    assert sorted(torch.cat(tested).tolist()) == list(range(20))


def test_several_processes_need_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(MissingDependency, match="several processes") as error, joined("cpu"):
        pass
    assert "prunec[distributed]" in error.value.do
