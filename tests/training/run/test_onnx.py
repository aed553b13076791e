"""ONNX in, trained and pruned, ONNX out: BatchNorms come back, the interface stays, the accuracy is told."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from assertions import assert_same_function
from safetensors.torch import load_file
from torch import fx, nn
from training_bars import Stop, StopAt

from prunec.cli.main import execute
from prunec.errors import BadInput, UnsupportedModel
from prunec.frontends.onnx.loading.load import load_onnx
from prunec.importer.module import to_module
from prunec.pipeline.export import export_onnx
from prunec.runtime.sessions import open_runner
from prunec.training.data.sets import load
from prunec.training.logs.progress import Silent
from prunec.training.run.run import train_prune
from prunec.training.settings.onnx_network import Probabilities, load_network
from prunec.training.settings.presets import make_config, resume_config
from prunec.training.settings.restore import restore_batchnorm

pytest.importorskip("sklearn")


class Digits(nn.Module):
    """Three convolutions with BatchNorm, a residual sum, and probabilities of ten digits."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(1, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(24, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU())
        self.last = nn.Sequential(nn.Conv2d(24, 32, 3, padding=1, stride=2), nn.BatchNorm2d(32), nn.ReLU())
        self.head = nn.Linear(32, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.stem(image)
        x = self.last(x + self.block(x))
        return torch.as_tensor(self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1)).softmax(1))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of digits (8x8, each in units of the set's deviation) as an ONNX file without BatchNorms."""
    net, data = Digits(), load("digits", (1, 8, 8), num_logits=10)
    images, labels = data.train.take(torch.arange(len(data.train)))
    inputs = (images.float() / 255 - data.mean[0]) / data.std[0]
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        for batch in torch.randperm(len(inputs), generator=generator).split(128):
            optimizer.zero_grad()
            nn.functional.nll_loss(net(inputs[batch]).clamp_min(1e-9).log(), labels[batch]).backward()
            optimizer.step()
    path = tmp_path_factory.mktemp("onnx") / "digits.onnx"
    names: dict[str, Any] = {"input_names": ["image"], "output_names": ["chances"]}
    export_onnx(
        net.eval(), (torch.zeros(1, 1, 8, 8),), path, open_axes={"image": {0: "n"}, "chances": {0: "n"}}, **names
    )
    assert "BatchNormalization" not in {node.op_type for node in onnx.load(path).graph.node}
    return path


def settings(output: Path, file: Path, **given: Any) -> dict[str, Any]:
    return {
        "output": str(output), "onnx": str(file), "data": "digits", "normalise": "dataset", "augment": "none",
        "batch_size": 64, "device": "cpu", **given,
    }  # fmt: skip


def dims(value: onnx.ValueInfoProto) -> list[str]:
    return [dim.dim_param or str(dim.dim_value) for dim in value.type.tensor_type.shape.dim]


def test_a_file_is_trained_pruned_and_given_back(trained: Path, tmp_path: Path) -> None:
    given = settings(tmp_path / "run", trained, steps=220, target_params=0.5, lr=0.02, finetune_lr=0.02)
    result = train_prune(make_config(**given))
    assert result.after["params"] <= 0.52 * result.before["params"]
    assert result.after["channels"] < result.before["channels"]
    assert result.score["before"] > 0.9
    assert result.score["after"] > result.score["before"] - 0.05
    assert any("put BatchNorms back behind 3 layers" in reason for reason in result.reasons)
    model = onnx.load(tmp_path / "run" / "pruned.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [(value.name, dims(value)) for value in model.graph.input] == [("image", ["n", "1", "8", "8"])]
    assert [(value.name, dims(value)) for value in model.graph.output] == [("chances", ["n", "10"])]
    images = np.random.default_rng(0).standard_normal((3, 1, 8, 8)).astype(np.float32)
    (chances,) = open_runner(tmp_path / "run" / "pruned.onnx", "it", "cpu", optimise=True)({"image": images})
    np.testing.assert_allclose(chances.sum(1), 1, rtol=1e-5)


def test_what_is_not_trained_comes_back_as_it_was(trained: Path, tmp_path: Path) -> None:
    """Import, put BatchNorms back, export: ONNX Runtime finds the file's own function again."""
    network = load_network(trained)
    batch = torch.randn(64, 1, 8, 8)
    restored, names = restore_batchnorm(network.module, [batch])
    assert len(names) == 3
    interface = network.interface
    axes: dict[str, Any] = {"open_axes": interface.open_axes, "output_names": [interface.output_name]}
    export_onnx(restored, (batch[:1],), tmp_path / "back.onnx", input_names=[interface.input_name], **axes)
    before, after = (open_runner(path, "it", "cpu", optimise=False) for path in (trained, tmp_path / "back.onnx"))
    feed = {"image": batch.numpy()}
    np.testing.assert_allclose(before(feed)[0], after(feed)[0], rtol=1e-5, atol=1e-6)


def test_restored_norms_are_the_identity_and_have_the_data_s_moments(trained: Path) -> None:
    module = to_module(load_onnx(trained)).module
    batches = list(torch.randn(96, 1, 8, 8).split(32))
    restored, names = restore_batchnorm(module, batches)
    assert_same_function(module, restored, *batches, tolerance=1e-5)
    for name in names:
        norm = restored.get_submodule(f"{name}_norm")
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_var is not None
        torch.testing.assert_close(norm.weight, (norm.running_var + norm.eps).sqrt())
        torch.testing.assert_close(norm.bias, norm.running_mean)
    restored.train()  # over the same data the batch's own moments are the running ones
    together = torch.cat(batches)
    with torch.no_grad():
        torch.testing.assert_close(restored(together), module(together), rtol=1e-3, atol=1e-4)


def test_layers_whose_channels_cannot_go_get_no_norm() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 1)
    )
    module = fx.symbolic_trace(net).eval()
    restored, names = restore_batchnorm(module, [torch.randn(8, 3, 7, 7)])
    assert names == ("3",)  # the first has one, the last makes the output
    assert module is not restored
    assert restore_batchnorm(module, [torch.randn(8, 3, 7, 7)], keep=("3*",))[1] == ()


