"""Exports whose batch cannot stay open: the file is right for the example's batch, and the user is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunec
from prunec.pipeline.export import export_checked, export_onnx
from prunec.runtime.sessions import open_runner


class Correlation(nn.Module):
    """One image's features are the kernels for another's: as many groups as images and channels."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.o = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 2, 1)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        k, y = self.f(z), self.f(x)
        b, c, h, w = y.shape
        y = F.conv2d(y.reshape(1, b * c, h, w), k.reshape(b * c, 1, *k.shape[2:]), groups=b * c)
        result: Tensor = self.o(y.reshape(b, c, *y.shape[2:]))
        return result


class DynamicConv(nn.Module):
    """A kernel per image, in one grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.w = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 16)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        b, c, h, w = y.shape
        k = self.w(y.mean((2, 3))).reshape(b * 4, 4, 1, 1)
        return F.conv2d(y.reshape(1, b * c, h, w), k, groups=b).reshape(b, 4, h, w)


class WrittenBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.o = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * 64, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.o(torch.relu(self.a(x)).reshape(2, 4 * 64))
        return result


class StoredState(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(8, 5, batch_first=True)
        self.register_buffer("state", torch.zeros(1, 2, 5))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.rnn(x.mean(1), self.state)[0]
        return result


class ImageByImage(nn.Module):
    """The tracer unrolls the loop for the images that it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.a(x[index : index + 1])[0] for index in range(x.shape[0])])


class NumberOfImages(nn.Module):
    """The tracer writes the number that it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return y.view(int(y.shape[0]), 2, 2, 8, 8).transpose(1, 2).reshape(int(y.shape[0]), 4, 8, 8)


class StateOfTheBatch(nn.Module):
    """Follows the batch, and its file does."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(8, 5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros(1, x.shape[0], 5)
        result: Tensor = self.rnn(x.mean(1), (state, state))[0]
        return result


def images(count: int) -> tuple[Tensor, ...]:
    return (torch.randn(count, 3, 8, 8),)


FIXED = [
    (Correlation, lambda count: (torch.randn(count, 3, 4, 4), torch.randn(count, 3, 9, 9)), "exported with an open"),
    (DynamicConv, images, "exported with an open"),
    (WrittenBatch, images, "does not run with a batch of 3"),
    (StoredState, images, "does not run with a batch of 3"),
    (ImageByImage, images, "wrong at a batch of 3"),
    (NumberOfImages, images, "wrong at a batch of 3"),
]


@pytest.mark.parametrize(("network", "inputs", "why"), FIXED)
def test_what_only_exports_with_a_fixed_batch_is_exported_so_and_told(
    network: type[nn.Module], inputs: object, why: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    net, example = network().eval(), inputs(2)  # type: ignore[operator]
    with pytest.warns(UserWarning, match=r"the batch of the ONNX file is fixed at 2") as caught:
        notes = export_onnx(net, example, tmp_path / "net.onnx")
    assert [str(item.message) for item in caught] == list(notes)
    assert why in notes[0]
    assert "--input-shape" in notes[0]
    assert "example_inputs" in notes[0]
    runner = open_runner(tmp_path / "net.onnx", "the export", "cpu", optimise=False)
    assert all(shape[0] == 2 for _, shape, _ in runner.inputs)
    (found,) = runner({name: x.numpy() for (name, _, _), x in zip(runner.inputs, example, strict=True)})
    assert np.allclose(found, net(*example).detach().numpy(), atol=1e-5)


def test_a_checked_export_has_it_among_its_notes(tmp_path: Path) -> None:
    result = export_checked(WrittenBatch().eval(), images(2), tmp_path / "net.onnx")
    assert any("fixed at 2" in note for note in result.notes)


def test_what_follows_the_batch_keeps_it_open_without_a_word(tmp_path: Path) -> None:
    assert export_onnx(StateOfTheBatch().eval(), images(2), tmp_path / "net.onnx") == ()
    assert onnx.load(tmp_path / "net.onnx").graph.input[0].type.tensor_type.shape.dim[0].dim_param


def test_a_fixed_batch_that_was_asked_for_is_not_told(tmp_path: Path) -> None:
    assert export_onnx(WrittenBatch().eval(), images(2), tmp_path / "net.onnx", dynamic_batch=False) == ()


def test_what_cannot_be_exported_at_all_is_still_refused(tmp_path: Path) -> None:
    class Sorted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.eigvals(x.mean(1) @ x.mean(1).transpose(1, 2)).real

    with pytest.raises(prunec.PrunecError, match="cannot be exported"):
        export_onnx(Sorted(), images(2), tmp_path / "net.onnx")
    assert not (tmp_path / "net.onnx").exists()
