"""The module that is pruned is left as it was; modes, gradients and dtype of the result are its own."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from assertions import assert_same_function, assert_same_on_inputs
from modules.networks import NETWORKS, make
from modules.pruned import prune
from torch import Tensor, nn

from prunec.api import prune_module
from prunec.errors import BadInput
from prunec.pipeline.export import export_onnx


def test_the_users_module_is_left_as_it_was() -> None:
    net = make("shufflenetv2")
    net.train()
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    channels = [m.in_channels for m in net.modules() if isinstance(m, nn.Conv2d)]
    code = [type(m).__name__ for m in net.modules()]
    result = prune_module(net, NETWORKS["shufflenetv2"].inputs())
    assert result.report.removed_channels > 0
    after = net.state_dict()
    assert state.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in state.items())
    assert [m.in_channels for m in net.modules() if isinstance(m, nn.Conv2d)] == channels
    assert [type(m).__name__ for m in net.modules()] == code
    assert all(m.training for m in net.modules())
    assert all(p.grad is None for p in net.parameters())


def test_frozen_parameters_train_mode_and_no_grad_change_nothing() -> None:
    inputs = NETWORKS["resnet18"].inputs()
    plain = prune_module(make("resnet18"), inputs, validate=False)
    frozen = make("resnet18").requires_grad_(False)
    training = make("resnet18").train()
    with torch.no_grad():
        without = prune_module(make("resnet18"), inputs, validate=False)
    for other in (
        prune_module(frozen, inputs, validate=False),
        prune_module(training, inputs, validate=False),
        without,
    ):
        assert other.plan == plain.plan
        state = plain.module.state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in other.module.state_dict().items())


def test_modes_and_requires_grad_are_those_of_the_original() -> None:
    net = make("googlenet")
    net.train()
    net[0].eval()
    net[2].requires_grad_(False)
    module = prune_module(net, NETWORKS["googlenet"].inputs()).module
    assert not module.get_submodule("0.1").training
    assert module.get_submodule("3.one.1").training
    flags = {name: p.requires_grad for name, p in module.named_parameters()}
    assert flags == {name: not name.startswith("2.") for name in flags}
    assert any(not flag for flag in flags.values())


def test_the_dtype_is_kept() -> None:
    net = make("resnet20").double()
    x = NETWORKS["resnet20"].inputs()[0].double()
    result = prune_module(net, (x,), validate=False)
    assert {p.dtype for p in result.module.parameters()} == {torch.float64}
    assert_same_function(net, result.module, x, tolerance=1e-11)


@pytest.mark.parametrize("name", ["resnet20", "shufflenetv2", "unet", "two_inputs"])
def test_the_result_copies_saves_and_trains(name: str, tmp_path: Path) -> None:
    _, result = prune(name)
    inputs = NETWORKS[name].inputs()
    twin = copy.deepcopy(result.module)
    assert_same_on_inputs(result.module, twin, *inputs, tolerance=0.0)
    torch.save(result.module.state_dict(), tmp_path / "weights.pt")
    nn.init.zeros_(next(twin.parameters()))
    twin.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert_same_on_inputs(result.module, twin, *inputs, tolerance=0.0)
    twin.train()
    optimiser = torch.optim.SGD(twin.parameters(), lr=0.1)
    before = [p.clone() for p in twin.parameters()]
    outputs = [leaf for leaf in torch.utils._pytree.tree_leaves(twin(*inputs)) if isinstance(leaf, Tensor)]
    torch.stack([(o - 1).square().mean() for o in outputs]).sum().backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None for p in twin.parameters())
    optimiser.step()
    assert any(not torch.equal(a, b) for a, b in zip(before, twin.parameters(), strict=True))


def test_the_result_can_be_pruned_again_and_nothing_more_goes() -> None:
    for name in ("resnet18", "shufflenetv2", "googlenet", "unet", "slices"):
        _, once = prune(name)
        twice = prune_module(once.module, NETWORKS[name].inputs(), validate=False)
        assert twice.report.removed_channels == 0, name


def test_module_attributes_agree_with_their_tensors() -> None:
    for name in ("mobilenetv2", "resnext", "unet", "prelu", "flatten_head"):
        _, result = prune(name)
        for module in result.module.modules():
            if isinstance(module, nn.Conv2d):
                shape = (module.out_channels, module.in_channels // module.groups, *module.kernel_size)
                assert tuple(module.weight.shape) == shape, name
                assert module.in_channels % module.groups == 0
            elif isinstance(module, nn.ConvTranspose2d):
                assert tuple(module.weight.shape[:2]) == (module.in_channels, module.out_channels), name
            elif isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_mean.shape[0] == module.num_features == module.weight.shape[0], name
            elif isinstance(module, nn.Linear):
                assert tuple(module.weight.shape) == (module.out_features, module.in_features), name
            elif isinstance(module, nn.PReLU):
                assert module.weight.shape[0] == module.num_parameters, name


@pytest.mark.parametrize("example", [(torch.randn(2, 4, 8, 8),), (), ("text",), (torch.zeros(2, 3, 8, 8).int(),)])
def test_an_export_on_inputs_that_do_not_fit_is_told_in_a_message(example: Any, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    with pytest.raises(BadInput, match="cannot run on an input of shape"):
        export_onnx(net, example, tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


class Remembering(nn.Module):
    """Counts its calls, and keeps a moving average of what it sees, in buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.o = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()), nn.Conv2d(8, 2, 1)
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        self.count += 1
        self.mean.mul_(0.9).add_(y.detach().mean((0, 2, 3)), alpha=0.1)
        return self.o(y - self.mean[None, :, None, None])  # type: ignore[no-any-return]  # nn.Module's call is untyped


@pytest.mark.parametrize(
    "options",
    [
        {"criterion": "l1", "target_macs": 0.6},
        {"calibration": torch.randn(24, 3, 8, 8)},
        {"calibration": torch.randn(24, 3, 8, 8), "target_macs": 0.6},
        {"calibration": torch.randn(24, 3, 8, 8), "target_macs": 0.6, "criterion": "taylor"},
    ],
)
def test_buffers_that_a_forward_writes_are_left_as_they_were(options: dict[str, Any]) -> None:
    net = Remembering()
    prune_module(net, torch.zeros(2, 3, 8, 8), **options)
    assert float(net.count) == 0
    assert not net.mean.any()
    assert net.training
