"""Networks of other libraries, by name: torchvision and timm."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch
from command_line import Run

from prunec.lookup.libraries import import_torchvision


@pytest.mark.real
@pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:resnet18"])
def test_networks_of_other_libraries_are_found_by_name(run: Run, name: str) -> None:
    status, out, err = run("analyze", name, "--json")
    assert status == 0, err
    assert json.loads(out)["params"] == 11_689_512


@pytest.mark.real
def test_a_published_file_with_auxiliary_heads_loads_into_torchvisions_network(run: Run, tmp_path: Path) -> None:
    import_torchvision()
    published = importlib.import_module("torchvision.models").googlenet(weights=None, init_weights=False)
    assert "aux1.conv.conv.weight" in published.state_dict()
    torch.save(published.state_dict(), tmp_path / "googlenet.pth")
    options = ("--weights", "googlenet.pth", "--input-shape", "1x3x64x64", "--json")
    status, out, err = run("analyze", "torchvision:googlenet", *options)
    assert status == 0, err
    assert json.loads(out)["params"] == 6_624_904


@pytest.mark.real
@pytest.mark.parametrize("name", ["torchvision:googlenet", "timm:test_resnet.r160_in1k"])
def test_a_network_of_another_library_is_trained_and_pruned(run: Run, name: str) -> None:
    options = ("--steps", 4, "--batch-size", 4, "--input-shape", "1x3x64x64", "--device", "cpu")
    status, out, err = run("train-prune", "--arch", name, *options, "-o", "run")
    assert status == 0, err
    assert "agrees with the trained network" in out


@pytest.mark.real
def test_timms_weight_tags_are_names_too(run: Run) -> None:
    status, out, err = run("analyze", "timm:resnet18.a1_in1k", "--json")
    assert status == 0, err
    assert json.loads(out)["model"] == "timm:resnet18.a1_in1k"


@pytest.mark.real
@pytest.mark.parametrize("name", ["torchvision:resnet81", "timm:resnet81"])
def test_an_unknown_name_of_a_library_is_told_with_its_neighbours(run: Run, name: str) -> None:
    status, out, err = run("analyze", name)
    assert (status, out) == (2, "")
    assert "did you mean resnet" in err


def test_a_library_that_is_not_installed_is_told_with_the_remedy(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    status, _, err = run("analyze", "timm:resnet18")
    assert (status, err) == (
        2,
        "error[missing-dependency]: timm is not installed\n  do:  pip install 'prunec[real]'\n",
    )
