"""The objective of training: the loss that is minimised, and the scores that are reported.

Owns the two kinds of ``Objective``: class labels and masks. Scores come from *tallies*, int64 vectors that are
counted on the device and add up over batches (and over processes), so that no step waits for a number. All
scores are in 0..1, and larger is better. The data set decides which kind is used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch.nn import functional as F

from prunec.errors import BadInput, UnsupportedModel

VOID = 255
"""The value of mask pixels that count neither in the loss nor in a score."""


class Objective(Protocol):
    """Loss and scores of one kind of target. Frozen: tallies are passed in and out."""

    metric: ClassVar[str]
    """The score that a run is judged by; a key of what ``scores`` returns."""
    distils: ClassVar[bool]
    """A network that came with weights teaches the pruned one by default. Of pixels' classes that lost points."""

    @property
    def chance_loss(self) -> float:
        """The loss of a network that only knows how frequent each class is."""

    def logits(self, output: Any) -> torch.Tensor:
        """Return the scores before softmax or sigmoid from a network's output.

        The first tensor counts: networks with auxiliary heads return these after it.
        """

    def loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of a batch."""

    def no_tally(self, device: torch.device) -> torch.Tensor:
        """Return an empty tally."""

    def tally(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Count a batch, without waiting for the device; tallies add up."""

    def scores(self, tally: torch.Tensor) -> dict[str, float]:
        """Return every score by name, ``metric`` first. This waits for the device."""


