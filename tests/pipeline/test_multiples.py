"""Channels that are multiples of others leave exactly; what only looks alike stays, or remains exact."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from assertions import TIGHT, assert_same_function, outputs_of, parameter_elements, relative_error
from hypothesis import given, note, settings
from hypothesis import strategies as st
from modules.multiples import make_multiple, put_multiples
from modules.strategies import Spec, batch_of, build, scramble, specs
from onnx_models.nets import export_as_it_is, prune, random_feeds, run
from torch import Tensor, nn

from prunec.api import analyze_module, prune_module, prune_onnx
from prunec.backends.onnx.save import model_bytes
from prunec.frontends.onnx.loading.load import OnnxSource
from prunec.importer.module import to_module
from prunec.ir.edits import CannotRewrite
from prunec.ir.plan import PrunePlan
from prunec.models import build as architecture
from prunec.pipeline.apply import apply_plan
from prunec.pipeline.apply_onnx import apply_plan_onnx

WIDTH = 8
FACTORS = ((1, 0, 2.0), (3, 2, 0.3), (4, 0, 0.7))
COPIES = tuple((row, source, 1.0) for row, source, _ in FACTORS)
NEGATIVE = tuple((row, source, -factor) for row, source, factor in FACTORS)


def pruned(net: nn.Module, x: Tensor) -> int:
    """Prune a module and a file of it, each by its own plan and by the plan read again; return what went."""
    net = net.eval()
    result = prune_module(net, (x,), validate=False)
    assert result.plan.exact
    assert_same_function(net, result.module, x)
    again = apply_plan(copy.deepcopy(net), PrunePlan.from_json(result.plan.to_json()))
    assert relative_error(outputs_of(result.module, x), outputs_of(again, x)) == 0
    assert result.report.removed_channels >= result.report.multiples
    return result.report.removed_channels


def pair(
    between: nn.Module, factors: tuple[tuple[int, int, float], ...], reader: nn.Module | None = None
) -> nn.Sequential:
    """Return two convolutions with something between; rows of the first are multiples."""
    torch.manual_seed(0)
    reader = nn.Conv2d(WIDTH, 4, 3, padding=1) if reader is None else reader
    net = nn.Sequential(nn.Conv2d(3, WIDTH, 3, padding=1), between, reader)
    if isinstance(between, nn.BatchNorm2d):
        scramble(net, 0.0, torch.Generator().manual_seed(1))
    with torch.no_grad():
        for row, source, factor in factors:
            make_multiple(net[0], between, row, source, factor)
    return net


def image(size: int = 11) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(2))


HOMOGENEOUS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky": lambda: nn.LeakyReLU(0.1),
    "prelu": lambda: nn.PReLU(WIDTH),
    "max_pool": lambda: nn.MaxPool2d(3, 2, 1),
}
LINEAR: dict[str, Callable[[], nn.Module]] = {
    "nothing": nn.Identity,
    "batch_norm": lambda: nn.BatchNorm2d(WIDTH),
    "avg_pool": lambda: nn.AvgPool2d(3, 1, 1),
    "bilinear": lambda: nn.Upsample(scale_factor=2, mode="bilinear"),
    "zero_pad": lambda: nn.ZeroPad2d(1),
    "reflect": lambda: nn.ReflectionPad2d(1),
}
ANY: dict[str, Callable[[], nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "hardswish": nn.Hardswish,
    "gelu": nn.GELU,
    "softplus": nn.Softplus,
    "relu6": nn.ReLU6,
    "ones": lambda: nn.ConstantPad2d(1, 1.0),
    "instance_norm": lambda: nn.InstanceNorm2d(WIDTH, affine=True),
}
NONE: dict[str, Callable[[], nn.Module]] = {
    "group_norm": lambda: nn.GroupNorm(2, WIDTH),
    "softmax": lambda: nn.Softmax(dim=1),
    "layer_norm": lambda: nn.LayerNorm([WIDTH, 11, 11]),
}
SIGNS = [(HOMOGENEOUS, FACTORS, 3), (HOMOGENEOUS, NEGATIVE, 1), (HOMOGENEOUS, COPIES, 3)]
SIGNS += [(LINEAR, FACTORS, 3), (LINEAR, NEGATIVE, 3), (ANY, COPIES, 3), (ANY, FACTORS, 0), (ANY, NEGATIVE, 0)]
SIGNS += [(NONE, COPIES, 0)]
CASES = [
    pytest.param(make, factors, gone, id=f"{name}-{factors[0][2]}")
    for table, factors, gone in SIGNS
    for name, make in table.items()
]


@pytest.mark.parametrize(("between", "factors", "gone"), CASES)
def test_what_passes_between_a_filter_and_its_reader(
    between: Callable[[], nn.Module], factors: tuple[tuple[int, int, float], ...], gone: int
) -> None:
    """The two negative multiples of one filter are multiples of each other, with a positive factor."""
    assert pruned(pair(between(), factors), image()) == gone


def test_a_bias_that_is_no_multiple_keeps_its_channel() -> None:
    net = pair(nn.ReLU(), FACTORS)
    with torch.no_grad():
        net[0].bias[1] += 1e-3
    assert pruned(net, image()) == 2


def test_slopes_that_differ_keep_their_channels() -> None:
    slopes = nn.PReLU(WIDTH)
    with torch.no_grad():
        slopes.weight[1] = 0.3
    assert pruned(pair(slopes, FACTORS), image()) == 2


def test_weights_that_differ_by_more_than_rounding_are_different() -> None:
    for error, gone in ((1e-7, 3), (3e-6, 2)):
        net = pair(nn.ReLU(), FACTORS)
        with torch.no_grad():
            net[0].weight[3, 1, 1, 1] *= 1 + error
        assert pruned(net, image()) == gone, error


def test_the_larger_of_two_multiples_stays() -> None:
    net = pair(nn.ReLU(), ((1, 0, 5000.0),)).eval()
    made = prune_module(net, (image(),), validate=False).plan
    assert [(fold.positions, fold.carrier) for fold in made.folds] == [((0,), 1)]


READERS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "transposed": (lambda: nn.ConvTranspose2d(WIDTH, 4, 3, stride=2, output_padding=1), 3),
    "grouped": (lambda: nn.Sequential(nn.Conv2d(WIDTH, 4, 3, groups=2), nn.Conv2d(4, 2, 1)), 0),
    "linear": (lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, 4)), 3),
    "flattened": (lambda: nn.Sequential(nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(4 * WIDTH, 4)), 3),
    "last": (nn.Identity, 0),
}


@pytest.mark.parametrize("name", READERS)
def test_what_reads_multiples(name: str) -> None:
    """Groups of a convolution keep as many channels each: here only the first has multiples."""
    make, gone = READERS[name]
    torch.manual_seed(1)
    assert pruned(pair(nn.ReLU(), FACTORS, make()), image()) == gone


def test_groups_that_read_multiples_lose_as_many_each() -> None:
    reader = nn.Sequential(nn.Conv2d(WIDTH, 6, 3, groups=2), nn.ReLU(), nn.Conv2d(6, 2, 1))
    assert pruned(pair(nn.ReLU(), ((1, 0, 2.0), (3, 0, 3.0), (6, 4, 0.5)), reader), image()) == 2


class Depthwise(nn.Module):
    """A layer, a depthwise convolution and a reader; the second's filters are multiples where ``alike``."""

    def __init__(self, factors: tuple[tuple[int, int, float], ...], alike: bool, act: nn.Module) -> None:
        super().__init__()
        self.first, self.act = nn.Conv2d(3, WIDTH, 3), act
        self.each = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH)
        self.norm, self.last = nn.BatchNorm2d(WIDTH), nn.Conv2d(WIDTH, 4, 1)
        scramble(self, 0.0, torch.Generator().manual_seed(1))
        with torch.no_grad():
            for row, source, factor in factors:
                make_multiple(self.first, nn.Identity(), row, source, factor)
                if alike:
                    self.each.weight[row] = self.each.weight[source]
                    for vector in (self.norm.weight, self.norm.running_var):
                        vector[row] = vector[source]
                    for vector in (self.each.bias, self.norm.running_mean, self.norm.bias):
                        vector[row] = factor * vector[source]

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.act(self.norm(self.each(self.act(self.first(x))))))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("factors", "alike", "act", "gone"),
    [
        (FACTORS, True, nn.ReLU(), 6),
        (COPIES, True, nn.Hardswish(), 6),
        (FACTORS, True, nn.Hardswish(), 0),
        (COPIES, False, nn.ReLU(), 0),
    ],
)
def test_depthwise_filters_pass_multiples_that_they_treat_alike(
    factors: tuple[tuple[int, int, float], ...], alike: bool, act: nn.Module, gone: int
) -> None:
    torch.manual_seed(3)
    assert pruned(Depthwise(factors, alike, act), image()) == gone


