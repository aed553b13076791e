"""What there is, as lists: architectures, presets, and what works on this machine."""

from __future__ import annotations

import json

from command_line import Run


def test_archs_and_presets_are_listed(run: Run) -> None:
    assert "resnet20" in run("archs")[1]
    assert {"digits", "convnet", "resnet20"} <= {item["name"] for item in json.loads(run("archs", "--json")[1])}
    assert "digits" in run("presets")[1]
    assert {"digits"} <= {item["name"] for item in json.loads(run("presets", "--json")[1])}


def test_doctor_says_what_really_works(run: Run) -> None:
    document = json.loads(run("doctor", "--json")[1])
    assert document["packages"]["torch"]
    works = {provider["name"]: provider["works"] for provider in document["providers"]}
    assert works["cpu"] is True
    assert works["cuda"] is (document["cuda_devices"] > 0)
    assert "ONNX Runtime provider" in run("doctor")[1]
