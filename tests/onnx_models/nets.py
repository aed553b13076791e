"""Small ONNX models written out node by node, the passes over them, and their outputs in ONNX Runtime."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from prunec.backends.onnx.backend import apply_onnx
from prunec.backends.onnx.save import save_onnx
from prunec.frontends.onnx.frontend import OnnxSource, TracedOnnx, trace_onnx
from prunec.ir.arrays import Array
from prunec.ir.edits import CannotRewrite
from prunec.ir.graph import Graph
from prunec.ir.plan import PrunePlan
from prunec.passes.channels import channels
from prunec.passes.lowering.lower import lower
from prunec.passes.selection.select import plan
from prunec.pipeline.options import Options
from prunec.pipeline.planning import choose, gather_facts
from prunec.pipeline.reading import freed

Dims = Sequence[int | str | None]

FLOAT = TensorProto.FLOAT


class Net:
    """A model under construction. Methods add a node and return the name of its result."""

    def __init__(self, opset: int = 17, seed: int = 0, ir_version: int = 8, constants: str = "initializer") -> None:
        self.opset = opset
        self.ir_version = ir_version
        self.constants = constants
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.initializers: list[TensorProto] = []
        self.domains: dict[str, int] = {}
        self._count = 0

    def name(self, stem: str) -> str:
        self._count += 1
        return f"{stem}{self._count}"

    def input(self, name: str, shape: Dims | None, dtype: int = FLOAT) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def const(self, value: Any, dtype: Any = None, stem: str = "c") -> str:
        array = np.asarray(value, dtype=dtype)
        name = self.name(stem)
        if self.constants == "initializer":
            self.initializers.append(numpy_helper.from_array(array, name))
        else:
            self.nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array)))
        return name

    def ints(self, *values: int) -> str:
        return self.const(values, np.int64)

    def op(self, kind: str, *inputs: str, outputs: int = 1, domain: str = "", **attrs: Any) -> Any:
        names = [self.name(kind.lower()) for _ in range(outputs)]
        if domain:
            self.domains.setdefault(domain, 1)
        node = helper.make_node(kind, list(inputs), names, name=f"node_{names[0]}", domain=domain, **attrs)
        self.nodes.append(node)
        return names[0] if outputs == 1 else names

    def weight(self, *shape: int, dtype: Any = np.float32) -> Array:
        return (self.rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]) + 1)).astype(dtype)

    def conv(
        self,
        x: str,
        c_in: int,
        c_out: int,
        kernel: int = 3,
        silent: Sequence[int] = (),
        dtype: Any = np.float32,
        **attrs: Any,
    ) -> str:
        """Add a convolution with padding; the filters in ``silent`` are zero, their bias is not."""
        weight = self.weight(c_out, c_in // attrs.get("group", 1), kernel, kernel, dtype=dtype)
        weight[list(silent)] = 0
        bias = self.rng.uniform(-1, 1, c_out).astype(dtype)
        attrs = {"pads": [kernel // 2] * 4, **attrs}
        return str(self.op("Conv", x, self.const(weight, stem="w"), self.const(bias, stem="b"), **attrs))

    def output(self, name: str, dtype: int = FLOAT, shape: Dims | None = None) -> None:
        self.outputs.append(helper.make_tensor_value_info(name, dtype, shape))

    def model(self) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, "net", self.inputs, self.outputs, self.initializers)
        opsets = [helper.make_opsetid("", self.opset), *(helper.make_opsetid(d, v) for d, v in self.domains.items())]
        model = helper.make_model(graph, opset_imports=opsets, producer_name="tests", ir_version=self.ir_version)
        inferred = onnx.shape_inference.infer_shapes(model)
        known = {value.name: value for value in inferred.graph.output}
        for value in model.graph.output:
            if not value.type.tensor_type.HasField("shape"):
                value.CopyFrom(known[value.name])
            if not value.type.tensor_type.HasField("shape"):  # an op that inference does not know: four open sizes
                value.CopyFrom(helper.make_tensor_value_info(value.name, FLOAT, ["a", "b", "c", "d"]))
        return model

    def channels(self, value: str, axis: int = 1) -> int:
        """Return a size of a value."""
        graph = helper.make_graph(self.nodes, "net", self.inputs, [onnx.ValueInfoProto(name=value)], self.initializers)
        opsets = [helper.make_opsetid("", self.opset), *(helper.make_opsetid(d, v) for d, v in self.domains.items())]
        shape = trace_onnx(helper.make_model(graph, opset_imports=opsets)).graph.shape(value)
        assert shape is not None, f"{value} has no known rank"
        size = shape[axis]
        assert isinstance(size, int), f"{value} has {size} channels"
        return size


def prune(
    model: onnx.ModelProto | OnnxSource, input_shapes: Mapping[str, Sequence[int]] | None = None, **options: Any
) -> tuple[TracedOnnx, PrunePlan, OnnxSource]:
    """Trace, plan and prune a model, as the API does."""
    traced = trace_onnx(model, input_shapes or {})
    traced = replace(traced, graph=freed(traced.graph))
    frozen: dict[str, str] = {}
    while True:
        facts = gather_facts(traced.graph, (), frozen)
        selection, reason = choose(facts, Options(**options))
        made = plan(facts, selection, (), reason=reason)
        try:
            pruned = apply_onnx(traced, lower(traced.graph, facts.classes, made, facts.constants))
        except CannotRewrite as error:
            if error.origin in frozen:
                raise
            frozen[error.origin] = error.reason
            continue
        return traced, made, pruned


def num_removed(made: PrunePlan) -> int:
    """Return how many indices the plan takes off parameter axes."""
    return sum(keep.size - len(keep.keep) for keep in made.keeps)


def run(model: Path | bytes, feeds: Mapping[str, Array], optimise: bool = False) -> list[Array]:
    """Return a model's outputs, computed without graph optimisation unless asked for."""
    options = onnxruntime.SessionOptions()
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    source = str(model) if isinstance(model, Path) else model
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return [np.asarray(result) for result in session.run(None, dict(feeds))]


