"""Random networks: a short printable spec, drawn by hypothesis, and the builder that makes a module of it.

A spec is a tuple of steps; each step reads earlier results by number and appends its own. Every new op
of the vocabulary joins here, so that the properties in test_properties.py cover it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from modules.handmade import BY_HAND, READS

IN_CHANNELS = 3
SIZE = 12


@dataclass(frozen=True)
class Step:
    """One op: its kind, the results that it reads (0 is the input), and its options."""

    kind: str
    reads: tuple[int, ...]
    options: tuple[tuple[str, Any], ...] = ()

    def __getitem__(self, name: str) -> Any:
        return dict(self.options)[name]


@dataclass(frozen=True)
class Spec:
    """A network: its steps, how it ends, and the seed of its weights."""

    steps: tuple[Step, ...]
    head: str
    seed: int


@dataclass(frozen=True)
class Meta:
    """What the strategy knows of a result: channels and the factor by which its map is smaller."""

    channels: int
    scale: int


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: nn.ReLU(inplace=True),
    "sigmoid": nn.Sigmoid,
    "hardswish": nn.Hardswish,
    "silu": nn.SiLU,
    "leaky": lambda: nn.LeakyReLU(0.1),
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "relu6": nn.ReLU6,
    "elu": nn.ELU,
    "none": nn.Identity,
}


class RandomNet(nn.Module):
    """The module of a spec. Only modules and functions that people write by hand."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec
        self.layers = nn.ModuleDict()
        metas = [Meta(IN_CHANNELS, 1)]
        for number, step in enumerate(spec.steps):
            layer, meta = _build(step, [metas[i] for i in step.reads])
            if layer is not None:
                self.layers[str(number)] = layer
            metas.append(meta)
        last = metas[-1]
        if spec.head == "linear":
            self.fc = nn.Linear(last.channels, 5)
        elif spec.head == "flatten":
            self.fc = nn.Linear(last.channels * (SIZE // last.scale) ** 2, 5)
        elif spec.head == "conv":
            self.fc = nn.Conv2d(last.channels, 4, 3, padding=1)
        else:
            self.fc = nn.Conv2d(last.channels, 4, 1)
            self.side = nn.Conv2d(metas[max(1, len(metas) - 2)].channels, 2, 1)

    @property
    def any_size(self) -> bool:
        return self.spec.head != "flatten" and all(step.kind != "by_hand" for step in self.spec.steps)

    def forward(self, x: Tensor) -> Any:
        results = [x]
        for number, step in enumerate(self.spec.steps):
            layer = self.layers[str(number)] if str(number) in self.layers else None  # noqa: SIM401  # ModuleDict has no get
            if step.kind == "again":
                weight = self.layers[str(step["of"])].conv.weight
                results.append(READS[step["how"]][1](results[step.reads[0]], weight))
                continue
            results.append(_run(step, layer, [results[i] for i in step.reads]))
        y = results[-1]
        if self.spec.head == "linear":
            return self.fc(F.adaptive_avg_pool2d(y, 1).flatten(1))
        if self.spec.head == "flatten":
            return self.fc(torch.flatten(y, 1))
        if self.spec.head == "conv":
            return self.fc(y)
        return {"main": self.fc(y), "side": self.side(results[max(1, len(results) - 2)])}


class ConvBlock(nn.Module):
    """Convolution, optional BatchNorm, activation."""

    def __init__(self, conv: nn.Module, channels: int, norm: str, act: str) -> None:
        super().__init__()
        self.conv = conv
        self.norm = {
            "bn": nn.BatchNorm2d,
            "in": lambda c: nn.InstanceNorm2d(c, affine=True),
            "none": lambda c: nn.Identity(),
        }[norm](channels)
        self.act = ACTIVATIONS[act]()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))


class SqueezeExcite(nn.Module):
    """A gate per channel, from global pooling."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, max(2, channels // 2), 1)
        self.up = nn.Conv2d(max(2, channels // 2), channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))


class Inverted(nn.Module):
    """A depthwise convolution, a gate and a projection, as in MobileNetV3."""

    def __init__(self, channels: int, out: int, act: str) -> None:
        super().__init__()
        conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.depthwise = ConvBlock(conv, channels, "bn", act)
        self.gate = SqueezeExcite(channels)
        self.project = nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.gate(self.depthwise(x)))  # type: ignore[no-any-return]  # nn.Module's call is untyped


class LayerScale(nn.Module):
    """A learned factor per channel, as a plain parameter."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain


