"""Running a network over data while recording the extremes of its activations.

Owns the two ways to do that: reductions added to an ONNX model, so that ONNX Runtime can release the activations,
and torch.fx's interpreter for modules. calibration.py says what to watch and what it means.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from prunec.data.calibration import Observed, Ranges, Watch, enough_to_hold_out, is_held_out, verdict, watched
from prunec.data.samples import Looked, num_rows
from prunec.errors import BadInput
from prunec.ir.arrays import Array
from prunec.runtime import sessions
from prunec.runtime.probes import Feed

if TYPE_CHECKING:
    import torch

    from prunec.frontends.fx.traced import Traced
    from prunec.frontends.onnx.frontend import OnnxSource, TracedOnnx
    from prunec.ir.labels import ChannelClasses

Extremes = Iterable[tuple[str, Array, Array]]
"""Name, smallest and largest value per channel."""

_AXES_AS_INPUT = 18
"""The opset from which ReduceMin and ReduceMax take their axes as an input."""


def observe(
    classes: ChannelClasses,
    places: Mapping[str, Watch],
    samples: Looked,
    run: Callable[[Feed], Extremes],
    tolerance: float,
) -> Observed:
    """Run all samples, batch by batch, and return what stayed constant."""
    parts = (Ranges(), Ranges())
    rows = [0, 0]
    batches = 0
    for index, feed in enumerate(samples):
        part = int(is_held_out(index))
        for name, low, high in run(feed):
            parts[part].add(name, low, high)
        rows[part] += num_rows(feed)
        batches += 1
    if sum(rows) == 1:
        raise BadInput(
            f"one sample does not show what is constant ({samples.name})",
            why="all that only changes from one input to the next would count",
            do="give a few hundred typical inputs",
        )
    held_out = rows[1] if enough_to_hold_out(batches) else 0
    return verdict(classes, places, *parts, (sum(rows), held_out), tolerance)


# --- ONNX ---------------------------------------------------------------------------------------------


def observe_onnx(traced: TracedOnnx, classes: ChannelClasses, samples: Looked, tolerance: float) -> Observed:
    """Watch an ONNX model's activations in ONNX Runtime, its graph as it is in the file.

    Raises:
        UnsupportedModel: ONNX Runtime cannot run it.
        BadInput: it does not run on the samples.
    """
    from prunec.backends.onnx.save import write_onnx

    made = {name for node in traced.source.model.graph.node for name in node.output}
    places = {name: place for name, place in watched(traced.graph, classes).items() if name in made}
    names = list(places)
    with tempfile.TemporaryDirectory(prefix="prunec-") as scratch:
        file = Path(scratch) / "watched.onnx"
        write_onnx(_with_extremes(traced, places), file)
        runner = sessions.open_runner(file, "the model", "cpu", optimise=False)

        def run(feed: Feed) -> Extremes:
            # If nothing is watched, the model still has its own outputs.
            found = [np.asarray(value, dtype=np.float64) for value in runner(feed)] if names else []
            return zip(names, found[: len(names)], found[len(names) :], strict=True)

        fitting = samples.that_run(runner, "the model")
        return observe(classes, places, fitting, run, tolerance)


def _with_extremes(traced: TracedOnnx, places: Mapping[str, Watch]) -> OnnxSource:
    """Return the model with a ReduceMin and a ReduceMax behind every watched value, and these as its outputs."""
    model = onnx.ModelProto()
    model.CopyFrom(traced.source.model)
    graph = model.graph
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)
    del graph.output[:]
    for op in ("ReduceMin", "ReduceMax"):
        for index, (name, place) in enumerate(places.items()):
            result = f"prunec/{op}/{index}"
            source = name
            if traced.graph.values[name].dtype != "float32":
                source = f"{result}/float"
                graph.node.append(helper.make_node("Cast", [name], [source], to=TensorProto.FLOAT))
            graph.node.append(_reduce(graph, op, source, result, place.axes, opset))
            graph.output.append(helper.make_tensor_value_info(result, TensorProto.FLOAT, None))
    if not places:  # a model needs an output
        graph.output.extend(traced.source.model.graph.output)
    return replace(traced.source, model=model)


def _reduce(
    graph: onnx.GraphProto, op: str, source: str, result: str, axes: tuple[int, ...], opset: int
) -> onnx.NodeProto:
    if opset < _AXES_AS_INPUT:
        return helper.make_node(op, [source], [result], name=result, axes=list(axes), keepdims=1)
    graph.initializer.append(numpy_helper.from_array(np.array(axes, dtype=np.int64), f"{result}/axes"))
    return helper.make_node(op, [source, f"{result}/axes"], [result], name=result, keepdims=1)


# --- modules ------------------------------------------------------------------------------------------


def observe_module(traced: Traced, classes: ChannelClasses, samples: Looked, tolerance: float) -> Observed:
    """Watch a traced module's activations, in eval mode and without gradients, where its parameters are.

    Raises:
        BadInput: it does not run on the samples.
    """
    places = watched(traced.graph, classes)
    run = _watching(traced, places)
    from prunec.frontends.fx.running.untouched import untouched
    from prunec.runtime.modules import evaluating

    with untouched(traced.module), evaluating(traced.module):
        fitting = samples.that_run(lambda feed: list(run(feed)), "the network")
        return observe(classes, places, fitting, run, tolerance)


def _watching(traced: Traced, places: Mapping[str, Watch]) -> Callable[[Feed], Extremes]:
    import torch
    from torch import fx

    from prunec.frontends.fx.traced import Ref

    class Watching(fx.Interpreter):
        """Takes the extremes of watched results at once, since a later node may overwrite the results."""

        def __init__(self) -> None:
            super().__init__(traced.module)
            self.found: list[tuple[str, Array, Array]] = []
            self._done: set[str] = set()

        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            for ref, tensor in _paired(traced.results.get(n.name), result, Ref):
                if ref.name in places and ref.name not in self._done:
                    self._done.add(ref.name)
                    axes = places[ref.name].axes
                    low, high = tensor.amin(axes, keepdim=True), tensor.amax(axes, keepdim=True)
                    self.found.append((ref.name, low.double().cpu().numpy(), high.double().cpu().numpy()))
            return result

    def run(feed: Feed) -> Extremes:
        watching = Watching()
        with torch.no_grad():
            watching.run(*arguments(traced, feed))
        return watching.found

    return run


def arguments(traced: Traced, feed: Feed) -> list[Any]:
    """Return a module's positional arguments: a feed's arrays by input name, the example's values for the rest."""
    import torch

    from prunec.frontends.fx.running.arguments import with_tensors

    device = next((tensor.device for tensor in traced.parameters.values()), torch.device("cpu"))
    names = iter(traced.graph.inputs)
    return list(
        with_tensors(traced.example_inputs, lambda _, like: torch.from_numpy(feed[next(names)]).to(device, like.dtype))
    )


