"""Ista: exact zeros, the paper's update, groups that vanish together, and its manners as an optimiser."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from prunec.errors import BadInput
from prunec.training.sparsity.ista import Ista, Penalised
from prunec.training.sparsity.sparsify import sparsify


class TwoGammas(nn.Module):
    """Two BatchNorms whose gammas belong to one residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        stream = torch.relu(self.bn1(self.conv1(x)) + self.bn2(self.conv2(x)))
        scores: torch.Tensor = self.head(stream.mean((2, 3)))
        return scores


@pytest.fixture
def module() -> TwoGammas:
    torch.manual_seed(0)
    return TwoGammas()


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(8, 2, 6, 6, generator=generator), torch.randint(0, 3, (8,), generator=generator)


def stream_gammas(module: TwoGammas, penalty: float = 1.0) -> list[Penalised]:
    group = torch.arange(4)
    lambdas = torch.full((4,), penalty)
    return [Penalised(module.bn1.weight, lambdas, group, "bn1"), Penalised(module.bn2.weight, lambdas, group, "bn2")]


def backward(module: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    loss = nn.functional.cross_entropy(module(batch[0]), batch[1])
    loss.backward()
    return loss


def test_a_gamma_without_use_reaches_exactly_zero_and_stays() -> None:
    gamma = nn.Parameter(torch.tensor([1.0, -1.0, 0.5, -0.001]))
    ista = Ista(torch.optim.SGD([gamma], lr=0.1), [gamma], rho=0.5)
    for _ in range(30):
        gamma.grad = torch.zeros(4)
        ista.step()
    assert gamma.tolist() == [0.0, 0.0, 0.0, 0.0]
    assert not torch.signbit(gamma).any(), "a negative zero would print and hash differently"
    assert ista.sparsity() == 1.0


def test_what_lies_within_the_threshold_is_exactly_zero_after_one_step() -> None:
    gamma = nn.Parameter(torch.tensor([0.04, -0.05, 0.06]))
    Ista(torch.optim.SGD([gamma], lr=0.1), [gamma], rho=0.5).step()
    assert gamma.tolist()[:2] == [0.0, 0.0]
    assert float(gamma[2].detach()) == pytest.approx(0.01)


def test_a_channel_without_a_penalty_is_no_member_of_its_group() -> None:
    gamma, free = nn.Parameter(torch.tensor([0.04])), nn.Parameter(torch.tensor([1.0]))
    group = torch.tensor([0])
    penalised = [Penalised(gamma, torch.ones(1), group), Penalised(free, torch.zeros(1), group)]
    Ista(torch.optim.SGD([gamma, free], lr=0.1), penalised, rho=0.5).step()
    assert (float(gamma.detach()), float(free.detach())) == (0.0, 1.0)


def test_an_optimiser_that_has_made_steps_can_be_wrapped_and_saved(module: TwoGammas) -> None:
    base = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    base.step()
    ista = Ista(base, stream_gammas(module), rho=0.1)
    assert module.bn1.weight not in ista.state
    ista.load_state_dict(ista.state_dict())


def test_ista_equals_a_loop_over_the_papers_formula(
    module: TwoGammas, batch: tuple[torch.Tensor, torch.Tensor]
) -> None:
    penalty, rho, lr = torch.tensor([0.3, 1.0, 2.0, 0.0]), 0.2, 0.05
    by_hand = copy.deepcopy(module)
    others = [p for name, p in by_hand.named_parameters() if name != "bn1.weight"]
    sgd = torch.optim.SGD(others, lr=lr, momentum=0.9, weight_decay=1e-2)
    base = torch.optim.SGD(module.parameters(), lr=lr, momentum=0.9, weight_decay=1e-2)
    ista = Ista(base, [Penalised(module.bn1.weight, penalty)], rho=rho)
    for _ in range(5):
        ista.zero_grad()
        backward(module, batch)
        ista.step()
        by_hand.zero_grad()
        backward(by_hand, batch)
        sgd.step()
        with torch.no_grad():
            gamma = by_hand.bn1.weight
            assert gamma.grad is not None
            for k in range(4):
                moved = float(gamma[k] - lr * gamma.grad[k])
                gamma[k] = math.copysign(max(abs(moved) - lr * rho * float(penalty[k]), 0.0), moved)
    for (name, ours), (_, theirs) in zip(module.named_parameters(), by_hand.named_parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=name)


def test_group_prox_shrinks_the_norm_of_a_class_by_the_threshold() -> None:
    a, b = nn.Parameter(torch.tensor([3.0, 1.0])), nn.Parameter(torch.tensor([4.0, 1.0]))
    group, penalty = torch.tensor([0, 1]), torch.tensor([2.0, 2.0])
    gammas = [Penalised(a, penalty, group), Penalised(b, penalty, group)]
    ista = Ista(torch.optim.SGD([a, b], lr=0.5), gammas, rho=1.0)
    assert ista.lasso().item() == pytest.approx(2 * 5 + 2 * math.sqrt(2))
    a.grad = b.grad = torch.zeros(2)
    ista.step()  # threshold 0.5 · 1 · 2 = 1: (3, 4) of norm 5 keeps 4/5 of its length
    assert a[0].item() == pytest.approx(3 * 0.8)
    assert b[0].item() == pytest.approx(4 * 0.8)


def test_gammas_of_one_class_reach_zero_in_the_same_step(module: TwoGammas) -> None:
    with torch.no_grad():
        module.bn1.weight.copy_(torch.tensor([1.0, 0.1, 0.5, 2.0]))
        module.bn2.weight.copy_(torch.tensor([0.01, 0.9, 0.5, 2.0]))
    ista = Ista(torch.optim.SGD(module.parameters(), lr=0.1), stream_gammas(module), rho=1.0)
    vanished: list[int] = []
    for _ in range(40):
        ista.step()
        first, second = module.bn1.weight == 0, module.bn2.weight == 0
        assert torch.equal(first, second), "one gamma of a class is zero and the other is not"
        vanished.append(int(first.sum()))
    assert vanished[-1] == 4
    assert len(set(vanished)) > 2, "the channels should go one by one"


def test_groups_need_not_line_up_by_position() -> None:
    wide, narrow = nn.Parameter(torch.ones(6)), nn.Parameter(torch.ones(2))
    gammas = [
        Penalised(wide, torch.tensor([9.0, 9.0, 1.0, 1.0, 9.0, 9.0]), torch.tensor([10, 11, 5, 7, 12, 13])),
        Penalised(narrow, torch.tensor([1.0, 1.0]), torch.tensor([7, 5])),
    ]
    with torch.no_grad():
        wide[2], narrow[1] = 0.6, 0.8
    ista = Ista(torch.optim.SGD([wide, narrow], lr=1.0), gammas, rho=0.5)
    ista.step()
    assert [wide[2].item(), narrow[1].item()] == pytest.approx([0.3, 0.4])


def test_penalised_gammas_feel_neither_weight_decay_nor_momentum(module: TwoGammas) -> None:
    base = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, weight_decay=0.5)
    ista = Ista(base, [module.bn1.weight], rho=0.0)
    for _ in range(3):
        for parameter in module.parameters():
            parameter.grad = torch.zeros_like(parameter)
        ista.step()
    assert torch.equal(module.bn1.weight, torch.ones(4))
    assert not torch.equal(module.bn2.weight, torch.ones(4)), "what is not penalised keeps its weight decay"


