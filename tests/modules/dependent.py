"""Networks in which some channels are exact copies of others: what stays can make up for them without any error."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from prunec.ir.arrays import Mask
from prunec.ir.contractions import in_axis
from prunec.passes.groups import group_classes
from prunec.passes.selection.select import Facts


def copy_channels(net: nn.Module, facts: Facts) -> Mask:
    """Make the last channel of each coupled group a copy of its first (in place); return bool[num_classes] to keep.

    Left alone are groups that are pinned, that a grouped convolution reads or makes, or whose channels lie on an axis
    more than once.
    """
    classes = facts.classes
    keep = np.ones(classes.num_classes, dtype=bool)
    balanced = np.unique(
        np.concatenate([np.zeros(1, np.int64), *(_ids(b, classes.class_of) for b in classes.balances)])
    )
    read = {(r.node.inputs[1], in_axis(r.node)) for r in facts.reads if r.node.op != "attention"}
    tensors = dict(net.named_parameters()) | dict(net.named_buffers())
    for group in group_classes(classes):
        first, last = group[0], group[-1]
        if len(group) < 3 or classes.pinned[list(group)].any() or np.isin(group, balanced).any():
            continue
        places = [(m, *(np.flatnonzero(classes.class_of[m.ids] == c) for c in (first, last))) for m in classes.members]
        places = [place for place in places if place[1].size or place[2].size]
        if any(a.size != 1 or b.size != 1 for _, a, b in places) or any(m.param not in tensors for m, _, _ in places):
            continue
        for member, a, b in places:
            tensor = tensors[member.param]
            if (member.param, member.axis) not in read or tensor.ndim == 1:
                with torch.no_grad():
                    tensor.select(member.axis, int(b[0])).copy_(tensor.select(member.axis, int(a[0])))
        keep[last] = False
    return keep


def _ids(balance: Any, class_of: Any) -> Any:
    return np.concatenate([class_of[balance.in_ids].ravel(), class_of[balance.out_ids].ravel()])