class StandardisedConv(nn.Conv2d):
    """Weight standardisation: the weight is computed from a parameter."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, w, self.bias, self.stride, self.padding, self.dilation, self.groups)


def _build(step: Step, ins: list[Meta]) -> tuple[nn.Module | None, Meta]:
    x = ins[0]
    kind = step.kind
    if kind in ("conv", "depthwise", "grouped", "transposed", "standardised"):
        return _build_conv(step, x)
    if kind == "concat":
        return None, Meta(sum(i.channels for i in ins), x.scale)
    if kind == "by_hand":
        return None, Meta(BY_HAND[step["how"]].channels(x.channels), int(x.scale / BY_HAND[step["how"]].scale))
    if kind == "again":
        return None, Meta(step["out"], x.scale)
    if kind == "split":
        return None, Meta(x.channels - x.channels // 2, x.scale)
    if kind == "slice":
        return None, Meta(len(range(step["start"], step["end"], step["step"])), x.scale)
    if kind == "padded":
        return None, Meta(x.channels + step["low"] + step["high"], x.scale)
    if kind == "pool":
        return None, Meta(x.channels, x.scale * (2 if step["stride"] == 2 else 1))
    if kind == "upsample":
        return None, Meta(x.channels, x.scale // 2)
    if kind == "pixel_shuffle":
        return nn.PixelShuffle(2), Meta(x.channels // 4, x.scale // 2)
    if kind == "pixel_unshuffle":
        return nn.PixelUnshuffle(2), Meta(x.channels * 4, x.scale * 2)
    if kind == "se":
        return SqueezeExcite(x.channels), x
    if kind == "inverted":
        return Inverted(x.channels, step["out"], step["act"]), Meta(step["out"], x.scale)
    if kind == "scale":
        return LayerScale(x.channels), x
    if kind == "prelu":
        return nn.PReLU(x.channels), x
    if kind == "norm":
        return nn.BatchNorm2d(x.channels), x
    if kind == "act":
        return ACTIVATIONS[step["act"]](), x
    return None, x


def _build_conv(step: Step, x: Meta) -> tuple[nn.Module, Meta]:
    out, kernel, stride, bias = step["out"], step["kernel"], step["stride"], step["bias"]
    padding = (kernel // 2) * step["dilation"]
    if step.kind == "transposed":
        conv: nn.Module = nn.ConvTranspose2d(x.channels, out, 2, stride=2, bias=bias, groups=step["groups"])
        return ConvBlock(conv, out, step["norm"], step["act"]), Meta(out, x.scale // 2)
    make = StandardisedConv if step.kind == "standardised" else nn.Conv2d
    conv = make(x.channels, out, kernel, stride, padding, step["dilation"], groups=step["groups"], bias=bias)
    return ConvBlock(conv, out, step["norm"], step["act"]), Meta(out, x.scale * stride)


def _run(step: Step, layer: nn.Module | None, ins: list[Tensor]) -> Tensor:
    x = ins[0]
    kind = step.kind
    if layer is not None:
        return layer(x)  # type: ignore[no-any-return]  # nn.Module's call is untyped
    if kind == "add":
        return x + ins[1]
    if kind == "mul":
        return x * ins[1]
    if kind == "concat":
        return torch.cat(ins, dim=1)
    if kind == "split":
        return torch.split(x, x.shape[1] // 2, dim=1)[step["piece"]]
    if kind == "slice":
        return x[:, step["start"] : step["end"] : step["step"]]
    if kind == "padded":
        return F.pad(x, (0, 0, 0, 0, step["low"], step["high"]))
    if kind == "pool":
        if step["mode"] == "max":
            return F.max_pool2d(x, 3, step["stride"], padding=1)
        return F.avg_pool2d(x, 3, step["stride"], padding=1, count_include_pad=step["counts"])
    if kind == "by_hand":
        return BY_HAND[step["how"]].run(x, ins[1])
    if kind == "upsample":
        return F.interpolate(x, scale_factor=2, mode=step["mode"])
    if kind == "shuffle":
        n, c, h, w = x.shape
        return x.view(n, step["groups"], c // step["groups"], h, w).transpose(1, 2).reshape(n, c, h, w)
    assert kind == "affine", kind
    return x * 0.5 + 0.25


@st.composite
def specs(draw: st.DrawFn, max_steps: int = 9, gated: bool = False, wild: bool = False) -> Spec:
    """Draw a network in which every step fits what it reads.

    Args:
        gated: inverted residuals with gates, too.
        wild: movements written by hand and weights that several layers read in different ways, too.
    """
    metas = [Meta(IN_CHANNELS, 1)]
    steps: list[Step] = []
    count = draw(st.integers(2, max_steps))
    for _ in range(count):
        step, meta = draw(_wild_step(tuple(steps), tuple(metas))) if wild and draw(st.booleans()) else (None, None)
        if step is None or meta is None:
            step, meta = draw(_step(tuple(metas), gated))
        steps.append(step)
        metas.append(meta)
    head = draw(st.sampled_from(["linear", "flatten", "conv", "two"]))
    return Spec(tuple(steps), head, draw(st.integers(0, 2**16)))


@st.composite
def _step(draw: st.DrawFn, metas: tuple[Meta, ...], gated: bool) -> tuple[Step, Meta]:
    # Recent results are read more often, so that networks are deep and not a bush.
    at = max(0, len(metas) - 1 - draw(st.sampled_from([0, 0, 0, 1, 2])))
    x = metas[at]
    kinds = ["conv", "conv", "conv", "pool", "act", "norm", "scale", "affine"]
    twins = [i for i, m in enumerate(metas) if m == x and i != at]
    joined = [i for i, m in enumerate(metas) if m.scale == x.scale and i != at]
    if at > 0:
        kinds += ["depthwise", "se", "prelu", "padded", "standardised"]
        kinds += ["inverted", "inverted"] if gated else []
        kinds += ["grouped", "split", "shuffle", "shuffle"] if x.channels % 2 == 0 and x.channels >= 4 else []
        kinds += ["slice"] if x.channels > 3 else []
        kinds += ["pixel_shuffle"] if x.channels % 4 == 0 and x.channels >= 8 and x.scale > 1 else []
        kinds += ["pixel_unshuffle"] if x.channels <= 8 and x.scale <= 2 else []
        kinds += ["upsample", "transposed"] if x.scale > 1 else []
    kinds += ["add", "add", "add", "mul"] if twins else []
    kinds += ["concat", "concat"] if joined and x.channels < 24 else []
    step = draw(_options(draw(st.sampled_from(kinds)), at, x, tuple(twins), tuple(joined)))
    _, meta = _build(step, [metas[i] for i in step.reads])
    return step, meta


@st.composite
def _wild_step(
    draw: st.DrawFn, steps: tuple[Step, ...], metas: tuple[Meta, ...]
) -> tuple[Step, Meta] | tuple[None, None]:
    """Draw a movement by hand, or a layer that reads the weight of an earlier one; nothing where neither fits."""
    at = max(0, len(metas) - 1 - draw(st.sampled_from([0, 0, 0, 1])))
    x = metas[at]
    fitting = [
        Step("again", (at,), (("of", number), ("how", how), ("out", rows if reads_inputs else columns)))
        for number, step in enumerate(steps)
        if step.kind == "conv"
        for rows, columns in [(step["out"], metas[step.reads[0]].channels)]
        for how, (reads_inputs, _) in READS.items()
        if x.channels == (columns if reads_inputs else rows)
    ]
    moves = [how for how, move in BY_HAND.items() if at > 0 and move.takes(x.channels, x.scale)]
    if fitting and (not moves or draw(st.booleans())):
        step = draw(st.sampled_from(fitting))
    elif moves:
        step = Step("by_hand", (at, 0 if x.scale == 1 else at), (("how", draw(st.sampled_from(moves))),))
    else:
        return None, None
    return step, _build(step, [metas[i] for i in step.reads])[1]


@st.composite
def _options(draw: st.DrawFn, kind: str, at: int, x: Meta, twins: tuple[int, ...], joined: tuple[int, ...]) -> Step:
    if kind in ("conv", "depthwise", "grouped", "transposed", "standardised"):
        return Step(kind, (at,), draw(_conv_options(kind, x)))
    if kind in ("add", "mul"):
        return Step(kind, (at, draw(st.sampled_from(twins))))
    if kind == "concat":
        return Step(kind, (at, draw(st.sampled_from(joined))))
    options: dict[str, Any] = {}
    if kind == "split":
        options = {"piece": draw(st.integers(0, 1))}
    elif kind == "slice":
        start = draw(st.integers(0, x.channels - 3))
        end = draw(st.integers(start + 2, x.channels))
        options = {"start": start, "end": end, "step": draw(st.integers(1, min(2, end - start - 1)))}
    elif kind == "padded":
        options = {"low": draw(st.integers(0, 3)), "high": draw(st.integers(0, 3))}
    elif kind == "pool":
        stride = draw(st.sampled_from([1, 2])) if x.scale <= 2 else 1
        options = {"mode": draw(st.sampled_from(["max", "avg"])), "stride": stride, "counts": draw(st.booleans())}
    elif kind == "upsample":
        options = {"mode": draw(st.sampled_from(["nearest", "bilinear"]))}
    elif kind == "shuffle":
        options = {"groups": 2}
    elif kind == "inverted":
        options = {"out": draw(st.integers(2, 8)), "act": draw(st.sampled_from(sorted(ACTIVATIONS)))}
    elif kind == "act":
        options = {"act": draw(st.sampled_from(sorted(ACTIVATIONS)))}
    return Step(kind, (at,), tuple(options.items()))


@st.composite
def _conv_options(draw: st.DrawFn, kind: str, x: Meta) -> tuple[tuple[str, Any], ...]:
    groups, out = 1, draw(st.integers(2, 8))
    if kind == "depthwise":
        groups = x.channels
        out = x.channels * draw(st.sampled_from([1, 1, 2]))
    elif kind == "grouped":
        groups, out = 2, 2 * draw(st.integers(1, 5))
    elif kind == "transposed" and x.channels % 2 == 0:
        groups = draw(st.sampled_from([1, 2]))
        out = groups * draw(st.integers(2, 5))
    return (
        ("out", out),
        ("kernel", draw(st.sampled_from([1, 3, 3]))),
        ("stride", draw(st.sampled_from([1, 1, 1, 2])) if x.scale <= 2 else 1),
        ("dilation", draw(st.sampled_from([1, 1, 2]))),
        ("bias", draw(st.booleans())),
        ("groups", groups),
        ("norm", draw(st.sampled_from(["bn", "bn", "bn", "none", "in"]))),
        ("act", draw(st.sampled_from(sorted(ACTIVATIONS)))),
    )


def build(spec: Spec, zeros: float = 0.0) -> RandomNet:
    """Return the module of a spec in float64 and eval mode.

    Args:
        zeros: probability that a gamma is zero; betas are never touched. As many filters of
            convolutions without a BatchNorm are zeroed, a bias left alone.
    """
    torch.manual_seed(spec.seed)
    net = RandomNet(spec).double().eval()
    generator = torch.Generator().manual_seed(spec.seed)
    scramble(net, zeros, generator)
    return net


def batch_of(spec: Spec, size: int = SIZE) -> Tensor:
    """Return two random images in float64."""
    generator = torch.Generator().manual_seed(spec.seed)
    return torch.randn(2, IN_CHANNELS, size, size, generator=generator, dtype=torch.float64)


def scramble(net: nn.Module, zeros: float, generator: torch.Generator) -> None:
    """Give every normalisation layer random statistics and betas; zero gammas and filters at random."""

    def draw(size: int) -> Tensor:
        return torch.rand(size, generator=generator, dtype=torch.float64)

    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d | nn.InstanceNorm2d) and module.weight is not None:
                size = module.num_features
                module.weight.copy_((draw(size) + 0.5) * (draw(size) >= zeros))
                module.bias.copy_(draw(size) * 2 - 1)
                if module.running_mean is not None and module.running_var is not None:
                    module.running_mean.copy_(draw(size) - 0.5)
                    module.running_var.copy_(draw(size) + 0.5)
            elif isinstance(module, nn.Conv2d) and not isinstance(module, StandardisedConv):
                keep = draw(module.weight.shape[0]) >= zeros / 3
                module.weight.mul_(keep[:, None, None, None])