class Residual(nn.Module):
    """A stream that two layers write, and one reads; the second writes the same multiples where ``agree``."""

    def __init__(self, agree: bool, gate: bool = False) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, WIDTH, 3, padding=1), nn.Conv2d(3, WIDTH, 3, padding=1)
        self.last = nn.Conv2d(WIDTH, 4, 3, padding=1)
        self.gate = nn.Linear(WIDTH, WIDTH) if gate else None
        with torch.no_grad():
            for row, source, factor in FACTORS:
                make_multiple(self.one, nn.Identity(), row, source, factor)
                make_multiple(self.two, nn.Identity(), row, source, factor if agree else factor + 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.one(x) + self.two(x))
        if self.gate is not None:
            y = y * torch.sigmoid(self.gate(y.mean((2, 3))))[:, :, None, None]
        return self.last(y)  # type: ignore[no-any-return]  # nn.Module's call is untyped


def test_every_producer_of_a_stream_has_to_agree() -> None:
    torch.manual_seed(4)
    assert pruned(Residual(agree=True), image()) == 6
    assert pruned(Residual(agree=False), image()) == 0


def test_a_gate_that_differs_keeps_what_it_scales() -> None:
    torch.manual_seed(4)
    net = Residual(agree=True, gate=True)
    assert pruned(net, image()) == 0
    assert net.gate is not None
    with torch.no_grad():
        for row, source, _ in FACTORS:
            make_multiple(net.gate, nn.Identity(), row, source, 1.0)
    assert pruned(net, image()) == 9


