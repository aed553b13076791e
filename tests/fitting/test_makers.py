"""A maker fitted to its reader: transposes, steps that help, and none where nothing is to be gained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from prunec.api import prune_module
from prunec.data.calibration import Calibration
from prunec.fitting import fit_data, makers, refit
from prunec.fitting.grams import Window
from prunec.fitting.makers import Pair, fitted_to_reader, only_reader
from prunec.ir.graph import Node
from prunec.passes.fitting.operands import operands
from prunec.passes.fitting.streams import stream
from prunec.pipeline.planning import gather_facts
from prunec.pipeline.reading import read_module

SIDE = 6


def window(stride: int) -> Window:
    attrs = {"strides": (stride, stride), "pads": (1, 1, 1, 1), "dilations": (1, 1)}
    return Window.of(Node("n", "conv", ("x", "w"), ("y",), attrs), (3, 3))


def pair(maker: Any, reader: Any, samples: int, stride: int = 1) -> Pair:
    """What a maker and a reader of known weights see of random samples."""
    rng = np.random.default_rng(1)
    seen = rng.standard_normal((maker.shape[1], SIDE * SIDE, samples)).astype(np.float32)
    seen[-1] = 1
    places = window(stride).indices((SIDE, SIDE))
    outputs = reader.shape[1]
    found = Pair(seen, np.zeros((outputs, places.shape[1], samples), np.float32), places, 0.0, np.inf)
    through = found.spread(found.passed(np.tensordot(maker, seen, 1).astype(np.float32))[0])
    found.wanted[:] = (reader[:-1].T @ through + reader[-1][:, None]).reshape(found.wanted.shape)
    return found


def weights(channels: int, columns: int, outputs: int, taps: int = 9) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((channels, columns)), rng.standard_normal((channels * taps + 1, outputs))


@pytest.mark.parametrize("stride", [1, 2])
def test_places_are_those_that_patches_are_taken_from(stride: int) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, SIDE, SIDE))
    maker, reader = weights(3, 4, 5)
    both = pair(maker, reader, 2, stride)
    spread = both.spread(x.reshape(2, 3, -1).transpose(1, 2, 0)).reshape(3, 9, -1, 2).swapaxes(2, 3)
    every = np.arange(both.places.shape[1])
    assert np.array_equal(spread.reshape(3, 9, -1), window(stride).patches(x, every))


def test_gathering_is_the_transpose_of_spreading() -> None:
    maker, reader = weights(3, 4, 5)
    both, rng = pair(maker, reader, 2, 2), np.random.default_rng(0)
    a, b = rng.standard_normal((3, SIDE * SIDE, 2)), rng.standard_normal((27, 2 * both.places.shape[1]))
    assert np.isclose((both.spread(a) * b).sum(), (a * both.gathered(b, 3)).sum())


def test_a_maker_that_is_off_comes_closer_to_what_its_reader_needs() -> None:
    maker, reader = weights(4, 6, 5)
    both = pair(maker, reader, 32)
    off = maker + 0.3 * np.random.default_rng(2).standard_normal(maker.shape)
    found = fitted_to_reader(both, off, reader)
    assert np.linalg.norm(found - maker) < 0.5 * np.linalg.norm(off - maker)


def test_a_maker_that_serves_its_reader_stays_to_the_bit() -> None:
    maker, reader = weights(4, 6, 5)
    assert fitted_to_reader(pair(maker, reader, 32), maker, reader) is maker


class Pairs(nn.Module):
    """A maker with a BatchNorm behind it, and one whose output two layers read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.maker, self.norm = nn.Conv2d(8, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24)
        self.reader, self.left, self.right = nn.Conv2d(24, 16, 3, 2, 1), nn.Conv2d(16, 8, 1), nn.Conv2d(16, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.reader(torch.relu(self.norm(self.maker(torch.relu(self.stem(x)))))))
        return self.left(x) + self.right(x).square()


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    made = Pairs()
    with torch.no_grad():
        made.norm.running_mean.normal_(0, 0.1)
        made.norm.running_var.uniform_(0.02, 0.05)
        made.norm.weight.uniform_(-1.5, 1.5)
        made.norm.bias.normal_(0, 0.3)
    return made.eval()


def test_only_readers_behind_a_batchnorm_are_seen_and_what_it_adds_is_known(net: nn.Module) -> None:
    x = torch.randn(2, 8, SIDE, SIDE)
    facts = gather_facts(read_module(net, (torch.randn(2, 3, SIDE, SIDE),)).graph)
    by_origin = {operand.node.origin: operand for operand in operands(facts)}
    maker, reader = by_origin["maker"], by_origin["reader"]
    way, last = stream(facts.graph, maker.node, 24), stream(facts.graph, reader.node, 16)
    assert only_reader(facts.graph, maker, way) == reader.node.name
    assert only_reader(facts.graph, reader, last) == ""
    with torch.no_grad():
        expected = net.norm(net.maker(x))
        scale, shift = (torch.from_numpy(values).view(1, -1, 1, 1) for values in (way.scale, way.shift))
        assert torch.allclose((net.maker(x) * scale + shift).float(), expected, atol=1e-5)


def test_fitting_makers_to_readers_lessens_the_error(
    net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", rng.standard_normal((160, 3, 8, 8)).astype(np.float32))

    def error() -> float:
        pruned = prune_module(
            net, (torch.randn(2, 3, 8, 8),), criterion="reconstruct", target_macs=0.5, keep=["left", "right"],
            calibration=Calibration(tmp_path), multiple_of=1, validate=False,
        )  # fmt: skip
        assert pruned.report.agreement is not None
        return pruned.report.agreement.outputs[0].error

    served = error()
    monkeypatch.setattr(refit, "only_reader", lambda *_: "")
    assert served < 0.98 * error()


def test_no_more_samples_are_used_than_asked_for_however_many_batches_there_are(
    net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(60):
        x = np.random.default_rng(number).standard_normal((1, 3, 8, 8)).astype(np.float32)
        np.save(tmp_path / f"{number:02}.npy", x)
    monkeypatch.setattr(fit_data, "_ROWS", 4)
    monkeypatch.setattr(makers, "_MANY", 16)
    monkeypatch.setattr(makers, "_PER_WEIGHT", 0)
    monkeypatch.setattr(makers, "_FEWEST", 16)
    used = list[int]()

    def told(both: Pair, weight: Any, start: Any) -> Any:
        used.append(both.seen.shape[2])
        return fitted_to_reader(both, weight, start)

    monkeypatch.setattr(makers, "fitted_to_reader", told)
    prune_module(
        net, (torch.randn(2, 3, 8, 8),), criterion="reconstruct", target_macs=0.5, keep=["left", "right"],
        calibration=Calibration(tmp_path, orders=1), multiple_of=1, validate=False,
    )  # fmt: skip
    assert len(used) == 1
    assert 12 <= used[0] <= 16
