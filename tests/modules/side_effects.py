"""Forwards that change what they run on: every way that people have found to keep or write something.

Each builder returns a fresh network; ``OUTSIDE`` lists what lives outside of them. Inputs are two images of 3x8x8.
"""

from __future__ import annotations

import ctypes
import functools
import random
import weakref
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

GRIDS: dict[Any, Tensor] = {}
LAST: Tensor | None = None
SEEN: list[Any] = []


def grid_like(height: int, width: int) -> Tensor:
    return torch.linspace(0, 1, height)[:, None] * torch.linspace(0, 1, width)[None]


@functools.lru_cache(maxsize=4)
def cached_grid(height: int, width: int) -> Tensor:
    return grid_like(height, width)


def block(i: int, o: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU())


class Renormed(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        self.weight.data = torch.renorm(self.weight.data, p=2, dim=0, maxnorm=1.0)
        return super().forward(x)


class Masked(nn.Conv2d):
    """PixelCNN's convolution."""

    mask: Tensor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_buffer("mask", torch.ones_like(self.weight))
        self.mask[:, :, 2:, 1:] = 0

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data *= self.mask
        return super().forward(x)


class MaskedInPlace(Masked):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.weight.mul_(self.mask)
        return nn.Conv2d.forward(self, x)


class Copied(Masked):
    def forward(self, x: Tensor) -> Tensor:
        self.weight.data.copy_(self.weight.data * self.mask)
        return nn.Conv2d.forward(self, x)


class Net(nn.Module):
    """Two blocks and what a subclass does between them."""

    def __init__(self, middle: nn.Module | None = None) -> None:
        super().__init__()
        self.a, self.middle, self.o = block(3, 8), middle or nn.Identity(), nn.Conv2d(8, 2, 1)

    def between(self, y: Tensor) -> Tensor:
        return y

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.middle(self.between(self.a(x))))


class Counting(Net):
    calls: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("scale", torch.ones(8, 1, 1))
        self.number = 0

    def between(self, y: Tensor) -> Tensor:
        self.number += 1
        self.calls.data.add_(1)
        self.scale.data.fill_(2.0)
        return y * self.scale


