"""A network on a CUDA device: it is pruned, checked, fitted and trained there as on the CPU, and stays there."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from training_bars import Stop, StopAt, config, write_bars

from prunec import analyze_module, prune_module
from prunec.data.calibration import Calibration
from prunec.models import ARCHITECTURES
from prunec.training.run.run import train_prune
from prunec.training.settings.presets import resume_config

pytestmark = pytest.mark.gpu


@pytest.fixture
def plain_products() -> Iterator[None]:
    """Without TF32, which rounds products to 10 bits."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def resnet() -> nn.Module:
    torch.manual_seed(0)
    net = ARCHITECTURES["resnet20"].build().cuda().eval()
    with torch.no_grad():
        for layer in net.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.weight[::2] = 0
                layer.bias[::2] += 0.1
    return net


@pytest.mark.usefixtures("plain_products")
@pytest.mark.parametrize("beside", ["cuda", "cpu"])
def test_pruned_equals_the_original_wherever_the_example_lies(beside: str) -> None:
    net, x = resnet(), torch.randn(2, 3, 32, 32, device=beside)
    before = copy.deepcopy(net.state_dict())
    pruned = prune_module(net, (x,))
    assert pruned.report.after.params < 0.7 * pruned.report.before.params
    assert {parameter.device.type for parameter in pruned.module.parameters()} == {"cuda"}
    with torch.no_grad():
        expected, found = net(x.cuda()), pruned.module(x.cuda())
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())


def test_costs_are_those_of_the_cpu() -> None:
    net, x = resnet(), torch.randn(2, 3, 32, 32)
    assert analyze_module(net, (x.cuda(),)).macs == analyze_module(copy.deepcopy(net).cpu(), (x,)).macs


@pytest.mark.usefixtures("plain_products")
def test_data_fits_what_stays(tmp_path: Path) -> None:
    net = ARCHITECTURES["resnet20"].build().cuda().eval()
    images = np.random.default_rng(0).standard_normal((64, 3, 32, 32), dtype=np.float32)
    np.save(tmp_path / "images.npy", images)
    x = torch.from_numpy(images[:4]).cuda()
    errors = {}
    for compensate in (True, False):
        pruned = prune_module(
            net, (x,), target_macs=0.6, calibration=Calibration(tmp_path), compensate=compensate, multiple_of=1
        )
        with torch.no_grad():
            errors[compensate] = float((pruned.module(x) - net(x)).norm() / net(x).norm())
    assert errors[True] < 0.5 * errors[False]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_run_trains_there(tmp_path: Path, precision: str) -> None:
    bars = write_bars(tmp_path / "bars")
    train_prune(config(tmp_path / "run", bars, device="cuda", precision=precision))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["after"]["params"] < summary["before"]["params"]
    assert summary[summary["metric"]]["after"] > 0.8


def test_a_run_begun_on_the_cpu_goes_on_there(tmp_path: Path) -> None:
    bars = write_bars(tmp_path / "bars")
    with pytest.raises(Stop):
        train_prune(config(tmp_path / "run", bars), StopAt(30))
    train_prune(resume_config(str(tmp_path / "run"), device="cuda"))
    assert (tmp_path / "run" / "pruned.onnx").is_file()
