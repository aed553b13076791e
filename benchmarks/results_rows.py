"""The rows of docs/results.md by name: what each one runs. results_table.py runs them, and prints the table."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the table.

    Args:
        method: ``train-prune``, or by which rule the single cut is made: a criterion of prunec, ``taylor`` (of the
            labels' loss), ``l1-refit`` (by l1, the rest fitted to training images), or one of Torch-Pruning,
            ``torch-pruning-l2`` or ``-group``; ``torch-pruning-slimming`` is Network Slimming (Liu et al., ICCV
            2017): the first half of the steps has an L1 subgradient on γ, then the smallest γ go. ``uniform`` is a
            narrower network from scratch, every stage by the same factor.
        network: a built-in architecture that has weights.
        macs: share that stays; 1 is no budget of MACs.
        steps: in all.
        options: more of train-prune's.
        lr: of the single cut's fine-tuning.
        start: the row whose pruned network this one starts from; "" is the published weights, "scratch" none.
        data: what DATA is a folder of: ``cifar``, ``nuclei``, ``camvid``, or ``cifar_subset`` (5,000 images and 1,000).
        how: how to compute.
    """

    method: str
    network: str
    macs: float
    steps: int
    options: str = ""
    batch_size: int = 125
    lr: float = 0.02
    start: str = ""
    data: str = "cifar"
    how: str = "--precision bf16 --channels-last --compile"


_CUTS = (
    "cut-reconstruct",
    "cut-l1",
    "cut-l1-refit",
    "cut-gamma",
    "cut-taylor",
    "cut-random",
    "torch-pruning-l2",
    "torch-pruning-group",
    "torch-pruning-slimming",
)
_RATES = (0.005, 0.05, 0.1)
"""Of fine-tuning, besides the default 0.02."""
_ISTA = "--shares 0,0.25,0.75"
_SETTINGS: Mapping[str, str] = {
    "l1": "--criterion l1",
    "reconstruct": "--criterion reconstruct",
    "ista-l1": f"--criterion l1 {_ISTA}",
    "ista-reconstruct": f"--criterion reconstruct {_ISTA}",
    "ista-half": "--criterion reconstruct --shares 0,0.5,0.5",
    "ista-l1-exact-border": f"--criterion l1 {_ISTA} --border exact",
    "ista-l1-keep-residual": f"--criterion l1 {_ISTA} --residual keep",
    "ista-l1-alpha-1": f"--criterion l1 {_ISTA} --alpha 1",
    "ista-l1-alpha-0.01": f"--criterion l1 {_ISTA} --alpha 0.01",
    "no-teacher": "--distill 0",
}
"""Of train-prune at a budget of MACs, and what they are called."""


def _resnet20() -> dict[str, Row]:
    """Return cuts of ResNet-20 to half and 30% of the MACs, and to sizes of the paper's Table 2."""
    rows: dict[str, Row] = {}
    for macs, steps in itertools.product((0.5, 0.3), (600, 2400, 12000)):
        at = f"resnet20-{macs * 100:.0f}"
        rows[f"{at}-default-{steps}"] = Row("train-prune", "resnet20", macs, steps)
        for lr in _RATES:
            rows[f"{at}-default-lr-{lr}-{steps}"] = Row("train-prune", "resnet20", macs, steps, f"--finetune-lr {lr}")
        for name, options in _SETTINGS.items():
            rows[f"{at}-{name}-{steps}"] = Row("train-prune", "resnet20", macs, steps, options)
        for lr in _RATES:
            by_l1 = f"--criterion l1 --finetune-lr {lr}"
            rows[f"{at}-l1-lr-{lr}-{steps}"] = Row("train-prune", "resnet20", macs, steps, by_l1)
        rows[f"{at}-default-fp32-{steps}"] = Row("train-prune", "resnet20", macs, steps, how="")
        for cut in _CUTS:
            rows[f"{at}-{cut}-{steps}"] = Row(cut, "resnet20", macs, steps)
            for lr in _RATES:
                rows[f"{at}-{cut}-lr-{lr}-{steps}"] = Row(cut, "resnet20", macs, steps, lr=lr)
        rows[f"{at}-uniform-{steps}"] = Row("uniform", "resnet20", macs, steps, lr=0.1)
    for steps, params in itertools.product((2400, 12000), (63, 33)):
        budget = f"--target-params 0.{params}"
        rows[f"resnet20-params-{params}-default-{steps}"] = Row("train-prune", "resnet20", 1, steps, budget)
        for lr in _RATES:
            rows[f"resnet20-params-{params}-default-lr-{lr}-{steps}"] = Row(
                "train-prune", "resnet20", 1, steps, f"{budget} --finetune-lr {lr}"
            )
    return rows


