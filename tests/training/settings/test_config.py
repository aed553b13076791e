"""RunConfig and presets: what is filled in, what is refused, and the JSON both ways."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prunec.errors import BadInput
from prunec.models import ARCHITECTURES
from prunec.training.settings.config import RunConfig
from prunec.training.settings.presets import PRESETS, make_config, resume_config
from prunec.training.settings.setup import plan_phases


def test_without_anything_named_the_demo_is_run() -> None:
    config = make_config("run")
    assert (config.preset, config.arch, config.data) == ("digits", "digits", "digits")


def test_the_preset_follows_from_what_is_given() -> None:
    assert make_config("run", arch="resnet20").preset == "scratch"
    assert make_config("run", arch="resnet20", weights="w.safetensors", data="folder").preset == "pretrained"
    assert make_config("run", model="package.module:factory").preset == "scratch"


def test_what_is_given_wins_over_the_preset() -> None:
    config = make_config("run", preset="resnet20-a", data="folder", rho=0.5, epochs=3, lr=None)
    assert (config.rho, config.epochs, config.steps, config.lr) == (0.5, 3, None, 0.01)


def test_a_latency_that_is_asked_for_replaces_the_presets_macs() -> None:
    config = make_config("run", preset="segnet-demo", target_latency=0.6)
    assert (config.target_latency, config.target_macs) == (0.6, None)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_makes_a_config_of_a_known_architecture(name: str) -> None:
    given = {"weights": "w.safetensors", "data": "folder", "arch": PRESETS[name].settings.get("arch", "resnet20")}
    config = make_config("run", preset=name, **given)
    assert config.arch in ARCHITECTURES
    assert RunConfig.from_json_dict(json.loads(json.dumps(config.to_json_dict())), output="run") == config


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"preset": "resnet"}, "no preset called 'resnet'"),
        ({"preset": "convnet-a"}, "needs --data"),
        ({"preset": "pretrained", "arch": "resnet20"}, "needs --weights"),
        ({"arch": "resnet20", "model": "a:b"}, "exactly one of --arch, --model and --onnx"),
        ({"batch_size": 0}, "batch-size is 0"),
        ({"rho": -1.0}, "rho is -1"),
        ({"target_macs": 1.5}, "target-macs is 1.5"),
        ({"penalty": "flops"}, "no penalty called 'flops'"),
        ({"milestones": (0.5, 0.7)}, "milestones is"),
        ({"milestones": (1.2, 0.5)}, "milestones is"),
        ({"milestones": (0.7,), "target_macs": 0.5}, "exclude each other"),
        ({"milestones": (0.7,), "target_latency": 0.5}, "exclude each other"),
        ({"target_latency": 1.0}, "target-latency is 1.0"),
        ({"arch": "resnet20", "target_latency": 0.5, "target_macs": 0.5}, "excludes the other targets"),
        ({"on_symptom": "panic"}, "no on-symptom called 'panic'"),
        ({"optimizer": "lion"}, "no optimizer called 'lion'"),
        ({"optimizer": "nesterov", "momentum": 0.0}, "nesterov needs a momentum"),
        ({"distill": 1.5}, "distill is 1.5"),
        ({"distill": 0.5, "shares": (0.5, 0.5, 0.0)}, "this run has none"),
        ({"accumulate": 0}, "accumulate is 0"),
        ({"residual": "drop"}, "no residual called 'drop'"),
        ({"device": "tpu"}, "no device called 'tpu'"),
        ({"shares": (1.0, 0.0, 0.0)}, "shares is"),
        ({"input_shape": (3, 32)}, "the input shape is"),
    ],
)
def test_settings_that_make_no_sense_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message) as error:
        make_config("run", **given)
    assert error.value.do, "the message says what to do"


def test_steps_are_divided_by_the_shares() -> None:
    config = make_config("run", preset="digits", steps=100, shares=(0.2, 0.5, 0.3))
    assert [(phase.name, phase.steps) for phase in plan_phases(config, 22)] == [
        ("warmup", 20),
        ("ista", 50),
        ("finetune", 30),
    ]


def test_a_run_of_one_step_is_a_step_of_ista() -> None:
    assert [phase.steps for phase in plan_phases(make_config("run", steps=1), 22)] == [0, 1, 0]


def test_epochs_are_passes_over_the_images() -> None:
    assert sum(phase.steps for phase in plan_phases(make_config("run", epochs=2.5), 22)) == 55


def test_a_run_is_resumed_with_its_own_settings(tmp_path: Path) -> None:
    config = make_config(str(tmp_path), rho=0.123)
    (tmp_path / "config.json").write_text(json.dumps(config.to_json_dict()))
    resumed = resume_config(str(tmp_path))
    assert resumed.resume
    assert resumed.to_json() == config.to_json()


def test_a_folder_without_a_run_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="holds no run to resume"):
        resume_config(str(tmp_path))


def test_settings_of_another_version_are_refused(tmp_path: Path) -> None:
    document = {**make_config("run").to_json_dict(), "version": 99}
    with pytest.raises(BadInput, match="not one of this prunec"):
        RunConfig.from_json_dict(document, output="run")
    with pytest.raises(BadInput, match="does not know: sparkle"):
        RunConfig.from_json_dict({**make_config("run").to_json_dict(), "sparkle": 1}, output="run")


def test_adamw_brings_its_own_step_sizes_and_leaves_the_gammas_theirs() -> None:
    config = make_config("run", arch="resnet20", optimizer="adamw")
    assert (config.lr, config.finetune_lr) == (1e-3, 1e-3)
    assert config.gamma_lr == make_config("run", arch="resnet20").lr
    assert make_config("run", arch="resnet20", optimizer="adamw", lr=0.01).lr == 0.01


@pytest.mark.parametrize(
    "shares", [(1.0, 2.0), (0.3, 0.4, 0.2, 0.1), (0.5, 0.0, 0.5), (-0.1, 0.6, 0.5), (0.3, float("nan"), 0.3)]
)
def test_shares_that_are_not_three_are_refused(shares: tuple[float, ...]) -> None:
    with pytest.raises(BadInput, match="shares is"):
        make_config("run", preset="digits", shares=shares, distill=0.5)