@pytest.mark.parametrize(
    "make",
    [
        lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9, nesterov=True),
        lambda params: torch.optim.AdamW(params, lr=0.01),
        lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9, fused=True),
    ],
    ids=["nesterov", "adamw", "fused"],
)
def test_state_dict_round_trip_continues_bit_for_bit(
    module: TwoGammas, batch: tuple[torch.Tensor, torch.Tensor], make: Callable[..., torch.optim.Optimizer]
) -> None:
    def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            backward(net, batch)
            optimizer.step()

    ista = Ista(make(module.parameters()), stream_gammas(module), rho=0.1)
    train(module, ista, 3)
    ista.rho = 0.3
    twin = copy.deepcopy(module)
    other = Ista(make(twin.parameters()), stream_gammas(twin), rho=0.0)
    other.load_state_dict(copy.deepcopy(ista.state_dict()))
    assert other.rho == 0.3
    train(module, ista, 3)
    train(twin, other, 3)
    for ours, theirs in zip(module.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_scheduler_moves_the_step_size_of_gammas_too(module: TwoGammas) -> None:
    ista = Ista(torch.optim.SGD(module.parameters(), lr=1.0), stream_gammas(module), rho=0.0)
    scheduler = torch.optim.lr_scheduler.StepLR(ista, step_size=1, gamma=0.5)
    ista.step()
    scheduler.step()
    assert [group["lr"] for group in ista.param_groups] == [0.5, 0.5]
    ista.load_state_dict(ista.state_dict())
    ista.step()
    scheduler.step()
    assert [group["lr"] for group in ista.param_groups] == [0.25, 0.25]


def test_a_grad_scaler_skips_the_step_on_overflow(module: TwoGammas, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    ista = Ista(torch.optim.SGD(module.parameters(), lr=0.1), stream_gammas(module), rho=0.1)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(backward(module, batch))
    module.bn1.weight.grad = torch.full((4,), float("inf"))
    before = module.bn1.weight.detach().clone()
    scaler.step(ista)
    scaler.update()
    assert torch.equal(module.bn1.weight, before)


# torch's own compiler meets torch's own deprecation.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_the_step_compiles_and_gives_the_same_gammas(
    module: TwoGammas, batch: tuple[torch.Tensor, torch.Tensor]
) -> None:
    twin = copy.deepcopy(module)
    plain = Ista(torch.optim.SGD(module.parameters(), lr=0.1), stream_gammas(module), rho=0.5)
    other = Ista(torch.optim.SGD(twin.parameters(), lr=0.1), stream_gammas(twin), rho=0.5)
    compiled_step = torch.compile(other.step, backend="eager")
    for _ in range(2):
        for net, optimizer in ((module, plain), (twin, other)):
            optimizer.zero_grad()
            backward(net, batch)
        plain.step()
        compiled_step()
    assert torch.equal(module.bn1.weight, twin.bn1.weight)


def test_a_closure_is_passed_on_and_its_loss_returned(
    module: TwoGammas, batch: tuple[torch.Tensor, torch.Tensor]
) -> None:
    ista = Ista(torch.optim.SGD(module.parameters(), lr=0.1), stream_gammas(module), rho=0.1)
    before = module.bn1.weight.detach().clone()
    loss = ista.step(lambda: backward(module, batch))
    assert loss > 0
    assert not torch.equal(module.bn1.weight, before)


def test_parameters_can_be_added_later(module: TwoGammas) -> None:
    ista = Ista(torch.optim.SGD([module.bn1.weight], lr=0.1), [module.bn1.weight], rho=0.1)
    ista.add_param_group({"params": [module.bn2.bias], "lr": 0.2})
    module.bn2.bias.grad = torch.ones(4)
    ista.step()
    torch.testing.assert_close(module.bn2.bias.detach(), torch.full((4,), -0.2))


def test_the_base_optimisers_state_is_refused(module: TwoGammas) -> None:
    base = torch.optim.SGD(module.parameters(), lr=0.1)
    saved = base.state_dict()
    ista = Ista(base, stream_gammas(module), rho=0.1)
    with pytest.raises(BadInput, match="no 'ista' entry"):
        ista.load_state_dict(saved)


@pytest.mark.parametrize("rho", [-0.1, math.nan, math.inf])
def test_a_rho_that_is_no_weight_is_refused(module: TwoGammas, rho: float) -> None:
    with pytest.raises(BadInput, match="rho is"):
        Ista(torch.optim.SGD(module.parameters(), lr=0.1), [module.bn1.weight], rho=rho)


def test_a_gamma_that_the_optimiser_does_not_hold_is_named(module: TwoGammas) -> None:
    base = torch.optim.SGD(module.head.parameters(), lr=0.1)
    with pytest.raises(BadInput, match="does not hold bn1"):
        Ista(base, stream_gammas(module), rho=0.1)


def test_an_empty_list_of_gammas_is_refused(module: TwoGammas) -> None:
    with pytest.raises(BadInput, match="no gamma to penalise"):
        Ista(torch.optim.SGD(module.parameters(), lr=0.1), [], rho=0.1)


def _wrapped(make: Callable[[Any], torch.optim.Optimizer], **options: Any) -> tuple[nn.Module, Ista]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    optimizer = make(net.parameters())
    return net, sparsify(net, torch.zeros(2, 3, 8, 8), optimizer, **{"rho": 0.1, **options})


def _step(net: nn.Module, optimizer: Any) -> None:
    optimizer.zero_grad()
    net(torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize(
    "make", [lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), lambda p: torch.optim.AdamW(p, lr=0.1)]
)
def test_schedulers_that_move_the_momentum_take_it(make: Callable[[Any], torch.optim.Optimizer]) -> None:
    net, ista = _wrapped(make)
    schedule = torch.optim.lr_scheduler.OneCycleLR(ista, max_lr=0.2, total_steps=5)
    for _ in range(4):
        _step(net, ista)
        schedule.step()
    assert ista.param_groups[-1]["lr"] < 0.2
    torch.optim.lr_scheduler.CyclicLR(ista, 0.01, 0.1, cycle_momentum=isinstance(ista.base, torch.optim.SGD))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_a_copy_with_its_network_goes_on_alike(copied: Callable[[Any], Any]) -> None:
    net, ista = _wrapped(lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9))
    _step(net, ista)
    other, twin = copied((net, ista))
    for _ in range(3):
        _step(net, ista)
        _step(other, twin)
    for ours, theirs in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert ours is not theirs
    twin.rho = 0.0
    assert (ista.rho, twin.param_groups[-1]["rho"]) == (0.1, 0.0)


