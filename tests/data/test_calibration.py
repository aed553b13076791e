"""Channels that data show to be constant: found, removed with the same absorption, and told apart from proven ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from assertions import assert_same_function
from onnx import helper, numpy_helper
from torch import nn

from prunec.api import prune_module, prune_onnx
from prunec.cli.main import execute
from prunec.data.calibration import Calibration, Ranges
from prunec.errors import BadInput, ValidationFailed
from prunec.pipeline.export import export_onnx
from prunec.runtime.sessions import open_runner


def quiet_relus() -> nn.Sequential:
    """Five channels of the first layer and four of the second never fire; one is nearly 0.7 everywhere."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, 8, 3, padding=1), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip
    with torch.no_grad():
        net[0].bias[:5] = -50
        net[2].bias[3:7] = -50
    return net.eval()


class Clipped(nn.Module):
    """Channels 0 to 3 of the middle are stuck at 6, and only because channel 0 of the first layer is large."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.middle = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 8, 1)
        self.last = nn.Conv2d(8, 4, 3, padding=1)
        with torch.no_grad():
            self.first.bias[0] = 30
            self.middle.weight[:, 0] = 0
            self.middle.weight[:4] = 0
            self.middle.weight[:4, 0] = 1
            self.middle.bias[:4] = 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.middle(self.first(x).relu()).clamp(0, 6))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(12):
        np.save(folder / f"{index:02}.npy", rng.standard_normal((3, 12, 12)).astype(np.float32))
    return folder


@pytest.fixture
def quiet_file(tmp_path: Path) -> Path:
    export_onnx(quiet_relus(), (torch.zeros(1, 3, 12, 12),), tmp_path / "quiet.onnx")
    return tmp_path / "quiet.onnx"


def batch_of(data: Path) -> torch.Tensor:
    return torch.from_numpy(np.stack([np.load(file) for file in sorted(data.iterdir())]))


def test_relus_that_never_fire_leave_an_onnx_file(quiet_file: Path, data: Path, tmp_path: Path) -> None:
    report = prune_onnx(quiet_file, tmp_path / "out.onnx", calibration=Calibration(data))
    assert report.removed_channels == 9
    assert not report.exact
    assert report.exact_on_data
    assert report.calibration is not None
    assert (report.calibration.samples, report.calibration.held_out) == (12, 3)
    assert report.calibration.removed_channels == 9
    assert report.validation is not None
    assert report.validation.families.keys() == {"data"}
    assert report.validation.max_rel_error < 1e-5
    onnx.checker.check_model(onnx.load(tmp_path / "out.onnx"), full_check=True)


def test_relus_that_never_fire_leave_a_module(data: Path) -> None:
    net = quiet_relus()
    pruned = prune_module(net, (torch.zeros(1, 3, 12, 12),), calibration=Calibration(data))
    assert pruned.report.removed_channels == 9
    assert_same_function(net, pruned.module, batch_of(data))


def test_without_data_the_same_network_keeps_all(quiet_file: Path, tmp_path: Path) -> None:
    assert prune_onnx(quiet_file, tmp_path / "out.onnx").removed_channels == 0


def test_what_an_observed_constant_follows_from_stays_while_it_stays(data: Path) -> None:
    """A carrier stays at 6 only while channel 0 of the first layer, which nothing else reads, feeds it."""
    net = Clipped().eval()
    pruned = prune_module(net, (torch.zeros(1, 3, 12, 12),), calibration=Calibration(data))
    assert pruned.report.carriers == 1
    assert [layer.after for layer in pruned.report.layers] == [6, 5, 4]
    assert_same_function(net, pruned.module, batch_of(data))


def test_data_that_show_nothing_new_leave_the_result_exact(data: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Conv2d(8, 4, 3)).eval()
    with torch.no_grad():
        net[0].weight[2] = 0
    report = prune_module(net, (torch.zeros(1, 3, 12, 12),), calibration=Calibration(data)).report
    assert report.exact
    assert report.removed_channels == 1
    assert report.calibration is not None
    assert report.calibration.removed_channels == 0


def test_a_channel_that_fires_only_on_a_held_out_sample_stays_and_is_counted(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 3, 1)).eval()
    with torch.no_grad():
        net[0].weight[:] = 1.0
        net[0].bias.copy_(torch.tensor([0.0, -5.0]))
    for index in range(8):
        value = 9.0 if index == 7 else 1.0  # the last batch of eight is held out
        np.save(tmp_path / f"{index}.npy", np.full((1, 4, 4), value, dtype=np.float32))
    report = prune_module(net, (torch.zeros(1, 1, 4, 4),), calibration=Calibration(tmp_path)).report
    assert report.removed_channels == 0
    assert report.calibration is not None
    # Flat images make the first channel constant on the seven others, too.
    assert report.calibration.contradicted_channels == 2


def test_near_constants_go_within_the_tolerance_and_not_beyond(data: Path) -> None:
    net = quiet_relus()
    with torch.no_grad():
        net[0].weight[8:10] *= 1e-4
        net[0].bias[8:10] = 0.5
    inputs = (torch.zeros(1, 3, 12, 12),)
    strict = prune_module(net, inputs, calibration=Calibration(data, tolerance=1e-7)).report
    loose = prune_module(net, inputs, calibration=Calibration(data, tolerance=1e-3)).report
    assert (strict.carriers, loose.carriers) == (0, 1)
    assert loose.removed_channels == strict.removed_channels + 1
    assert loose.validation is not None
    assert loose.validation.max_rel_error <= 1e-3


def test_a_result_that_strays_on_the_data_is_refused(data: Path) -> None:
    with pytest.raises(ValidationFailed, match="on the data the pruned network's outputs differ"):
        prune_module(Loud().eval(), (torch.zeros(1, 3, 12, 12),), calibration=Calibration(data, tolerance=0.01))


class Loud(nn.Module):
    """What is small beside one huge channel is all that the output follows."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)
        with torch.no_grad():
            self.first.weight[0] *= 1e4
            self.last.weight[:, 0] = 0
            self.last.weight[0, 0] = 1e-6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x).relu())