class Replacing(Net):
    """A buffer that is another tensor after each call."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))

    def between(self, y: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * y.mean((0, 2, 3)).detach()
        return y


class OnTheModule(Net):
    grid: Tensor | None = None

    def __init__(self) -> None:
        super().__init__()
        self.grids: dict[Any, Tensor] = {}
        self.lists: list[Any] = [[], ()]
        self.last = None

    def between(self, y: Tensor) -> Tensor:
        size = (y.shape[2], y.shape[3])
        if size not in self.grids:
            self.grids[size] = grid_like(*size)
        if self.grid is None:
            self.grid = grid_like(*size)
        self.lists[0].append(y)
        self.last = y
        return y * self.grids[size] + self.grid


class InAGlobalDict(Net):
    def between(self, y: Tensor) -> Tensor:
        size = (int(y.shape[2]), int(y.shape[3]))
        if size not in GRIDS:
            GRIDS[size] = grid_like(*size)
        return y * GRIDS[size]


class InAGlobal(Net):
    def between(self, y: Tensor) -> Tensor:
        global LAST
        if LAST is None:
            LAST = grid_like(int(y.shape[2]), int(y.shape[3]))
        SEEN.append(y)
        return y * LAST


class InAnLruCache(Net):
    def between(self, y: Tensor) -> Tensor:
        return y * cached_grid(int(y.shape[2]), int(y.shape[3]))


class InAMethodsLruCache(Net):
    @functools.lru_cache(maxsize=4)  # noqa: B019  # what people write
    def grid(self, height: int, width: int) -> Tensor:
        return grid_like(height, width)

    def between(self, y: Tensor) -> Tensor:
        return y * self.grid(int(y.shape[2]), int(y.shape[3]))


class Helper:
    __slots__ = ("__weakref__", "_grids", "last")

    def __init__(self) -> None:
        self._grids: dict[Any, Tensor] = {}

    def __call__(self, height: int, width: int) -> Tensor:
        if (height, width) not in self._grids:
            self._grids[height, width] = grid_like(height, width)
        self.last = self._grids[height, width]
        return self.last


HELPER = Helper()


class InAHelper(Net):
    def __init__(self) -> None:
        super().__init__()
        self.helper = Helper()
        self.weak: Any = weakref.WeakValueDictionary()
        self.recent: deque[Any] = deque(maxlen=2)
        self.counts: dict[str, int] = defaultdict(int)
        self.sizes: set[Any] = set()

    def between(self, y: Tensor) -> Tensor:
        size = (int(y.shape[2]), int(y.shape[3]))
        self.recent.append(y)
        self.counts["calls"] += 1
        self.sizes.add(size)
        return y * self.helper(*size) * HELPER(*size)


class InTheClass(Net):
    grids: dict[Any, Tensor] = {}  # noqa: RUF012  # what people write

    def between(self, y: Tensor) -> Tensor:
        size = (int(y.shape[2]), int(y.shape[3]))
        if size not in self.grids:
            self.grids[size] = grid_like(*size)
        type(self).latest = self.grids[size]  # type: ignore[attr-defined]
        return y * self.grids[size]


class InADefault(Net):
    def between(self, y: Tensor, cache: dict[Any, Tensor] = {}) -> Tensor:  # noqa: B006  # what people write
        size = (int(y.shape[2]), int(y.shape[3]))
        if size not in cache:
            cache[size] = grid_like(*size)
        return y * cache[size]


class InAClosure(Net):
    def __init__(self) -> None:
        super().__init__()
        kept: dict[Any, Tensor] = {}
        calls = 0

        def grid(height: int, width: int) -> Tensor:
            nonlocal calls
            calls += 1
            if (height, width) not in kept:
                kept[height, width] = grid_like(height, width)
            return kept[height, width]

        self.make = grid

    def between(self, y: Tensor) -> Tensor:
        return y * self.make(int(y.shape[2]), int(y.shape[3]))


class InAFunction(Net):
    def between(self, y: Tensor) -> Tensor:
        size = (int(y.shape[2]), int(y.shape[3]))
        if not hasattr(stored_grid, "grids"):
            stored_grid.grids = {}  # type: ignore[attr-defined]
        return y * stored_grid(*size)


def stored_grid(height: int, width: int) -> Tensor:
    kept = stored_grid.grids  # type: ignore[attr-defined]
    if (height, width) not in kept:
        kept[height, width] = grid_like(height, width)
    return kept[height, width]  # type: ignore[no-any-return]


class Hooked(Net):
    """A hook that keeps what passes through a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.features: dict[str, Tensor] = {}
        self.a[0].register_forward_hook(lambda _module, _inputs, output: self.features.update(first=output))


class Drawing(Net):
    """A forward that uses up random numbers of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.numpys = torch.Generator().manual_seed(0), np.random.default_rng(0)
        self.noise = np.zeros(4)

    def between(self, y: Tensor) -> Tensor:
        self.noise += self.numpys.standard_normal(4) + random.random() + np.random.rand()  # noqa: NPY002
        torch.rand(3, generator=self.own)
        torch.rand(3)
        return y


class Switching(Net):
    """A forward that changes modes, gradients and a BatchNorm's statistics."""

    def between(self, y: Tensor) -> Tensor:
        self.a[1].momentum = 0.5
        self.o.weight.requires_grad_(False)
        self.o.bias.grad = torch.zeros_like(self.o.bias)
        self.middle.train()
        return y


class Statistics(Net):
    """Statistics that are gathered in eval mode too."""

    def between(self, y: Tensor) -> Tensor:
        norm = self.a[1]
        return F.batch_norm(y, norm.running_mean, norm.running_var, training=True, momentum=0.5)