class Recurrent(nn.Module):
    """Two layers whose channels a GRU reads."""

    def __init__(self, kind: type[nn.GRU | nn.LSTM]) -> None:
        super().__init__()
        self.first, self.rnn = nn.Linear(3, WIDTH), kind(WIDTH, 5, batch_first=True)
        with torch.no_grad():
            for row, source, factor in COPIES:
                make_multiple(self.first, nn.Identity(), row, source, factor)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(torch.relu(self.first(x)))[0]  # type: ignore[no-any-return]  # nn.Module's call is untyped


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_recurrent_layers_keep_what_they_read(kind: type[nn.GRU | nn.LSTM], tmp_path: Path) -> None:
    """In a file they are one op, and not followed; in a module their weights are those of matrix products."""
    torch.manual_seed(5)
    net, x = Recurrent(kind).eval(), torch.randn(2, 7, 3)
    assert pruned(net, x) == 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of batches of another size
        export_as_it_is(net, x, tmp_path / "net.onnx", dynamic=False)
    report = prune_onnx(tmp_path / "net.onnx", tmp_path / "pruned.onnx")
    assert (report.removed_channels, report.exact) == (0, True)


class Twice(nn.Module):
    """One layer reads two values, one of which has multiples."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, WIDTH, 3), nn.Conv2d(3, WIDTH, 3)
        self.last = nn.Conv2d(WIDTH, 4, 1)
        with torch.no_grad():
            for row, source, factor in FACTORS:
                make_multiple(self.one, nn.Identity(), row, source, factor)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.one(x))) + self.last(torch.tanh(self.two(x)))  # type: ignore[no-any-return]


def test_a_weight_that_reads_something_else_as_well_takes_nothing_over() -> None:
    torch.manual_seed(6)
    assert pruned(Twice(), image()) == 0


class Turned(nn.Module):
    """Maps, and the same maps another way round, side by side."""

    def __init__(self, turn: Callable[[Tensor], Tensor], factors: tuple[tuple[int, int, float], ...]) -> None:
        super().__init__()
        self.first, self.last, self.turn = nn.Conv2d(3, WIDTH, 3), nn.Conv2d(2 * WIDTH, 4, 3, padding=1), turn
        with torch.no_grad():
            for row, source, factor in factors:
                make_multiple(self.first, nn.Identity(), row, source, factor)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x))
        return self.last(torch.cat([y, self.turn(y)], 1))  # type: ignore[no-any-return]


TURNS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda y: y.transpose(2, 3),
    "turned": lambda y: y.flip(2).transpose(2, 3),
    "flipped": lambda y: y.flip(3),
    "rolled": lambda y: y.roll(1, 2),
    "cut": lambda y: torch.cat([y[:, :, 3:], y[:, :, :3]], 2),
    "repeated": lambda y: y[:, :, :, :1].expand(-1, -1, -1, 9),
    "repeated_down": lambda y: y[:, :, :1, :].expand(-1, -1, 9, -1),
    "tiled": lambda y: y[:, :, :3].repeat(1, 1, 3, 1),
    "reshaped": lambda y: y.transpose(2, 3).reshape(2, WIDTH, 81).view(2, WIDTH, 9, 9),
    "shuffled": lambda y: y.view(2, 2, WIDTH // 2, 9, 9).transpose(1, 2).reshape(2, WIDTH, 9, 9),
    "half": lambda y: y * 0.5,
    "swapped": lambda y: y[:, list(range(WIDTH))[::-1]],
}


@pytest.mark.parametrize("name", TURNS)
def test_a_map_that_was_moved_is_another_one(name: str) -> None:
    """Once some filters are multiples, and once all are of the first. What is joined along a map is not followed."""
    for factors in (FACTORS, tuple((row, 0, 0.5 + row) for row in range(1, WIDTH))):
        torch.manual_seed(10)
        assert pruned(Turned(TURNS[name], factors), image()) == (0 if name == "cut" else len(factors))


class Spread(nn.Module):
    """One column and one row of multiples, spread over an image the one way and the other."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, WIDTH), nn.Conv2d(2 * WIDTH, 4, 3, padding=1)
        with torch.no_grad():
            for row in range(1, WIDTH):
                make_multiple(self.first, nn.Identity(), row, 0, 0.5 + row)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).transpose(1, 2)
        down, across = y.reshape(2, WIDTH, 9, 1), y.reshape(2, WIDTH, 1, 9)
        return self.last(torch.cat([down.expand(2, WIDTH, 9, 9), across.expand(2, WIDTH, 9, 9)], 1))  # type: ignore[no-any-return]


