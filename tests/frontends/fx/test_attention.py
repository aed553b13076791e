"""torch.nn's attention and transformers are followed: heads lose slots, and what feeds them loses channels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import pytest
import torch
from assertions import outputs_of, relative_error
from masking import Mask
from torch import Tensor, nn

from prunec.api import prune_module
from prunec.backends.fx.backend import apply_edits
from prunec.frontends.fx.frontend import trace
from prunec.ir.plan import PrunePlan
from prunec.passes.lowering.lower import lower
from prunec.passes.selection.budget import Target, select_budget
from prunec.passes.selection.criteria import score
from prunec.passes.selection.select import Facts, plan
from prunec.pipeline.apply import apply_plan
from prunec.pipeline.export import export_checked
from prunec.pipeline.planning import gather_facts
from prunec.pipeline.reading import input_specs

TOKENS, WIDTH = 16, 24
pytestmark = pytest.mark.filterwarnings("ignore:.*mismatched.*:UserWarning", "ignore:enable_nested_tensor:UserWarning")


class Stem(nn.Module):
    """Tokens [batch, 16, 24] from an image of 8x8, of which some channels are zero."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, WIDTH, 3, 2, 1), nn.BatchNorm2d(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x))).flatten(2).transpose(1, 2)


class Attending(nn.Module):
    """A stem, one attention layer, and a head."""

    def __init__(self, mask: Tensor | None = None, pad: Tensor | None = None, weights: bool = True, **kw: Any) -> None:
        super().__init__()
        self.stem, self.attend, self.head = Stem(), nn.MultiheadAttention(WIDTH, 4, **kw), nn.Linear(WIDTH, 5)
        self.register_buffer("mask", mask)
        self.register_buffer("pad", pad)
        self.batch_first, self.weights = kw.get("batch_first", False), weights

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x if self.batch_first else x.transpose(0, 1)
        pad = None if self.pad is None else self.pad.expand(x.shape[0 if self.batch_first else 1], -1)
        y, _ = self.attend(x, x, x, pad, need_weights=self.weights, attn_mask=self.mask)
        return self.head(y if self.batch_first else y.transpose(0, 1))  # type: ignore[no-any-return]


class Crossing(nn.Module):
    """Queries, keys and values of different tensors, one batch and no batch."""

    def __init__(self, same: bool = False, batch: bool = True, **kw: Any) -> None:
        super().__init__()
        self.stem, self.head = Stem(), nn.Linear(WIDTH, 5)
        sizes = {} if same else {"kdim": 10, "vdim": 7}
        self.k, self.v = nn.Linear(WIDTH, 10 if not same else WIDTH), nn.Linear(WIDTH, 7 if not same else WIDTH)
        self.attend = nn.MultiheadAttention(WIDTH, 3, batch_first=True, **sizes, **kw)
        self.queries, self.same, self.batch = nn.Parameter(torch.randn(1, 6, WIDTH)), same, batch

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        key = torch.relu(self.k(x))
        value, queries = key if self.same else torch.relu(self.v(x)), self.queries.expand(x.shape[0], -1, -1)
        if not self.batch:
            queries, key, value = (part.flatten(0, 1) for part in (queries, key, value))
        return self.head(self.attend(queries, key, value)[0])  # type: ignore[no-any-return]


class Encoding(nn.Module):
    """A transformer's encoder on top of a stem."""

    def __init__(self, masks: bool = False, **kw: Any) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 40, batch_first=True, **kw)
        self.stem, self.head, self.masks = Stem(), nn.Linear(WIDTH, 5), masks
        self.encoder = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(WIDTH), enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.stem(x)
        if not self.masks:
            return self.head(self.encoder(tokens).mean(1))  # type: ignore[no-any-return]
        outside = (x[:, 0, ::2, ::2].flatten(1) > 0.5) & (torch.arange(TOKENS) > 0)
        bias = torch.triu(torch.full((TOKENS, TOKENS), -3.0), 1).to(x)
        return self.head(self.encoder(tokens, bias, outside).mean(1))  # type: ignore[no-any-return]


