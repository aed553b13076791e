"""What prunec says of how it reads a network: which tracer, what failed, where in the user's code; and traps there."""

from __future__ import annotations

import logging
import pickle
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from prunec.api import analyze_module, prune_module
from prunec.check.validate import validate_modules
from prunec.errors import BadInput, UntraceableModel, ValidationFailed
from prunec.frontends.fx.frontend import trace


def image(*shape: int) -> Tensor:
    return torch.randn(*(shape or (2, 3, 8, 8)))


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        if y.mean() > 0:  # the line that is named
            return y
        return -y


def test_a_branch_on_values_is_refused_with_the_line_of_the_users_code() -> None:
    with pytest.raises(UntraceableModel) as error:
        trace(Branching(), (image(),))
    line = Branching.forward.__code__.co_firstlineno + 2
    assert str(error.value).count(f"(test_tracing.py:{line}, in forward)") == 2


class Sized(nn.Module):
    """A forward that computes with sizes: anchors of a detector's head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.o = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)
        self.seen: tuple[int, ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        first = y[:, :1]
        y[:, :1] = 0.5  # what another view shows: torch.fx cannot follow that
        y = y + first
        if self.seen != tuple(int(size) for size in y.shape[2:]):
            self.seen = tuple(int(size) for size in y.shape[2:])
            self.grid = torch.zeros(*self.seen)
        return self.o(y) + torch.tensor([[float(i) for i in range(self.seen[1])]])  # type: ignore[no-any-return]


def test_a_network_whose_sizes_are_fixed_by_the_trace_says_so() -> None:
    notes = analyze_module(Sized().eval(), (image(),)).notes
    assert any("takes inputs of the example's size alone (2x3x8x8)" in note for note in notes)
    assert prune_module(Sized().eval(), (image(),)).report.notes == notes


def test_a_network_that_follows_its_input_says_nothing_of_sizes() -> None:
    assert analyze_module(nn.Sequential(nn.Conv2d(3, 4, 1)), (image(),)).notes == ()


def test_notes_name_the_second_tracer_and_why_it_was_asked() -> None:
    (first, *_) = analyze_module(Sized().eval(), (image(),)).notes
    assert first.startswith("the network was read by torch.export, for torch.fx could not: TypeError: it writes")


def test_the_log_tells_what_was_tried(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="prunec"):
        trace(Sized().eval(), (image(),))
    assert "torch.fx cannot trace the network" in caplog.text
    assert "torch.export is tried" in caplog.text


def test_script_modules_are_told_the_way_out() -> None:
    with pytest.warns(DeprecationWarning, match="torch.jit.trace"):
        scripted = torch.jit.trace(nn.Sequential(nn.Conv2d(3, 4, 1)), image())
    for net, what in ((scripted, "the module"), (nn.Sequential(scripted), "its submodule 0")):
        with pytest.raises(BadInput) as error:
            analyze_module(net, (image(),))
        assert str(error.value) == (
            f"error[bad-input]: {what} is a ScriptModule\n"
            "  why: what torch.jit compiled has no Python code to trace\n"
            "  do:  give the module that it was made from, with its weights, or export it to ONNX and prune the file"
        )


class Functional(nn.Module):
    """A convolution without bias behind an unrelated parameter of another type."""

    def __init__(self) -> None:
        super().__init__()
        self.unrelated = nn.Parameter(torch.zeros(1, dtype=torch.float64), requires_grad=False)
        self.a, self.norm = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)
        self.w = nn.Parameter(torch.randn(4, 8, 1, 1))
        self.unrelated_too = nn.Parameter(torch.zeros(1, dtype=torch.float16))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(self.norm(self.a(x)), self.w) + self.unrelated.float()


def test_a_folded_bias_is_like_the_layers_own_weight() -> None:
    net = Functional().eval()
    with torch.no_grad():
        net.norm.weight[:4] = 0
        net.norm.bias.normal_()
    smaller = prune_module(net, (image(),)).module
    (bias,) = (p for name, p in smaller.named_parameters() if "bias" in name and "folded" in name)
    assert (bias.dtype, bias.requires_grad) == (torch.float32, True)
    assert smaller(image()).dtype == torch.float32


def test_outputs_of_another_type_do_not_pass() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1))

    class Doubled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return net(x).double()  # type: ignore[no-any-return]

    with pytest.raises(ValidationFailed, match="has another type"):
        validate_modules(net, Doubled(), (image(),))


class Asking(nn.Module):
    """A forward that asks for types in a way that a proxy has to answer."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv, self.how = nn.Conv2d(3, 4, 1), how

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        size = y.shape[2]
        is_tensor = {
            "isinstance": lambda: isinstance(y, Tensor),
            "of a tuple": lambda: isinstance(y, (list, Tensor)),
            "torch.is_tensor": lambda: torch.is_tensor(y),
            "a size is none": lambda: not isinstance(size, Tensor),
            "a number from sizes is none": lambda: not isinstance(size * 2 + 1, Tensor),
        }[self.how]()
        return y * 2 if is_tensor else y * 3  # type: ignore[no-any-return]


