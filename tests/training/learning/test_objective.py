"""Losses and scores of labels and masks, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from prunec.errors import BadInput, UnsupportedModel
from prunec.training.learning.objective import VOID, Classification, Objective, Segmentation, make_objective

BINARY = Segmentation(("background", "foreground"), 1, (0.75, 0.25))
THREE = Segmentation(("sky", "road", "car"), 3, (0.5, 0.3, 0.2))


def scored(objective: Objective, *batches: tuple[torch.Tensor, torch.Tensor]) -> dict[str, float]:
    tally = objective.no_tally(torch.device("cpu"))
    for logits, targets in batches:
        tally += objective.tally(logits, targets)
    return objective.scores(tally)


def test_accuracy_is_the_share_that_is_right_over_all_batches() -> None:
    logits = torch.eye(3)
    first, second = torch.tensor([0, 1, 0]), torch.tensor([0])
    scores = scored(Classification(("a", "b", "c")), (logits, first), (logits[:1], second))
    assert scores == {"accuracy": 0.75}


def test_binary_masks_are_scored_by_intersection_over_union() -> None:
    logits = torch.tensor([[[[1.0, 1.0, -1.0, -1.0]]]])
    masks = torch.tensor([[[1, 0, 0, 1]]], dtype=torch.uint8)
    scores = scored(BINARY, (logits, masks))
    assert scores["foreground_iou"] == pytest.approx(1 / 3)
    assert scores["miou"] == pytest.approx(1 / 3)
    assert scores["pixel_accuracy"] == 0.5
    assert next(iter(scores)) == BINARY.metric == "miou"


def test_unions_add_up_over_batches_before_they_are_divided() -> None:
    perfect = (torch.ones(1, 1, 1, 8), torch.ones(1, 1, 8, dtype=torch.uint8))
    wrong = (torch.ones(1, 1, 1, 2), torch.zeros(1, 1, 2, dtype=torch.uint8))
    assert scored(BINARY, perfect, wrong)["foreground_iou"] == pytest.approx(8 / 10)


def test_void_pixels_count_neither_in_the_scores_nor_in_the_loss() -> None:
    logits = torch.tensor([[[[3.0, -2.0, 50.0]]]])
    masks = torch.tensor([[[1, 0, VOID]]], dtype=torch.uint8)
    assert scored(BINARY, (logits, masks))["miou"] == 1.0
    torch.testing.assert_close(BINARY.loss(logits, masks), BINARY.loss(logits[..., :2], masks[..., :2]))
    many = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    wanted = torch.randint(0, 3, (2, 4, 4), generator=torch.Generator().manual_seed(0)).byte()
    wanted[0] = VOID
    torch.testing.assert_close(THREE.loss(many, wanted), F.cross_entropy(many[1:], wanted[1:].long()))


def test_a_class_that_neither_occurs_nor_is_found_is_left_out_of_the_mean() -> None:
    logits = F.one_hot(torch.tensor([[[0, 0, 1, 1]]]), 3).permute(0, 3, 1, 2).float()
    masks = torch.tensor([[[0, 0, 0, 1]]], dtype=torch.uint8)
    assert scored(THREE, (logits, masks))["miou"] == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_the_binary_loss_is_cross_entropy_plus_dice() -> None:
    logits = torch.tensor([[[[2.0, -1.0]]]])
    masks = torch.tensor([[[1, 0]]], dtype=torch.uint8)
    p, q = 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(1))
    entropy = -(math.log(p) + math.log(1 - q)) / 2
    dice = (2 * p + 1) / (p + q + 1 + 1)
    assert float(BINARY.loss(logits, masks)) == pytest.approx(entropy + 1 - dice)


def test_logits_of_another_size_are_brought_to_the_masks() -> None:
    masks = torch.zeros(2, 8, 8, dtype=torch.uint8)
    masks[:, :, 4:] = 1
    logits = torch.tensor([-4.0, -4.0, 4.0, 4.0]).expand(2, 1, 4, 4)
    assert scored(BINARY, (logits, masks))["miou"] == 1.0
    assert BINARY.loss(logits, masks).isfinite()


def test_the_chance_loss_is_that_of_predicting_the_shares_everywhere() -> None:
    masks = (torch.arange(4000).reshape(1, 40, 100) % 4 == 0).byte()
    constant = torch.full((1, 1, 40, 100), math.log(0.25 / 0.75))
    assert float(BINARY.loss(constant, masks)) == pytest.approx(BINARY.chance_loss, abs=1e-3)
    assert pytest.approx(math.log(3)) == Classification(("a", "b", "c")).chance_loss


def test_the_first_tensor_of_nested_outputs_counts() -> None:
    scores = torch.zeros(2, 3)
    assert Classification(("a",)).logits({"out": (scores, torch.zeros(2, 5))}) is scores


def test_the_objective_follows_the_data_and_the_output() -> None:
    masks, scores = torch.zeros(2, 1, 8, 8), torch.zeros(2, 10)
    made = make_objective(masks, "segmentation", ("background", "foreground"), (0.9, 0.1))
    assert isinstance(made, Segmentation)
    assert made.num_logits == 1
    assert isinstance(make_objective(scores, "classification", ("a", "b"), ()), Classification)


@pytest.mark.parametrize(
    ("output", "task", "classes", "error", "message"),
    [
        (torch.zeros(2, 1, 8, 8), "classification", 2, UnsupportedModel, "not one score per image and class"),
        (torch.zeros(2, 3), "segmentation", 2, UnsupportedModel, "not one score per image, class and pixel"),
        ("text", "segmentation", 2, UnsupportedModel, "output is str"),
        (torch.zeros(2, 1, 8, 8), "segmentation", 3, BadInput, "tells 1 classes apart, the data has 3"),
        (torch.zeros(2, 2), "classification", 3, BadInput, "tells 2 classes apart, the data has 3"),
    ],
)
def test_an_output_that_does_not_fit_the_data_is_refused(
    output: object, task: str, classes: int, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make_objective(output, task, tuple("abc"[:classes]), (0.5, 0.5))
