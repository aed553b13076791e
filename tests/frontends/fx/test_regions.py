"""no_grad, inference_mode and autocast inside a forward: in the pruned network they are what they were."""

from __future__ import annotations

import contextlib
import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunec.api import analyze_module, prune_module
from prunec.frontends.fx.frontend import trace

Context = Callable[[], contextlib.AbstractContextManager[Any]]


def block(i: int, o: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU())


class Split(nn.Module):
    """A backbone that runs inside a context, and a head that does not."""

    def __init__(self, context: Context) -> None:
        super().__init__()
        self.backbone, self.head, self.context = block(3, 8), nn.Sequential(block(8, 8), nn.Conv2d(8, 2, 1)), context

    def forward(self, x: Tensor) -> Tensor:
        with self.context():
            y = self.backbone(x)
        return self.head(y)  # type: ignore[no-any-return]  # nn.Module's call is untyped


class Decorated(Split):
    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        return self.backbone(x)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))  # type: ignore[no-any-return]


class Switched(Split):
    """The old spelling: a switch, and a switch back."""

    def forward(self, x: Tensor) -> Tensor:
        torch.set_grad_enabled(False)
        y = self.backbone(x)
        torch.set_grad_enabled(True)
        return self.head(y)  # type: ignore[no-any-return]


FROZEN: dict[str, Callable[[], Split]] = {
    "no_grad": lambda: Split(torch.no_grad),
    "set_grad_enabled": lambda: Split(lambda: torch.set_grad_enabled(False)),
    "decorator": lambda: Decorated(contextlib.nullcontext),
    "switch": lambda: Switched(contextlib.nullcontext),
}


def pruned(net: nn.Module, x: Tensor) -> nn.Module:
    return prune_module(net.eval(), (x,), criterion="l1", target_macs=0.6).module


@pytest.mark.parametrize("name", FROZEN)
def test_a_backbone_that_does_not_train_does_not_train_after_pruning(name: str) -> None:
    net, x = FROZEN[name](), torch.randn(2, 3, 8, 8)
    smaller = pruned(net, x).train()
    smaller(x).sum().backward()
    grads = {name: parameter.grad is not None for name, parameter in smaller.named_parameters()}
    assert grads == {name: not name.startswith("backbone") for name in grads}
    assert smaller.get_parameter("backbone.0.weight").shape[0] < 8
    assert torch.is_grad_enabled()


def test_a_caller_without_gradients_stays_without_them() -> None:
    x = torch.randn(2, 3, 8, 8)
    smaller = pruned(Split(torch.no_grad), x)
    with torch.no_grad():
        assert not smaller(x).requires_grad
        assert not torch.is_grad_enabled()


def test_inference_mode_stays() -> None:
    class Looking(Split):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            with torch.inference_mode():
                y = self.backbone(x)
            return self.head(x.expand(-1, -1, -1, -1).repeat(1, 3, 1, 1)[:, :8]), y

    net, x = Looking(contextlib.nullcontext), torch.randn(2, 3, 8, 8)
    first, second = prune_module(net.eval(), (x,)).module(x)
    assert second.is_inference()
    assert not first.is_inference()


def test_gradients_that_are_off_in_eval_mode_alone_are_on_in_training() -> None:
    class Sometimes(Split):
        def forward(self, x: Tensor) -> Tensor:
            with torch.set_grad_enabled(self.training):
                y = self.backbone(x)
            return self.head(y)  # type: ignore[no-any-return]

    x = torch.randn(2, 3, 8, 8)
    smaller = pruned(Sometimes(contextlib.nullcontext), x).train()
    smaller(x).sum().backward()
    assert smaller.get_parameter("backbone.0.weight").grad is not None


AUTOCASTS: dict[str, tuple[Context, torch.dtype]] = {
    "bfloat16": (lambda: torch.autocast("cpu", dtype=torch.bfloat16), torch.bfloat16),
    "by default": (lambda: torch.amp.autocast("cpu"), torch.bfloat16),
    "off": (lambda: torch.autocast("cpu", enabled=False), torch.float32),
}