def test_a_map_that_was_spread_is_another_one() -> None:
    torch.manual_seed(11)
    assert pruned(Spread(), torch.randn(2, 9, 3)) == WIDTH - 1


# --- real life ------------------------------------------------------------------------------------------


def widened(layer: nn.Conv2d, norm: nn.BatchNorm2d, reader: nn.Conv2d, width: int) -> list[nn.Module]:
    """Return the three with the first as wide as asked for: Net2WiderNet, Chen et al., ICLR 2016."""
    old = layer.out_channels
    source = torch.cat([torch.arange(old), torch.randint(old, (width - old,))])
    times = torch.bincount(source, minlength=old)
    wider = nn.Conv2d(layer.in_channels, width, 3, padding=1)
    wider_norm, wider_reader = nn.BatchNorm2d(width), nn.Conv2d(width, reader.out_channels, 3, padding=1)
    with torch.no_grad():
        for new, before in ((wider, layer), (wider_norm, norm)):
            for name, tensor in before.state_dict().items():
                if tensor.ndim:
                    new.state_dict()[name].copy_(tensor[source])
        wider_reader.weight.copy_(reader.weight[:, source] / times[source][:, None, None])
        assert wider_reader.bias is not None
        assert reader.bias is not None
        wider_reader.bias.copy_(reader.bias)
    return [wider, wider_norm, wider_reader]


def test_a_network_that_was_widened_by_copies_is_as_narrow_as_before() -> None:
    torch.manual_seed(7)
    layers: list[nn.Module] = []
    for number, (before, after) in enumerate(((3, 12), (12, 20), (20, 16))):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.SiLU() if number else nn.ReLU()]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)).eval()
    scramble(net, 0.0, torch.Generator().manual_seed(1))
    wide = copy.deepcopy(net)
    for at, width in ((0, 31), (3, 40)):
        wide[at], wide[at + 1], wide[at + 3] = widened(wide[at], wide[at + 1], wide[at + 3], width)  # type: ignore[arg-type]
    wide.eval()
    assert_same_function(net, wide, image())
    result = prune_module(wide, (image(),), validate=False)
    assert_same_function(net, result.module, image(), image(14))
    assert parameter_elements(result.module) == parameter_elements(net)
    assert result.report.multiples == result.report.removed_channels == 19 + 20


def test_a_resnet_with_copies_in_every_block_loses_them() -> None:
    torch.manual_seed(8)
    net = architecture("resnet20").eval()
    scramble(net, 0.0, torch.Generator().manual_seed(1))
    expected = 0
    with torch.no_grad():
        modules = dict(net.named_modules())
        for name, layer in modules.items():
            if name.endswith("conv1") and "." in name:
                half, norm = layer.weight.shape[0] // 2, modules[name.replace("conv1", "bn1")]
                for tensor in (layer.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var):
                    tensor[half:] = tensor[:half]  # type: ignore[index,operator]
                expected += half
    x = torch.randn(2, 3, 32, 32)
    assert expected == 3 * (8 + 16 + 32)
    assert pruned(net, x) == expected