def test_ranges_decide_by_the_largest_magnitude_of_the_tensor() -> None:
    ranges = Ranges()
    ranges.add("v", np.array([0.0, 0.49, 1.0, -0.5]), np.array([0.001, 0.51, 2.0, 100.0]))
    found = ranges.constants(1e-3)["v"]
    assert found[0] == 0.0
    assert found[1] == pytest.approx(0.5)
    assert np.isnan(found[2:]).all()
    assert "v" not in ranges.constants(1e-9)


def test_what_is_not_a_number_is_no_constant() -> None:
    ranges = Ranges()
    ranges.add("v", np.array([0.0, 0.0]), np.array([0.0, 1.0]))
    ranges.add("v", np.array([0.0, np.nan]), np.array([0.0, np.nan]))
    assert ranges.constants(1e-3) == {}


@pytest.mark.parametrize(("opset", "dtype"), [(11, np.float32), (13, np.float16), (18, np.float32), (21, np.float32)])
def test_every_opset_and_precision_is_watched(tmp_path: Path, opset: int, dtype: type[Any]) -> None:
    rng = np.random.default_rng(0)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    bias = np.array([0.1, -90, 0.2, -90], dtype)
    tensors = [
        numpy_helper.from_array(rng.standard_normal((4, 3, 1, 1)).astype(dtype), "w"),
        numpy_helper.from_array(bias, "b"),
        numpy_helper.from_array(rng.standard_normal((2, 4, 3, 3)).astype(dtype), "v"),
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], name="first"),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Conv", ["r", "v"], ["y"], pads=[1, 1, 1, 1], name="second"),
    ]
    x = helper.make_tensor_value_info("x", kind, ["n", 3, "h", "w"])
    y = helper.make_tensor_value_info("y", kind, ["n", 2, "h", "w"])
    model = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y], tensors), opset_imports=[helper.make_opsetid("", opset)], ir_version=8
    )
    onnx.save(model, tmp_path / "m.onnx")
    (tmp_path / "data").mkdir()
    np.save(tmp_path / "data" / "all.npy", rng.standard_normal((20, 3, 6, 7)).astype(dtype))
    report = prune_onnx(tmp_path / "m.onnx", tmp_path / "o.onnx", calibration=Calibration(tmp_path / "data"))
    assert [layer.after for layer in report.layers] == [2, 2]
    assert report.calibration is not None
    assert report.calibration.samples == 20
    before, after = (open_runner(tmp_path / f"{n}.onnx", n, "cpu", optimise=False) for n in "mo")
    images = {"x": np.load(tmp_path / "data" / "all.npy")}
    close = 1e-2 if dtype is np.float16 else 1e-5
    np.testing.assert_allclose(before(images)[0], after(images)[0], rtol=close, atol=close)


# --- the command line ---------------------------------------------------------------------------------


