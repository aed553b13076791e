"""Time from module to pruned module, against Torch-Pruning on the same model, one thread.

Usage: python benchmarks/peer_pruning.py [NAME ...]    names of torchvision models, or timm:NAME

Both tools trace the model, find its coupled channels, remove some of them by magnitude (prunec: half of the MACs,
the peer: 30% of each layer's channels) and return the smaller module. Runs are interleaved; the best of each, in
seconds of CPU time (on a quiet machine that is the wall's, for there is one thread), and their ratio are printed as a
table in Markdown, then the median of the ratios. Needs torchvision, timm and torch-pruning 1.6.1 (none is a dependency
of prunec).
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import cProfile
import pstats
import signal
import statistics
import time
import warnings
from collections.abc import Iterator

import torch
from torch import nn

DEFAULT = (
    "resnet18",
    "resnet50",
    "vgg16",
    "densenet121",
    "googlenet",
    "squeezenet1_1",
    "shufflenet_v2_x1_0",
    "mobilenet_v2",
    "mnasnet1_0",
    "efficientnet_b0",
    "regnet_y_400mf",
    "swin_t",
    "convnext_tiny",
    "timm:vit_tiny_patch16_224",
    "timm:dla34",
    "timm:dpn68",
    "timm:hrnet_w18_small",
    "timm:repvgg_a0",
    "timm:mobileone_s0",
    "timm:dm_nfnet_f0",
    "timm:mobilevit_xxs",
    "timm:mobilevitv2_050",
    "timm:tiny_vit_5m_224",
    "timm:efficientvit_m0",
    "timm:tf_mixnet_s",
)
ROUNDS = 2
LIMIT_S = 30
"""What takes longer has failed."""


def main() -> None:
    """Print one row per network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=DEFAULT)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument(
        "--profile", action="store_true", help="also print where prunec's time goes on the first network"
    )
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    _declare_detection_ops()
    print(f"best seconds of CPU time of {arguments.rounds} interleaved runs, one thread\n")
    print("| network | prunec | Torch-Pruning | ratio |\n|---|---|---|---|")
    ratios = [ratio for name in arguments.names if (ratio := _row(name, arguments.rounds)) is not None]
    if ratios:
        print(f"\nmedian ratio {statistics.median(ratios):.2f} over the {len(ratios)} networks that both finish")
    if arguments.profile:
        _profile(arguments.names[0])


def _row(name: str, rounds: int) -> float | None:
    """Print a network's row; return how many times the peer's time prunec takes, None where one of them fails."""
    model = _build(name)
    batch = torch.randn(1, 3, *[299 if "inception" in name else 224] * 2)
    seconds: dict[str, list[float]] = {"prunec": [], "peer": []}
    failures: dict[str, str] = {}
    for _ in range(rounds):
        for tool, run in (("prunec", _prunec), ("peer", _peer)):
            if tool in failures:
                continue
            subject = copy.deepcopy(model)
            started = time.process_time()
            try:
                with _at_most(LIMIT_S):
                    run(subject, batch)
            except Exception as error:  # noqa: BLE001  # a tool's failure is a row of the table
                failures[tool] = f"{type(error).__name__}: {str(error).splitlines()[0][:60] if str(error) else ''}"
                continue
            seconds[tool].append(time.process_time() - started)
    cells = [f"{min(seconds[tool]):.2f}" if tool not in failures else failures[tool] for tool in seconds]
    ratio = min(seconds["prunec"]) / min(seconds["peer"]) if not failures else None
    print(f"| {name} | {' | '.join(cells)} | {'' if ratio is None else f'{ratio:.2f}'} |", flush=True)
    return ratio


@contextlib.contextmanager
def _at_most(seconds: int) -> Iterator[None]:
    """Raise TimeoutError in what takes longer."""

    def over(*_: object) -> None:
        raise TimeoutError(f"over {seconds} s")

    signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1)  # again each second: what runs may swallow an exception
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


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
