"""Two models, the same inputs: how far apart the outputs are, and how long each takes.

Owns the comparison and its verdict, for ONNX files and for modules. Inputs come from
prunec/probes.py, sessions from prunec/runtime.py, the result type is in prunec/report.py.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from prunec import runtime
from prunec.errors import BadInput, PrunecError, ValidationFailed
from prunec.probes import FAMILIES, Array, Feed, InputKind, feed, nudged
from prunec.report import Validation
from prunec.runtime import Model, ProviderName, Runner, first_line

if TYPE_CHECKING:
    import torch

_TINY = 1e-30
_GIVE_INPUTS = "give inputs that it takes: --inputs FOLDER"
_DATA = "data"
"""The family of inputs that the user gives."""

# A float16 number has 11 bits: two orders of summation in a deep network differ by about this much.
_HALF_TOLERANCE = 1e-2
# Integer outputs (argmax, indices) may flip at a tie; more than one in a thousand is no tie.
_ROUNDING_FACTOR = 4.0
"""A difference of so many times the first model's own rounding is still rounding."""

_FLIPS_ALLOWED = 1e-3

RUNS = 30
"""Timed runs of each model, where nothing else is asked for; slow models get fewer, see runtime.interleaved_latency."""

_VANISHING = 1e-2
"""An output is measured against its magnitude, and at least this fraction of its largest for any input: a
detector that finds nothing writes the rounding of its sigmoid, which no two programs share."""


def validate_onnx(
    a: Model,
    b: Model,
    *,
    provider: ProviderName = "auto",
    tolerance: float = 1e-4,
    runs: int = RUNS,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    inputs: Iterable[Feed] | None = None,
    seed: int = 0,
) -> Validation:
    """Run two ONNX models on the same inputs, compare their outputs and time both.

    Numerics are compared with the graph as it is (optimised graphs differ among themselves), latency is
    measured at ONNX Runtime's default optimisation level, in turns. Sizes that the models leave open
    are tried at two values each.

    Args:
        a: the original: its outputs are the measure.
        b: the model to check; inputs and outputs must have the same names.
        provider: where to run; "auto" takes CUDA where it works.
        tolerance: largest relative error that passes; see report.Validation for what that is.
        runs: timed runs of each model; 0 measures no latency.
        input_shapes: by input name; "" stands for the only one.
        inputs: full feeds to compare on, instead of random inputs; read one at a time.
        seed: of the random inputs.

    Raises:
        BadInput: no such file, not a model, other inputs or outputs, or a shape that does not fit.
        UnsupportedModel: ONNX Runtime cannot run a model, or it has inputs other than tensors.
        ValidationFailed: ``b`` does not run where ``a`` does, or gives an output of another shape.
    """
    chosen = runtime.choose_provider(provider)
    comparison, ran, timed_on = _compare_onnx(a, b, chosen.name, tolerance, input_shapes, inputs, seed)
    if chosen.note and provider == "cuda":
        comparison.notes.insert(0, chosen.note)
    latency: tuple[float, float] | tuple[None, None] = (None, None)
    if ran[0] == ran[1] and runs > 0:
        first, second = (
            runtime.open_runner(model, _name(model, name), chosen.name, optimise=True)
            for model, name in ((a, "the first model"), (b, "the second model"))
        )
        latency = runtime.interleaved_latency(first, second, timed_on, runs)
    if chosen.name == "cuda" and ran[0] == "cpu":
        comparison.notes.insert(0, "the CUDA provider could not be loaded: ran on the CPU")
    return comparison.verdict(tolerance, latency=latency, asked=provider, ran=ran[0])


def _compare_onnx(
    a: Model,
    b: Model,
    provider: Literal["cpu", "cuda"],
    tolerance: float,
    input_shapes: Mapping[str, Sequence[int]] | None,
    inputs: Iterable[Feed] | None,
    seed: int,
) -> tuple[_Comparison, tuple[str, str], Feed]:
    """Return the comparison, where both really ran, and one of the inputs.

    Its sessions are gone when it returns: each holds the model's weights and the activations of its largest run.
    """
    first = runtime.open_runner(a, _name(a, "the first model"), provider, optimise=False)
    second = runtime.open_runner(b, _name(b, "the second model"), provider, optimise=False)
    _check_interfaces(first, second)
    feeds = _given(inputs) if inputs is not None else _feeds(first, a, input_shapes, seed).items()
    rounding = functools.cache(lambda: runtime.open_runner(a, first.name, provider, optimise=True))
    comparison = _compare(
        first,
        second,
        first.outputs,
        feeds,
        tolerance,
        again=(lambda values: rounding()(values),),
        in_half=functools.cache(lambda: runtime.computes_in_half(a)),
    )
    _, timed_on = next(iter(_given(inputs) if inputs is not None else feeds))
    return comparison, (first.provider, second.provider), timed_on