def run(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capfd.readouterr()
    status = execute([str(argument) for argument in arguments])
    out, err = capfd.readouterr()
    return status, out, err


def test_calibrate_on_the_command_line(
    quiet_file: Path, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "o.onnx"
    status, out, _ = run(capfd, "prune", quiet_file, "-o", output, "--calibrate", data, "--tolerance", "1e-4", "--json")
    assert status == 0
    document = json.loads(out)
    assert document["calibration"] == {
        "data": str(data), "tolerance": 1e-4, "samples": 12, "held_out": 3, "constant_channels": 9,
        "contradicted_channels": 0, "removed_channels": 9,
    }  # fmt: skip
    assert (document["exact"], document["exact_on_data"]) == (False, True)
    status, out, _ = run(capfd, "prune", quiet_file, "-o", output, "--calibrate", data, "--force")
    assert status == 0
    said = " ".join(out.split())  # lines break where the folder's name makes them
    assert "computes the same function on the data, elsewhere it may differ" in said
    assert "agrees with the original on the data" in said
    status, out, _ = run(capfd, "validate", quiet_file, output, "--inputs", data, "--runs", 0, "--json")
    assert status == 0
    assert json.loads(out)["families"].keys() == {"data"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--tolerance", "1e-3"], "--tolerance is for --calibrate"),
        (["--normalise", "unit"], "--normalise is for --calibrate"),
        (["--criterion", "taylor", "--target-macs", "0.5"], "the taylor criterion needs gradients"),
        (["--criterion", "gamma", "--target-macs", "0.5"], "the gamma criterion needs BatchNorms"),
        (["--criterion", "l1"], "a criterion without a budget removes nothing"),
        (["--target-macs", "0.5"], "a budget without a criterion cannot be met"),
        (["--no-validate", "--inputs", "."], "--inputs are for the check"),
        (["--calibrate", "nowhere"], "there is no folder nowhere"),
    ],
)
def test_options_that_do_not_go_together_say_so(
    quiet_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    status, out, err = run(capfd, "prune", quiet_file, "-o", tmp_path / "o.onnx", *options)
    assert status == 2
    assert said in err
    assert not out
    assert not (tmp_path / "o.onnx").exists()


@pytest.mark.parametrize("criterion", ["l1", "random", "taylor"])
def test_a_criterion_goes_with_calibration(
    quiet_file: Path, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], criterion: str
) -> None:
    choice = ["--criterion", criterion, "--target-macs", "0.4", "--calibrate", data]
    status, out, err = run(capfd, "prune", quiet_file, "-o", tmp_path / "o.onnx", *choice, "--json")
    assert status == 0, err
    document = json.loads(out)
    assert document["after"]["macs"] <= 0.4 * document["before"]["macs"]
    assert not document["exact_on_data"]
    assert document["calibration"]["samples"] == 9  # every fourth is held out, and tells how good the result is
    assert document["agreement"]["samples"] == 3


def test_taylor_on_a_module_beats_chance(data: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 8, 3)).eval()
    with torch.no_grad():  # what reads a channel tells how much it matters; its own filter does not
        net[2].weight *= torch.logspace(-2, 1, 32)[torch.randperm(32)].reshape(1, 32, 1, 1)
    batch = batch_of(data)

    def error(criterion: str, seed: int = 0) -> float:
        pruned = prune_module(
            net, (torch.zeros(1, 3, 12, 12),), criterion=criterion, target_params=0.6, seed=seed,
            calibration=Calibration(data), validate=False,
        )  # fmt: skip
        with torch.no_grad():
            return float((net(batch) - pruned.module(batch)).square().mean())

    assert error("taylor") < 0.1 * np.mean([error("random", seed) for seed in range(6)])


@pytest.mark.parametrize("affine", [True, False])
def test_taylor_takes_no_gradients_of_running_statistics(data: Path, affine: bool) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, affine=affine), nn.ReLU(), nn.Conv2d(8, 4, 3)).train()
    how: dict[str, Any] = {"criterion": "taylor", "target_macs": 0.6, "calibration": Calibration(data)}
    pruned = prune_module(net, torch.zeros(1, 3, 12, 12), validate=False, **how)
    assert pruned.report.after.macs <= 0.6 * pruned.report.before.macs


def test_taylor_scores_a_file_as_it_scores_its_module(quiet_file: Path, data: Path, tmp_path: Path) -> None:
    budget: dict[str, Any] = {"criterion": "taylor", "target_macs": 0.4, "calibration": Calibration(data)}
    from_file = prune_onnx(quiet_file, tmp_path / "o.onnx", **budget)
    from_module = prune_module(quiet_relus(), (torch.zeros(1, 3, 12, 12),), **budget).report
    assert [layer.after for layer in from_file.layers] == [layer.after for layer in from_module.layers]


def test_taylor_leaves_a_frozen_module_as_it_is(data: Path) -> None:
    net = quiet_relus().requires_grad_(False)
    prune_module(
        net, (torch.zeros(1, 3, 12, 12),), criterion="taylor", target_macs=0.5, calibration=Calibration(data),
        validate=False,
    )  # fmt: skip
    assert all(not p.requires_grad and p.grad is None for p in net.parameters())


def test_given_inputs_replace_random_ones(quiet_file: Path, data: Path, tmp_path: Path) -> None:
    report = prune_onnx(quiet_file, tmp_path / "o.onnx", inputs=data)
    assert report.validation is not None
    assert report.validation.families.keys() == {"data"}
    with pytest.raises(BadInput, match="there is no folder"):
        prune_onnx(quiet_file, tmp_path / "p.onnx", inputs=tmp_path / "none")