def random_feeds(model: onnx.ModelProto, sizes: Mapping[str, int] | None = None, seed: int = 0) -> dict[str, Array]:
    """Return random inputs; open sizes are taken from ``sizes``, or 2."""
    rng = np.random.default_rng(seed)
    stored = {tensor.name for tensor in model.graph.initializer}
    feeds = {}
    for value in model.graph.input:
        if value.name in stored:
            continue
        kind = value.type.tensor_type
        shape = [dim.dim_value or (sizes or {}).get(dim.dim_param, 2) for dim in kind.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
        feeds[value.name] = rng.standard_normal(shape).astype(dtype)
    return feeds


def assert_same_outputs(
    before: Path | bytes, after: Path | bytes, feeds: Mapping[str, Array], tolerance: float = 1e-5
) -> None:
    """Run both models on the same inputs; every output must agree to a relative ``tolerance``, and say something."""
    for expected, got in zip(run(before, feeds), run(after, feeds), strict=True):
        assert expected.shape == got.shape, f"shape {got.shape} instead of {expected.shape}"
        assert expected.dtype == got.dtype, f"type {got.dtype} instead of {expected.dtype}"
        if expected.dtype.kind in "biu":
            assert (expected == got).all(), "integers differ"
            continue
        scale = float(np.abs(expected.astype(np.float64)).max())
        assert scale > 0, "the output is all zero: nothing is shown by it"
        error = float(np.abs(expected.astype(np.float64) - got.astype(np.float64)).max()) / scale
        assert error <= tolerance, f"relative error {error:.2e}"


def assert_pruned_agrees(
    model: onnx.ModelProto,
    folder: Path,
    sizes: Sequence[Mapping[str, int]] = ({},),
    tolerance: float = 1e-5,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    check: bool = True,
) -> tuple[TracedOnnx, PrunePlan, onnx.ModelProto]:
    """Prune a model exactly, save it, check it, and compare the outputs for each choice of open sizes.

    ``check`` is False for ops that the checker rejects in every model (deprecated, experimental).
    """
    before, after = folder / "before.onnx", folder / "after.onnx"
    onnx.save(model, before)
    traced, made, pruned = prune(model, input_shapes)
    save_onnx(pruned, after)
    if check:
        onnx.checker.check_model(str(after), full_check=True)
    for number, chosen in enumerate(sizes):
        assert_same_outputs(before, after, random_feeds(model, chosen, number), tolerance)
    return traced, made, onnx.load(after)


def reasons(graph: Graph) -> list[str]:
    return sorted({pin.reason for pin in channels(graph).pins})


def unknown_reasons(graph: Graph) -> list[str]:
    return [text for text in reasons(graph) if "no rule" in text or "custom domain" in text]


def export_as_it_is(module: Any, x: Any, path: Path, *, dynamic: bool) -> None:
    """Write a module as ONNX with its BatchNorms, as it is."""
    import torch

    axes = {"x": {0: "n", 2: "h", 3: "w"}} if dynamic else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter is old and says so
        torch.onnx.export(
            module,
            (x,),
            str(path),
            input_names=["x"],
            dynamic_axes=axes,
            opset_version=17,
            dynamo=False,
            do_constant_folding=False,
            training=torch.onnx.TrainingMode.PRESERVE,
        )
