"""torch.nn's attention and transformers as FX nodes that prunec follows, instead of leaf modules that it does not.

Owns two things: forwards of torch.nn's transformers that torch.fx can trace (their own look at sizes, to choose a
fused kernel), and ``expand``, which writes each call of an ``nn.MultiheadAttention`` out as projections and
scaled dot products. Parameters keep their names. A call that it does not recognise stays a leaf, which is pinned.
"""

from __future__ import annotations

import copy
import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from prunec.frontends.fx.running.arguments import with_tensors
from prunec.frontends.fx.running.meta import MetaMode, fake_tensors
from prunec.frontends.fx.running.unwritten import unwritten
from prunec.frontends.fx.tracing.switches import is_cast

# --- transformers -------------------------------------------------------------------------------------


def _encoder(m: nn.TransformerEncoder, src: Any, mask: Any = None, src_key_padding_mask: Any = None, **_: Any) -> Any:
    for layer in m.layers:
        src = layer(src, src_mask=mask, src_key_padding_mask=src_key_padding_mask)
    return src if m.norm is None else m.norm(src)


def _encoder_layer(
    m: nn.TransformerEncoderLayer, src: Any, src_mask: Any = None, src_key_padding_mask: Any = None, **_: Any
) -> Any:
    if m.norm_first:
        src = src + m._sa_block(m.norm1(src), src_mask, src_key_padding_mask)
        return src + m._ff_block(m.norm2(src))
    src = m.norm1(src + m._sa_block(src, src_mask, src_key_padding_mask))
    return m.norm2(src + m._ff_block(src))


def _decoder(m: nn.TransformerDecoder, tgt: Any, memory: Any, *masks: Any, **named: Any) -> Any:
    for layer in m.layers:
        tgt = layer(tgt, memory, *masks[:4], **_without_hints(named))
    return tgt if m.norm is None else m.norm(tgt)


def _decoder_layer(m: nn.TransformerDecoderLayer, *args: Any, **named: Any) -> Any:
    return nn.TransformerDecoderLayer.forward(m, *args[:6], **_without_hints(named))


def _transformer(
    m: nn.Transformer,
    src: Any,
    tgt: Any,
    src_mask: Any = None,
    tgt_mask: Any = None,
    memory_mask: Any = None,
    src_key_padding_mask: Any = None,
    tgt_key_padding_mask: Any = None,
    memory_key_padding_mask: Any = None,
    **_: Any,
) -> Any:
    memory = m.encoder(src, src_mask, src_key_padding_mask)
    return m.decoder(tgt, memory, tgt_mask, memory_mask, tgt_key_padding_mask, memory_key_padding_mask)


def _without_hints(named: Mapping[str, Any]) -> dict[str, Any]:
    """Drop the hints that a mask is causal: the mask itself is there too."""
    return {key: value for key, value in named.items() if not key.endswith("is_causal")}


FORWARDS: Mapping[type[nn.Module], Callable[..., Any]] = MappingProxyType(
    {
        nn.TransformerEncoder: _encoder,
        nn.TransformerEncoderLayer: _encoder_layer,
        nn.TransformerDecoder: _decoder,
        nn.TransformerDecoderLayer: _decoder_layer,
        nn.Transformer: _transformer,
    }
)
"""What torch.fx traces in place of a module's own forward. Exact types only: a subclass may do anything."""


# --- attention ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a run on shapes showed of an FX node's result."""

    rank: int
    dtype: torch.dtype


def expand(module: fx.GraphModule, inputs: Sequence[Any]) -> fx.GraphModule | None:
    """Return a copy of ``module`` with its attention written out; None where there is none to write out.

    Parameters are shared with ``module``, which is left as it is.
    """
    if not any(_is_attention(module, node) for node in module.graph.nodes):
        return None
    made = unwritten(module, copy.deepcopy(module.graph), module.__class__.__name__)
    seen = _run(made, inputs)
    for target in dict.fromkeys(str(n.target) for n in made.graph.nodes if _is_attention(made, n)):
        _expand_calls(made, target, seen)
    if len(made.graph.nodes) == len(module.graph.nodes):
        return None
    made.graph.lint()
    return made


def _expand_calls(module: fx.GraphModule, target: str, seen: Mapping[str, _Seen]) -> None:
    """Write all calls of one layer out, or none."""
    layer = module.get_submodule(target)
    assert isinstance(layer, nn.MultiheadAttention)
    sites = [_site(module, n, layer, seen) for n in module.graph.nodes if n.op == "call_module" and n.target == target]
    if all(sites):
        module.set_submodule(target, _holder(layer))
        for site in sites:
            assert site is not None
            _write_out(site, seen)


_DROPOUT = "weights_dropout"


def _holder(layer: nn.MultiheadAttention) -> nn.Module:
    """Return a bare module with the parameters of an attention layer: its sizes may change, its forward is gone."""
    bare = nn.Module()
    bare._parameters = dict(layer._parameters)
    bare._modules = {**layer._modules, _DROPOUT: nn.Dropout(layer.dropout)}
    bare.training = layer.training
    return bare


