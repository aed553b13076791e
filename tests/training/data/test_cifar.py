"""The whole job on real images: pretrained ResNet-20 on CIFAR-10, as the command line runs it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

from prunec.files import read_lines
from prunec.ir.plan import PrunePlan
from prunec.models import build
from prunec.pipeline.apply import apply_plan
from prunec.training.run.run import train_prune
from prunec.training.settings.presets import make_config


@pytest.fixture(scope="module")
def run_folder(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run of the ResNet-20 recipe with a strong penalty: 24 steps of ISTA, 16 of fine-tuning."""
    folder = tmp_path_factory.mktemp("cifar") / "run"
    config = make_config(
        str(folder),
        preset="resnet20-pretrained",
        weights=str(shared_data / "weights" / "cifar10-resnet20.safetensors"),
        data=str(shared_data / "cifar10-ci"),
        device="cpu",
        batch_size=64,
        steps=40,
        rho=0.2,
        gamma_lr=0.02,
        rho_warmup=0.0,
        log_every=4,
    )
    train_prune(config)
    return folder


@pytest.mark.slow
def test_pretrained_resnet20_loses_channels_on_real_images(run_folder: Path) -> None:
    rows = [row for row in read_lines(run_folder / "metrics.jsonl") if row["phase"] == "ista"]
    assert rows[-1]["sparsity"] > rows[0]["sparsity"] + 0.02
    plan = PrunePlan.load(run_folder / "plan.json")
    pruned = apply_plan(build("resnet20"), plan)
    removed = build("resnet20").layer3[0].conv1.out_channels - pruned.get_submodule("layer3.0.conv1").out_channels
    assert removed > 0
    assert pruned.get_submodule("layer3.0.conv2").out_channels == 64, "residual streams are left alone"


@pytest.mark.slow
def test_the_exported_resnet20_agrees_with_torch_on_real_images(run_folder: Path, shared_data: Path) -> None:
    from prunec.training.data.augment import NO_AUGMENT, pipeline
    from prunec.training.data.sets import load

    pruned = apply_plan(build("resnet20"), PrunePlan.load(run_folder / "plan.json")).eval()
    pruned.load_state_dict(load_file(run_folder / "pruned.safetensors"))
    data = load(str(shared_data / "cifar10-ci"), (3, 32, 32))
    images = pipeline("imagenet", NO_AUGMENT, data.mean, data.std, 3).test(data.test.pixels)
    with torch.no_grad():
        ours = pruned(images).numpy()
    session = onnxruntime.InferenceSession(run_folder / "pruned.onnx", providers=["CPUExecutionProvider"])
    (theirs,) = session.run(None, {"images": images.numpy()})
    assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(ours).max()
    # Agreement means something: after 40 steps the network is far from recovered, and far above chance.
    assert (ours.argmax(1) == data.test.targets.numpy()).mean() > 0.25


@pytest.mark.slow
def test_the_demo_halves_the_digits_network_and_keeps_its_accuracy(tmp_path: Path) -> None:
    result = train_prune(make_config(str(tmp_path / "run"), preset="digits", device="cpu"))
    assert result.after["params"] < 0.5 * result.before["params"]
    assert result.score["after"] >= result.score["before"] - 0.01