def _short() -> dict[str, Row]:
    """Return the comparisons of settings, two fifths of an epoch each."""
    short: dict[str, Any] = {"batch_size": 50}
    rows = {f"short-{cut}-lr-0.005": Row(cut, "resnet20", 0.5, 400, lr=0.005, **short) for cut in _CUTS}
    l1, data = "--criterion l1 --finetune-lr", "--criterion reconstruct --finetune-lr"
    for name, options in (
        ("default", ""),
        ("lr-0.02", f"{l1} 0.02"),
        ("lr-0.005", f"{l1} 0.005"),
        ("ista-25-lr-0.02", f"{l1} 0.02 {_ISTA}"),
        ("ista-25-lr-0.005", f"{l1} 0.005 {_ISTA}"),
        ("inner-lr-0.02", f"{l1} 0.02 --residual keep"),
        ("reconstruct-lr-0.02", f"{data} 0.02"),
        ("reconstruct-lr-0.005", f"{data} 0.005"),
        ("reconstruct-lr-0.002", f"{data} 0.002"),
        ("reconstruct-ista-25-lr-0.005", f"{data} 0.005 {_ISTA}"),
        ("reconstruct-alone-lr-0.005", f"{data} 0.005 --distill 0"),
    ):
        rows[f"short-{name}"] = Row("train-prune", "resnet20", 0.5, 400, options, **short)
    rows["short-batch-125"] = Row("train-prune", "resnet20", 0.5, 160, batch_size=125)
    return rows


def _resnet56() -> dict[str, Row]:
    rows: dict[str, Row] = {}
    for macs, steps in itertools.product((0.476, 0.392), (2400, 12000, 24000)):
        rows[f"resnet56-{macs * 1000:.0f}-default-{steps}"] = Row("train-prune", "resnet56", macs, steps)
        for lr in _RATES:
            rows[f"resnet56-{macs * 1000:.0f}-default-lr-{lr}-{steps}"] = Row(
                "train-prune", "resnet56", macs, steps, f"--finetune-lr {lr}"
            )
    return rows


def _convnet() -> dict[str, Row]:
    """Return the paper's ConvNet: trained without a penalty, and cut from there to the sizes of its rows A, B, C."""
    base = "convnet-base-12000"
    paper = {"a": 309_655, "b": 207_583, "c": 144_935}
    train = "--finetune-lr 0.1 --weight-decay 5e-4 --normalise imagenet"
    rows = {base: Row("train-prune", "convnet", 1, 12000, f"--preset scratch --rho 0 --shares 0,0.01,0.99 {train}")}
    rows[base] = replace(rows[base], start="scratch")
    for letter, params in paper.items():
        budget = f"--target-params {math.floor(1e4 * params / 1_986_760) / 1e4}"
        rows[f"convnet-{letter}-lr-0.1-6000"] = Row("train-prune", "convnet", 1, 6000, f"{budget} {train}", start=base)
    return rows


def _segmentation() -> dict[str, Row]:
    """Return rows of segnet on masks, 96x96: trained; pruned from there, or trained on; and ISTA from scratch."""
    shape = "--input-shape 1x3x96x96 --checkpoint-every 100"
    rows: dict[str, Row] = {}
    for data, at in (("nuclei", "segnet"), ("camvid", "segnet-camvid")):
        given: dict[str, Any] = {"batch_size": 8, "how": "", "data": data}
        base = f"{at}-base-600"
        for name, options, start in (
            (base, "--rho 0 --shares 0,0.01,0.99", "scratch"),
            (f"{at}-params-20-default-600", "--target-params 0.2", base),
            (f"{at}-base-again-600", "--rho 0 --shares 0,0.01,0.99", base),
            (f"{at}-params-20-ista-1200", "--target-params 0.2", "scratch"),
        ):
            steps = int(name.rsplit("-", 1)[1])
            rows[name] = Row("train-prune", "segnet", 1, steps, f"{shape} {options}", start=start, **given)
    return rows


def _resnet101() -> dict[str, Row]:
    """Return the paper's recipe for ResNet-101 (its Table 3), at a scale that shows only that it runs."""
    recipe = "--preset scratch --input-shape 1x3x64x64 --normalise imagenet --alpha 0.01 --gamma-lr 0.001 --rho 0.1"
    small: dict[str, Any] = {"batch_size": 16, "start": "scratch", "data": "cifar_subset", "how": ""}
    return {"resnet101-recipe-60": Row("train-prune", "resnet101", 1, 60, recipe, **small)}


ROWS: Mapping[str, Row] = _resnet20() | _short() | _resnet56() | _convnet() | _segmentation() | _resnet101()