def follow_modes(made: fx.GraphModule, modes: Mapping[str, bool]) -> None:
    """Put what was made for an attention layer in the mode (train or eval) that the layer itself is in.

    ``modes`` are those of the user's modules, by name; a network is read in eval mode.
    """
    for name, layer in made.named_modules():
        if type(layer) is nn.Module and _DROPOUT in layer._modules and name in modes:
            layer.training = layer._modules[_DROPOUT].training = modes[name]  # type: ignore[union-attr]  # a module


def _is_attention(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op != "call_module":
        return False
    layer = module.get_submodule(str(node.target))
    hooked = layer._forward_hooks or layer._forward_pre_hooks
    return type(layer) is nn.MultiheadAttention and not hooked


def _run(module: fx.GraphModule, inputs: Sequence[Any]) -> Mapping[str, _Seen]:
    """Return the rank and type of every FX node's result, by running the module on shapes."""
    walk = _Walk(module)
    try:
        with MetaMode() as mode:
            walk.run(*with_tensors(inputs, lambda _, tensor: mode.twin(tensor)))
    except Exception:  # noqa: BLE001  # some kernels do not run on the meta device
        with fake_tensors() as fake:
            walk.run(*with_tensors(inputs, lambda _, tensor: fake.from_tensor(tensor)))
    return walk.seen


class _Walk(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.seen: dict[str, _Seen] = {}
        self.extra_traceback = False

    def run_node(self, n: fx.Node) -> Any:
        if n.target is setattr or is_cast(n):
            return None  # a parameter is assigned what has its shape
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.seen[n.name] = _Seen(result.dim(), result.dtype)
        return result


@dataclass(frozen=True, slots=True)
class _Site:
    """One call of an attention layer, and where to write it out.

    ``given`` are the arguments by name, ``rank`` is the query's: 2 where there is no batch.
    """

    module: fx.GraphModule
    node: fx.Node
    layer: nn.MultiheadAttention
    given: Mapping[str, Any]
    rank: int

    @property
    def shows_weights(self) -> bool:
        """Tell whether the call asks for the attention weights too.

        Then the layer computes them with a plain softmax; else a query that may look at nothing gets zeros, not NaN.
        """
        return bool(self.given.get("need_weights", True))

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        return self.node.graph.call_function(function, args, kwargs)

    def method(self, name: str, *args: Any) -> fx.Node:
        return self.node.graph.call_method(name, args)

    def parameter(self, name: str) -> fx.Node | None:
        """Read a parameter of the layer; None where it has none of that name."""
        owner, _, attribute = name.rpartition(".")
        if getattr(self.layer.get_submodule(owner), attribute) is None:
            return None
        return self.node.graph.get_attr(f"{self.node.target}.{name}")

    def split(self, whole: fx.Node | None, sizes: Sequence[int], axis: int = 0) -> list[fx.Node | None]:
        if whole is None:
            return [None] * len(sizes)
        parts = self.call(torch.split, whole, list(sizes), dim=axis)
        return [self.call(operator.getitem, parts, number) for number in range(len(sizes))]


@dataclass(frozen=True, slots=True)
class _Mask:
    """A mask: True where a query must not look, or numbers that are added to the scores."""

    node: fx.Node
    boolean: bool


def _site(
    module: fx.GraphModule, node: fx.Node, layer: nn.MultiheadAttention, seen: Mapping[str, _Seen]
) -> _Site | None:
    """Return a call that can be written out; None where it cannot be."""
    given = inspect.signature(layer.forward).bind(*node.args, **node.kwargs).arguments
    tensors = [given.get(name) for name in ("query", "key", "value", "attn_mask", "key_padding_mask")]
    plain = layer.bias_k is None and layer.bias_v is None and not layer.add_zero_attn
    known = all(tensor is None or (isinstance(tensor, fx.Node) and tensor.name in seen) for tensor in tensors)
    if not plain or not known or not all(map(_is_read, node.users)):
        return None
    return _Site(module, node, layer, given, seen[given["query"].name].rank)


def _write_out(at: _Site, seen: Mapping[str, _Seen]) -> None:
    """Put the nodes of one call in its place."""
    graph = at.node.graph
    with graph.inserting_before(at.node):
        parts = [_heads(at, part) for part in _projected(at, *(at.given[name] for name in ("query", "key", "value")))]
        result = _attend(at, parts, _mask(at, seen))
    for user in list(at.node.users):
        if user.args[1] == 0:
            user.replace_all_uses_with(result)
        graph.erase_node(user)
    graph.erase_node(at.node)


def _is_read(user: fx.Node) -> bool:
    """Tell whether a reader takes the output, or weights that nobody looks at."""
    return user.target is operator.getitem and bool(user.args[1] == 0 or not user.users)


def _projected(at: _Site, query: fx.Node, key: fx.Node, value: fx.Node) -> list[fx.Node | None]:
    """Return q, k and v, [..., embed_dim]: one matrix product for all that are made from the same tensor."""
    size = at.layer.embed_dim
    bias = at.parameter("in_proj_bias")
    if at.layer.in_proj_weight is None:
        weights = [at.parameter(f"{name}_proj_weight") for name in "qkv"]
        biases = at.split(bias, [size] * 3)
    elif query is key is value:
        return at.split(at.call(F.linear, query, at.parameter("in_proj_weight"), bias), [size] * 3, -1)
    elif key is value:
        (w_q, w_kv), (b_q, b_kv) = (
            at.split(whole, [size, 2 * size]) for whole in (at.parameter("in_proj_weight"), bias)
        )
        return [at.call(F.linear, query, w_q, b_q), *at.split(at.call(F.linear, key, w_kv, b_kv), [size] * 2, -1)]
    else:
        weights, biases = (at.split(whole, [size] * 3) for whole in (at.parameter("in_proj_weight"), bias))
    return [at.call(F.linear, x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True)]


def _order(at: _Site) -> tuple[int, ...]:
    """Return the axes [..., head, position, channel] of a tensor whose last axis was split in heads and channels."""
    if at.rank == 2:
        return 1, 0, 2
    return (0, 2, 1, 3) if at.layer.batch_first else (1, 2, 0, 3)


def _heads(at: _Site, x: fx.Node | None) -> fx.Node:
    split = at.method("unflatten", x, -1, (at.layer.num_heads, at.layer.head_dim))
    return at.method("permute", split, *_order(at))


def _attend(at: _Site, parts: Sequence[fx.Node], mask: _Mask | None) -> fx.Node:
    """Return what the layer returns: attention, the heads side by side, and the last projection."""
    q, k, v = parts
    if at.layer.dropout == 0 and (mask is None or not at.shows_weights):
        y = at.call(F.scaled_dot_product_attention, q, k, v, attn_mask=None if mask is None else _allowed(at, mask))
    else:
        weights = at.call(torch.softmax, _scores(at, q, k, mask), dim=-1)
        if mask is not None and not at.shows_weights:
            weights = at.call(torch.nan_to_num, weights)  # a query that may look at nothing gets zeros
        y = at.call(torch.matmul, _dropped(at, weights), v)
    back = sorted(range(at.rank + 1), key=_order(at).__getitem__)
    y = at.method("flatten", at.method("permute", y, *back), -2)
    return at.call(F.linear, y, at.parameter("out_proj.weight"), at.parameter("out_proj.bias"))


def _allowed(at: _Site, mask: _Mask) -> fx.Node:
    """Return a mask as F.scaled_dot_product_attention takes it: True where a query may look."""
    return at.call(torch.logical_not, mask.node) if mask.boolean else mask.node


def _scores(at: _Site, q: fx.Node, k: fx.Node, mask: _Mask | None) -> fx.Node:
    scaled = at.call(operator.mul, q, at.layer.head_dim**-0.5)
    scores = at.call(torch.matmul, scaled, at.method("transpose", k, -2, -1))
    if mask is None:
        return scores
    if mask.boolean:
        return at.method("masked_fill", scores, mask.node, -torch.inf)
    return at.call(operator.add, scores, mask.node)


def _dropped(at: _Site, weights: fx.Node) -> fx.Node:
    """Drop weights while training: a module, so that the mode is the network's."""
    return at.node.graph.call_module(f"{at.node.target}.{_DROPOUT}", (weights,))


def _mask(at: _Site, seen: Mapping[str, _Seen]) -> _Mask | None:
    """Return all masks given as one, which broadcasts against [..., head, query, key]."""
    masks = [at.given.get(name) for name in ("attn_mask", "key_padding_mask")]
    found = [
        _Mask(shaped(at, mask, seen[mask.name].rank), seen[mask.name].dtype is torch.bool)
        for mask, shaped in zip(masks, (_over_heads, _over_keys), strict=True)
        if mask is not None
    ]
    if len(found) < 2:
        return found[0] if found else None
    first, second = sorted(found, key=lambda mask: not mask.boolean)
    if second.boolean:
        return _Mask(at.call(torch.logical_or, first.node, second.node), boolean=True)
    if first.boolean:
        return _Mask(at.call(torch.where, first.node, -torch.inf, second.node), boolean=False)
    return _Mask(at.call(operator.add, first.node, second.node), boolean=False)


def _over_heads(at: _Site, mask: fx.Node, rank: int) -> fx.Node:
    """[query, key] broadcasts as it is; [batch * head, query, key] is split where there is a batch."""
    return at.method("unflatten", mask, 0, (-1, at.layer.num_heads)) if rank == at.rank == 3 else mask


def _over_keys(at: _Site, mask: fx.Node, rank: int) -> fx.Node:
    """[key] broadcasts as it is; [batch, key] gets axes for heads and queries."""
    return at.method("unsqueeze", at.method("unsqueeze", mask, 1), 1) if rank == 2 else mask