@pytest.mark.parametrize("name", AUTOCASTS)
def test_autocast_stays(name: str) -> None:
    context, dtype = AUTOCASTS[name]

    class Cast(Split):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            with self.context():
                y = self.backbone(x)
            return self.head(y.float()), y

    net, x = Cast(context), torch.randn(2, 3, 8, 8)
    smaller = prune_module(net.eval(), (x,), criterion="l1", target_macs=0.7).module
    assert smaller(x)[1].dtype == net(x)[1].dtype == dtype
    if name == "off":
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert smaller(x)[1].dtype == net(x)[1].dtype == torch.float32


def test_autocast_of_another_device_is_kept_as_it_was_asked_for() -> None:
    net = Split(lambda: torch.autocast("cuda", dtype=torch.float16)).eval()
    nodes = trace(net, (torch.randn(2, 3, 8, 8),)).module.graph.nodes
    (begin,) = (node for node in nodes if "_enter_autocast" in str(node.target))
    assert begin.args[:3] == ("cuda", torch.float16, True)


def test_a_pruned_network_with_such_regions_can_be_saved() -> None:
    x = torch.randn(2, 3, 8, 8)
    smaller = pruned(Split(torch.no_grad), x)
    assert torch.equal(pickle.loads(pickle.dumps(smaller))(x), smaller(x))  # our own


class Fails(Split):
    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.backbone.append(nn.MaxPool2d(6))  # larger than an image of 5: it raises inside of the region