def validate_module_against_onnx(
    module: torch.nn.Module,
    path: Model,
    example_inputs: Sequence[Any],
    *,
    input_names: Sequence[str] = (),
    tolerance: float = 1e-4,
    seed: int = 0,
) -> Validation:
    """Compare a module with its ONNX export, on the CPU; no latency.

    Args:
        module: the original; it is run in eval mode and left as it was.
        path: the ONNX model.
        example_inputs: positional arguments that the module takes; their shapes and dtypes are used.
        input_names: the ONNX input of each tensor among them; by position where left out.
        tolerance: largest relative error that passes.
        seed: of the random inputs.

    Raises:
        BadInput: the file is missing or takes other inputs than the module.
        ValidationFailed: the ONNX model does not run, or gives other outputs.
    """
    runner = runtime.open_runner(path, _name(path, "the exported model"), "cpu", optimise=False)
    kinds = _module_kinds(example_inputs)
    names = list(input_names) or [name for name, _, _ in runner.inputs]
    if len(names) != len(kinds):
        raise BadInput(
            f"{runner.name} has {len(names)} inputs, the module {len(kinds)}", do="name the module's inputs in order"
        )
    known = {name for name, _, _ in runner.inputs}

    def run(values: Feed) -> list[Array]:
        # An input that the network does not use is absent from the file.
        renamed = {name: values[kind.name] for name, kind in zip(names, kinds, strict=True)}
        return runner({name: value for name, value in renamed.items() if name in known})

    feeds = {family: feed(kinds, family, seed) for family in FAMILIES}
    with evaluating(module):
        comparison = _compare(_module_run(module, example_inputs), run, runner.outputs, feeds.items(), tolerance)
    return comparison.verdict(tolerance, asked="cpu", ran="cpu")


def validate_modules(
    a: torch.nn.Module,
    b: torch.nn.Module,
    example_inputs: Sequence[Any],
    *,
    sizes: Sequence[Sequence[int]] = (),
    tolerance: float = 1e-5,
    inputs: Iterable[Feed] | None = None,
    seed: int = 0,
) -> Validation:
    """Compare two modules, in eval mode and without gradients; both are left as they were.

    Args:
        a: the original: its outputs are the measure.
        b: the module to check.
        example_inputs: positional arguments that both take.
        sizes: further spatial sizes (H, W) to try, for every input of rank 4; the last two axes change.
        tolerance: largest relative error that passes.
        inputs: feeds to compare on, instead of random inputs; read one at a time. Keys are the positions
            of tensors among the arguments ("0", "1", …).
        seed: of the random inputs.

    Raises:
        ValidationFailed: ``b`` does not run where ``a`` does, or gives other outputs.
    """
    kinds = _module_kinds(example_inputs)
    feeds = {family: feed(kinds, family, seed) for family in FAMILIES}
    for size in sizes:
        resized = [InputKind(k.name, (*k.shape[:2], *size) if len(k.shape) == 4 else k.shape, k.dtype) for k in kinds]
        text = "x".join(map(str, size))
        feeds.update({f"{family} {text}": feed(resized, family, seed) for family in ("noise", "image")})
    with evaluating(a), evaluating(b):
        run_a, run_b = _module_run(a, example_inputs), _module_run(b, example_inputs)
        comparison = _compare(run_a, run_b, (), feeds.items() if inputs is None else _given(inputs), tolerance)
    return comparison.verdict(tolerance, asked="torch", ran="torch")


@contextlib.contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Put a module in eval mode for the length of a block; every submodule gets its own mode back."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        for part, _ in modes:
            part.training = False  # not eval(): what torch.export made refuses it
        yield
    finally:
        for part, training in modes:
            part.training = training


