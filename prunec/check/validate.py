"""Two models, the same inputs: how far apart the outputs are, and how long each takes.

Owns that for ONNX files and for modules; what differences mean is judged in comparison.py. Inputs come from
prunec/runtime/probes.py, sessions from check/pair.py, the result type is in prunec/report/findings.py.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from prunec.check.clock import CHECK_TIME, Budget, Tell
from prunec.check.comparison import DATA, Comparison, Feeds, Ruling, Run, compare
from prunec.check.finding import find_feeds
from prunec.check.pair import (
    Interface,
    Latency,
    Remembering,
    are_large,
    fast,
    opened,
    plain_runs,
    recorded,
    timed_alone,
    timed_together,
)
from prunec.check.referee import decide, of_onnx
from prunec.errors import BadInput, PrunecError, UnsupportedModel
from prunec.ir.arrays import Array
from prunec.report.findings import Validation
from prunec.runtime import sessions
from prunec.runtime.modules import evaluating
from prunec.runtime.probes import FAMILIES, Feed, InputKind, feed
from prunec.runtime.sessions import Model, Provider, ProviderName, Runner

if TYPE_CHECKING:
    import torch

RUNS = 30
"""Timed runs of each model by default; fewer if the answer is clear, or time runs out."""


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
    check_time: float = CHECK_TIME,
    progress: Tell | None = None,
) -> Validation:
    """Run two ONNX models on the same inputs, compare their outputs and time both.

    Latency is measured at ONNX Runtime's default optimisation level, in turns. Outputs are compared there first;
    if they are not clearly the same, without optimisation (which changes the rounding), and if that fails, in double
    precision. Sizes that the models leave open are tried at two values each. Large models are opened one at a time.

    Args:
        a: the original: its outputs are the reference.
        b: the model to check; inputs and outputs must have the same names.
        provider: where to run; "auto" takes CUDA if it works, and both go on on the CPU where CUDA fails.
        tolerance: largest relative error that passes; see report.Validation for what that is.
        runs: timed runs of each model at most; 0 measures no latency.
        input_shapes: by input name; "" stands for the only one.
        inputs: full feeds to compare on, instead of random inputs; read one at a time.
        seed: of the random inputs.
        check_time: seconds that comparing and timing may take; a slow model gets fewer inputs and runs, and the
            result says what was left out.
        progress: called with what is being done, once that takes longer than two seconds.

    Raises:
        BadInput: no such file, not a model, other inputs or outputs, or a shape that does not fit.
        UnsupportedModel: ONNX Runtime cannot run a model, or it has inputs other than tensors.
        ValidationFailed: ``b`` does not run where ``a`` does, or gives an output of another shape or type.
    """
    budget = Budget(check_time, progress)
    chosen = sessions.choose_provider(provider)
    job = _OnnxJob(a, b, chosen.name, tolerance, runs, input_shapes, inputs, seed, budget)
    try:
        comparison, latency, ran = _run(job)
    except (BadInput, UnsupportedModel) as error:
        # What a device lacks (memory, a kernel, a driver that fits) looks like a model that runs on no input.
        if chosen.name == "cpu" or isinstance(inputs, Iterator):
            raise
        comparison, latency, ran = _run(replace(job, provider="cpu"))
        chosen = Provider("cpu", f"the CUDA provider failed ({error.why or error.what}): ran on the CPU")
    if chosen.note and (provider == "cuda" or job.provider == "cuda"):
        comparison.notes.insert(0, chosen.note)
    if ran[0] == ran[1] and runs > 0 and not latency.runs:
        comparison.note(f"latency was not measured: the {check_time:g} s were used up (--check-time)")
    if chosen.name == "cuda" and ran[0] == "cpu":
        comparison.notes.insert(0, "the CUDA provider could not be loaded: ran on the CPU")
    return comparison.verdict(
        latency=latency.pair, timed_runs=latency.runs, asked=provider, ran=ran[0], seconds=budget.spent
    )


@dataclass(frozen=True, slots=True)
class _OnnxJob:
    """The arguments of validate_onnx."""

    a: Model
    b: Model
    provider: Literal["cpu", "cuda"]
    tolerance: float
    runs: int
    input_shapes: Mapping[str, Sequence[int]] | None
    inputs: Iterable[Feed] | None
    seed: int
    budget: Budget

    def feeds(self, first: Remembering, runner: Runner) -> Feeds:
        if self.inputs is not None:
            return _given(self.inputs)
        return find_feeds(first, runner, self.a, self.input_shapes, self.seed, self.budget)

    def compare(self, run_a: Run, run_b: Run, names: Sequence[str], feeds: Feeds, *, together: bool) -> Comparison:
        return compare(
            run_a,
            run_b,
            names,
            feeds,
            self.tolerance,
            plain=plain_runs(self.a, self.b, self.provider, together=together),
            referee=self.referee,
            budget=self.budget,
            timed=self.runs > 0,
        )

    def referee(self, values: Feed, least: Sequence[float]) -> Sequence[Ruling]:
        return decide(of_onnx(self.a), of_onnx(self.b), values, self.tolerance, least)


def _run(job: _OnnxJob) -> tuple[Comparison, Latency, tuple[str, str]]:
    with job.budget.told():
        return _one_at_a_time(job) if are_large(job.a, job.b) else _together(job)


def _together(job: _OnnxJob) -> tuple[Comparison, Latency, tuple[str, str]]:
    """Compare and time with both models open; return the comparison, the latency and where both ran."""
    job.budget.now("opening the models")
    first = opened(job.a, "the first model", job.provider)
    second = opened(job.b, "the second model", job.provider)
    Interface.of(first).must_equal(Interface.of(second))
    run_a = Remembering(first)
    timed_on: list[Feed] = []

    def run_b(values: Feed) -> list[Array]:
        timed_on.append(values)
        del timed_on[1:]
        return second(values)

    comparison = job.compare(run_a, run_b, first.outputs, job.feeds(run_a, first), together=True)
    latency = Latency()
    if first.provider == second.provider and job.runs > 0:
        latency = timed_together(first, second, timed_on[0], job.runs, job.budget, comparison.seconds)
    return comparison, latency, (first.provider, second.provider)


def _one_at_a_time(job: _OnnxJob) -> tuple[Comparison, Latency, tuple[str, str]]:
    """Compare and time with one session at a time: the first model's outputs wait for the second's."""
    job.budget.now("the first model")
    first = opened(job.a, "the first model", job.provider)
    run_a, face, where = Remembering(first), Interface.of(first), first.provider
    feeds, outputs, left_out, times = _recorded_run(job, run_a, first)
    del run_a, first  # its weights go before the second's come
    job.budget.now("the second model")
    second = opened(job.b, "the second model", job.provider)
    face.must_equal(Interface.of(second))
    comparison = job.compare(recorded(outputs), second, face.outputs, feeds, together=False)
    comparison.left_out.extend(left_out)
    latency = Latency()
    if times and where == second.provider:
        others = timed_alone(second, feeds[0][1](), len(times), max(job.budget.left, 0.0))
        latency = Latency(fast(times), fast(others), len(others))
    return comparison, latency, (where, second.provider)


def _recorded_run(
    job: _OnnxJob, run_a: Remembering, first: Runner
) -> tuple[list[tuple[str, Callable[[], Feed]]], list[list[Array] | Exception], list[str], list[float]]:
    """Run the first model within half of the time; return feeds, outputs, what was left out, milliseconds of runs."""
    feeds: list[tuple[str, Callable[[], Feed]]] = []
    outputs: list[list[Array] | Exception] = []
    left_out: list[str] = []
    longest = 0.0
    for family, make in job.feeds(run_a, first):
        if feeds and job.budget.spent + longest > job.budget.seconds / 2:
            left_out.append(family)
            continue
        job.budget.now(f"the first model on {family} inputs")
        started = time.perf_counter()
        try:
            outputs.append(run_a(make()))
        except PrunecError:
            raise
        except Exception as error:  # noqa: BLE001 - told when the feed's turn comes
            outputs.append(error)
        feeds.append((family, make))
        longest = max(longest, time.perf_counter() - started)
    works = [place for place, found in enumerate(outputs) if not isinstance(found, Exception)]
    times = []
    if works and job.runs:
        # The timed feed comes first, because the second model is timed on the same.
        feeds.insert(0, feeds.pop(works[0]))
        outputs.insert(0, outputs.pop(works[0]))
        times = timed_alone(first, feeds[0][1](), min(job.runs, _ALONE_RUNS), job.budget.seconds / 8)
    return feeds, outputs, left_out, times


_ALONE_RUNS = 10
"""Timed runs of each model if they are not timed in turn."""


def validate_module_against_onnx(
    module: torch.nn.Module,
    path: Model,
    example_inputs: Sequence[Any],
    *,
    input_names: Sequence[str] = (),
    tolerance: float = 1e-4,
    seed: int = 0,
    check_time: float = CHECK_TIME,
    progress: Tell | None = None,
) -> Validation:
    """Compare a module with its ONNX export, on the CPU; no latency.

    Args:
        module: the original; it is run in eval mode and left as it was.
        path: the ONNX model.
        example_inputs: positional arguments that the module takes; their shapes and dtypes are used.
        input_names: the ONNX input of each tensor among them; by position if left out.
        tolerance: largest relative error that passes.
        seed: of the random inputs.
        check_time, progress: see validate_onnx.

    Raises:
        BadInput: the file is missing or takes other inputs than the module.
        ValidationFailed: the ONNX model does not run, or gives other outputs.
    """
    from prunec.check.modules import double_run, module_kinds, module_run

    budget = Budget(check_time, progress)
    runner = opened(path, "the exported model", "cpu", optimise=False)
    kinds = module_kinds(example_inputs)
    names = list(input_names) or [name for name, _, _ in runner.inputs]
    if len(names) != len(kinds):
        raise BadInput(
            f"{runner.name} has {len(names)} inputs, the module {len(kinds)}", do="name the module's inputs in order"
        )
    known = {name for name, _, _ in runner.inputs}

    def renamed(values: Feed) -> Feed:
        # The file lacks inputs that the network does not use.
        named = {name: values[kind.name] for name, kind in zip(names, kinds, strict=True)}
        return {name: value for name, value in named.items() if name in known}

    def referee(values: Feed, least: Sequence[float]) -> Sequence[Ruling]:
        file = of_onnx(path)

        def run(values: Feed, *, nudged: bool = False) -> list[Array]:
            return file(renamed(values), nudged=nudged)

        return decide(double_run(module, example_inputs), run, values, tolerance, least)

    with evaluating(module), budget.told():
        comparison = compare(
            module_run(module, example_inputs),
            lambda values: runner(renamed(values)),
            runner.outputs,
            _families(kinds, FAMILIES, seed),
            tolerance,
            referee=referee,
            budget=budget,
            same_types=False,  # an exporter may widen what ONNX has no op for
        )
    return comparison.verdict(asked="cpu", ran="cpu", seconds=budget.spent)


def validate_modules(
    a: torch.nn.Module,
    b: torch.nn.Module,
    example_inputs: Sequence[Any],
    *,
    sizes: Sequence[Sequence[int]] = (),
    tolerance: float = 1e-5,
    inputs: Iterable[Feed] | None = None,
    seed: int = 0,
    check_time: float = CHECK_TIME,
    progress: Tell | None = None,
) -> Validation:
    """Compare two modules, in eval mode and without gradients; both are left as they were.

    Args:
        a: the original: its outputs are the measure.
        b: the module to check.
        example_inputs: positional arguments that both take.
        sizes: further spatial sizes (H, W) to try, for every input of rank 4; the last two axes change.
        tolerance: largest relative error that passes.
        inputs: feeds to compare on, instead of random inputs; read one at a time. Keys are the places
            of tensors among the arguments ("0", "1", "0.image").
        seed: of the random inputs.
        check_time, progress: see validate_onnx.

    Raises:
        ValidationFailed: ``b`` does not run where ``a`` does, or gives other outputs.
    """
    from prunec.check.modules import double_run, module_kinds, module_run

    budget = Budget(check_time, progress)
    kinds = module_kinds(example_inputs)
    feeds = _families(kinds, FAMILIES, seed)
    for size in sizes:
        resized = [InputKind(k.name, (*k.shape[:2], *size) if len(k.shape) == 4 else k.shape, k.dtype) for k in kinds]
        feeds += _families(resized, ("noise", "image"), seed, suffix=f" {'x'.join(map(str, size))}")

    def referee(values: Feed, least: Sequence[float]) -> Sequence[Ruling]:
        return decide(double_run(a, example_inputs), double_run(b, example_inputs), values, tolerance, least)

    with evaluating(a), evaluating(b), budget.told():
        comparison = compare(
            module_run(a, example_inputs),
            module_run(b, example_inputs),
            (),
            feeds if inputs is None else _given(inputs),
            tolerance,
            referee=referee,
            budget=budget,
        )
    return comparison.verdict(asked="torch", ran="torch", seconds=budget.spent)


def _families(
    kinds: Sequence[InputKind], families: Iterable[str], seed: int, suffix: str = ""
) -> list[tuple[str, Callable[[], Feed]]]:
    return [(family + suffix, functools.partial(feed, kinds, family, seed)) for family in families]


def _unchanged(values: Feed) -> Feed:
    return values


def _given(inputs: Iterable[Feed]) -> Feeds:
    """Yield the user's inputs, all of one family."""
    return ((DATA, functools.partial(_unchanged, values)) for values in inputs)
