"""Two models, the same inputs: how far apart the outputs are, and how long each takes.

Owns that for ONNX files and for modules; what differences mean is judged in comparison.py. Inputs come from
prunec/runtime/probes.py, sessions from prunec/runtime/sessions.py, the result type is in prunec/report/findings.py.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from prunec.check.comparison import DATA, Comparison, Run, compare
from prunec.errors import BadInput, PrunecError, ValidationFailed
from prunec.report.findings import Validation
from prunec.runtime import sessions
from prunec.runtime.modules import evaluating
from prunec.runtime.probes import FAMILIES, Array, Feed, InputKind, feed, nudged
from prunec.runtime.sessions import Model, ProviderName, Runner, first_line

if TYPE_CHECKING:
    import torch

_SPACINGS = 10.0
"""Half types: two orders of summation in a deep network differ by so many spacings of their numbers."""
RUNS = 30
"""Timed runs of each model, where nothing else is asked for; slow models get fewer."""


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
    chosen = sessions.choose_provider(provider)
    comparison, ran, timed_on = _compare_onnx(a, b, chosen.name, tolerance, input_shapes, inputs, seed)
    if chosen.note and provider == "cuda":
        comparison.notes.insert(0, chosen.note)
    latency: tuple[float, float] | tuple[None, None] = (None, None)
    if ran[0] == ran[1] and runs > 0:
        first, second = (
            sessions.open_runner(model, _name(model, name), chosen.name, optimise=True)
            for model, name in ((a, "the first model"), (b, "the second model"))
        )
        latency = sessions.interleaved_latency(first, second, timed_on, runs)
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
) -> tuple[Comparison, tuple[str, str], Feed]:
    """Return the comparison, where both really ran, and one of the inputs.

    Its sessions are gone when it returns: each holds the model's weights and the activations of its largest run.
    """
    first = sessions.open_runner(a, _name(a, "the first model"), provider, optimise=False)
    second = sessions.open_runner(b, _name(b, "the second model"), provider, optimise=False)
    _check_interfaces(first, second)
    feeds = _given(inputs) if inputs is not None else _feeds(first, a, input_shapes, seed).items()
    rounding = functools.cache(lambda: sessions.open_runner(a, first.name, provider, optimise=True))
    comparison = compare(
        first,
        second,
        first.outputs,
        feeds,
        tolerance,
        again=(lambda values: rounding()(values),),
        in_half=functools.cache(lambda: sessions.computes_in_half(a)),
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
    runner = sessions.open_runner(path, _name(path, "the exported model"), "cpu", optimise=False)
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
        comparison = compare(_module_run(module, example_inputs), run, runner.outputs, feeds.items(), tolerance)
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
    from prunec.frontends.fx.regions import coarsest_cast

    kinds = _module_kinds(example_inputs)
    feeds = {family: feed(kinds, family, seed) for family in FAMILIES}
    for size in sizes:
        resized = [InputKind(k.name, (*k.shape[:2], *size) if len(k.shape) == 4 else k.shape, k.dtype) for k in kinds]
        text = "x".join(map(str, size))
        feeds.update({f"{family} {text}": feed(resized, family, seed) for family in ("noise", "image")})
    with evaluating(a), evaluating(b):
        types: tuple[list[str], list[str]] = ([], [])
        run_a, run_b = (_module_run(m, example_inputs, into) for m, into in zip((a, b), types, strict=True))
        coarsest = max(_coarsest(a), coarsest_cast(b))
        comparison = compare(
            run_a,
            run_b,
            (),
            feeds.items() if inputs is None else _given(inputs),
            tolerance,
            again=(lambda values: run_a(nudged(values, coarsest)),) if coarsest else (),
            in_half=lambda: coarsest > 0,
            half_tolerance=_SPACINGS * coarsest,
        )
    if types[0] != types[1]:
        raise ValidationFailed(
            "the second module's outputs have other types", why=f"{', '.join(types[0])} against {', '.join(types[1])}"
        )
    return comparison.verdict(tolerance, asked="torch", ran="torch")


def _given(inputs: Iterable[Feed]) -> Iterator[tuple[str, Feed]]:
    """Yield the user's inputs, all of one family."""
    return ((DATA, values) for values in inputs)


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
        for size in sessions.candidate_sizes(runner, shapes):
            kinds = sessions.input_kinds(runner, shapes, channels=channels, size=size)
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
    yield sessions.first_channels(model)  # reads the file: only where three would not do


def _other_size(
    runner: Runner, shapes: Mapping[str, Sequence[int]] | None, channels: int, size: int, seed: int, small: bool
) -> dict[str, Feed]:
    """Return inputs of another batch and size where the file leaves them open and the model takes them."""
    base = sessions.input_kinds(runner, shapes, channels=channels, size=size)
    for batch, other in ((2, size + 32), (2, size), (1, size + 32)):
        kinds = sessions.input_kinds(runner, shapes, batch=batch, channels=channels, size=other)
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


def _name(model: Model, otherwise: str) -> str:
    return otherwise if isinstance(model, bytes) else str(model)


def _module_kinds(example_inputs: Sequence[Any]) -> tuple[InputKind, ...]:
    """Return the tensors among positional arguments; each is called by its place, one inside of another "0.image"."""
    import torch

    from prunec.frontends.fx.arguments import named_tensors

    return tuple(
        # numpy has no bfloat16: values of float32 are rounded where they are run.
        InputKind(name, tuple(t.shape), "float32" if t.dtype == torch.bfloat16 else str(t.dtype).removeprefix("torch."))
        for name, t in named_tensors(example_inputs)
    )


def _module_run(module: torch.nn.Module, example_inputs: Sequence[Any], types: list[str] | None = None) -> Run:
    """Return a function from feeds to the module's tensor outputs, flattened in order.

    Args:
        types: gets the outputs' dtypes, of the last run.
    """
    import torch

    from prunec.frontends.fx.arguments import with_tensors
    from prunec.frontends.fx.containers import tensors_in
    from prunec.frontends.fx.untouched import Untouched

    untouched = Untouched(module, tuple(example_inputs))
    device = next((tensor.device for tensor in (*module.parameters(), *module.buffers())), torch.device("cpu"))

    def run(values: Feed) -> list[Array]:
        arguments = with_tensors(
            example_inputs, lambda name, like: torch.from_numpy(values[name]).to(device, like.dtype)
        )
        with untouched.block(), torch.no_grad(), _without_fused_transformers():
            # Copied, for what a network returns may be its own: a buffer that is put back.
            outputs = tensors_in(module(*arguments))
            if types is not None:
                types[:] = [str(tensor.dtype).removeprefix("torch.") for tensor in outputs]
            return [_to_numpy(tensor) for tensor in outputs]

    return run


def _to_numpy(tensor: torch.Tensor) -> Array:
    import torch

    plain = tensor.detach().cpu().clone()
    array: Array = (plain.float() if plain.dtype == torch.bfloat16 else plain).numpy()
    return array


def _coarsest(module: torch.nn.Module) -> float:
    """Return the spacing of the coarsest float type that a module computes in, relative; 0 where it is no half type."""
    import torch

    halves = {tensor.dtype for tensor in (*module.parameters(), *module.buffers())} & {torch.float16, torch.bfloat16}
    return max((torch.finfo(dtype).eps for dtype in halves), default=0.0)


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