@dataclass(slots=True)
class _Comparison:
    """What has been seen so far; lives inside one call."""

    max_abs: float = 0.0
    max_rel: float = 0.0
    passed: bool = True
    families: dict[str, float] = field(default_factory=dict)
    silent: list[str] = field(default_factory=list)
    num_outputs: int = 0
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def judge(
        self,
        gaps: Sequence[tuple[str, int, Gap, bool]],
        names: Sequence[str],
        tolerance: float,
        in_half: Callable[[], bool],
    ) -> None:
        """Take (family, output, gap, whether it is the first model's own rounding) of all inputs together."""
        largest: dict[int, float] = {}
        for _, index, found, _ in gaps:
            largest[index] = max(largest.get(index, 0.0), found.magnitude)
        for family, index, found, is_rounding in gaps:
            relative = found.over(_VANISHING * largest[index])
            passes = relative <= found.allowed(tolerance)
            if not passes and found.dtype.kind == "f" and relative <= _HALF_TOLERANCE and in_half():
                self.note(f"the model computes in half precision: a relative error of {_HALF_TOLERANCE:g} passes")
                passes = True
            if not passes and is_rounding:
                self.note(
                    f"output {labels_of(names, index)} differs no more than the first model does from itself when its "
                    f"graph is optimised, or the last bits of its input change: that is rounding"
                )
            self.max_abs = max(self.max_abs, found.absolute)
            self.max_rel = max(self.max_rel, relative)
            self.families[family] = max(self.families.get(family, 0.0), relative)
            self.passed = self.passed and (passes or is_rounding)

    def verdict(
        self,
        tolerance: float,
        *,
        asked: str,
        ran: str,
        latency: tuple[float, float] | tuple[None, None] = (None, None),
    ) -> Validation:
        vacuous = self.num_outputs > 0 and len(self.silent) == self.num_outputs
        if self.silent:
            which = "no output" if vacuous else f"output {', '.join(self.silent[:4])} never"
            self.notes.append(f"{which} changed with the input: agreement there says nothing")
        return Validation(
            max_abs_error=self.max_abs,
            max_rel_error=self.max_rel,
            tolerance=tolerance,
            families=dict(self.families),
            vacuous=vacuous,
            latency_a_ms=latency[0],
            latency_b_ms=latency[1],
            provider_asked=asked,
            provider_ran=ran,
            passed=self.passed,
            notes=tuple(self.notes),
        )


_Run = Callable[[Feed], list[Array]]


def _compare(
    run_a: _Run,
    run_b: _Run,
    names: Sequence[str],
    feeds: Iterable[tuple[str, Feed]],
    tolerance: float,
    again: Sequence[_Run] = (),
    in_half: Callable[[], bool] = lambda: False,
) -> _Comparison:
    """Run both on every feed; outputs are compared by position.

    Args:
        again: the first model with its arithmetic in another order. Asked only where a comparison fails, as is
            the first model itself on inputs that differ in their last bits: what differs no more than the
            model differs from itself is rounding (a saturated sigmoid, a deep network that amplifies). Each is
            run at most once per feed: a detector has many outputs.
        in_half: tells whether the first model computes in half precision. Asked only there, too.
    """
    seen = _Comparison()
    reruns = (*again, lambda values: run_a(nudged(values)))
    reference: list[Array] = []
    varies: list[bool] = []
    gaps: list[tuple[str, int, Gap, bool]] = []
    count = 0
    for family, values in feeds:
        outputs_a = _outputs_of_first(run_a, family, values, seen)
        if outputs_a is None:
            continue
        count += 1
        try:
            outputs_b = run_b(values)
        except Exception as error:  # onnxruntime and user modules raise anything
            raise ValidationFailed(
                f"the second model does not run on an input that the first takes ({_describe(values)})",
                why=first_line(error),
            ) from error
        _check_outputs(outputs_a, outputs_b, names)
        if not reference:
            reference, varies = outputs_a, [False] * len(outputs_a)
        anew = [functools.cache(functools.partial(_outputs_anew, rerun, values)) for rerun in reruns]
        for index, (x, y) in enumerate(zip(outputs_a, outputs_b, strict=True)):
            found = gap(x, y)
            fails = found.over() > found.allowed(tolerance)
            allowed = (_ROUNDING_FACTOR * _rounding(others(), index, x) for others in anew)
            gaps.append((family, index, found, fails and any(found.absolute <= most for most in allowed)))
            varies[index] = varies[index] or _changed(reference[index], x)
    if not count:
        raise BadInput("no input was found that the first model takes", why="; ".join(seen.notes), do=_GIVE_INPUTS)
    seen.judge(gaps, names, tolerance, in_half)
    seen.num_outputs = len(reference)
    labels = names or [str(index) for index in range(len(reference))]
    # A single feed leaves nothing to compare an output with.
    seen.silent = [label for label, moved in zip(labels, varies, strict=True) if not moved and count > 1]
    if any(output.dtype == np.float16 for output in reference):
        seen.notes.append(f"float16 outputs: a relative error of {_HALF_TOLERANCE:g} passes")
    return seen