def test_what_is_frozen_later_stays() -> None:
    net, ista = _wrapped(lambda p: torch.optim.SGD(p, lr=0.1))
    _step(net, ista)
    gamma = net[1].weight
    before = gamma.detach().clone()
    gamma.requires_grad_(False)
    _step(net, ista)
    assert torch.equal(gamma, before)
    gamma.requires_grad_(True)
    _step(net, ista)
    assert bool((gamma < before).all())


def test_lbfgs_does_not_update_the_gammas_too() -> None:
    net, ista = _wrapped(lambda p: torch.optim.LBFGS(p, lr=0.5, max_iter=3), rho=0.0, lr=0.0)
    gamma, weight = net[1].weight.detach().clone(), net[0].weight.detach().clone()

    def closure() -> torch.Tensor:
        ista.zero_grad()
        loss: torch.Tensor = net(torch.ones(2, 3, 8, 8)).square().mean()
        loss.backward()
        return loss

    ista.step(closure)
    assert torch.equal(net[1].weight, gamma)
    assert not torch.equal(net[0].weight, weight)


@pytest.mark.parametrize(
    ("options", "what"), [({"lr": -1.0}, "lr is -1.0"), ({"residual": "kep"}, "residual is 'kep'")]
)
def test_settings_that_make_no_sense_are_refused(options: dict[str, Any], what: str) -> None:
    with pytest.raises(BadInput, match=what):
        _wrapped(lambda p: torch.optim.SGD(p, lr=0.1), **options)


@pytest.mark.parametrize("number", [np.float32(0.25), np.int64(1), torch.tensor(0.25)])
def test_settings_may_be_numbers_of_numpy_and_torch(number: Any) -> None:
    _, ista = _wrapped(lambda p: torch.optim.SGD(p, lr=0.1), rho=number, lr=number)
    ista.rho = number
    assert ista.rho == float(number) == float(ista.param_groups[-1]["lr"])