def test_a_budget_may_take_what_others_are_multiples_of() -> None:
    """The last of its kind leaves by request as any other channel does, and then the function changes."""
    torch.manual_seed(9)
    net = pair(nn.ReLU(), ((4, 0, 2.0), (5, 1, 1.0), (6, 2, 3.0), (7, 3, 0.5))).eval()
    exact = prune_module(net, (image(),), validate=False, criterion="l1", target_macs=0.55)
    assert exact.plan.exact
    assert exact.report.removed_channels == 4
    assert_same_function(net, exact.module, image())
    fewer = prune_module(net, (image(),), validate=False, criterion="l1", target_macs=0.3, compensate=False)
    assert not fewer.plan.exact
    assert fewer.report.removed_channels == 6


def test_multiples_are_carried_in_either_border_mode() -> None:
    net = pair(nn.ReLU(), FACTORS).eval()
    result = prune_module(net, (image(),), validate=False, border="bias")
    assert result.plan.exact
    assert {fold.kind for fold in result.plan.folds} == {"carrier"}
    assert_same_function(net, result.module, image())


def test_the_analysis_counts_multiples() -> None:
    found = analyze_module(pair(nn.ReLU(), FACTORS).eval(), (image(),))
    assert (found.removable.channels, found.removable.multiples, found.channels.constant) == (3, 3, 0)


# --- any network ----------------------------------------------------------------------------------------


def test_multiples_in_any_network_leave_exactly() -> None:
    removed = []

    @given(specs(), st.sampled_from([0.0, 0.3]), st.booleans(), st.sampled_from([0.4, 1.0]))
    @settings(max_examples=60, deadline=None)
    def check(spec: Spec, zeros: float, copies: bool, share: float) -> None:
        net = build(spec, zeros)
        put_multiples(net, spec.seed, copies=copies, share=share)
        result = prune_module(net, (batch_of(spec),), validate=False)
        note(f"{spec}\nremoved {result.report.removed_channels}, {result.report.multiples}")
        batches = [batch_of(spec)] + ([batch_of(spec, 16)] if net.any_size else [])
        assert_same_function(net, result.module, *batches, tolerance=TIGHT)
        fresh = build(spec, zeros)
        fresh.load_state_dict(net.state_dict())
        replayed = apply_plan(fresh, PrunePlan.from_json(result.plan.to_json()))
        assert_same_function(net, replayed, batches[0], tolerance=TIGHT)
        assert result.plan.exact
        removed.append(result.report.multiples)

    check()
    assert sum(count > 0 for count in removed) > len(removed) / 10


def test_multiples_in_any_file_leave_exactly(tmp_path: Path) -> None:
    removed = []

    @given(specs(max_steps=6), st.booleans())
    @settings(max_examples=40, deadline=None)
    def check(spec: Spec, copies: bool) -> None:
        net = build(spec).float()
        put_multiples(net, spec.seed, copies=copies)
        export_as_it_is(net, batch_of(spec).float(), tmp_path / "net.onnx", dynamic=False)
        model = onnx.load(tmp_path / "net.onnx")
        try:
            _, made, source = prune(model)
        except CannotRewrite:
            return
        after = onnx.load_from_string(model_bytes(source))
        onnx.checker.check_model(after, full_check=True)
        feeds = random_feeds(model, {"n": 2}, spec.seed)
        sides = [[torch.from_numpy(a) for a in run(m.SerializeToString(), feeds)] for m in (model, after)]
        error = relative_error(sides[0], sides[1])
        if error > 1e-5:  # rounding of the network's own: the same in double precision
            batch = batch_of(spec)
            error = relative_error(
                *(outputs_of(to_module(OnnxSource(m)).module.double(), batch) for m in (model, after))
            )
        note(f"{spec}\n{len(made.folds)} folds")
        assert error <= 1e-5
        removed.append(sum(fold.kind == "carrier" for fold in made.folds))

    check()
    assert sum(count > 0 for count in removed) > len(removed) / 10


def test_a_plan_of_multiples_prunes_a_fresh_file(tmp_path: Path) -> None:
    net = pair(nn.ReLU(), FACTORS).eval()
    export_as_it_is(net, image(), tmp_path / "net.onnx", dynamic=True)
    result = prune_onnx(tmp_path / "net.onnx", tmp_path / "pruned.onnx", plan_file=tmp_path / "plan.json")
    assert (result.removed_channels, result.multiples, result.exact) == (3, 3, True)
    apply_plan_onnx(tmp_path / "net.onnx", PrunePlan.load(tmp_path / "plan.json"), tmp_path / "again.onnx")
    feeds = {"x": image(9).numpy()}
    before, after, again = (run(tmp_path / f"{name}.onnx", feeds)[0] for name in ("net", "pruned", "again"))
    assert relative_error([torch.from_numpy(before)], [torch.from_numpy(after)]) <= 1e-5
    assert (after == again).all()
