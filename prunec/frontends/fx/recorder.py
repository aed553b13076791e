"""fx.GraphModule -> Graph: runs it on shapes and records the aten ops of every FX node.

Owns the names of values, writes in place, and what shows the same memory. What each aten op becomes is in
ops/table.py; layers that are recorded as one op are in whole_layers.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from prunec.frontends.fx.ops.call import Call, Operand
from prunec.frontends.fx.ops.table import translate
from prunec.frontends.fx.running.arguments import path_of, with_tensors
from prunec.frontends.fx.running.containers import tensors_in
from prunec.frontends.fx.running.handed_out import array_of, storage_of
from prunec.frontends.fx.running.meta import MetaMode
from prunec.frontends.fx.traced import Ref
from prunec.frontends.fx.tracing.switches import is_cast
from prunec.frontends.fx.whole_layers import whole
from prunec.ir.graph import Graph, Node, Param, Value
from prunec.ir.ops import BINARY
from prunec.ir.taught import OpRules

_LAYOUT_OPS = ("aten::as_strided_", "aten::set_", "aten::resize_")
"""In-place ops that fake tensors use to fix strides: sizes and content stay."""

WRITTEN = "is written in place through a view"


class _Walk(fx.Interpreter):
    """Runs the GraphModule node by node and tells the recorder which node is running."""

    def __init__(self, module: fx.GraphModule, recorder: Recorder) -> None:
        super().__init__(module)
        self.recorder = recorder
        self.extra_traceback = False

    def fetch_attr(self, target: str) -> Any:
        """Return what a node calls or reads: most are modules, which the base class would look for from the top."""
        found = self.submodules.get(target)
        return super().fetch_attr(target) if found is None else found

    def run_node(self, n: fx.Node) -> Any:
        recorder = self.recorder
        recorder.begin(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        if is_assignment(n) or is_cast(n):
            if is_assignment(n):
                recorder.assign(args[0], args[2])
            recorder.end(n, args, None)
            return None
        record = whole(n, self, recorder)
        if record is None:
            result = getattr(self, n.op)(n.target, args, kwargs)
        else:
            with recorder.paused():
                result = getattr(self, n.op)(n.target, args, kwargs)
            with torch._C.DisableTorchFunction():
                record(args, kwargs, result)
        with torch._C.DisableTorchFunction():
            recorder.end(n, args, result)
        return result


class Recorder(MetaMode):
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
        self.source = ""
        self._serial = 0
        self._paused = False
        self._signatures: dict[Any, tuple[Sequence[str], Mapping[str, Any]]] = {}
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
            with torch._C.DisableTorchFunction():  # as in ``compute``
                self._call(func, args, kwargs, result)
        return result

    def _call(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        leaves = [result] if isinstance(result, Tensor) else pytree.tree_leaves(result)
        tensors = tuple(item for item in leaves if isinstance(item, Tensor))
        schema = func._schema
        if not tensors or schema.name in _LAYOUT_OPS:
            return
        names, defaults = self._signature(func)
        bound = {**defaults, **dict(zip(names, args, strict=False)), **kwargs}
        name = schema.name.partition("::")[2]
        writes = schema.is_mutable and name.endswith("_") and not name.endswith("__")
        in_place = writes and isinstance(args[0], Tensor) and self._place(tensors[0]) == self._place(args[0])
        self.source = f"{schema.name.replace('::', '.')}"
        if in_place:
            self._name(args[0])  # what it held is read in before its content changes
        short = name.removesuffix("_") if in_place else name
        translate(Call(short, bound, tensors, str(schema.name)), self, self._rules)
        self._emit_rest(name, args, tensors)
        for tensor in tensors:
            if (in_place and tensor is tensors[0]) or tensor is kwargs.get("out"):
                self._written(tensor)

    def _signature(self, func: Any) -> tuple[Sequence[str], Mapping[str, Any]]:
        """Return the names of an op's arguments, and what they are by default; torch is asked once per op."""
        if func not in self._signatures:
            given = func._schema.arguments
            defaults = {argument.name: argument.default_value for argument in given if argument.has_default_value()}
            self._signatures[func] = ([argument.name for argument in given], defaults)
        return self._signatures[func]

    def _emit_rest(self, name: str, args: Sequence[Any], results: Sequence[Tensor]) -> None:
        """Give the results that a row leaves out (a max pool's indices) a node, for readers that take them."""
        rest = [result for result in results if id(result) not in self._names]
        if rest:
            operands = [leaf for leaf in pytree.tree_leaves(args) if isinstance(leaf, Tensor)]
            self.emit("opaque", operands, rest, reason=f"prunec does not follow this output of {name}")

    # -- what rows of the aten table use --

    def emit(self, op: str, inputs: Sequence[Operand], outputs: Sequence[Any], **attrs: Any) -> list[str]:
        """Add a node; see prunec.frontends.fx.ops.call.Emitter."""
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
            Node(node_name, op, names, tuple(out_names), MappingProxyType(attrs), self.source, self._origin)
        )
        if op in ("reshape", "identity") and names[0] in self._contents:
            self._contents[out_names[0]] = self._contents[names[0]].reshape(self._values[out_names[0]].shape)
        return out_names

    def alias(self, source: Tensor, result: Tensor) -> None:
        """Give a result the name of what it equals; see prunec.frontends.fx.ops.call.Emitter."""
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
            array = np.asarray(operand, dtype=np.complex128 if isinstance(operand, complex) else np.float64)
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
            with _disable_current_modes() if not self.has_twin(tensor) else contextlib.nullcontext():
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
        source, self.source = self.source, "in-place write"
        (name,) = self.emit("opaque", list(stale), [tensor], reason=WRITTEN)
        self.source = source
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
        if isinstance(result, Tensor):
            self.results[n.name] = Ref(self._name(result))
        elif isinstance(result, int | float | None):
            self.results[n.name] = result
        else:
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
    return int(storage_of(tensor)._cdata)


def _to_numpy(tensor: Tensor) -> np.ndarray[Any, Any]:
    """Return the content as a read-only array, shared where it can be; bfloat16 becomes float32."""
    with _disable_current_modes():
        plain = tensor.detach().cpu()
        return array_of(plain.float() if plain.dtype == torch.bfloat16 else plain)