HOW = ("isinstance", "of a tuple", "torch.is_tensor", "a size is none", "a number from sizes is none")


@pytest.mark.parametrize("how", HOW)
def test_a_forward_that_asks_for_types_is_traced_as_it_runs(how: str) -> None:
    net, x = Asking(how).eval(), image()
    assert torch.allclose(trace(net, (x,)).module(x), net(x))


class Builds(nn.Module):
    """A forward that makes what it needs in its first run."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.conv, self.rest = how, None, nn.ModuleDict()

    def forward(self, x: Tensor) -> Any:
        if self.how == "layer" and self.conv is None:
            self.conv = nn.Conv2d(x.shape[1], 4, 3)
        if self.how == "parameter" and self.conv is None:
            self.conv = nn.Parameter(torch.randn(4, x.shape[1], 3, 3))
        if self.how == "dict":
            if not self.rest:
                self.rest["conv"] = nn.Conv2d(x.shape[1], 4, 3)
            return self.rest["conv"](x)
        if self.how == "moved" and self.conv is None:
            self.conv = nn.Conv2d(x.shape[1], 4, 3).to(x.device)
        return torch.conv2d(x, self.conv) if isinstance(self.conv, Tensor) else self.conv(x)  # type: ignore[misc]


@pytest.mark.parametrize("how", ["layer", "parameter", "dict", "moved"])
def test_a_network_that_has_not_built_its_layers_is_to_be_run_before(how: str) -> None:
    net, x = Builds(how).eval(), image()
    with pytest.raises(BadInput, match=r"makes parameters of its own: (conv|rest)") as refused:
        trace(net, (x,))
    assert "run the network once" in str(refused.value)
    assert not list(net.parameters())
    net(x)
    assert torch.allclose(trace(net, (x,)).module(x), net(x))


class Loose(dict[str, Any]):
    """A dict that torch.fx does not know."""


pytree.register_pytree_node(
    Loose, lambda d: (list(d.values()), list(d)), lambda values, keys: Loose(zip(keys, values, strict=True))
)


@dataclass
class Scores(OrderedDict):  # type: ignore[type-arg]  # as the outputs of transformers are
    """A dict whose items are attributes, too."""

    logits: Tensor | None = None
    hidden: Tensor | None = None

    def __post_init__(self) -> None:
        self.update({f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None})


pytree.register_pytree_node(
    Scores, lambda d: (list(d.values()), list(d)), lambda values, keys: Scores(**dict(zip(keys, values, strict=True)))
)


def test_a_choice_between_functions_is_refused_by_its_name() -> None:
    class Chooses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.conv(x)
            made: Tensor = torch.cond(y.sum() > 0, lambda y: y + 1.0, lambda y: y - 1.0, (y,))
            return made

    with pytest.raises(UntraceableModel, match=r"torch\.cond") as refused:
        trace(Chooses().eval(), (image(),))
    assert "torch.where" in str(refused.value)


def test_an_index_by_a_mask_of_values_is_refused_with_what_to_do() -> None:
    class Masks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            made: Tensor = self.conv(x)[:, self.conv.bias > 0]
            return made

    with pytest.raises(UntraceableModel, match=r"a size depends on values: aten\.nonzero") as refused:
        trace(Masks().eval(), (image(),))
    assert "index with a mask or numbers made once, in __init__, and kept as a buffer" in str(refused.value)


class Turned(nn.Module):
    """Multiplies by a complex number, and convolves complex channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mid = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 8, 3, dtype=torch.cfloat)
        self.tail = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        turned = torch.fft.ifft2(torch.fft.fft2(self.conv(x)) * (0.5 + 1j))
        made: Tensor = self.tail(self.mid(turned).abs())
        return made


