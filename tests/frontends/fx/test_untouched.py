"""The user's network is theirs: nothing that prunec does is visible on a module, or on what its forward reaches."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from modules import side_effects as hostile
from modules.side_effects import HANDED_OUT, HOSTILE, outside
from modules.strategies import SIZE, Spec, build, specs
from torch import Tensor, nn

import prunec
from prunec.check.validate import validate_modules
from prunec.errors import PrunecError
from prunec.frontends.fx.running.untouched import eval_mode
from prunec.ir.plan import InputSpec
from prunec.pipeline.export import export_onnx

Inputs = Sequence[Any]


def state(value: Any, seen: dict[int, tuple[int, Any]] | None = None) -> Any:
    """Return everything about an object that somebody could see, identities included; comparable with ==."""
    seen = {} if seen is None else seen
    if isinstance(value, int | float | complex | str | bytes | type(None) | type | torch.dtype | torch.device):
        return value
    if id(value) in seen:
        return ("again", seen[id(value)][0])
    seen[id(value)] = (len(seen), value)  # an id is only unique while its object lives
    if isinstance(value, Tensor):
        content = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        flags = (str(value.device), str(value.dtype), tuple(value.shape), value.data_ptr(), value.requires_grad)
        return ("tensor", id(value), type(value), flags, content, id(value.grad) if value.is_leaf else 0)
    if isinstance(value, np.ndarray):
        return ("array", id(value), value.tobytes())
    if isinstance(value, torch.Generator):
        return ("generator", id(value), value.get_state().numpy().tobytes())
    if isinstance(value, np.random.Generator):
        return ("generator", id(value), str(value.bit_generator.state))
    if isinstance(value, dict | MappingProxyType):
        return ("dict", type(value), [(state(key, seen), state(item, seen)) for key, item in value.items()])
    if isinstance(value, list | tuple | deque):
        return (type(value), [state(item, seen) for item in value])
    if isinstance(value, set):
        return ("set", sorted(map(repr, value)))
    if callable(value) and hasattr(value, "__closure__"):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        return ("function", id(value), state(cells, seen), state(vars(value), seen))
    slots = [name for base in type(value).__mro__ for name in getattr(base, "__slots__", ())]
    held = {name: getattr(value, name) for name in slots if hasattr(value, name) and name != "__weakref__"}
    own = vars(value) if hasattr(value, "__dict__") else {}
    return ("object", id(value), type(value), state(dict(own), seen), state(held, seen))


def difference(before: Any, after: Any, path: str = "") -> str:
    """Return where two states differ first, "" where they do not."""
    if before == after:
        return ""
    both_nested = isinstance(before, list | tuple) and isinstance(after, list | tuple)
    if both_nested and len(before) == len(after):
        for place, (a, b) in enumerate(zip(before, after, strict=True)):
            if a != b:
                return difference(a, b, f"{path}/{a[0] if a and isinstance(a, tuple) else place}")
    return f"{path}: {before!r:.200} became {after!r:.200}"


def is_real(value: Any) -> bool:
    return type(value) in (Tensor, nn.Parameter) and value.device.type == "cpu"


CALLS: dict[str, Callable[[nn.Module, Inputs, Path], Any]] = {
    "analyze": lambda net, inputs, _: prunec.analyze_module(net, inputs),
    "prune to a budget": lambda net, inputs, _: prunec.prune_module(net, inputs, criterion="l1", target_macs=0.7),
    "sparsify": lambda net, inputs, _: prunec.sparsify(net, inputs, torch.optim.SGD(net.parameters(), 0.1), rho=0.01),
    "export": lambda net, inputs, folder: export_onnx(net, inputs, folder / "net.onnx"),
    "apply a plan": lambda net, inputs, _: prunec.apply_plan(net, _plan_of(inputs)),
    "validate": lambda net, inputs, _: validate_modules(net, nn.Sequential(), inputs),
}


def _plan_of(inputs: Inputs) -> prunec.PrunePlan:
    """Return a plan that removes nothing."""
    return prunec.PrunePlan(tuple(InputSpec("x", tuple(i.shape)) for i in inputs))


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", [*HOSTILE, *HANDED_OUT])
@pytest.mark.filterwarnings("ignore:the batch of the ONNX file is fixed")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_hostile_forward_leaves_no_trace(name: str, call: str, tmp_path: Path) -> None:
    net, inputs = (HOSTILE | HANDED_OUT)[name]().eval(), (torch.randn(2, 3, 8, 8),)
    net.o.train()  # type: ignore[union-attr,operator]
    before = state([net, inputs, outside()])
    with contextlib.suppress(
        PrunecError
    ):  # "validate" gets another network; what is done must leave no trace all the same
        CALLS[call](net, inputs, tmp_path)
    assert difference(before, state([net, inputs, outside()])) == ""
    assert is_real(net(*inputs))


@pytest.fixture(autouse=True)
def _cold_caches() -> None:
    """Each test begins with caches that hold nothing."""
    hostile.GRIDS.clear()
    hostile.SEEN.clear()
    hostile.LAST = None
    hostile.cached_grid.cache_clear()
    hostile.InAMethodsLruCache.grid.cache_clear()
    hostile.InTheClass.grids.clear()
    hostile.HELPER._grids.clear()
    (hostile.InADefault.between.__defaults__ or ({},))[0].clear()
    vars(hostile.stored_grid).clear()


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("name", [name for name in HOSTILE if name != "its input"])
def test_a_hostile_forward_is_pruned_to_the_same_function(name: str, warm: bool) -> None:
    net, x = HOSTILE[name]().eval(), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        net.a[1].weight[:4] = 0  # type: ignore[index,union-attr]
    if warm:
        net(x)
    pruned = prunec.prune_module(net, (x,)).module
    with torch.no_grad():
        assert (pruned.eval()(x) - net(x)).abs().max() < 1e-5


@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(spec=specs())
def test_every_public_call_leaves_a_random_network_as_it_was(spec: Spec, tmp_path_factory: Any) -> None:
    net, inputs = build(spec, zeros=0.3), (torch.randn(2, 3, SIZE, SIZE, dtype=torch.float64),)
    net.layers.eval()
    for number, parameter in enumerate(net.parameters()):
        parameter.requires_grad = number % 3 > 0
    before = state([net, inputs])
    for call, run in CALLS.items():
        with contextlib.suppress(PrunecError):
            run(net, inputs, tmp_path_factory.mktemp("out"))
        assert difference(before, state([net, inputs])) == "", call


@pytest.mark.parametrize("name", [name for name in HANDED_OUT if name != "an array that was there"])
def test_a_write_past_torch_is_refused_or_noted_with_the_users_line(name: str) -> None:
    try:
        notes = prunec.analyze_module(HANDED_OUT[name]().eval(), (torch.randn(2, 3, 8, 8),)).notes
    except PrunecError as error:
        notes = (str(error),)
    assert any("side_effects.py:" in note for note in notes)


def test_memory_that_is_only_looked_at_by_numpy_says_nothing() -> None:
    looks = hostile.CountedByNumpy(lambda t: t.numpy().copy()).eval()
    notes = prunec.analyze_module(looks, (torch.randn(2, 3, 8, 8),)).notes
    assert not any("by numpy" in note for note in notes)


def test_a_vmap_that_cannot_be_traced_leaves_nothing_open() -> None:
    class Mapped(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.vmap(lambda row: row * row.mean())(x)

    class Deciding(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            torch.set_default_dtype(torch.float64)
            return x * 2

    for net in (Mapped(), Deciding()):
        with contextlib.suppress(PrunecError):
            prunec.analyze_module(net, (torch.randn(2, 3, 8, 8),))
        assert torch._C._functorch.peek_interpreter_stack() is None
        assert torch.get_default_dtype() is torch.float32


@pytest.mark.parametrize("part", ["whole", "a method", "a submodule"])
@pytest.mark.filterwarnings("ignore:the batch of the ONNX file is fixed")
def test_what_is_compiled_is_followed_and_not_compiled_by_prunec(part: str, tmp_path: Path) -> None:
    compiled: list[int] = []

    def backend(graph: Any, _: Any) -> Any:
        compiled.append(1)
        return graph

    net: nn.Module = hostile.Net().eval()
    x = torch.randn(2, 3, 8, 8)
    if part == "whole":
        net = torch.compile(net, backend=backend)  # type: ignore[assignment]  # a module for a module
    elif part == "a submodule":
        net.a = torch.compile(net.a, backend=backend)  # type: ignore[assignment,arg-type]  # the same
    else:
        net.forward = torch.compile(net.forward, backend=backend)  # type: ignore[method-assign]
    with torch.no_grad():
        next(weight for name, weight in net.named_parameters() if name.endswith("1.weight"))[:4] = 0
    for call in ("analyze", "prune to a budget", "sparsify", "export"):
        CALLS[call](net, (x,), tmp_path)
    result = prunec.prune_module(net, (x,))
    assert not compiled
    assert result.report.removed_channels >= 3
    assert not any("torch.export" in note for note in result.report.notes)
    with torch.no_grad():
        assert (result.module(x) - net(x)).abs().max() < 1e-5
        assert compiled


def test_a_network_in_data_parallel_is_followed_and_keeps_its_names() -> None:
    net = nn.DataParallel(hostile.Net().eval())
    with torch.no_grad():
        net.get_parameter("module.a.1.weight")[:4] = 0
    x = torch.randn(2, 3, 8, 8)
    result = prunec.prune_module(net, (x,))
    assert set(result.module.state_dict()) <= set(net.state_dict())
    assert result.report.removed_channels >= 3
    assert result.module(torch.randn(3, 3, 12, 10)).shape == net(torch.randn(3, 3, 12, 10)).shape
    fresh = prunec.apply_plan(nn.DataParallel(hostile.Net().eval()), result.plan)
    fresh.load_state_dict(result.module.state_dict())
    assert torch.equal(fresh(x), result.module(x))


def test_what_is_in_eval_mode_already_is_not_put_there() -> None:
    class Counting(nn.Module):
        times = 0

        def __setattr__(self, name: str, value: Any) -> None:
            Counting.times += name == "training"
            super().__setattr__(name, value)

    still, training = Counting().eval(), Counting()
    Counting.times = 0
    with eval_mode(still):
        assert not still.training
    assert Counting.times == 0
    with eval_mode(training):
        assert not training.training
    assert training.training
    assert Counting.times == 2