class Detecting(nn.Module):
    """A whole transformer, whose decoder starts from learned queries, and a head that returns two outputs."""

    def __init__(self, **kw: Any) -> None:
        super().__init__()
        self.stem, self.boxes, self.classes = Stem(), nn.Linear(WIDTH, 4), nn.Linear(WIDTH, 5)
        self.transformer = nn.Transformer(WIDTH, 4, 1, 2, 40, **kw)
        self.queries = nn.Parameter(torch.randn(7, 1, WIDTH))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.stem(x).transpose(0, 1)
        y = self.transformer(tokens, self.queries.repeat(1, x.shape[0], 1))
        return self.boxes(y), self.classes(y)


def upper(value: Any = True) -> Tensor:
    return torch.triu(torch.full((TOKENS, TOKENS), value), 1)


def padding(value: Any = True) -> Tensor:
    return torch.where(torch.arange(TOKENS) > 12, value, type(value)(0)).reshape(1, TOKENS)


LAYERS: Mapping[str, Callable[[], nn.Module]] = MappingProxyType(
    {
        "sequence first": Attending,
        "batch first": lambda: Attending(batch_first=True),
        "dropout": lambda: Attending(dropout=0.1),
        "no bias": lambda: Attending(bias=False),
        "causal": lambda: Attending(upper(), weights=False),
        "causal numbers": lambda: Attending(upper(-4.0), batch_first=True, weights=False),
        "causal, dropout": lambda: Attending(upper(), dropout=0.1),
        "causal, dropout, no weights": lambda: Attending(upper(), dropout=0.1, weights=False),
        "padding": lambda: Attending(pad=padding(), batch_first=True),
        "padding numbers": lambda: Attending(pad=padding(-2.0)),
        "both masks": lambda: Attending(upper(), padding(), weights=False),
        "both masks, numbers": lambda: Attending(upper(-4.0), padding(-2.0), dropout=0.1),
        "masks of two kinds": lambda: Attending(upper(-4.0), padding(), weights=False),
        "masks of the other two kinds": lambda: Attending(upper(), padding(-2.0), dropout=0.1),
        "three sizes": Crossing,
        "three sizes, no bias": lambda: Crossing(bias=False),
        "keys are values": lambda: Crossing(same=True),
        "no batch": lambda: Crossing(same=True, batch=False),
        "encoder": Encoding,
        "encoder, norm first": lambda: Encoding(norm_first=True, activation="gelu"),
        "encoder, masks": lambda: Encoding(masks=True, dropout=0.0),
        "encoder, masks and dropout": lambda: Encoding(masks=True),
        "transformer": Detecting,
        "transformer, norm first": lambda: Detecting(norm_first=True, dropout=0.0),
    }
)


def make(name: str, silent: bool = True) -> nn.Module:
    torch.manual_seed(0)
    net = LAYERS[name]().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
        if silent:
            net.stem.norm.weight[::3] = 0
        for key, parameter in net.named_parameters() if silent else ():
            if "linear1" in key or key.startswith(("k.", "v.")):
                parameter[::2] = 0
    return net.double()


@pytest.fixture(autouse=True)
def _without_fused_kernels() -> Any:
    """torch.nn's fused kernels take every number in a mask for True, and give NaN where nothing may be looked at."""
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(True)