def _outputs_of_first(run: _Run, family: str, values: Feed, seen: _Comparison) -> list[Array] | None:
    """Return the first model's outputs; None, and a note, for random inputs that it does not take (other tokens)."""
    try:
        return run(values)
    except PrunecError:
        raise
    except Exception as error:  # onnxruntime and user modules raise anything
        if family == _DATA:
            raise BadInput("the first model does not run on the given inputs", why=first_line(error)) from error
        seen.note(f"the first model takes no inputs of the family {family!r}: {first_line(error)}")
        return None


def labels_of(names: Sequence[str], index: int) -> str:
    """Return an output's name, or its place where it has none."""
    return names[index] if index < len(names) else str(index)


def _outputs_anew(again: _Run, values: Feed) -> list[Array]:
    """Return the first model's outputs with its arithmetic in another order; none where it does not run so."""
    try:
        return again(values)
    except Exception:  # noqa: BLE001 - an optimiser's own failure says nothing about the comparison
        return []


def _rounding(others: Sequence[Array], index: int, output: Array) -> float:
    """Return how far one output of the first model is from itself; 0 where that cannot be told."""
    other = others[index] if index < len(others) else None
    if other is None or other.shape != output.shape or output.dtype.kind != "f":
        return 0.0
    return gap(output, other).absolute


@dataclass(frozen=True, slots=True)
class Gap:
    """How far apart two models' values of one output are.

    Args:
        absolute: the largest difference of two elements, infinite where one is not finite and the other is
            something else; of integers and booleans, which have no magnitude, the share that differs.
        magnitude: the largest of the first model's finite elements; 1 for integers and booleans.
        dtype: of the output.
    """

    absolute: float
    magnitude: float
    dtype: np.dtype[Any]

    def over(self, least: float = 0.0) -> float:
        """Return the relative error: over the magnitude, or over ``least`` where that is more."""
        return self.absolute / max(self.magnitude, least, _TINY)

    def allowed(self, tolerance: float) -> float:
        """Return the largest relative error that passes."""
        if self.dtype.kind not in "fc":
            return _FLIPS_ALLOWED
        return max(tolerance, _HALF_TOLERANCE) if self.dtype == np.float16 else tolerance


def gap(a: Array, b: Array) -> Gap:
    """Compare one output of two models; shapes are the same."""
    if a.size == 0:
        return Gap(0.0, 0.0, a.dtype)
    if a.dtype.kind not in "fc":
        return Gap(float(np.mean(a != b)), 1.0, a.dtype)
    x, y = a.astype(np.float64), b.astype(np.float64)
    same = (x == y) | (np.isnan(x) & np.isnan(y))
    with np.errstate(invalid="ignore"):
        gaps = np.where(same, 0.0, np.abs(x - y))
    gaps = np.where(np.isnan(gaps), np.inf, gaps)
    return Gap(float(gaps.max()), float(np.abs(np.where(np.isfinite(x), x, 0.0)).max()), a.dtype)


def _given(inputs: Iterable[Feed]) -> Iterator[tuple[str, Feed]]:
    """Yield the user's inputs, all of one family."""
    return ((_DATA, values) for values in inputs)


def _changed(a: Array, b: Array) -> bool:
    """Tell whether an output follows the input at all."""
    if a.shape != b.shape:
        return a.size > 0 and b.size > 0 and float(np.ptp(b)) > 0 if a.dtype.kind != "b" else True
    return gap(a, b).over() > 1e-6


def working_feed(runner: Runner, model: Model, shapes: Mapping[str, Sequence[int]] | None, seed: int = 0) -> Feed:
    """Return one random input that a model takes, batch 1 where the model leaves that open.

    Raises:
        BadInput: none was found.
    """
    return next(iter(_feeds(runner, model, shapes, seed).values()))


