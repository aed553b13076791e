"""Edits -> pruned GraphModule.

Owns the torch side of surgery: corrected module attributes, new biases, cut inputs, erased nodes. Decides nothing;
parameters are set in parameters.py, written-out sizes rewritten in rewrite.py, the result run in check.py, plans on
fresh modules applied in prunec/pipeline/apply.py. The user's module is copied, never changed.
"""

from __future__ import annotations

import copy
import operator
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from prunec.backends.fx.check import check_shapes
from prunec.backends.fx.copies import copies
from prunec.backends.fx.insert import insert, weight_of
from prunec.backends.fx.origin import ORIGIN, origin_of
from prunec.backends.fx.parameters import (
    delete_unused_modules,
    delete_unused_tensors,
    held_tensors,
    leave_unsaved,
    parameter_like,
    refresh_modules,
    set_parameters,
)
from prunec.backends.fx.rewrite import LIKE, REWRITES, Site, add_buffer, call
from prunec.frontends.fx.recorder import is_assignment
from prunec.frontends.fx.traced import Ref, Traced
from prunec.garbage import collected_later
from prunec.ir.contractions import is_spatial
from prunec.ir.edits import CannotRewrite, Edits
from prunec.ir.graph import Node, Shape


@collected_later()
def apply_edits(traced: Traced, edits: Edits) -> fx.GraphModule:
    """Carry out edits on a copy of the traced module.

    Returns:
        A GraphModule in the mode (train or eval) of each of its submodules, on the same device.

    Raises:
        CannotRewrite: a call has sizes that cannot be changed; pin its channels and plan again.
    """
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", FutureWarning
        )  # torch's own, about the pytrees that torch.export leaves in a module
        module = _copied(traced, edits)
    for original, n in zip(traced.module.graph.nodes, module.graph.nodes, strict=True):
        n.meta[ORIGIN] = original.name  # copying a graph may rename its nodes
    surgery = _Surgery(traced, edits, module)
    surgery.run()
    module.graph.lint()
    module.recompile()
    delete_unused_modules(module)
    delete_unused_tensors(module)
    leave_unsaved(module, traced.unsaved)
    check_shapes(traced, edits, module)
    return module


def _to_set(traced: Traced, edits: Edits) -> Iterator[str]:
    """Yield the parameters of the module that get new contents; those of inserted nodes are no module's."""
    put_back = {name for node in traced.graph.nodes if node.attrs.get("inserted") for name in node.inputs}
    return (name for name in edits.params if name not in put_back)


def _copied(traced: Traced, edits: Edits) -> fx.GraphModule:
    """Copy the traced module, but for the code of its graph: that is written once, when the graph has changed."""
    graph, held = traced.module.graph, vars(traced.module)
    bare = fx.Graph(tracer_cls=graph._tracer_cls, tracer_extras=graph._tracer_extras)
    for name in dict.fromkeys(str(n.target) for n in graph.nodes if n.op == "get_attr"):
        if name in held:  # neither a parameter nor a buffer: the copy gets what its graph reads
            bare.get_attr(name)
    module = copy.deepcopy(traced.module, copies(traced.module, _replaced(traced, edits) | {id(graph): bare}))
    module._graph = copy.deepcopy(graph)
    module._graph.owning_module = module
    return module


def _replaced(traced: Traced, edits: Edits) -> dict[int, Any]:
    """Return a memo for deepcopy, which need not copy what is replaced by new contents first of all."""
    tensors = (traced.parameters.get(name) for name in _to_set(traced, edits))
    return {id(tensor): tensor for tensor in tensors if tensor is not None and tensor.is_leaf}