def images(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", LAYERS)
def test_silent_channels_go_exactly(name: str) -> None:
    net = make(name)
    result = prune_module(net, (images(),))
    assert result.plan.exact
    assert result.report.removed_channels > 0
    assert not any("look into" in pin.reason for pin in result.report.pins)
    for batch in (2, 3):
        assert relative_error(outputs_of(net, images(batch)), outputs_of(result.module, images(batch))) <= 1e-12


def zeroed(net: nn.Module, facts: Facts, keep: Mask) -> nn.Module:
    """Return the network with zeros in every slice of a parameter that a removed channel lies on."""
    tensors = dict((*net.named_parameters(), *net.named_buffers()))
    with torch.no_grad():
        for member in (m for m in facts.classes.members if m.param in tensors):
            gone = torch.from_numpy(~keep[facts.classes.class_of[member.ids]]).nonzero().flatten()
            tensors[member.param].index_fill_(member.axis, gone, 0.0)
    return net


@pytest.mark.parametrize("name", LAYERS)
def test_a_budget_computes_what_the_network_with_zeros_does(name: str) -> None:
    net, inputs = make(name, silent=False), (images(),)
    traced = trace(net, inputs)
    facts = gather_facts(traced.graph)
    selection = select_budget(facts, score(facts, "l1"), Target(params=0.6))
    made = plan(facts, selection, input_specs(traced.graph, inputs))
    pruned = apply_edits(traced, lower(traced.graph, facts.classes, made, facts.constants))
    assert (~selection.keep).any()
    assert relative_error(outputs_of(zeroed(net, facts, selection.keep), *inputs), outputs_of(pruned, *inputs)) <= 1e-9


@pytest.mark.parametrize("name", ["batch first", "three sizes, no bias", "encoder", "transformer"])
def test_heads_lose_channels(name: str) -> None:
    result = prune_module(make(name), (images(),), criterion="l1", target_params=0.5, multiple_of=1)
    before = {key: parameter.shape for key, parameter in make(name).named_parameters()}
    projections = [key for key in before if "proj" in key and key.endswith("weight")]
    after = dict(result.module.named_parameters())
    assert projections
    assert any(after[key].shape[0] < before[key][0] for key in projections)


@pytest.mark.parametrize("name", ["dropout", "encoder, masks and dropout"])
def test_dropout_follows_the_mode_of_the_pruned_network(name: str) -> None:
    result = prune_module(make(name).train(), (images(),), validate=False)
    assert not torch.equal(result.module(images()), result.module(images()))
    result.module.eval()
    assert torch.equal(result.module(images()), result.module(images()))


def test_a_plan_applies_to_a_fresh_network() -> None:
    result = prune_module(make("transformer"), (images(),))
    rebuilt = apply_plan(make("transformer"), PrunePlan.from_json(result.plan.to_json()))
    rebuilt.load_state_dict(result.module.state_dict())
    assert relative_error(outputs_of(result.module, images()), outputs_of(rebuilt, images())) == 0.0


@pytest.mark.parametrize("name", ["sequence first", "both masks, numbers", "encoder, masks", "transformer"])
def test_the_pruned_network_becomes_onnx(name: str, tmp_path: object) -> None:
    net = make(name).float()
    example = (images(1).float(),)
    checked = export_checked(prune_module(net, example).module, example, f"{tmp_path}/net.onnx", original=net)
    assert checked.passed


class Looking(nn.Module):
    """Returns where it looked."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.attend = Stem(), nn.MultiheadAttention(WIDTH, 4, batch_first=True)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        return self.attend(x, x, x)


@pytest.mark.parametrize("net", [Looking(), Attending(add_bias_kv=True), Attending(add_zero_attn=True)])
def test_what_is_not_written_out_stays_a_layer_that_is_named(net: nn.Module) -> None:
    (leaf,) = (node for node in trace(net, (torch.zeros(2, 3, 8, 8),)).graph.nodes if node.op == "opaque")
    assert leaf.attrs["reason"] == "prunec does not look into MultiheadAttention modules"


def test_the_users_module_keeps_its_layers() -> None:
    net = make("encoder")
    before = {key: type(sub) for key, sub in net.named_modules()}
    prune_module(net, (images(),))
    assert {key: type(sub) for key, sub in net.named_modules()} == before
