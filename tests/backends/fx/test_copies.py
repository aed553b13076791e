"""What a pruned module costs to make: nothing is copied, or written, that is thrown away at once."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from modules.networks import NETWORKS, make
from torch import Tensor, fx, nn
from torch.nn.utils import parametrizations

from prunec.api import prune_module
from prunec.backends.fx.copies import copies
from prunec.frontends.fx.frontend import trace


@pytest.fixture
def resnet() -> nn.Module:
    return make("resnet20")


def test_reading_a_module_copies_no_weights(resnet: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[int] = []
    clone = torch.UntypedStorage.clone
    monkeypatch.setattr(
        torch.UntypedStorage, "clone", lambda storage: copied.append(storage.nbytes()) or clone(storage)
    )
    trace(resnet, NETWORKS["resnet20"].inputs())
    assert copied == []


def test_what_gets_new_contents_is_not_copied_first(resnet: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[int] = []
    deepcopy = nn.Parameter.__deepcopy__

    def noting(parameter: nn.Parameter, memo: dict[int, Any]) -> Any:
        copied.append(parameter.numel())
        return deepcopy(parameter, memo)

    monkeypatch.setattr(nn.Parameter, "__deepcopy__", noting)
    result = prune_module(resnet, NETWORKS["resnet20"].inputs(), validate=False, criterion="l1", target_macs=0.5)
    own = dict(resnet.named_parameters())
    kept = sum(p.numel() for name, p in result.module.named_parameters() if name in own and p.shape == own[name].shape)
    assert sum(copied) <= kept < 0.1 * sum(p.numel() for p in own.values())


def test_the_code_of_a_pruned_module_is_written_once(resnet: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    recompile = fx.GraphModule.recompile

    def noting(module: fx.GraphModule) -> Any:
        written.append(len(module.graph.nodes))
        return recompile(module)

    monkeypatch.setattr(fx.GraphModule, "recompile", noting)
    result = prune_module(resnet, NETWORKS["resnet20"].inputs(), validate=False)
    assert written.count(len(result.module.graph.nodes)) == 1  # the traced module's is never called


class Holding(nn.Module):
    """Holds what copies of modules go wrong on: each other, itself, a computed weight, a list of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = parametrizations.weight_norm(nn.Linear(3, 3))
        self.rnn = nn.LSTM(3, 3)
        self.shared = [nn.Conv2d(3, 3, 1)]
        self.convolution = self.shared[0]
        self.__dict__["parent"] = self
        self.layer.register_forward_hook(lambda _, __, result: result)
        self.pair = (1, [2])


def test_a_copy_by_its_memo_is_what_deepcopy_makes() -> None:
    net = nn.Sequential(Holding(), nn.ReLU())
    made, plain = copy.deepcopy(net, copies(net)), copy.deepcopy(net)
    assert [(name, type(sub)) for name, sub in made.named_modules()] == [
        (name, type(sub)) for name, sub in plain.named_modules()
    ]
    for (name, tensor), other in zip(made.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(tensor, other), name
        assert tensor.data_ptr() != net.state_dict()[name].data_ptr(), name
    holding: Any = made[0]
    assert holding is not net[0]
    assert holding.parent is holding
    assert holding.shared[0] is holding.convolution
    assert holding.pair[1] is not net[0].pair[1]  # type: ignore[index]  # a pair
    assert all(isinstance(weight, Tensor) for weight in holding.rnn._flat_weights)
    assert holding.rnn._flat_weights[0] is holding.rnn.weight_ih_l0
    assert vars(holding.convolution).keys() == vars(net[0].convolution).keys()