@pytest.mark.parametrize(
    "context",
    [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", dtype=torch.bfloat16)],
    ids=["no_grad", "inference_mode", "autocast"],
)
@pytest.mark.parametrize("saved", [False, True], ids=["as made", "saved"])
def test_an_error_inside_a_region_leaves_the_callers_mode_as_it_was(context: Context, saved: bool) -> None:
    class Looks(Fails):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            with self.context():
                y = self.backbone(x)
            return self.head(x.repeat(1, 3, 1, 1)[:, :8]), y

    x = torch.randn(2, 3, 12, 12)
    smaller = prune_module(Looks(context).eval(), (x,), criterion="l1", target_macs=0.8).module
    if saved:
        smaller = pickle.loads(pickle.dumps(smaller))  # our own
    with pytest.raises(RuntimeError):
        smaller(torch.randn(2, 3, 5, 5))
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    assert not torch.is_autocast_enabled("cpu")


def test_autocast_is_on_in_a_saved_network_too() -> None:
    class Cast(Split):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                y = self.backbone(x)
            return self.head(y.float()), y

    x = torch.randn(2, 3, 8, 8)
    smaller = prune_module(Cast(contextlib.nullcontext).eval(), (x,), criterion="l1", target_macs=0.7).module
    for again in (copy.deepcopy(smaller), pickle.loads(pickle.dumps(smaller))):  # our own
        assert again(x)[1].dtype == torch.bfloat16


def test_sizes_are_asked_inside_of_a_region() -> None:
    class Asks(Split):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                y = self.backbone(x)
                if y.shape[2] % 2:
                    y = y[:, :, 1:]
                y = self.backbone[0](y[:, :3])
            return self.head(y.float()), y + 1

    x = torch.randn(2, 3, 8, 8)
    module = trace(Asks(contextlib.nullcontext).eval(), (x,)).module
    names = [getattr(node.target, "__name__", "") for node in module.graph.nodes]
    assert names.count("_enter_autocast") == names.count("_exit_autocast") == 1
    assert not torch.is_autocast_enabled("cpu")


class Overwritten(Split):
    """Writes that torch.fx cannot follow, outside of the region."""

    def forward(self, x: Tensor) -> Tensor:
        with self.context():
            y = self.backbone(x)
        return self.head(self.overwrite(y))  # type: ignore[no-any-return]

    def overwrite(self, y: Tensor) -> Tensor:
        if int(torch.tensor([y.shape[1]]).sum()) > 100:  # a question about values: torch.export answers it
            return y + 1
        return y


@pytest.mark.parametrize("spelling", [torch.no_grad, lambda: torch.set_grad_enabled(False)], ids=["no_grad", "set"])
def test_what_torch_export_reads_keeps_its_frozen_part(spelling: Context) -> None:
    net, x = Overwritten(spelling).eval(), torch.randn(2, 3, 8, 8)
    result = prune_module(net, (x,), criterion="l1", target_macs=0.6)
    assert any("read by torch.export" in note for note in result.report.notes)
    assert not any("not kept" in note for note in result.report.notes)
    smaller = result.module.train()
    smaller(x).sum().backward()
    grads = {name: parameter.grad is not None for name, parameter in smaller.named_parameters()}
    assert grads == {name: not name.startswith("backbone") for name in grads}
    assert torch.is_grad_enabled()


def test_what_torch_export_reads_trains_where_gradients_are_off_in_eval_mode_alone() -> None:
    class Sometimes(Overwritten):
        def forward(self, x: Tensor) -> Tensor:
            with torch.set_grad_enabled(self.training):
                y = self.backbone(x)
            return self.head(self.overwrite(y))  # type: ignore[no-any-return]

    x = torch.randn(2, 3, 8, 8)
    smaller = pruned(Sometimes(contextlib.nullcontext), x).train()
    smaller(x).sum().backward()
    assert smaller.get_parameter("backbone.0.weight").grad is not None


def test_what_torch_export_reads_keeps_autocast() -> None:
    class Cast(Overwritten):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                x = self.backbone(x)[:, :3]
            with torch.autocast("cpu", dtype=torch.bfloat16):
                y = self.overwrite(self.backbone(x))
            return self.head(y.float()), y

    net, x = Cast(contextlib.nullcontext).eval(), torch.randn(2, 3, 8, 8)
    smaller = prune_module(net, (x,), criterion="l1", target_macs=0.7).module
    assert smaller(x)[1].dtype == torch.bfloat16
    assert smaller(x)[1].requires_grad
    assert smaller(x)[0].dtype == torch.float32


def test_notes_name_what_torch_export_does_not_keep() -> None:
    class Written(Split):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                y = self.backbone(x)
                part = y[:, :2]
                y[:, :2] = 0
                part.add_(1)
            return self.head(y)  # type: ignore[no-any-return]

    notes = analyze_module(Written(contextlib.nullcontext).eval(), (torch.randn(2, 3, 8, 8),)).notes
    assert any(note.startswith("no_grad inside its forward is not kept in the traced network") for note in notes)


class Swish(torch.autograd.Function):
    """Saves memory by a backward of its own, as many networks do."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]  # as users write it
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]  # as users write it
        (x,) = ctx.saved_tensors
        share = torch.sigmoid(x)
        return grad * share * (1 + x * (1 - share))


class WithFunction(nn.Module):
    def __init__(self, *, frozen: bool = False) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        self.o = nn.Conv2d(8, 2, 1)
        self.frozen = frozen

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(not self.frozen):
            y = Swish.apply(self.a(x))
        return self.o(y)  # type: ignore[no-any-return]  # nn.Module's call is untyped


def test_layers_before_a_function_with_a_gradient_of_its_own_still_train() -> None:
    net, x = WithFunction(), torch.randn(2, 3, 8, 8)
    found = prune_module(net, (x,), criterion="l1", target_macs=0.5)
    (note,) = found.report.notes
    assert note.startswith("Swish defines its own gradient")
    same = prune_module(net, (x,)).module.train()
    net.train()
    grads = []
    for module in (net, same):
        module.zero_grad()
        module(x)[:, :, 1:].square().sum().backward()
        grads.append([p.grad for _, p in sorted(module.named_parameters())])
    for wanted, got in zip(*grads, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4)


def test_a_function_inside_of_no_grad_stays_in_it() -> None:
    net, x = WithFunction(frozen=True), torch.randn(2, 3, 8, 8)
    pruned = prune_module(net, (x,), criterion="l1", target_macs=0.5).module.train()
    pruned(x).sum().backward()
    assert {n for n, p in pruned.named_parameters() if p.grad is not None} == {"o.weight", "o.bias"}
