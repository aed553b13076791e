"""Time from module to pruned module, against Torch-Pruning on the same model, one thread.

Usage: python benchmarks/peer_pruning.py [NAME ...]    names of torchvision models, or timm:NAME

Both tools trace the model, find its coupled channels, remove half of them by magnitude and return the
smaller module. Runs are interleaved; the medians and their ratio are printed, then where prunec's time
goes. Needs torchvision, timm and torch-pruning 1.6.1 (none is a dependency of prunec).
"""

from __future__ import annotations

import argparse
import copy
import cProfile
import pstats
import statistics
import time
import warnings

import torch
from torch import nn

DEFAULT = ("resnet18", "resnet50", "densenet121", "googlenet", "mobilenet_v2", "shufflenet_v2_x1_0", "timm:dpn68")
ROUNDS = 3


def main() -> None:
    """Print one row per network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=DEFAULT)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    _declare_detection_ops()
    print(f"median seconds of {arguments.rounds} interleaved runs, one thread")
    print(f"{'network':28} {'prunec':>9} {'peer':>9} {'ratio':>7}")
    for name in arguments.names:
        _row(name, arguments.rounds)
    _profile(arguments.names[0])


def _row(name: str, rounds: int) -> None:
    model = _build(name)
    batch = torch.randn(1, 3, *[299 if "inception" in name else 224] * 2)
    seconds: dict[str, list[float]] = {"prunec": [], "peer": []}
    failures: dict[str, str] = {}
    for _ in range(rounds):
        for tool, run in (("prunec", _prunec), ("peer", _peer)):
            if tool in failures:
                continue
            subject = copy.deepcopy(model)
            started = time.perf_counter()
            try:
                run(subject, batch)
            except Exception as error:  # noqa: BLE001  # a tool's failure is a row of the table
                failures[tool] = f"{type(error).__name__}: {str(error).splitlines()[0][:60] if str(error) else ''}"
                continue
            seconds[tool].append(time.perf_counter() - started)
    cells = [f"{statistics.median(s):9.2f}" if s else f"{'failed':>9}" for s in seconds.values()]
    both = all(seconds.values())
    ratio = f"{statistics.median(seconds['prunec']) / statistics.median(seconds['peer']):7.2f}" if both else f"{'':7}"
    print(
        f"{name:28} {cells[0]} {cells[1]} {ratio}   {'; '.join(f'{t}: {e}' for t, e in failures.items())}", flush=True
    )


def _prunec(model: nn.Module, batch: torch.Tensor) -> None:
    from prunec.api import prune_module

    prune_module(model, (batch,), criterion="l1", target_macs=0.5, validate=False)


def _peer(model: nn.Module, batch: torch.Tensor) -> None:
    import torch_pruning as tp

    ignored = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == 1000]
    tool = tp.pruner.MagnitudePruner(
        model, batch, importance=tp.importance.MagnitudeImportance(), pruning_ratio=0.3, ignored_layers=ignored
    )
    tool.step()


def _build(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name.startswith("timm:"):
        import timm

        built: nn.Module = timm.create_model(name[5:], pretrained=False).eval()
        return built
    import torchvision

    extra = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model: nn.Module = getattr(torchvision.models, name)(weights=None, **extra).eval()
    return model


def _declare_detection_ops() -> None:
    """Let a torchvision without compiled ops be imported."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    globals()["_library"] = library  # the declarations live as long as the object


def _profile(name: str) -> None:
    model, batch = _build(name), torch.randn(1, 3, 224, 224)
    profile = cProfile.Profile()
    profile.runcall(_prunec, model, batch)
    print(f"\nwhere prunec's time goes on {name} (cumulative seconds)")
    stats = pstats.Stats(profile)
    rows = []
    for (path, _, function), (_, calls, _, cumulative, _) in stats.stats.items():  # type: ignore[attr-defined]  # pstats' own table
        if any(f"{folder}/" in path for folder in ("passes", "frontends", "backends")) and not function.startswith("<"):
            rows.append((cumulative, calls, f"{path.rsplit('/', 2)[-2]}/{path.rsplit('/', 1)[-1]}:{function}"))
    for cumulative, calls, place in sorted(rows, reverse=True)[:12]:
        print(f"  {cumulative:7.3f}  {calls:6d} calls  {place}")


if __name__ == "__main__":
    main()
