"""The moving average of a network, and BatchNorm statistics measured afresh."""

from __future__ import annotations

import pytest
import torch
from modules.training import ResidualConcat
from torch import nn

from prunec.training.learning.batchnorm import enough_batches, reestimate
from prunec.training.learning.ema import Ema


def test_the_average_starts_fast_and_settles_at_its_decay() -> None:
    module = nn.Linear(1, 1, bias=False)
    ema = Ema(module, decay=0.5)
    by_hand = float(module.weight.detach())
    for count in range(1, 30):
        with torch.no_grad():
            module.weight.fill_(float(count))
        ema.update()
        decay = min(0.5, (1 + count) / (10 + count))
        by_hand = decay * by_hand + (1 - decay) * count
    with ema.swapped_in():
        assert float(module.weight.detach()) == pytest.approx(by_hand)
    assert float(module.weight.detach()) == 29.0


def test_the_first_weights_are_soon_forgotten_whatever_the_decay() -> None:
    module = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        module.weight.fill_(0.0)
    ema = Ema(module, decay=0.999)
    with torch.no_grad():
        module.weight.fill_(1.0)
    ema.update()
    with ema.swapped_in():
        assert float(module.weight.detach()) == pytest.approx(1 - 2 / 11)


def test_statistics_are_averaged_and_counters_copied() -> None:
    module = nn.BatchNorm1d(2)
    ema = Ema(module, decay=0.9)
    module(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
    ema.update()
    with ema.swapped_in():
        assert module.running_mean is not None
        assert module.running_mean.tolist() != [0.0, 0.0]
        assert module.num_batches_tracked is not None
        assert int(module.num_batches_tracked) == 1


def test_the_average_goes_on_from_a_saved_state() -> None:
    module = nn.Linear(2, 2)
    first = Ema(module, 0.9)
    first.update()
    second = Ema(module, 0.9)
    second.load_state_dict(first.state_dict())
    with torch.no_grad():
        module.weight.add_(1)
    first.update()
    second.update()
    assert torch.equal(first.state_dict()["average"][0], second.state_dict()["average"][0])


def test_reestimated_statistics_are_those_of_the_data_and_modes_come_back() -> None:
    module = ResidualConcat().train()
    module.left[1].eval()
    batches = torch.randn(3, 4, 3, 8, 8).unbind()
    reestimate(module, batches)
    assert module.training
    assert module.dropout.training
    assert not module.left[1].training
    stem = module.stem[0](torch.cat(batches)).detach()
    norm = module.stem[1]
    torch.testing.assert_close(norm.running_mean, stem.mean((0, 2, 3)))
    assert norm.momentum == 0.1


def test_nothing_is_forgotten_where_there_is_no_data() -> None:
    module = nn.Sequential(nn.BatchNorm2d(2))
    module(torch.randn(4, 2, 3, 3))
    before = module[0].running_mean.clone()
    reestimate(module, [])
    assert torch.equal(module[0].running_mean, before)


def test_statistics_are_measured_on_fewer_batches_of_large_images() -> None:
    assert enough_batches(125, (3, 32, 32)) == enough_batches(64, (3, 224, 224)) == 20
    assert enough_batches(64, (3, 512, 512)) == 4
    assert enough_batches(64, (3, 4096, 4096)) == 2