def test_complex_numbers_are_followed() -> None:
    torch.manual_seed(0)
    net, x = Turned().eval(), torch.randn(2, 3, 12, 12)
    with torch.no_grad():
        net.conv.weight[::3], net.conv.bias[::3] = 0, 0
        made = prune_module(net, (x,), multiple_of=1)
        assert made.report.removed_channels >= 4
        assert torch.allclose(made.module(x), net(x), rtol=1e-5, atol=1e-5)
        fewer = prune_module(net, (x,), criterion="l1", target_macs=0.6, multiple_of=1).module(x)
    assert fewer.shape == net(x).shape


@pytest.mark.parametrize(
    "transform",
    [
        lambda x: torch.vmap(torch.sin)(x),
        lambda x: torch.func.vmap(torch.sin)(x),
        lambda x: torch.func.grad(lambda t: (t**2).sum())(x),
        lambda x: torch.func.jvp(torch.sin, (x,), (torch.ones_like(x),))[1],
        lambda x: x * torch.func.jacrev(torch.sin)(torch.tensor(1.0)),
    ],
)
def test_functions_of_torch_func_are_refused_by_name_with_the_users_line(transform: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(UntraceableModel, match=r"torch\.vmap or another function of torch\.func.*\(") as refused:
        trace(Returning(transform).eval(), (image(),))
    assert "test_tracing.py:" in str(refused.value)
    assert "_Sized" not in str(refused.value)


def test_parameters_without_values_are_refused_by_name() -> None:
    with torch.device("meta"):
        net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    for x in (image(), image().to("meta")):
        with pytest.raises(BadInput) as refused:
            trace(net, (x,))
        assert str(refused.value) == (
            "error[bad-input]: the parameter 0.weight has no values: it is on the meta device\n"
            "  why: prunec decides by values which channels can go\n"
            "  do:  load the weights (load_state_dict(..., assign=True)), or make the network on a device that holds "
            "values (net.to_empty(device='cpu') leaves them to be filled)"
        )


class Returning(nn.Module):
    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.tail, self.make = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1), make
        with torch.no_grad():
            self.conv.weight[0] = 0

    def forward(self, x: Tensor) -> Any:
        return self.make(self.tail(torch.relu(self.conv(x))))


def test_what_a_network_returns_keeps_its_type() -> None:
    made: tuple[Callable[[Tensor], Any], ...] = (
        lambda y: OrderedDict([("out", y), ("aux", y + 1)]),
        lambda y: [OrderedDict(b=y, a={"c": y})],
        lambda y: Scores(logits=y),
    )
    for make in made:
        net, x = Returning(make).eval(), torch.randn(2, 3, 5, 5)
        result = prune_module(net, (x,))
        assert result.report.removed_channels == 1
        for module in (result.module, pickle.loads(pickle.dumps(result.module))):
            old, new = net(x), module(x)
            old, new = (old[0], new[0]) if isinstance(old, list) else (old, new)
            assert type(new) is type(old)
            assert list(new) == list(old)
    assert result.module(x).logits is not None
    assert result.report.notes == ()


def test_a_dict_of_another_kind_is_said_to_become_a_plain_one() -> None:
    result = prune_module(Returning(lambda y: Loose(out=y)).eval(), (image(),))
    assert any("Loose" in note and "plain dict" in note for note in result.report.notes)
