"""The check run of a pruned GraphModule: every node's shape, on tensors without values, as the plan has it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from prunec.backends.fx.origin import origin_of
from prunec.frontends.fx.recorder import is_assignment
from prunec.frontends.fx.running.arguments import with_tensors
from prunec.frontends.fx.running.meta import MetaMode, fake_tensors
from prunec.frontends.fx.running.untouched import Untouched, eval_mode
from prunec.frontends.fx.traced import Ref, Traced
from prunec.frontends.fx.tracing.switches import is_cast
from prunec.ir.edits import CannotRewrite, Edits


def check_shapes(traced: Traced, edits: Edits, module: fx.GraphModule) -> None:
    """Run a pruned module under fake tensors and compare every node's shapes with the plan's.

    Raises:
        CannotRewrite: naming the first node that fails or has another shape.
    """
    nothing = Untouched(module, traced.example_inputs)
    try:
        with nothing.block(on_shapes=True), MetaMode():
            _check_shapes(traced, edits, module)
    except CannotRewrite:
        with nothing.block(on_shapes=True), fake_tensors():  # some kernels do not run on the meta device
            _check_shapes(traced, edits, module)


def _check_shapes(traced: Traced, edits: Edits, module: fx.GraphModule) -> None:
    shapes = [traced.graph.values[name].shape for name in traced.graph.inputs]
    with eval_mode(module), torch.no_grad():
        rest = iter([tuple(size for size in shape or () if isinstance(size, int)) for shape in shapes])
        inputs = with_tensors(traced.example_inputs, lambda _, i: torch.empty(next(rest), dtype=i.dtype, device="cpu"))
        _Check(module, traced, edits).run(*inputs)


class _Check(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, traced: Traced, edits: Edits) -> None:
        super().__init__(module)
        self.traced, self.edits = traced, edits
        self.extra_traceback = False

    def fetch_attr(self, target: str) -> Any:
        """As in frontends/fx/recorder.py."""
        found = self.submodules.get(target)
        return super().fetch_attr(target) if found is None else found

    def run_node(self, n: fx.Node) -> Any:
        if is_cast(n):
            return None
        if is_assignment(n):
            return self._assigned(n, *self.fetch_args_kwargs_from_env(n)[0])
        try:  # less than the base class does, which keeps stack traces for compilers
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            result = getattr(self, n.op)(n.target, args, kwargs)
        except Exception as error:  # whatever a call with wrong sizes raises
            first = next(iter(str(error).splitlines()), type(error).__name__)
            reason = f"it does not run with fewer channels ({first[:120]})"
            raise CannotRewrite(self._blamed(n), reason) from error
        expected = self.traced.results.get(origin_of(n))
        if n.op != "output" and not isinstance(expected, int | float | None):  # those have no tensors
            self._compare(n, expected, result)
        return result

    def _assigned(self, n: fx.Node, tensor: Tensor, _: str, value: Tensor) -> None:
        """Compare sizes instead of assigning: on shapes, a parameter would be left without values."""
        if tensor.shape != value.shape:
            reason = f"a parameter of shape {tuple(tensor.shape)} is assigned one of shape {tuple(value.shape)}"
            raise CannotRewrite(self._blamed(n), reason)

    def _blamed(self, n: fx.Node) -> str:
        """Return the nearest node, going back, that computes a tensor: only of such are there channels to pin."""
        with_channels = {node.origin for node in self.traced.graph.nodes}
        pending = [n]
        while pending:
            at = pending.pop(0)
            if origin_of(at) in with_channels:
                return origin_of(at)
            pending.extend(at.all_input_nodes)
        return origin_of(n)

    def _compare(self, n: fx.Node, expected: Any, result: Any) -> None:
        if n.op == "get_attr":
            return
        with torch._C.DisableTorchFunction():  # who watches calls need not be told of each look at a tensor
            sizes = [tuple(tensor.shape) for tensor in _leaves(result, Tensor)]
        for ref, found in zip(_leaves(expected, Ref), sizes, strict=False):
            shape = self.edits.shapes.get(ref.name, self.traced.graph.shape(ref.name))
            if shape is not None and found != shape:
                raise CannotRewrite(origin_of(n), f"its sizes do not follow when channels go: {found}, planned {shape}")


def _leaves(tree: Any, kind: type) -> list[Any]:
    return [tree] if isinstance(tree, kind) else [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, kind)]
