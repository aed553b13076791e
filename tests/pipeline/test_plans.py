"""Plans of modules: with the weights they rebuild the pruned network, and they are refused for another one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from assertions import assert_same_on_inputs, parameter_elements
from modules.networks import NETWORKS, make
from modules.pruned import NOTHING_TO_REMOVE, prune
from safetensors.torch import load_file, save_file

from prunec import apply_plan
from prunec.errors import BadPlan, UnsupportedModel
from prunec.ir.plan import PrunePlan


@pytest.mark.parametrize("name", sorted(set(NETWORKS) - NOTHING_TO_REMOVE))
def test_plan_and_weights_rebuild_the_pruned_network(name: str, tmp_path: Path) -> None:
    """plan.json + a fresh architecture + safetensors: no pickle anywhere."""
    _, result = prune(name)
    (tmp_path / "plan.json").write_text(result.plan.to_json(), encoding="utf-8")
    save_file({k: v.contiguous() for k, v in result.module.state_dict().items()}, tmp_path / "weights.safetensors")
    torch.manual_seed(99)
    fresh = NETWORKS[name].make().eval()
    rebuilt = apply_plan(fresh, PrunePlan.load(tmp_path / "plan.json"))
    rebuilt.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    assert_same_on_inputs(result.module, rebuilt, *NETWORKS[name].inputs(), tolerance=0.0)


def test_a_plan_reads_back_as_it_was_written() -> None:
    for name in ("densenet", "resnext", "resnet20"):
        _, result = prune(name)
        assert PrunePlan.from_json(result.plan.to_json()) == result.plan
        assert json.loads(result.plan.to_json())["format"] == "prunec-plan"


@pytest.mark.parametrize("name", ["googlenet", "mobilenetv2", "prelu", "unet", "resnext", "conv1d", "layer_scale"])
def test_a_plan_applies_to_the_users_own_class(name: str) -> None:
    net, result = prune(name)
    own = apply_plan(net, result.plan, keep_class=True)
    assert type(own) is type(net)
    assert parameter_elements(own) == parameter_elements(result.module)
    assert_same_on_inputs(net, own, *NETWORKS[name].inputs())
    assert_same_on_inputs(net, own, *NETWORKS[name].inputs(grow=8))


def test_a_plan_that_changes_the_forward_is_refused_for_the_users_class() -> None:
    net, result = prune("slices")
    with pytest.raises(UnsupportedModel) as error:
        apply_plan(net, result.plan, keep_class=True)
    assert "prunec.apply_plan(module, plan)" in str(error.value)
    assert "GraphModule" in str(error.value)


def test_a_plan_for_another_network_is_refused_by_name() -> None:
    _, result = prune("googlenet")
    with pytest.raises(BadPlan) as error:
        apply_plan(make("mobilenetv2"), result.plan)
    assert "apply the plan to the architecture that it was made for" in str(error.value)
