"""Networks from torchvision and timm: traced, every parameter seen, pruned exactly, and what stays is explained."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from assertions import contraction_macs, outputs_of, parameter_elements, relative_error
from torch import Tensor, nn

from prunec.api import prune_module
from prunec.frontends.fx.frontend import trace
from prunec.report.findings import PruneReport

pytestmark = pytest.mark.real

SQUEEZE_EXCITE = "squeeze-excite"
GROUPED = "equally many channels per group"
RESIDUAL = "residual stream"
DEPTHWISE = "zero padding leaves the constant uneven"
CARRIER = "carrier"

NETWORKS: dict[str, tuple[int, float, tuple[str, ...]]] = {
    "torchvision:resnet50": (96, 0.75, (RESIDUAL, CARRIER)),
    "torchvision:densenet121": (96, 0.75, (CARRIER,)),
    "torchvision:googlenet": (96, 0.60, (CARRIER,)),
    "torchvision:inception_v3": (107, 0.60, (CARRIER,)),
    "torchvision:mobilenet_v2": (96, 0.75, (RESIDUAL, DEPTHWISE)),
    "torchvision:shufflenet_v2_x1_0": (96, 0.75, (DEPTHWISE,)),
    "timm:res2net50_26w_4s": (96, 0.95, (RESIDUAL, CARRIER)),
    "timm:cspdarknet53": (96, 0.85, (RESIDUAL, CARRIER)),
    "timm:hrnet_w18_small": (96, 0.95, (RESIDUAL, CARRIER)),
    "timm:dpn68": (96, 0.95, (GROUPED,)),
    "timm:repvgg_a0": (96, 0.999, (RESIDUAL,)),
    "timm:efficientnet_b0": (96, 0.95, (SQUEEZE_EXCITE, DEPTHWISE)),
    "timm:convnext_atto": (96, 1.0, ()),
}
"""name -> (image size, largest fraction of the parameters that may stay, reasons that must be given)."""

OPTIONS: dict[str, dict[str, Any]] = {
    "torchvision:googlenet": {"init_weights": False},
    "torchvision:inception_v3": {"init_weights": False},
}


@pytest.fixture(scope="module", autouse=True)
def _torchvision_without_its_extension() -> None:
    """Declare the operators that torchvision registers fakes for, where its compiled part does not load."""
    for name, schema in (
        ("nms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"),
        ("qnms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"),
    ):
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", schema)


def build(name: str) -> nn.Module:
    """Return a network with random weights, half of its gammas zero and its betas left alone."""
    library, _, model = name.partition(":")
    torch.manual_seed(0)
    if library == "timm":
        net = importlib.import_module("timm").create_model(model, pretrained=False)
    else:
        net = getattr(importlib.import_module("torchvision.models"), model)(weights=None, **OPTIONS.get(name, {}))
    silence(net)
    return net.eval()


def silence(net: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(size: int) -> Tensor:
        return torch.rand(size, generator=generator)

    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                assert module.running_var is not None
                size = module.num_features
                module.weight.copy_((draw(size) + 0.5) * (draw(size) >= 0.5))
                module.bias.copy_(draw(size) - 0.5)
                module.running_mean.copy_(draw(size) * 0.2 - 0.1)
                module.running_var.copy_(draw(size) + 0.5)


def explained(report: PruneReport, reason: str) -> bool:
    return any(reason in item.reason and item.channels and item.node for item in report.blocked)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_from_the_field_is_pruned_exactly(name: str) -> None:
    size, most, reasons = NETWORKS[name]
    net = build(name)
    example = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    traced = trace(net, (example,))
    used = {n for n, _ in net.named_parameters() if not n.startswith(("aux", "AuxLogits"))}  # heads of training
    assert used <= set(traced.graph.params)
    result = prune_module(net, (example,), validate=False)
    report = result.report
    assert result.plan.exact
    for pixels in (size, size + 32):
        batch = torch.randn(2, 3, pixels, pixels, generator=torch.Generator().manual_seed(1))
        error = relative_error(outputs_of(net, batch), outputs_of(result.module, batch))
        assert error <= 1e-5, f"outputs differ by {error:.1e} at {pixels} pixels"
    assert report.after.params == parameter_elements(result.module)
    assert report.after.macs == contraction_macs(result.module, example)
    assert report.after.params <= most * report.before.params
    for reason in reasons:
        assert explained(report, reason), f"{reason}: {report.blocked}"
    if name == "timm:convnext_atto":
        assert any("LayerNorm" in pin.reason for pin in report.pins)
        assert report.message.startswith("nothing was removed")
    else:
        assert report.removed_channels > 0


REWRITTEN = {
    "torchvision:resnet18": (0.50, 0.35),
    "torchvision:resnet50": (0.42, 0.37),
    "torchvision:mobilenet_v3_small": (0.77, 0.48),
    "timm:hrnet_w18_small": (0.61, 0.43),
    "timm:repvgg_a0": (0.96, 0.61),
    "timm:efficientnet_b0": (0.81, 0.35),
}
"""name -> most of the MACs that may stay, without and with sums expanded and gates folded."""


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", REWRITTEN)
def test_expanded_sums_and_folded_gates_take_more_and_stay_exact(name: str) -> None:
    net = build(name).double()
    example = torch.randn(1, 3, 96, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    batch = torch.randn(2, 3, 128, 128, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for options, most in zip(({}, {"residual": "expand", "gates": "fold"}), REWRITTEN[name], strict=True):
        result = prune_module(net, (example,), validate=False, **options)
        assert result.plan.exact
        assert relative_error(outputs_of(net, batch), outputs_of(result.module, batch)) <= 1e-9
        assert result.report.after.macs == contraction_macs(result.module, example)
        assert result.report.after.params == parameter_elements(result.module)
        assert most - 0.02 < result.report.after.macs / result.report.before.macs <= most