class InPlace(Net):
    """A forward that writes into its input."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mul_(0.5))


class Halved(nn.Conv2d):
    """Writes into its weight by numpy, which tells torch nothing of it."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.detach().numpy()
        weight[...] = weight * 0.5
        return super().forward(x)


class Clipped(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        np.clip(self.weight.data.numpy(), -0.01, 0.01, out=self.weight.data.numpy())
        return super().forward(x)


class CountedByNumpy(Net):
    calls: Tensor

    def __init__(self, asked: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.register_buffer("calls", torch.ones(3))
        self.asked = asked

    def forward(self, x: Tensor) -> Tensor:
        self.asked(self.calls)[0] += 1
        return super().forward(x)


class HeldByNumpy(Net):
    """The array was there before anybody looked."""

    def __init__(self) -> None:
        super().__init__()
        self.view = self.o.weight.detach().numpy()  # type: ignore[union-attr,operator]

    def forward(self, x: Tensor) -> Tensor:
        self.view *= 0.5
        return super().forward(x)


class ByAddress(Net):
    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        ctypes.memset(self.calls.data_ptr(), 0, 4)
        return super().forward(x)


HANDED_OUT: dict[str, Callable[[], nn.Module]] = {
    "weights by numpy": lambda: Net(Halved(8, 8, 3)),
    "weights as numpy's output": lambda: Net(Clipped(8, 8, 3)),
    "an array made of a buffer": lambda: CountedByNumpy(np.asarray),
    "a buffer as an array": lambda: CountedByNumpy(lambda t: t.numpy()),
    "a buffer's memory": lambda: CountedByNumpy(lambda t: memoryview(t.numpy())),
    "a buffer by dlpack": lambda: CountedByNumpy(lambda t: torch.from_dlpack(t.detach())),  # type: ignore[attr-defined]
    "numpy's dlpack": lambda: CountedByNumpy(np.from_dlpack),  # type: ignore[attr-defined]
    "a buffer's storage": lambda: CountedByNumpy(lambda t: t.untyped_storage()),
    "an array that was there": HeldByNumpy,
    "an address": ByAddress,
}
"""Forwards that write into memory past torch; some cannot be traced, none may leave a trace."""

HOSTILE: dict[str, Callable[[], nn.Module]] = {
    "weights assigned": lambda: Net(Renormed(8, 8, 3)),
    "weights masked": lambda: Net(Masked(8, 8, 3)),
    "weights masked in place": lambda: Net(MaskedInPlace(8, 8, 3)),
    "weights copied": lambda: Net(Copied(8, 8, 3)),
    "buffers written": Counting,
    "buffers replaced": Replacing,
    "kept on the module": OnTheModule,
    "kept in a global dict": InAGlobalDict,
    "kept in a global": InAGlobal,
    "kept in an lru_cache": InAnLruCache,
    "kept in a method's lru_cache": InAMethodsLruCache,
    "kept in a helper": InAHelper,
    "kept in the class": InTheClass,
    "kept in a default": InADefault,
    "kept in a closure": InAClosure,
    "kept in a function": InAFunction,
    "kept by a hook": Hooked,
    "random numbers": Drawing,
    "modes and gradients": Switching,
    "statistics": Statistics,
    "its input": InPlace,
}


def outside() -> dict[str, Any]:
    """Return all that these forwards keep outside of their module."""
    return {
        "grids": GRIDS,
        "last": LAST,
        "seen": SEEN,
        "lru": (cached_grid.cache_info(), InAMethodsLruCache.grid.cache_info()),
        "helper": HELPER,
        "class": (dict(vars(InTheClass)), InTheClass.grids),
        "default": InADefault.between.__defaults__,
        "function": dict(vars(stored_grid)),
        "random": (random.getstate(), repr(np.random.get_state()), bytes(torch.get_rng_state().tolist())),  # noqa: NPY002
    }
