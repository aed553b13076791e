"""nn.Module -> Graph: trace it, then record the aten ops of every FX node on the meta device.

Owns recording and the map back from IR to FX. The tracers are in trace.py, what each aten op becomes is in
aten.py; how a pruned GraphModule is made is in backends/fx/backend.py. The user's module is never changed, and
no autograd is involved: frozen parameters, train or eval mode and no_grad make no difference.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from prunec.errors import BadInput, PrunecError, UnsupportedModel, UntraceableModel
from prunec.frontends.fx.arguments import path_of, with_tensors
from prunec.frontends.fx.aten import Call, Operand, translate
from prunec.frontends.fx.attention import follow_modes
from prunec.frontends.fx.containers import tensors_in
from prunec.frontends.fx.exporting import export
from prunec.frontends.fx.meta import MetaMode, fake_tensors
from prunec.frontends.fx.sizes import NOTES
from prunec.frontends.fx.switches import is_cast
from prunec.frontends.fx.trace import (
    candidates,
    cannot_run,
    eval_mode,
    failure_of,
    fixed_sizes,
    one_line,
    refuse_unreadable,
    symbolic_trace,
    untraceable,
    widened,
)
from prunec.frontends.fx.untouched import Untouched
from prunec.ir.graph import Graph, Node, Param, Value
from prunec.ir.ops import BINARY
from prunec.ir.taught import NO_RULES, OpRules

_LOG = logging.getLogger("prunec")

KNOWN_LEAVES: tuple[type[nn.Module], ...] = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear,
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.InstanceNorm1d, nn.InstanceNorm2d,
    nn.InstanceNorm3d, nn.GroupNorm, nn.LayerNorm, nn.PReLU,
)  # fmt: skip
"""Leaf modules with parameters whose sizes the backend knows how to correct."""

_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_LINEAR = (nn.functional.linear, torch.ops.aten.linear.default)
_RECURRENT = (nn.LSTM, nn.GRU, nn.RNN)
_RECURRENT_OPS = tuple(getattr(torch.ops.aten, name).input for name in ("lstm", "gru", "rnn_tanh", "rnn_relu"))
_RECURRENT_PARAMETERS = ("weight_ih", "bias_ih", "weight_hh", "bias_hh", "weight_hr")
_LAYOUT_OPS = ("aten::as_strided_", "aten::set_", "aten::resize_")
"""In-place ops that fake tensors use to fix strides: sizes and content stay."""
_WRITTEN = "is written in place through a view"


@dataclass(frozen=True, slots=True)
class Ref:
    """Stands for a tensor in ``Traced.results``: the IR value or parameter of that name."""

    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Traced:
    """A module as IR, with the way back.

    Args:
        graph: the IR.
        module: the traced GraphModule; it shares parameters with the user's module.
        results: FX node name -> its result, tensors replaced by ``Ref``; numbers as they were.
        example_inputs: what it was traced with.
        exported: True where torch.fx could not trace it and torch.export did.
        parameters: parameter and buffer names -> the tensors themselves.
        unused: FX nodes that compute something no output depends on.
        notes: what a person should know of how it was read.
    """

    graph: Graph
    module: fx.GraphModule
    results: Mapping[str, Any]
    example_inputs: tuple[Any, ...]
    exported: bool
    parameters: Mapping[str, Tensor]
    unused: frozenset[str]
    notes: tuple[str, ...] = ()


def trace(module: nn.Module, example_inputs: Sequence[Any], name: str = "", rules: OpRules = NO_RULES) -> Traced:
    """Read a module into the IR.

    Args:
        module: any module that torch.fx or torch.export can trace; it is left as it was.
        example_inputs: positional arguments of forward; tensors of the shape to analyse (any device).
        name: shown in reports.
        rules: ops that the user teaches, see prunec/ir/taught.py.

    Raises:
        UntraceableModel: neither tracer can read it; both reasons are given.
        BadInput: the module cannot run on inputs of this shape.
    """
    modes = {path: sub.training for path, sub in module.named_modules()}
    refuse_unreadable(module)
    untouched = Untouched(module, tuple(example_inputs))
    with untouched.block(on_shapes=True), eval_mode(module), torch.no_grad():
        found = _read(module, tuple(example_inputs), name, untouched, rules)
    follow_modes(found.module, modes)
    return found


def _read(module: nn.Module, inputs: tuple[Any, ...], name: str, untouched: Untouched, rules: OpRules) -> Traced:
    """Record what torch.fx traces, or what torch.export does where that cannot be recorded."""
    traced_by_fx, reason = symbolic_trace(module, inputs, untouched)
    partly: Traced | None = None
    for candidate in candidates(traced_by_fx, inputs):
        try:
            with untouched.block(on_shapes=True):
                found = _record_any_batch(candidate, inputs, name, rules, exported=False)
        except PrunecError:
            raise
        except Exception as error:  # noqa: BLE001  # any error of the user's forward: torch.export is the second opinion
            _LOG.debug("the graph that torch.fx traced cannot be recorded: %s", one_line(error))
            reason = error
            continue
        if candidate is module:
            return found
        if not _returns_the_same(module, found, untouched):
            reason = TypeError("its forward looks at the types of what it computes, and torch.fx's are not tensors")
            continue
        if not _writes_unseen(found.graph):
            _LOG.debug("the network was read by torch.fx: %d calls", len(found.module.graph.nodes))
            return replace(found, notes=tuple(traced_by_fx.meta.get(NOTES, ()) if traced_by_fx else ()))
        partly = partly or found
    try:
        return _exported(module, inputs, name, reason, untouched, rules)
    except (UntraceableModel, BadInput):
        if partly is not None:
            return partly
        raise


def _exported(
    module: nn.Module,
    inputs: tuple[Any, ...],
    name: str,
    reason: BaseException | None,
    untouched: Untouched,
    rules: OpRules,
) -> Traced:
    _LOG.debug("torch.export is tried, for torch.fx could not: %s", one_line(reason) if reason else "no reason")
    exported = export(module, inputs, reason, untouched)
    try:
        with untouched.block(on_shapes=True):
            found = _record_any_batch(exported, inputs, name, rules, exported=True)
        why = f", for torch.fx could not: {one_line(reason)}" if reason else ""
        fixed = fixed_sizes(module, exported, inputs, untouched)
        notes = (f"the network was read by torch.export{why}", *fixed, *exported.meta[NOTES])
        return replace(found, notes=notes)
    except PrunecError:
        raise
    except Exception as error:  # the module's own, or the tracers'? a plain run tells
        if failure_of(module, inputs, untouched) is None:
            raise untraceable(reason, error) from error
        raise cannot_run(inputs, error) from error


def _returns_the_same(module: nn.Module, found: Traced, untouched: Untouched) -> bool:
    """Tell whether the module itself, run on shapes, returns tensors of the shapes that were recorded."""
    graph = found.graph
    shapes = [[size for size in graph.shape(name) or () if isinstance(size, int)] for name in graph.inputs]
    for mode in (MetaMode, fake_tensors):
        try:
            with untouched.block(on_shapes=True), mode():
                arguments = _empty(found.example_inputs, shapes)
                returned = [tuple(tensor.shape) for tensor in tensors_in(module(*arguments))]
        except Exception:  # noqa: BLE001, S112  # a forward that needs values cannot be asked
            continue
        return returned == [graph.shape(name) for name in graph.outputs]
    return True


def _empty(inputs: tuple[Any, ...], shapes: Sequence[Sequence[int]]) -> tuple[Any, ...]:
    rest = iter(shapes)
    return with_tensors(inputs, lambda _, like: torch.empty(next(rest), dtype=like.dtype, device="cpu"))


def _writes_unseen(graph: Graph) -> bool:
    """Tell whether something is read that was written in place through another view: torch.export takes writes out."""
    return any(node.attrs.get("reason") == _WRITTEN for node in graph.nodes)


def _record_any_batch(
    module: fx.GraphModule, inputs: tuple[Any, ...], name: str, rules: OpRules, *, exported: bool
) -> Traced:
    """Record with a batch that is not 1 where the network allows it."""
    wide = widened(inputs)
    if wide is not inputs:
        try:
            return _record(module, wide, inputs, name, rules, exported=exported)
        except PrunecError:
            raise
        except Exception as error:  # noqa: BLE001  # a network with a hard-coded batch of 1: the example's own batch is next
            _LOG.debug("the example's own batch is tried, for a batch of 3 could not: %s", one_line(error))
    return _record(module, inputs, inputs, name, rules, exported=exported)


def _record(
    module: fx.GraphModule,
    inputs: tuple[Any, ...],
    example_inputs: tuple[Any, ...],
    name: str,
    rules: OpRules,
    *,
    exported: bool,
) -> Traced:
    recorder = _Recorder(module, rules)
    try:
        recorder.walk(inputs)
    except PrunecError:
        raise
    except Exception as error:  # noqa: BLE001  # some kernels do not run on the meta device
        _LOG.debug("fake tensors are tried, for the meta device could not: %s", one_line(error))
        with fake_tensors() as fake:
            recorder = _Recorder(module, rules, fake)
            recorder.walk(inputs)
    graph = recorder.graph(name or module.__class__.__name__)
    if not graph.outputs:
        do = "let its forward return tensors: alone, in lists, dicts or dataclasses"
        raise UnsupportedModel("the network returns no tensor", do=do)
    return Traced(
        graph=graph,
        module=module,
        results=MappingProxyType(recorder.results),
        example_inputs=example_inputs,
        exported=exported,
        parameters=MappingProxyType(recorder.tensors),
        unused=recorder.origins - {node.origin for node in graph.nodes},
    )


class _Walk(fx.Interpreter):
    """Runs the GraphModule node by node and tells the recorder which node is running."""

    def __init__(self, module: fx.GraphModule, recorder: _Recorder) -> None:
        super().__init__(module)
        self.recorder = recorder
        self.extra_traceback = False

    def run_node(self, n: fx.Node) -> Any:
        recorder = self.recorder
        recorder.begin(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        if is_assignment(n) or is_cast(n):
            if is_assignment(n):
                recorder.assign(args[0], args[2])
            recorder.end(n, args, None)
            return None
        whole = self._whole(n)
        if whole is None:
            result = getattr(self, n.op)(n.target, args, kwargs)
        else:
            with recorder.paused():
                result = getattr(self, n.op)(n.target, args, kwargs)
            whole(args, kwargs, result)
        recorder.end(n, args, result)
        return result

    def _whole(self, n: fx.Node) -> Callable[[Any, Any, Any], None] | None:
        """Return how to record a node as one op instead of op by op; None for op by op."""
        recorder = self.recorder
        if n.op == "call_function" and n.target is nn.functional.instance_norm:
            return recorder.functional_instance_norm
        if n.op == "call_function" and n.target in _LINEAR:
            return recorder.functional_linear
        if n.op == "call_function" and n.target in _RECURRENT_OPS:
            return recorder.recurrent_op
        if n.target is torch.tensor_split or (n.op == "call_method" and n.target == "tensor_split"):
            return recorder.tensor_split
        if n.op != "call_module":
            return None
        module = self.fetch_attr(str(n.target))
        if type(module) is nn.Linear:
            return lambda args, _kwargs, result: recorder.linear(args[0], module.weight, module.bias, result)
        first = n.args[0] if n.args else None
        if type(module) in _RECURRENT and isinstance(first, fx.Node) and isinstance(self.env.get(first), Tensor):
            return lambda args, _kwargs, result: recorder.recurrent(args, module, result)
        if isinstance(module, _INSTANCE_NORMS):
            return lambda args, _kwargs, result: recorder.instance_norm(args[0], module, result)
        if isinstance(module, KNOWN_LEAVES) or not any(True for _ in module.parameters()):
            return None
        return lambda args, kwargs, result: recorder.opaque_module(module, args, kwargs, result)


class _Recorder(MetaMode):
    """Builds the IR from the aten calls that it sees."""

    def __init__(self, module: fx.GraphModule, rules: OpRules, fake: FakeTensorMode | None = None) -> None:
        super().__init__()
        self._module = module
        self._rules = rules
        self._fake = fake
        self.results: dict[str, Any] = {}
        self.tensors: dict[str, Tensor] = {}
        self._nodes: list[Node] = []
        self._values: dict[str, Value] = {}
        self._params: dict[str, Param] = {}
        self._inputs: list[str] = []
        self._outputs: list[str] = []
        self._names: dict[int, str] = {}
        self._stale: dict[int, tuple[str, str]] = {}
        self._alive: list[Tensor] = []
        self._by_storage: dict[int, list[Tensor]] = {}
        self._contents: dict[str, np.ndarray[Any, Any]] = {}
        self._origin = ""
        self._source = ""
        self._serial = 0
        self._paused = False
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            self.tensors.setdefault(name, tensor)
            self._names.setdefault(id(tensor), name)

    def walk(self, inputs: tuple[Any, ...]) -> None:
        """Run the module on tensors of the inputs' shapes, and record."""
        convert = self.twin if self._fake is None else self._fake.from_tensor
        shapes = with_tensors(inputs, lambda _, tensor: convert(tensor))
        with self:
            _Walk(self._module, self).run(*shapes)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = self.compute(func, args, kwargs) if self._fake is None else func(*args, **kwargs)
        if not self._paused:
            self._call(func, args, kwargs, result)
        return result

    def _call(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        tensors = tuple(item for item in pytree.tree_leaves(result) if isinstance(item, Tensor))
        schema = func._schema
        if not tensors or schema.name in _LAYOUT_OPS:
            return
        bound = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
        bound.update(zip((a.name for a in schema.arguments), args, strict=False))
        bound.update(kwargs)
        name = schema.name.partition("::")[2]
        writes = schema.is_mutable and name.endswith("_") and not name.endswith("__")
        in_place = writes and isinstance(args[0], Tensor) and self._place(tensors[0]) == self._place(args[0])
        self._source = f"{schema.name.replace('::', '.')}"
        if in_place:
            self._name(args[0])  # what it held is read in before its content changes
        short = name.removesuffix("_") if in_place else name
        translate(Call(short, bound, tensors, str(schema.name)), self, self._rules)
        self._emit_rest(name, args, tensors)
        if in_place:
            self._written(tensors[0])

    def _emit_rest(self, name: str, args: Sequence[Any], results: Sequence[Tensor]) -> None:
        """Give the results that a row leaves out (a max pool's indices) a node, for readers that take them."""
        rest = [result for result in results if id(result) not in self._names]
        if rest:
            operands = [leaf for leaf in pytree.tree_leaves(args) if isinstance(leaf, Tensor)]
            self.emit("opaque", operands, rest, reason=f"prunec does not follow this output of {name}")

    # -- what rows of the aten table use --

    def emit(self, op: str, inputs: Sequence[Operand], outputs: Sequence[Any], **attrs: Any) -> list[str]:
        """Add a node; see prunec.frontends.fx.aten.Emitter."""
        names = tuple(self._operand(operand) for operand in inputs)
        node_name = self._origin if self._serial == 0 else f"{self._origin}.{self._serial}"
        self._serial += 1
        out_names = []
        dtype = self._dtype(names[0]) if names else "float32"
        for number, output in enumerate(outputs):
            value = f"{node_name}:{number}" if number else node_name
            if isinstance(output, Tensor):
                self._define(value, output)
            else:
                self._values[value] = Value(value, tuple(output), dtype)
            out_names.append(value)
        self._nodes.append(
            Node(node_name, op, names, tuple(out_names), MappingProxyType(attrs), self._source, self._origin)
        )
        if op in ("reshape", "identity") and names[0] in self._contents:
            self._contents[out_names[0]] = self._contents[names[0]].reshape(self._values[out_names[0]].shape)
        return out_names

    def alias(self, source: Tensor, result: Tensor) -> None:
        """Give a result the name of what it equals; see prunec.frontends.fx.aten.Emitter."""
        self._names[id(result)] = self._name(source)
        self._alive.append(result)
        self._by_storage.setdefault(self._place(result)[0], []).append(result)

    def constant(self, tensor: Tensor) -> np.ndarray[Any, Any] | None:
        """Return the content of a parameter, buffer or a reshaped one; None for computed tensors."""
        name = self._name(tensor)
        param = self._params.get(name)
        return param.array if param is not None else self._contents.get(name)

    @property
    def origins(self) -> frozenset[str]:
        """Names of the FX nodes that computed something."""
        return frozenset(node.origin for node in self._nodes)

    def _dtype(self, name: str) -> str:
        value = self._values.get(name)
        return value.dtype if value is not None else "float32"

    def _operand(self, operand: Operand) -> str:
        if operand is None:
            return ""
        if isinstance(operand, str):
            return operand
        if isinstance(operand, Tensor):
            return self._name(operand)
        name = f"literal:{operand}"
        if name not in self._params:
            array = np.asarray(operand, dtype=np.float64)
            array.flags.writeable = False
            self._params[name] = Param(name, array, literal=True)
        return name

    def _define(self, name: str, tensor: Tensor) -> None:
        self._names[id(tensor)] = name
        self._stale.pop(id(tensor), None)
        self._alive.append(tensor)  # an id is only unique while its object lives
        self._by_storage.setdefault(self._place(tensor)[0], []).append(tensor)
        self._values[name] = Value(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))

    def _name(self, tensor: Tensor) -> str:
        """Return the IR name of a tensor, reading parameters in when they are first used."""
        stale = self._stale.pop(id(tensor), None)
        if stale is not None:
            return self._reread(tensor, stale)
        name = self._names.get(id(tensor))
        if name is None:
            name = f"constant:{len(self.tensors)}"
            self.tensors[name] = tensor
            self._names[id(tensor)] = name
            self._alive.append(tensor)
        if name in self.tensors and name not in self._params:
            self._params[name] = Param(name, _to_numpy(tensor), learned=isinstance(tensor, nn.Parameter))
            self._contents[name] = self._params[name].array
            self._by_storage.setdefault(self._place(tensor)[0], []).append(tensor)
        return name

    def _written(self, tensor: Tensor) -> None:
        """Tell all who show the written memory: they hold the same now or, where they show it otherwise, are stale."""
        now, place = self._names[id(tensor)], self._place(tensor)
        for other in self._by_storage.get(place[0], []):
            if other is tensor or self._names.get(id(other)) == now:
                continue
            if self._place(other) == place:
                self._stale.pop(id(other), None)
                self._names[id(other)] = now
            else:
                self._stale[id(other)] = (self._names[id(other)], now)

    def _place(self, tensor: Tensor) -> tuple[Any, ...]:
        """Return the memory that a tensor shows, and how: parameters are real, and are written into as their twins."""
        if tensor.device.type != "meta" and not isinstance(tensor, FakeTensor):
            with _disable_current_modes():
                tensor = self.twin(tensor) if self._fake is None else self._fake.from_tensor(tensor)
        return _storage(tensor), tensor.storage_offset(), tensor.shape, tensor.stride()

    def assign(self, tensor: Tensor, value: Tensor) -> None:
        """Follow ``tensor.data = value``: from here on the tensor holds what ``value`` does."""
        if tensor.shape != value.shape:
            raise TypeError(f".data is assigned a tensor of another shape: {value.shape} for {tensor.shape}")
        self._name(tensor)
        self._names[id(tensor)] = self._name(value)
        self._written(tensor)

    def _reread(self, tensor: Tensor, stale: tuple[str, str]) -> str:
        source, self._source = self._source, "in-place write"
        (name,) = self.emit("opaque", list(stale), [tensor], reason=_WRITTEN)
        self._source = source
        return name

    # -- what the interpreter uses --

    def begin(self, n: fx.Node) -> None:
        self._origin, self._serial = n.name, 0

    def end(self, n: fx.Node, args: Any, result: Any) -> None:
        if self._serial > 1 or n.op == "call_module":
            self._mark_inner()
        if n.op == "placeholder":
            for keys, leaf in pytree.tree_flatten_with_path(result)[0]:
                if isinstance(leaf, Tensor):
                    name = ".".join([n.name, path_of(keys)]) if keys else n.name
                    self._define(name, leaf)
                    self._inputs.append(name)
        elif n.op == "output":
            self._outputs.extend(self._name(tensor) for tensor in tensors_in(args[0]))
        self.results[n.name] = pytree.tree_map(
            lambda leaf: Ref(self._name(leaf)) if isinstance(leaf, Tensor) else leaf, result
        )

    def _mark_inner(self) -> None:
        """Mark binary nodes inside a larger call: their operands are no arguments of the FX node."""
        for at in range(len(self._nodes) - 1, -1, -1):
            node = self._nodes[at]
            if node.origin != self._origin:
                break
            if node.op in BINARY:
                self._nodes[at] = replace(node, attrs=MappingProxyType({**node.attrs, "inner": True}))

    def instance_norm(self, x: Tensor, module: Any, result: Tensor) -> None:
        """Record one node: its decomposition merges batch and channels, which would hide the channels."""
        self._source = type(module).__name__
        inputs: list[Operand] = [x, module.weight, module.bias]
        if module.track_running_stats and module.running_mean is not None:
            stats: list[Operand] = [module.running_mean, module.running_var]
            self.emit("batch_norm", inputs + stats, [result], axis=1, eps=module.eps, training=False)
        else:
            self.emit("instance_norm", inputs, [result], axis=1, eps=module.eps)

    def functional_instance_norm(self, args: Any, kwargs: Any, result: Tensor) -> None:
        names = ("input", "running_mean", "running_var", "weight", "bias", "use_input_stats", "momentum", "eps")
        bound = dict(zip(names, args, strict=False)) | kwargs
        self._source = "instance_norm"
        inputs: list[Operand] = [bound["input"], bound.get("weight"), bound.get("bias")]
        if bound.get("use_input_stats", True):
            self.emit("instance_norm", inputs, [result], axis=1, eps=bound.get("eps", 1e-5))
        else:
            stats: list[Operand] = [bound["running_mean"], bound["running_var"]]
            self.emit("batch_norm", inputs + stats, [result], axis=1, eps=bound.get("eps", 1e-5), training=False)

    def linear(self, x: Operand, weight: Operand, bias: Operand, result: Tensor) -> None:
        """Record one node: on inputs of rank 3 the decomposition depends on strides and hides the bias."""
        self._source = "aten.linear"
        self.emit("matmul", [x, weight, bias], [result], transpose_b=True)

    def functional_linear(self, args: Any, kwargs: Any, result: Tensor) -> None:
        bound = dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
        self.linear(bound["input"], bound["weight"], bound.get("bias"), result)

    def tensor_split(self, args: Any, kwargs: Any, result: Any) -> None:
        """Record one split: the slices that it decomposes to cannot be rewritten one by one."""
        x = args[0] if args else kwargs.get("input", kwargs.get("self"))
        dim = kwargs.get("dim", args[2] if len(args) > 2 else 0)
        axis = dim % x.dim()
        self._source = "aten.tensor_split"
        self.emit("split", [x], list(result), axis=axis, sizes=[part.shape[axis] for part in result])

    def recurrent(self, args: Any, module: Any, result: Any) -> None:
        """Record a recurrent module."""
        self._source = type(module).__name__
        x, *states = [leaf for leaf in pytree.tree_leaves(args) if isinstance(leaf, Tensor)]
        layers = [
            [
                [getattr(module, f"{kind}_l{layer}{suffix}", None) for kind in _RECURRENT_PARAMETERS]
                for suffix in ("", "_reverse")[: 2 if module.bidirectional else 1]
            ]
            for layer in range(module.num_layers)
        ]
        self._layers(x, states, layers, result)

    def recurrent_op(self, args: Any, _kwargs: Any, result: Any) -> None:
        """Record the op that torch.export makes of a recurrent module: its parameters come as one list."""
        x, states, params, has_biases, num_layers, _, _, both_ways, *_ = args
        self._source = "aten.recurrent"
        given, each = list(params), len(params) // (num_layers * (2 if both_ways else 1))
        rows = [given[at : at + each] for at in range(0, len(given), each)]
        cells = [
            [
                row[0],
                row[2] if has_biases else None,
                row[1],
                row[3] if has_biases else None,
                *row[4 if has_biases else 2 :],
            ]
            for row in rows
        ]
        layers = [cells[at : at + len(cells) // num_layers] for at in range(0, len(cells), len(cells) // num_layers)]
        self._layers(x, [leaf for leaf in pytree.tree_leaves(states) if isinstance(leaf, Tensor)], layers, result)

    def _layers(self, x: Tensor, states: list[Tensor], layers: list[list[list[Any]]], result: Any) -> None:
        """Record what each layer and direction reads of its input as a matrix product; the state is not followed.

        Args:
            layers: for each layer and direction, its tensors in the order of ``_RECURRENT_PARAMETERS``.
        """
        outputs = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
        reason = "a recurrent state feeds itself"
        current: Operand = x
        parts: list[Operand] = [*states]
        leading = tuple(x.shape[:-1])
        for number, directions in enumerate(layers):
            for cell in directions:
                w_in, b_in, w_state, b_state, w_out = (*cell, None)[:5]
                assert isinstance(w_in, Tensor)
                assert isinstance(w_state, Tensor)
                gates = (*leading, w_in.shape[0])
                parts += self.emit("matmul", [current, w_in, b_in], [gates], transpose_b=True)
                state = self.emit("opaque", [parts[-1]], [(*leading, w_state.shape[1])], reason=reason)[0]
                parts += self.emit("matmul", [state, w_state, b_state], [gates], transpose_b=True)
                parts += [w_out] if isinstance(w_out, Tensor) else []
            if number + 1 < len(layers):
                (current,) = self.emit("opaque", parts, [tuple(outputs[0].shape)], reason=reason)
                parts = []
        self.emit("opaque", parts, outputs, reason=reason)

    def opaque_module(self, module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        """Record a leaf module that prunec does not look into: what it touches is pinned."""
        self._source = type(module).__name__
        inputs = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        outputs = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
        reason = f"prunec does not look into {type(module).__name__} modules"
        self.emit("opaque", [*inputs, *module.parameters()], outputs, reason=reason)

    def graph(self, name: str) -> Graph:
        """Return the finished IR."""
        read, nodes = set(self._outputs), []
        for node in reversed(self._nodes):
            if any(value in read for value in node.outputs):
                nodes.append(node)
                read.update(node.inputs)
        named = {value for node in nodes for value in node.outputs} | set(self._inputs)
        return Graph(
            nodes=tuple(reversed(nodes)),
            values=MappingProxyType({key: value for key, value in self._values.items() if key in named}),
            params=MappingProxyType({key: param for key, param in self._params.items() if key in read}),
            inputs=tuple(self._inputs),
            outputs=tuple(self._outputs),
            name=name,
            frontend="fx",
        )


def is_assignment(n: fx.Node) -> bool:
    """Tell whether a node is ``tensor.data = value``: run on shapes, it would leave a parameter without values."""
    return n.op == "call_function" and n.target is setattr and len(n.args) == 3 and n.args[1] == "data"


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _to_numpy(tensor: Tensor) -> np.ndarray[Any, Any]:
    """Return the content as a read-only array, shared where it can be; bfloat16 becomes float32."""
    with _disable_current_modes():
        plain = tensor.detach().cpu()
        array = (plain.float() if plain.dtype == torch.bfloat16 else plain).numpy()
    array = array.view()
    array.flags.writeable = False
    return array
