"""Inputs that an ONNX model accepts: sizes that the file leaves open are tried until it runs.

Owns that search. probes.py makes random inputs, sessions.py reads what a model says about its inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from prunec.check.clock import Budget
from prunec.check.pair import Remembering
from prunec.errors import BadInput
from prunec.runtime import model_inputs
from prunec.runtime.probes import FAMILIES, Feed, InputKind, feed
from prunec.runtime.sessions import Model, Runner, first_line

Shapes = Mapping[str, Sequence[int]]
NamedFeeds = list[tuple[str, Callable[[], Feed]]]

_COSTLY = 0.05
"""Another size is tried if the first input took less than this fraction of the budget."""


class _Working(NamedTuple):
    """The kinds of input that a model accepts, and the input of white noise that showed it."""

    channels: int
    size: int
    small: bool
    kinds: tuple[InputKind, ...]
    noise: Feed


def working_feed(runner: Runner, model: Model, shapes: Shapes | None, seed: int = 0) -> Feed:
    """Return one random input that a model accepts, batch 1 if the model leaves that open.

    Raises:
        BadInput: none was found.
    """
    return _working(Remembering(runner), runner, model, shapes, seed).noise


def find_feeds(
    run: Remembering, runner: Runner, model: Model, shapes: Shapes | None, seed: int, budget: Budget
) -> NamedFeeds:
    """Return inputs that a model accepts: all families at one size, two of them at another if sizes are open.

    Args:
        run: the model; inputs that it was tried on are not run again.
        runner: the same model, which knows its inputs.
        model: the file.
        shapes: given by the user.
        seed: of the random inputs.
        budget: no other size is tried if a run takes much of it.

    Raises:
        BadInput: none was found.
    """
    budget.now("the first model on noise inputs")
    started = budget.spent
    found = _working(run, runner, model, shapes, seed)
    took = budget.spent - started
    feeds: NamedFeeds = [
        (family, partial(feed, found.kinds, family, seed, small=found.small))
        for family in FAMILIES
        if family != "noise"
    ]
    feeds.insert(0, ("noise", _always(found.noise)))
    if took < _COSTLY * budget.seconds:
        feeds.extend(_other_size(run, runner, shapes, found, seed))
    return feeds


def _working(run: Remembering, runner: Runner, model: Model, shapes: Shapes | None, seed: int) -> _Working:
    failure: Exception | None = None
    for channels in _channel_guesses(model):
        for size in model_inputs.candidate_sizes(runner, shapes):
            kinds = model_inputs.input_kinds(runner, shapes, channels=channels, size=size)
            for small in (False, True):
                noise = feed(kinds, "noise", seed, small=small)
                failure = run.failure(noise)
                if failure is None:
                    return _Working(channels, size, small, kinds, noise)
    assert failure is not None
    raise BadInput(
        f"no input was found that {runner.name} accepts",
        why=first_line(failure),
        do="give the shape of its inputs: --input-shape NAME:1x3x224x224",
    )


def _channel_guesses(model: Model) -> Iterator[int]:
    yield 3
    yield model_inputs.first_channels(model)  # reads the file, so only if three channels do not run


def _always(values: Feed) -> Callable[[], Feed]:
    return lambda: values


def _other_size(run: Remembering, runner: Runner, shapes: Shapes | None, found: _Working, seed: int) -> NamedFeeds:
    """Return inputs of another batch and size, if the file leaves them open and the model accepts them."""
    for batch, other in ((2, found.size + 32), (2, found.size), (1, found.size + 32)):
        kinds = model_inputs.input_kinds(runner, shapes, batch=batch, channels=found.channels, size=other)
        if kinds == found.kinds:
            continue
        image = feed(kinds, "image", seed, small=found.small)
        if run.failure(image) is None:
            return [
                ("image, other size", _always(image)),
                ("pixels, other size", partial(feed, kinds, "pixels", seed, small=found.small)),
            ]
    return []