@dataclass(frozen=True, slots=True)
class Classification:
    """One label per image: cross-entropy, judged by accuracy. Targets are int64[N], logits float[N, K ≥ classes]."""

    classes: tuple[str, ...]

    metric: ClassVar[str] = "accuracy"
    distils: ClassVar[bool] = True

    @property
    def chance_loss(self) -> float:
        return math.log(max(2, len(self.classes)))

    def logits(self, output: Any) -> torch.Tensor:
        scores = first_tensor(output)
        if scores is None or scores.dim() != 2:
            raise UnsupportedModel(
                f"the network's output is {_described(output)}, not one score per image and class",
                do="for a network that makes masks give --data digits-on-photos, or a folder with images/ and masks/; "
                "any other train in a loop of your own with prunec.sparsify, then use prunec prune",
            )
        return scores

    def loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits, targets)

    def no_tally(self, device: torch.device) -> torch.Tensor:
        return torch.zeros(2, dtype=torch.int64, device=device)

    def tally(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return (images that are right, images)."""
        right = (logits.argmax(1) == targets).sum()
        return torch.stack((right, torch.full_like(right, len(targets))))

    def scores(self, tally: torch.Tensor) -> dict[str, float]:
        right, seen = tally.tolist()
        return {"accuracy": right / max(1, seen)}


@dataclass(frozen=True, slots=True)
class Segmentation:
    """One class per pixel, judged by the mean over classes of intersection over union (the background is a class).

    Targets are uint8[N, H, W] with class indices, and VOID where a pixel does not count. Logits are
    float[N, 1, h, w] for two classes (binary cross-entropy plus Dice, which keeps a small foreground from being
    ignored) or float[N, K ≥ classes, h, w] (cross-entropy); they are resized to the mask's size, bilinearly.

    Args:
        classes: their names; with two, the second is the foreground.
        num_logits: of the network, per pixel.
        shares: of the training pixels, per class.
    """

    classes: tuple[str, ...]
    num_logits: int
    shares: tuple[float, ...]

    metric: ClassVar[str] = "miou"
    distils: ClassVar[bool] = False

    @property
    def chance_loss(self) -> float:
        entropy = -sum(share * math.log(share) for share in self.shares if share > 0)
        # A constant prediction of the foreground's share f has a Dice coefficient of 2f·f/(f + f) = f.
        return entropy + (1 - self.shares[1]) if self.num_logits == 1 else entropy

    def logits(self, output: Any) -> torch.Tensor:
        scores = first_tensor(output)
        if scores is None or scores.dim() != 4:
            raise UnsupportedModel(
                f"the network's output is {_described(output)}, not one score per image, class and pixel",
                do="give images with class labels instead of masks (--data), or a network that makes masks",
            )
        return scores

    def loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = _sized(logits, targets)
        if self.num_logits > 1:
            return F.cross_entropy(logits, targets.long(), ignore_index=VOID)
        counted = (targets != VOID).float()
        wanted = (targets == 1).float()
        scores = logits[:, 0].float()
        entropy = F.binary_cross_entropy_with_logits(scores, wanted, counted, reduction="sum")
        return entropy / counted.sum().clamp(min=1) + _dice_loss(scores.sigmoid() * counted, wanted)

    def no_tally(self, device: torch.device) -> torch.Tensor:
        return torch.zeros((3, self._rows), dtype=torch.int64, device=device)

    @property
    def _rows(self) -> int:
        return max(self.num_logits, len(self.classes))

    def tally(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return pixels per class: correct, predicted, true."""
        counted = (targets != VOID).flatten().long()
        found = self.masks(logits, targets).flatten().long()
        wanted = torch.where(targets == VOID, 0, targets).flatten().long()
        counts = self.no_tally(logits.device)
        counts[0].scatter_add_(0, found, counted * (found == wanted))
        counts[1].scatter_add_(0, found, counted)
        counts[2].scatter_add_(0, wanted, counted)
        return counts

    def masks(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the class of each pixel, uint8[N, H, W], at the targets' size."""
        logits = _sized(logits, targets)
        found = logits[:, 0] > 0 if self.num_logits == 1 else logits.argmax(1)
        return found.to(torch.uint8)

    def scores(self, tally: torch.Tensor) -> dict[str, float]:
        right, found, wanted = tally.tolist()
        unions = [f + w - r for r, f, w in zip(right, found, wanted, strict=True)]
        per_class = [r / union for r, union in zip(right, unions, strict=True) if union]
        scores = {"miou": sum(per_class) / max(1, len(per_class)), "pixel_accuracy": sum(right) / max(1, sum(wanted))}
        if len(self.classes) == 2:
            scores["foreground_iou"] = right[1] / max(1, unions[1])
        return scores


def make_objective(output: Any, task: str, classes: tuple[str, ...], shares: tuple[float, ...]) -> Objective:
    """Return the objective of a data set, for a network that returns ``output``.

    Args:
        output: of the network, for any batch.
        task: ``classification`` or ``segmentation``: what the data set asks for.
        classes: of the data set.
        shares: of the classes in the training masks; not used for labels.

    Raises:
        UnsupportedModel: the output is of another kind.
        BadInput: it has fewer classes than the data.
    """
    if task == "classification":
        labels = Classification(classes)
        _check_classes(labels.logits(output).shape[1], classes)
        return labels
    count = Segmentation(classes, 1, shares).logits(output).shape[1]
    if count > 1 or len(classes) > 2:
        _check_classes(count, classes, "; masks of two classes hold 0 and 255, and other values are indices of classes")
    return Segmentation(classes, count, shares)


def num_logits(output: Any) -> int | None:
    """Return the number of scores per image or pixel; None if the output is not a tensor of scores."""
    scores = first_tensor(output)
    return scores.shape[1] if scores is not None and scores.dim() in (2, 4) else None


def _check_classes(count: int, classes: tuple[str, ...], also: str = "") -> None:
    if count < len(classes):
        raise BadInput(
            f"the network tells {count} classes apart, the data has {len(classes)}",
            do=f"give a network with an output per class, or other data{also}",
        )


def first_tensor(output: Any) -> torch.Tensor | None:
    """Return the first tensor of nested tuples, lists and dicts; None if something else comes first."""
    first = output
    while isinstance(first, tuple | list | dict) and first:
        first = next(iter(first.values())) if isinstance(first, dict) else first[0]
    return first if isinstance(first, torch.Tensor) else None


def _described(output: Any) -> str:
    tensor = first_tensor(output)
    return str(tuple(tensor.shape)) if tensor is not None else type(output).__name__


def _sized(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    size = targets.shape[1:]
    if logits.shape[2:] == size:
        return logits
    return F.interpolate(logits, tuple(size), mode="bilinear", align_corners=False)


def _dice_loss(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Return 1 − Dice over the whole batch; the 1 keeps batches without foreground finite (V-Net, arXiv:1606.04797)."""
    return 1 - (2 * (found * wanted).sum() + 1) / (found.sum() + wanted.sum() + 1)