class _Surgery:
    """The steps of ``apply_edits`` over one copy."""

    def __init__(self, traced: Traced, edits: Edits, module: fx.GraphModule) -> None:
        self.traced, self.edits, self.module = traced, edits, module
        self.nodes = {origin_of(n): n for n in module.graph.nodes}
        self.ir_of: dict[str, list[Node]] = {}
        for node in traced.graph.nodes:
            if not node.attrs.get("inserted"):
                self.ir_of.setdefault(node.origin, []).append(node)
        self.replaced: set[str] = set()
        self.had_users = {origin_of(n) for n in module.graph.nodes if n.users}

    def run(self) -> None:
        self._freeze_sizes()
        self._freeze_scales()
        contents = {name: self.edits.params[name] for name in _to_set(self.traced, self.edits)}
        for name in contents.keys() - held_tensors(self.module).keys():
            self._hold(name, contents.pop(name))
        set_parameters(self.module, contents)
        self._rewrite_attributes()
        self._insert()
        self._add_biases()
        self._cut_inputs()
        self._drop_operands()
        self._replace()
        refresh_modules(self.module)
        self._erase()

    def _freeze_sizes(self) -> None:
        """Replace channel counts that the forward reads (``x.size(1)``) by what they were.

        Sizes in views are written out by the rewrites; elsewhere (a scale such as 1/sqrt(C)) the count
        of the original network is what the weights were trained with.
        """
        for n in list(self.module.graph.nodes):
            value = self.traced.results.get(origin_of(n))
            if isinstance(value, int) and not isinstance(value, bool) and self._reads_pruned_axis(n):
                n.replace_all_uses_with(value)

    def _freeze_scales(self) -> None:
        """Write out the scale of attention whose heads get smaller: by default it follows from their size."""
        for n in self.module.graph.nodes:
            query = n.kwargs.get("query", n.args[0] if n.args else None)
            if "scaled_dot_product" not in str(n.target) or n.kwargs.get("scale") is not None:
                continue
            ref = self.traced.results.get(origin_of(query)) if isinstance(query, fx.Node) else None
            shape = self.traced.graph.shape(ref.name) if isinstance(ref, Ref) else None
            if isinstance(ref, Ref) and shape and len(shape) - 1 in self.edits.keeps.get(ref.name, {}):
                n.kwargs = {**n.kwargs, "scale": int(shape[-1] or 1) ** -0.5}

    def _reads_pruned_axis(self, n: fx.Node) -> bool:
        axis: Any
        if n.op == "call_method" and n.target == "size" and len(n.args) == 2:
            source, axis = n.args
        elif n.target is operator.getitem and isinstance(n.args[0], fx.Node):
            inner = n.args[0]
            whole = (inner.op == "call_method" and inner.target == "size" and len(inner.args) == 1) or (
                inner.target is getattr and inner.args[1] == "shape"
            )
            if not whole:
                return False
            source, axis = inner.args[0], n.args[1]
        elif n.op == "call_function" and "sym_size" in str(n.target) and len(n.args) == 2:
            source, axis = n.args
        else:
            return False
        ref = self.traced.results.get(origin_of(source)) if isinstance(source, fx.Node) else None
        if not isinstance(ref, Ref) or not isinstance(axis, int):
            return False
        rank = len(self.traced.graph.shape(ref.name) or ())
        return axis % max(1, rank) in self.edits.keeps.get(ref.name, {})

    def _hold(self, name: str, content: np.ndarray[Any, Any]) -> None:
        """Store a tensor that the forward makes of numbers (``torch.tensor([…], device=x.device)``) as a buffer."""
        for node in self.traced.graph.nodes:
            if name not in node.inputs:
                continue
            n, made = self.nodes[node.origin], self.ir_of.get(node.origin, [])
            whole = bool(made) and all(each.op in ("identity", "cast") for each in made)
            result = made[-1].outputs[0] if whole else ""
            if self.traced.results[origin_of(n)] != Ref(result):
                raise CannotRewrite(node.origin, "prunec cannot change a tensor that is made inside of this call")
            dtype = getattr(torch, self.traced.graph.values[result].dtype)
            buffer = add_buffer(self.module, f"{n.name}_constant", torch.from_numpy(np.array(content)).to(dtype))
            self.module._non_persistent_buffers_set.add(buffer)  # as little as it was before
            with self.module.graph.inserting_before(n):
                stored = self.module.graph.get_attr(buffer)
            stored.meta[ORIGIN] = ""
            call(n, torch.clone, stored)  # the forward may write into what it makes

    def _rewrite_attributes(self) -> None:
        for origin, nodes in self.ir_of.items():
            changes = [(node, self.edits.attrs.get(node.name, {})) for node in nodes]
            for node, attrs in changes:
                if node.name in self.edits.removed or node.op not in REWRITES:
                    continue
                site = Site(
                    self.module,
                    self.nodes[origin],
                    node,
                    attrs,
                    changes,
                    self._new_shape,
                    self.traced.graph.shape,
                    self._maker,
                    self.traced.results,
                )
                # What is made like another tensor changes with that one, though nothing of its own does.
                if attrs or (node.op == "full" and site.target in LIKE):
                    REWRITES[node.op](site)

    def _new_shape(self, name: str) -> Shape | None:
        return self.edits.shapes.get(name, self.traced.graph.shape(name))

    def _maker(self, value: str) -> fx.Node | None:
        """Return the FX node whose result is an IR value."""
        return next((self.nodes[name] for name, result in self.traced.results.items() if result == Ref(value)), None)

    def _insert(self) -> None:
        """Write the nodes of rewrites, each in front of, or behind, the call that it was made for."""
        graph, made, behind = self.traced.graph, dict[str, fx.Node](), dict[str, fx.Node]()
        for node in graph.nodes:
            if node.name in self.edits.removed:
                continue
            n = self.nodes[node.origin]
            if node.attrs.get("behind"):
                behind[node.outputs[0]] = self._insert_behind(n, node, made[node.inputs[1]])
            elif node.attrs.get("inserted"):
                source = made.get(node.inputs[0]) or behind.get(node.inputs[0]) or self._maker(node.inputs[0])
                if source is None:
                    raise CannotRewrite(node.origin, "prunec cannot take an operand out of this call")
                made[node.outputs[0]] = insert(self.module, n, node, source, graph, self.edits)
                made[node.outputs[0]].meta.setdefault(ORIGIN, "")
            elif made.keys() & set(node.inputs):
                operands = [made.get(name, old) for name, old in zip(node.inputs, _operands(n), strict=True)]
                self._call_again(n, node, operands)

    def _insert_behind(self, n: fx.Node, node: Node, operand: fx.Node) -> fx.Node:
        """Let all that reads a call's result read its sum with ``operand``."""
        if self.traced.results.get(origin_of(n)) != Ref(node.outputs[0]):
            raise CannotRewrite(node.origin, "prunec cannot add anything to the result of this call")
        with self.module.graph.inserting_after(n):
            total = self.module.graph.call_function(torch.add, (n, operand))
        n.replace_all_uses_with(total, delete_user_cb=lambda user: user is not total)
        total.meta[ORIGIN] = ""
        return total

    def _call_again(self, n: fx.Node, node: Node, operands: Sequence[Any]) -> None:
        """Call a binary op out of place on other operands."""
        extra = {key: value for key, value in n.kwargs.items() if key in ("alpha", "rounding_mode")}
        call(n, _FUNCTIONS[node.op], *operands, **extra)

    def _add_biases(self) -> None:
        by_name = {node.name: node for node in self.traced.graph.nodes}
        given: set[str] = set()
        for name, bias in self.edits.new_biases.items():
            node = by_name[name]
            n = self.nodes[node.origin]
            if n.op == "call_module" and str(n.target) in given:
                continue  # a module that is called twice: both calls lose the same constants (absorb.clashes)
            tensor = torch.from_numpy(bias)
            if n.op != "call_module" and self._is_result(node, n):
                self._add_after(n, node, tensor)
                continue
            owner = self.module.get_submodule(str(n.target)) if n.op == "call_module" else None
            if owner is None or getattr(owner, "bias", self) is not None:
                raise CannotRewrite(origin_of(n), "prunec cannot give this call a bias")
            weight = getattr(owner, "weight", None)
            like = weight if isinstance(weight, Tensor) else next(owner.parameters())
            owner.bias = parameter_like(like, tensor)
            given.add(str(n.target))

    def _is_result(self, node: Node, n: fx.Node) -> bool:
        """Tell whether an FX node returns what ``node`` computes, its channels still on the same axis.

        ``x @ w`` on inputs of rank 3 multiplies a matrix and reshapes it: the last axis stays the last.
        """
        ref = self.traced.results[origin_of(n)]
        at = node.outputs[0]
        while isinstance(ref, Ref) and at != ref.name:
            following = [i for i in self.traced.graph.consumers(at) if i.origin == node.origin]
            if len(following) == 1 and following[0].attrs.get("behind"):
                at = following[0].outputs[0]
                continue
            if len(following) != 1 or following[0].op not in ("reshape", "identity"):
                return False
            before, after = self.traced.graph.shape(at) or (), self.traced.graph.shape(following[0].outputs[0]) or ()
            if following[0].op == "reshape" and (is_spatial(node) or before[-1:] != after[-1:]):
                return False
            at = following[0].outputs[0]
        return isinstance(ref, Ref)

    def _add_after(self, n: fx.Node, node: Node, bias: Tensor) -> None:
        """Add the bias to the result of a functional contraction, with a node of its own."""
        rank = len(self._result_shape(n))
        name = f"{n.name}_folded_bias"
        shaped = bias.reshape(1, -1, *[1] * (rank - 2)) if is_spatial(node) else bias
        dtype = self.traced.graph.values[node.outputs[0]].dtype
        self.module.register_parameter(
            name, parameter_like(weight_of(self.module, self.traced.graph, node), shaped, dtype)
        )
        with self.module.graph.inserting_after(n):
            attribute = self.module.graph.get_attr(name)
        with self.module.graph.inserting_after(attribute):
            total = self.module.graph.call_function(torch.add, (n, attribute))
        n.replace_all_uses_with(total, delete_user_cb=lambda user: user is not total)

    def _result_shape(self, n: fx.Node) -> Shape:
        ref = self.traced.results[origin_of(n)]
        if not isinstance(ref, Ref):
            raise CannotRewrite(origin_of(n), "prunec cannot give this call a bias")
        return self.traced.graph.shape(ref.name) or ()

    def _cut_inputs(self) -> None:
        by_name = {node.name: node for node in self.traced.graph.nodes}
        for (name, index), value in self.edits.constant_inputs.items():
            node = by_name[name]
            if node.name in self.edits.removed or node.outputs[0] in self.edits.replaced:
                continue
            n = self.nodes[node.origin]
            buffer = add_buffer(self.module, f"{n.name}_constant", torch.from_numpy(np.array(value)))
            with self.module.graph.inserting_before(n):
                stored = self.module.graph.get_attr(buffer)
            operands = _operands(n)
            operands[index] = stored
            self._call_again(n, node, operands)

    def _drop_operands(self) -> None:
        by_name = {node.name: node for node in self.traced.graph.nodes}
        for name, gone in self.edits.dropped_inputs.items():
            n = self.nodes[by_name[name].origin]
            if name in self.edits.removed:
                continue
            key = next((k for k in ("tensors", "input") if k in n.kwargs), None)
            operands = n.kwargs[key] if key else n.args[0]
            if not isinstance(operands, (list, tuple)) or len(operands) != len(by_name[name].inputs):
                raise CannotRewrite(origin_of(n), "prunec cannot take operands out of this call")
            left = [operand for i, operand in enumerate(operands) if i not in gone]
            n.args, n.kwargs = ((left, *n.args[1:]), n.kwargs) if not key else (n.args, {**n.kwargs, key: left})

    def _replace(self) -> None:
        """Take out nodes that now return one of their operands."""
        for value, source in self.edits.replaced.items():
            node = self.traced.graph.producer(value)
            assert node is not None, "a replaced value has a producer"
            n = self.nodes[node.origin]
            if n.args and isinstance(n.args[0], (list, tuple)):
                continue  # a concat of one operand copies it; so does the original
            left = _operands(n)[node.inputs.index(source)]
            if not isinstance(left, fx.Node):
                raise CannotRewrite(origin_of(n), "prunec cannot take an operand out of this call")
            if len(left.users) > 1:
                # Somebody else reads the operand: what reads this node may write into it in place.
                call(n, torch.clone, left)
            else:
                n.replace_all_uses_with(left)
                self.replaced.add(origin_of(n))

    def _erase(self) -> None:
        """Erase what nothing reads any more; statements without readers stay while their tensors live."""
        self._erase_assertions()
        for n in reversed(list(self.module.graph.nodes)):
            if n.op in ("placeholder", "output") or n.users:
                continue
            name = origin_of(n)
            nodes = self.ir_of.get(name, [])
            if is_assignment(n):
                made = [node for source in self._tensors_behind(n) for node in self.ir_of.get(origin_of(source), [])]
                idle = bool(made) and all(node.name in self.edits.removed for node in made)
            elif nodes and name not in self.replaced:
                # A node without readers that still computes something writes into a tensor in place.
                idle = all(node.name in self.edits.removed for node in nodes)
            else:
                # A tensor that comes out as it went in (Identity, Dropout); assertions have no tensor.
                passes = isinstance(self.traced.results.get(name), Ref)
                asked = n.op == "call_function" and n.target is getattr  # x.ndim in the text of an assertion
                idle = n.op == "get_attr" or asked or passes or name in self.traced.unused or name in self.had_users
            if idle:
                self.module.graph.erase_node(n)

    def _erase_assertions(self) -> None:
        """Erase checks of values that are no longer computed: else they keep what they look at alive."""
        for n in list(self.module.graph.nodes):
            if n.op == "call_function" and "assert" in getattr(n.target, "__name__", "") and not n.users:
                read = [self.ir_of.get(origin_of(source), []) for source in self._tensors_behind(n)]
                if any(nodes and all(node.name in self.edits.removed for node in nodes) for nodes in read):
                    self.module.graph.erase_node(n)

    def _tensors_behind(self, n: fx.Node) -> set[fx.Node]:
        """Return the nodes with tensor results that a number, or a comparison of numbers, is taken from."""
        found: set[fx.Node] = set()
        pending = list(n.all_input_nodes)
        while pending:
            source = pending.pop()
            if any(isinstance(leaf, Ref) for leaf in pytree.tree_leaves(self.traced.results.get(origin_of(source)))):
                found.add(source)
            else:
                pending.extend(source.all_input_nodes)
        return found


def _operands(n: fx.Node) -> list[Any]:
    """Return the two operands of a binary call."""
    first = n.args[0] if n.args else n.kwargs.get("input")
    return [first, n.args[1] if len(n.args) > 1 else n.kwargs.get("other")]


_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "add": torch.add,
    "sub": torch.sub,
    "rsub": torch.rsub,
    "mul": torch.mul,
    "div": torch.div,
    "floor_div": torch.floor_divide,
    "mod": torch.remainder,
    "pow": torch.pow,
    "minimum": torch.minimum,
    "maximum": torch.maximum,
    "equal": torch.eq,
    "not_equal": torch.ne,
    "less": torch.lt,
    "less_equal": torch.le,
    "greater": torch.gt,
    "greater_equal": torch.ge,
    "and": torch.logical_and,
    "or": torch.logical_or,
    "xor": torch.logical_xor,
    "atan2": torch.atan2,
}
"""Out-of-place functions for binary ops: an in-place one would write into the stored constant."""
