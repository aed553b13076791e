"""Built-in architectures: parameter counts, the paper's pruned counts, published weights and their accuracy."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from modules.training import trained_like
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from prunec.api import prune_module
from prunec.errors import BadInput
from prunec.frontends.fx.frontend import trace
from prunec.lookup.libraries import import_torchvision
from prunec.models import ARCHITECTURES, build, count_macs, count_parameters, find
from prunec.models.convnet import ConvNet
from prunec.models.segnet import SegNet
from prunec.passes.cost import cost
from prunec.training.data.augment import NO_AUGMENT, pipeline
from prunec.training.data.sets import load
from prunec.training.learning.objective import Classification
from prunec.training.run.evaluate import evaluate

PARAMETERS = {
    "digits": 175_274,
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet44": 658_586,
    "resnet56": 853_018,
    "resnet110": 1_727_962,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "densenet_bc100": 769_162,
    "densenet121": 7_978_856,
    "googlenet": 6_624_904,
    "inception_v3": 23_834_568,
    "mobilenet_v2": 3_504_872,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count(name: str) -> None:
    assert count_parameters(ARCHITECTURES[name].skeleton()) == PARAMETERS[name]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_takes_its_input_and_gives_what_its_task_asks(name: str) -> None:
    architecture = ARCHITECTURES[name]
    (images,) = architecture.example_inputs(3)
    found = architecture.skeleton()(images.to("meta"))
    size = images.shape[2:] if architecture.task == "segmentation" else ()
    assert found.shape == (3, architecture.num_classes, *size)


@pytest.mark.parametrize("name", ["resnet20", "googlenet", "densenet_bc100"])
def test_macs_agree_with_the_graph(name: str) -> None:
    architecture = ARCHITECTURES[name]
    traced = trace(architecture.build(), architecture.example_inputs(1))
    assert count_macs(architecture) == cost(traced.graph).macs


def test_spelling_of_an_architecture_does_not_matter() -> None:
    assert find("DenseNet-BC-100") is ARCHITECTURES["densenet_bc100"]
    assert find("resnet21") is None


def test_segnet_has_the_papers_size() -> None:
    assert count_parameters(ARCHITECTURES["segnet"].skeleton()) == pytest.approx(1.0e7, rel=0.05)
    assert count_macs(ARCHITECTURES["segnet"]) < 3e9


@pytest.mark.parametrize("size", [(32, 32), (64, 96)])
def test_segnet_is_fully_convolutional(size: tuple[int, int]) -> None:
    logits = SegNet(width=0.25).eval()(torch.zeros(1, 3, *size))
    assert logits.shape == (1, 1, *size)


def test_segnet_can_learn() -> None:
    torch.manual_seed(0)
    net = SegNet(width=0.125)
    images = torch.randn(4, 3, 64, 64)
    masks = torch.zeros(4, 1, 64, 64)
    masks[:, :, 16:40, 8:32] = 1
    images += 2 * masks
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(12):
        loss = F.binary_cross_entropy_with_logits(net(images), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.4 * losses[0]


def test_the_convnet_has_the_papers_parameters() -> None:
    assert count_parameters(ConvNet(), batch_norm_statistics=True) == 1_986_760


@pytest.mark.parametrize(
    ("widths", "params"),
    [((53, 86, 67, 128), 309_655), ((41, 64, 52, 128), 207_583), ((31, 52, 40, 127), 144_935)],
    ids=["A", "B", "C"],
)
def test_pruning_to_the_papers_widths_gives_the_papers_counts(widths: tuple[int, ...], params: int) -> None:
    module = ConvNet().eval()
    gammas = [m.weight for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        for gamma, width in zip(gammas, widths, strict=True):
            gamma[width:] = 0.0
    pruned = prune_module(module, ARCHITECTURES["convnet"].example_inputs(), border="bias")
    assert count_parameters(pruned.module, batch_norm_statistics=True) == params


@pytest.mark.parametrize(("name", "right"), [("resnet20", 0.916), ("resnet56", 0.926)])
def test_published_weights_load_and_are_as_good_as_published(shared_data: Path, name: str, right: float) -> None:
    module = build(name)
    module.load_state_dict(load_file(shared_data / "weights" / f"cifar10-{name}.safetensors"), strict=True)
    images = load(str(shared_data / "cifar10-ci"), (3, 32, 32))
    published = pipeline("imagenet", NO_AUGMENT, images.mean, images.std, 3)
    found = evaluate(module, images.test, published, Classification(images.classes), (3, 32, 32))
    assert found["accuracy"] == pytest.approx(right, abs=0.004)


# The published files hold heads and names that the networks no longer have.
PUBLISHED: dict[str, dict[str, Any]] = {
    "resnet18": {},
    "resnet50": {},
    "densenet121": {},
    "googlenet": {"aux_logits": True, "init_weights": False},
    "inception_v3": {"aux_logits": True, "init_weights": False},
    "mobilenet_v2": {},
}


@pytest.mark.real
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", PUBLISHED)
def test_torchvisions_state_dicts_load_and_compute_the_same(name: str) -> None:
    torch.manual_seed(0)
    import_torchvision()
    theirs = importlib.import_module("torchvision.models").get_model(name, weights=None, **PUBLISHED[name])
    theirs = trained_like(theirs)
    ours = build(name).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-5, atol=1e-5)


def test_the_older_spelling_of_densenet_weights_loads() -> None:
    ours = build("densenet_bc100")
    with torch.no_grad():
        ours.get_parameter("features.denseblock2.denselayer3.norm1.weight").fill_(0.25)
    published = {
        re.sub(r"(denselayer\d+\.[a-z]+)([12])\.", r"\1.\2.", name): value for name, value in ours.state_dict().items()
    }
    assert "features.denseblock2.denselayer3.norm.1.weight" in published
    fresh = build("densenet_bc100")
    fresh.load_state_dict(published, strict=True)
    assert (fresh.get_parameter("features.denseblock2.denselayer3.norm1.weight") == 0.25).all()


def test_an_unknown_architecture_is_refused_with_the_known_ones() -> None:
    with pytest.raises(BadInput, match="no architecture called 'resnet21'") as error:
        build("resnet21")
    assert "resnet20" in error.value.do
