"""Written-out sizes of every spelling follow the channels that go, or are pinned with a reason."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from modules.silent import CHANNELS, REWRITTEN, Spelled, prune
from torch import Tensor
from torch.nn import functional as F


@pytest.mark.parametrize("name", REWRITTEN)
def test_sizes_follow_the_channels_that_go(name: str) -> None:
    result = prune(Spelled(REWRITTEN[name]))
    assert result.report.removed_channels > 0, result.report.message


REFUSED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "one channel": (lambda x: x[:, 3:4] * x[:, 5].unsqueeze(1) + x, "is picked out by its index"),
    "reduced over channels": (lambda x: x.amax(1, keepdim=True) + x, "max runs over its channels"),
    "softmax over channels": (lambda x: x.softmax(1), "softmax mixes its channels"),
    "normalised over channels": (lambda x: F.normalize(x, p=3.0), "norm runs over its channels"),
    "argmax over channels": (lambda x: x + x.argmax(1, keepdim=True), "argmax runs over its channels"),
    "layer norm": (lambda x: F.layer_norm(x, (CHANNELS, 8, 8)), "LayerNorm averages over its channels"),
    "group norm": (lambda x: F.group_norm(x, 1), "GroupNorm averages over the channels of a group"),
    "merged with the batch": (lambda x: x.reshape(-1, 1, 8, 8).expand(-1, 4, -1, -1), "is merged with the batch"),
    "an op without a rule": (lambda x: x.triu() + x, "prunec has no rule for aten.triu"),
    "local response": (lambda x: F.local_response_norm(x, 3), "a spatial position is not a channel"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_follow_is_pinned_with_a_reason(name: str) -> None:
    piece, reason = REFUSED[name]
    result = prune(Spelled(piece))
    assert any(reason in pin.reason and pin.channels for pin in result.report.pins), result.report.pins