def test_probabilities_are_trained_as_logarithms(trained: Path) -> None:
    module = load_network(trained).module
    assert any(isinstance(part, Probabilities) for part in module.modules())
    image = torch.randn(2, 1, 8, 8)
    chances = module.eval()(image)
    torch.testing.assert_close(module.train()(image), chances.log())


def test_a_batch_that_is_written_into_the_graph_is_refused(tmp_path: Path) -> None:
    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(4, 1, 2, 8).permute(1, 0, 2, 3).reshape(2, 4, 8).sum((0, 2))[None]

    export_onnx(Fixed(), (torch.zeros(1, 1, 8, 8),), tmp_path / "f.onnx", dynamic_batch=False)
    with pytest.raises(UnsupportedModel, match="its batch size is written into the graph"):
        load_network(tmp_path / "f.onnx")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"weights": "w.pt"}, "an ONNX file has its own weights"),
        ({"arch": "digits"}, "exactly one of --arch, --model and --onnx"),
        ({"restore_batchnorm": "maybe"}, "no restore-batchnorm called 'maybe'"),
        ({"onnx": "", "arch": "digits", "restore_batchnorm": "never"}, "--restore-batchnorm is for ONNX files"),
    ],
)
def test_settings_that_do_not_go_together_say_so(tmp_path: Path, given: dict[str, str], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        make_config(**(settings(tmp_path, tmp_path / "x.onnx") | given))


def test_without_batchnorms_there_is_nothing_to_train_sparse(
    trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = ["--data", "digits", "--restore-batchnorm", "never", "--steps", "5", "-o", str(tmp_path / "run")]
    assert execute(["train-prune", "--onnx", str(trained), *options]) == 2
    assert "BatchNorm" in capfd.readouterr().err
    assert not (tmp_path / "run" / "pruned.onnx").exists()


@pytest.mark.parametrize("step", [14, 26])  # in ISTA and in fine-tuning
def test_a_run_on_a_file_goes_on_after_a_stop(trained: Path, tmp_path: Path, step: int) -> None:
    given: dict[str, Any] = {"steps": 30, "alpha": 1.0, "rho": 0.05, "checkpoint_every": 5}
    train_prune(make_config(**settings(tmp_path / "whole", trained, **given)))
    with pytest.raises(Stop):
        train_prune(make_config(**settings(tmp_path / "stopped", trained, **given)), StopAt(step))
    train_prune(resume_config(str(tmp_path / "stopped")))
    whole, again = (load_file(tmp_path / name / "pruned.safetensors") for name in ("whole", "stopped"))
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_a_long_preparation_is_told_before_it_begins(trained: Path, tmp_path: Path) -> None:
    class Notes(Silent):
        def __init__(self) -> None:
            self.said: list[str] = []

        def note(self, text: str) -> None:
            self.said.append(text)

    notes = Notes()
    train_prune(make_config(**settings(tmp_path / "run", trained, steps=4, alpha=1.0, rho=0.05)), notes)
    assert re.match(r"measuring the statistics of layers without a BatchNorm on \d+ images", notes.said[0])
