"""What PyTorch's quantisation prepared or converted says what it is; float networks with its stubs are pruned."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.ao import quantization
from torch.ao.nn.quantized import FloatFunctional
from torch.ao.quantization import quantize_fx

from prunec import analyze_module, prune_module
from prunec.errors import BadInput

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch's own: it has announced another library
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def block(i: int, o: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU())


class WithStubs(nn.Module):
    """As torchvision's quantisable networks are written: stubs at both ends, a FloatFunctional for the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant, self.sum = quantization.QuantStub(), quantization.DeQuantStub(), FloatFunctional()
        self.a, self.b, self.o = block(3, 8), block(8, 8), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(self.quant(x))
        return self.dequant(self.o(self.sum.add(y, self.b(y))))  # type: ignore[no-any-return]


def image() -> Tensor:
    return torch.randn(2, 3, 8, 8)


FUSED = [["a.0", "a.1", "a.2"], ["b.0", "b.1", "b.2"]]


def eager(*, training: bool, fused: bool = True, converted: bool = False) -> nn.Module:
    """Spell it as the tutorials do: fuse, prepare, run, and perhaps convert."""
    net = WithStubs().train(training)
    if fused:
        net = (quantization.fuse_modules_qat if training else quantization.fuse_modules)(net, FUSED)
    config = quantization.get_default_qat_qconfig("x86") if training else quantization.get_default_qconfig("x86")
    net.qconfig = config
    (quantization.prepare_qat if training else quantization.prepare)(net, inplace=True)
    net(image())
    return quantization.convert(net.eval()) if converted else net  # type: ignore[no-any-return]


def by_fx(*, training: bool, converted: bool = False) -> nn.Module:
    net = nn.Sequential(block(3, 8), block(8, 8), nn.Conv2d(8, 2, 1)).train(training)
    find = quantization.get_default_qat_qconfig_mapping if training else quantization.get_default_qconfig_mapping
    prepare = quantize_fx.prepare_qat_fx if training else quantize_fx.prepare_fx
    prepared = prepare(net, find("x86"), (image(),))
    prepared(image())
    return quantize_fx.convert_fx(prepared.eval()) if converted else prepared


class Inside(nn.Module):
    """A prepared part of a larger network."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.rest = nn.Conv2d(3, 3, 1), by_fx(training=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.stem(x))  # type: ignore[no-any-return]


class ByHand(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.fake, self.o = block(3, 8), quantization.FakeQuantize(), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.fake(self.a(x)))  # type: ignore[no-any-return]


PREPARED: dict[str, Callable[[], nn.Module]] = {
    "prepare_qat": lambda: eager(training=True),
    "prepare_qat, not fused": lambda: eager(training=True, fused=False),
    "prepare": lambda: eager(training=False),
    "prepare_qat_fx": lambda: by_fx(training=True),
    "prepare_fx": lambda: by_fx(training=False),
    "a part": Inside,
    "by hand": ByHand,
}
CONVERTED: dict[str, Callable[[], nn.Module]] = {
    "convert": lambda: eager(training=False, converted=True),
    "convert, trained": lambda: eager(training=True, converted=True),
    "convert_fx": lambda: by_fx(training=False, converted=True),
    "convert_fx, trained": lambda: by_fx(training=True, converted=True),
    "to reference modules": lambda: quantize_fx.convert_to_reference_fx(by_fx(training=False)),
}


@pytest.mark.parametrize("name", PREPARED)
def test_a_prepared_module_says_so_and_what_to_do(name: str) -> None:
    with pytest.raises(BadInput, match=r"is prepared for quantisation \(.*: \w+\)") as found:
        analyze_module(PREPARED[name](), (image(),))
    assert "prune the float network first" in str(found.value)


@pytest.mark.parametrize("name", CONVERTED)
def test_a_converted_module_says_so_and_what_to_do(name: str) -> None:
    with pytest.raises(BadInput, match=r"is quantised already \(.*: \w+\)") as found:
        analyze_module(CONVERTED[name](), (image(),))
    assert "prune the float network first" in str(found.value)


def test_a_float_network_with_stubs_is_pruned() -> None:
    net = WithStubs().eval()
    for float_net in (net, quantization.fuse_modules(net, FUSED)):
        report = prune_module(float_net, (image(),), criterion="l1", target_macs=0.6).report
        assert report.removed_channels > 0


def test_layers_with_a_dynamic_scale_leave_the_others_their_channels() -> None:
    float_net = nn.Sequential(block(3, 8), block(8, 8), nn.Conv2d(8, 4, 1), nn.Flatten(), nn.Linear(256, 4))
    net = quantization.quantize_dynamic(float_net.eval(), {nn.Linear})
    report = prune_module(net, (image(),), criterion="l1", target_macs=0.7).report
    assert report.removed_channels > 0
