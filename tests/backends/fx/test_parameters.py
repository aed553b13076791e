"""Parameters of the result: contractions written as functions, new biases, constants and indices as buffers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from assertions import assert_same_function, parameter_elements
from modules.blocks import cbr
from modules.networks import silence
from modules.silent import CHANNELS, REWRITTEN, Spelled, prune
from torch import Tensor, nn
from torch.nn import functional as F

from prunec.api import prune_module


class Functional(nn.Module):
    """Convolutions and linear layers called with parameters."""

    def __init__(self, call: Callable[[Tensor, nn.Parameter], Tensor], *shape: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = cbr(3, CHANNELS)
        self.weight = nn.Parameter(torch.randn(shape) / 4)
        self.call = call
        found = call(torch.zeros(2, CHANNELS, 8, 8), self.weight)
        self.linear = found.dim() == 2
        self.tail = nn.Linear(found.shape[1], 4) if self.linear else nn.Conv2d(found.shape[1], 4, 1)
        silence(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.call(self.stem(x), self.weight))  # type: ignore[no-any-return]


FUNCTIONS: dict[str, tuple[Callable[[Tensor, nn.Parameter], Tensor], tuple[int, ...]]] = {
    "conv": (lambda x, w: F.conv2d(x, w, padding=1), (6, CHANNELS, 3, 3)),
    "conv without padding": (lambda x, w: F.conv2d(x, w), (6, CHANNELS, 3, 3)),
    "depthwise": (lambda x, w: F.conv2d(x, w, None, 1, 1, 1, CHANNELS), (CHANNELS, 1, 3, 3)),
    "depthwise by keyword": (lambda x, w: F.conv2d(x, w, padding=1, groups=CHANNELS), (2 * CHANNELS, 1, 3, 3)),
    "grouped": (lambda x, w: torch.conv2d(x, w, groups=3), (9, 4, 1, 1)),
    "transposed": (lambda x, w: F.conv_transpose2d(x, w, stride=2), (CHANNELS, 6, 2, 2)),
    "linear": (lambda x, w: F.linear(x.mean((2, 3)), w), (6, CHANNELS)),
    "matmul": (lambda x, w: x.mean((2, 3)) @ w, (CHANNELS, 6)),
    "weight standardisation": (lambda x, w: F.conv2d(x, w / w.std((2, 3), keepdim=True)), (6, CHANNELS, 3, 3)),
    "prelu": (lambda x, w: F.prelu(x, w), (CHANNELS,)),
    "layer scale": (lambda x, w: x + w[:, None, None] * x, (CHANNELS,)),
    "matmul from the left": (lambda x, w: (w.t() @ x.flatten(2)).unsqueeze(3), (CHANNELS, 6)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_with_parameters_are_pruned(name: str) -> None:
    call, shape = FUNCTIONS[name]
    net = Functional(call, *shape)
    result = prune(net)
    if name != "matmul from the left":  # its bias would lie along another axis than the last
        assert result.report.removed_channels > 0
        assert parameter_elements(result.module) < parameter_elements(net)


def test_a_functional_contraction_without_a_bias_gets_one_as_a_parameter() -> None:
    result = prune(Functional(*[FUNCTIONS["linear"][0]], *FUNCTIONS["linear"][1]))
    assert any("folded_bias" in name for name, _ in result.module.named_parameters())


def test_a_layer_without_a_bias_gets_one_where_no_norm_follows() -> None:
    torch.manual_seed(0)
    net = silence(nn.Sequential(cbr(3, 8), nn.Conv2d(8, 4, 1, bias=False)))
    result = prune(net)
    assert result.report.removed_channels > 0
    assert result.module.get_submodule("1").bias is not None
    assert net[1].bias is None


def test_the_papers_form_takes_from_the_running_mean_where_a_norm_follows() -> None:
    torch.manual_seed(0)
    net = silence(nn.Sequential(cbr(3, 8), cbr(8, 6, 1), nn.Conv2d(6, 2, 1)))
    result = prune(net)
    assert {fold.kind for fold in result.plan.folds if fold.node == "_1_0"} == {"running_mean"}
    assert result.module.get_submodule("1.0").bias is None


def test_constants_and_indices_are_buffers_of_the_result() -> None:
    net = Spelled(REWRITTEN["index list"])
    result = prune(net)
    buffers = dict(result.module.named_buffers())
    (indices,) = (b for name, b in buffers.items() if name.endswith("_indices"))
    assert indices.dtype == torch.int64
    assert any(name.endswith("_indices") for name in result.module.state_dict())


def test_unused_layers_and_parameters_are_gone_from_the_result() -> None:
    class Wasteful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = cbr(3, 8), cbr(3, 8)
            self.extra = nn.Parameter(torch.ones(3))
            self.tail = nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.tail(self.used(x))  # type: ignore[no-any-return]

    result = prune(silence(Wasteful()))
    assert not [name for name in result.module.state_dict() if name.startswith(("unused", "extra"))]


class Scaled(nn.Module):
    """A network with buffers, one of which is not saved; so is one of a part in which it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.tail = cbr(3, CHANNELS), nn.Conv2d(CHANNELS, 4, 1)
        self.register_buffer("scale", torch.rand(CHANNELS, 1, 1) + 0.5, persistent=False)
        self.register_buffer("shift", torch.rand(CHANNELS, 1, 1))
        silence(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(torch.relu(self.stem(x)) * self.scale + self.shift)  # type: ignore[no-any-return]


class Around(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside = Scaled()
        self.register_buffer("last", torch.rand(4, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.inside(x) * self.last  # type: ignore[no-any-return]  # nn.Module's call is untyped


class Makes(Scaled):
    """A forward that makes tensors of numbers, as long as channels are many, and writes into one."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        y, numbers = self.stem(x), [float(1 + c) for c in range(CHANNELS)]
        made: Callable[[], Tensor] = {
            "dtype": lambda: torch.tensor(numbers, dtype=y.dtype),
            "device": lambda: torch.tensor(numbers, device=y.device),
            "as_tensor": lambda: torch.as_tensor(numbers, dtype=y.dtype, device=y.device),
            "new_tensor": lambda: y.new_tensor(numbers),
            "written": lambda: y.new_tensor(numbers).mul_(2),
            "cast": lambda: torch.tensor([*range(CHANNELS)], device=y.device).to(y.dtype),
            "inside": lambda: torch.tensor(numbers, device=y.device).view(1, -1),
        }[self.how]
        return self.tail(torch.relu(y * made().view(1, -1, 1, 1)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("how", ["dtype", "device", "as_tensor", "new_tensor", "written", "cast", "inside"])
def test_tensors_that_a_forward_makes_of_numbers_lose_channels(how: str) -> None:
    torch.manual_seed(0)
    net, x = Makes(how).eval(), torch.randn(2, 3, 8, 8)
    result = prune_module(net, (x,))
    assert result.report.removed_channels > 0
    for _ in range(2):
        assert_same_function(net, result.module, x)
    assert set(result.module.state_dict()) <= set(net.state_dict())
    assert prune_module(net, (x,), criterion="l1", target_macs=0.5).report.removed_channels > 0


@pytest.mark.parametrize("kind", [Scaled, Around])
def test_buffers_that_are_not_saved_stay_out_of_the_state(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    net, x = kind().eval(), torch.randn(2, 3, 8, 8)
    result = prune_module(net, (x,))
    assert result.report.removed_channels > 0
    assert set(result.module.state_dict()) == set(net.state_dict())
    result.module.load_state_dict(result.module.state_dict())