def _feeds(runner: Runner, model: Model, shapes: Mapping[str, Sequence[int]] | None, seed: int) -> dict[str, Feed]:
    """Return inputs that the first model takes: all families at one size, two at another where sizes are open."""
    failure: Exception | None = None
    for channels in _channel_guesses(model):
        for size in runtime.candidate_sizes(runner, shapes):
            kinds = runtime.input_kinds(runner, shapes, channels=channels, size=size)
            for small in (False, True):
                feeds = {family: feed(kinds, family, seed, small=small) for family in FAMILIES}
                failure = _failure(runner, feeds["noise"])
                if failure is None:
                    feeds.update(_other_size(runner, shapes, channels, size, seed, small))
                    return feeds
    assert failure is not None
    raise BadInput(
        f"no input was found that {runner.name} takes",
        why=first_line(failure),
        do="give the shape of its inputs: --input-shape NAME:1x3x224x224",
    )


def _channel_guesses(model: Model) -> Iterator[int]:
    yield 3
    yield runtime.first_channels(model)  # reads the file: only where three would not do


def _other_size(
    runner: Runner, shapes: Mapping[str, Sequence[int]] | None, channels: int, size: int, seed: int, small: bool
) -> dict[str, Feed]:
    """Return inputs of another batch and size where the file leaves them open and the model takes them."""
    base = runtime.input_kinds(runner, shapes, channels=channels, size=size)
    for batch, other in ((2, size + 32), (2, size), (1, size + 32)):
        kinds = runtime.input_kinds(runner, shapes, batch=batch, channels=channels, size=other)
        values = {f"{family}, other size": feed(kinds, family, seed, small=small) for family in ("image", "pixels")}
        if kinds != base and _failure(runner, values["image, other size"]) is None:
            return values
    return {}


def _failure(runner: Runner, values: Feed) -> Exception | None:
    try:
        runner(values)
    except PrunecError:
        raise
    except Exception as error:  # noqa: BLE001 - onnxruntime's exceptions have no common base class
        return error
    return None


def _check_interfaces(a: Runner, b: Runner) -> None:
    def interface(runner: Runner) -> dict[str, str]:
        return {name: onnx_type for name, _, onnx_type in runner.inputs}

    if interface(a) != interface(b):
        raise BadInput(
            "the two models take different inputs",
            why=f"{', '.join(interface(a)) or 'none'} against {', '.join(interface(b)) or 'none'}",
        )
    if a.outputs != b.outputs:
        raise BadInput(
            "the two models have different outputs", why=f"{', '.join(a.outputs)} against {', '.join(b.outputs)}"
        )


def _check_outputs(a: Sequence[Array], b: Sequence[Array], names: Sequence[str]) -> None:
    if len(a) != len(b):
        raise ValidationFailed(f"the second model has {len(b)} outputs, the first {len(a)}")
    for index, (x, y) in enumerate(zip(a, b, strict=True)):
        if x.shape != y.shape:
            name = names[index] if names else str(index)
            raise ValidationFailed(f"output {name} has another shape", why=f"{x.shape} against {y.shape}")


def _describe(values: Feed) -> str:
    return ", ".join(f"{name}: {'x'.join(map(str, value.shape))}" for name, value in values.items())


def _name(model: Model, otherwise: str) -> str:
    return otherwise if isinstance(model, bytes) else str(model)


def _module_kinds(example_inputs: Sequence[Any]) -> tuple[InputKind, ...]:
    """Return the tensors among positional arguments; each is called by its position."""
    import torch

    return tuple(
        InputKind(str(index), tuple(value.shape), str(value.dtype).removeprefix("torch."))
        for index, value in enumerate(example_inputs)
        if isinstance(value, torch.Tensor)
    )


def _module_run(module: torch.nn.Module, example_inputs: Sequence[Any]) -> _Run:
    """Return a function from feeds to the module's tensor outputs, flattened in order."""
    import torch

    from prunec.containers import tensors_in

    device = next((tensor.device for tensor in (*module.parameters(), *module.buffers())), torch.device("cpu"))

    def run(values: Feed) -> list[Array]:
        arguments = [
            torch.from_numpy(values[str(index)]).to(device) if str(index) in values else value
            for index, value in enumerate(example_inputs)
        ]
        with torch.no_grad(), _without_fused_transformers():
            outputs = tensors_in(module(*arguments))
        return [tensor.cpu().numpy() for tensor in outputs]

    return run


@contextlib.contextmanager
def _without_fused_transformers() -> Iterator[None]:
    """Run torch.nn's attention as it runs in training: its fused kernels take any number in a mask for True."""
    import torch

    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