def _paired(refs: Any, result: Any, kind: type) -> Iterable[tuple[Any, torch.Tensor]]:
    """Yield (Ref, tensor) for a node's results, in order."""
    import torch
    from torch.utils import _pytree as pytree

    leaves = [leaf for leaf in pytree.tree_leaves(refs) if isinstance(leaf, kind)]
    tensors = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]
    if len(leaves) == len(tensors):
        yield from zip(leaves, tensors, strict=True)


def module_slots(traced: Traced, *, fixed: bool = False) -> tuple[Any, ...]:
    """Return the slots that samples must fill: every tensor among the example inputs, with an open first axis.

    Args:
        fixed: the first axis is the example's instead.

    Raises:
        BadInput: a tensor input that the network does not take by position.
    """
    from prunec.frontends.fx.running.arguments import fed_as, named_tensors
    from prunec.runtime.probes import Slot

    tensors = [tensor for _, tensor in named_tensors(traced.example_inputs)]
    if len(tensors) != len(traced.graph.inputs):
        raise BadInput(
            f"the network has {len(traced.graph.inputs)} inputs, but examples of only {len(tensors)} are known"
        )
    return tuple(
        Slot(name, tuple(tensor.shape) if fixed else (None, *tensor.shape[1:]), fed_as(tensor.dtype))
        for name, tensor in zip(traced.graph.inputs, tensors, strict=True)
    )
