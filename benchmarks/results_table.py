r"""The rows of docs/results.md: runs one, or prints the table of those that were run and draws the plot.

    export OMP_NUM_THREADS=1
    python benchmarks/results_table.py run resnet20-50-cut-l1-2400 --weights WEIGHTS --data CIFAR_FOLDER --seed 0
    python benchmarks/results_table.py statistics resnet20 --weights WEIGHTS --data CIFAR_FOLDER
    python benchmarks/results_table.py table

WEIGHTS is a folder with cifar10-resnet20.safetensors and its like. results_rows.py has the rows by name. A row of
``prunec train-prune`` is that command; every other cuts the same network once, by its own rule, and fine-tunes it as
train-prune does: the same batches, teacher, cosine, average and statistics. ResNets train in bfloat16, compiled; scores
are those of float32. Rows of segnet take a folder of nuclei or CamVid (images/ and masks/) as DATA; some start from
another row's network, which is looked for in ``--scratch``. ``--device cuda`` trains on a GPU, where steps are so short
that compiling them would take longer. ``--answers FOLDER``
keeps what the unpruned network answers to each batch, which is the same for all rows of a seed and a third of the time;
ONNX Runtime answers then, on the CPU, so that a figure can move as much as on another machine. ``statistics`` scores an
unpruned network with BatchNorm statistics from three places. Torch-Pruning's rows need torch-pruning 1.6.1. What a run
leaves is in ``benchmarks/results/ROW-seedN``.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import importlib.metadata
import json
import math
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from results_rows import ROWS, Row
from torch import nn

import prunec
from prunec.cli.main import execute
from prunec.data.calibration import Calibration
from prunec.files import read_json, write_json, write_text
from prunec.models.resnet_cifar import CifarResNet
from prunec.report.charts import pareto_chart
from prunec.runtime.modules import evaluating
from prunec.training.data.batches import sampled_batches
from prunec.training.learning.batchnorm import reestimate
from prunec.training.learning.distill import WEIGHT, Teacher
from prunec.training.learning.ema import Ema
from prunec.training.learning.ranks import Alone
from prunec.training.run import checkpoint as checkpoints
from prunec.training.run.evaluate import evaluate
from prunec.training.settings.presets import make_config
from prunec.training.settings.removal import base_optimizer
from prunec.training.settings.setup import Setup, prepare

ROOT = Path(__file__).parent.parent
RESULTS, PLOT = ROOT / "benchmarks" / "results", ROOT / "docs" / "results.svg"
_TAYLOR_BATCHES = 8
_KEPT = ("metrics.jsonl", "plan.json", "config.json")

# --- running one --------------------------------------------------------------------------------------


class Answers(nn.Module):
    """The unpruned network in ONNX Runtime, which looks up what it has answered before; by a hash of the batch."""

    def __init__(self, module: nn.Module, path: Path) -> None:
        super().__init__()
        file, module = path.with_suffix(".onnx"), copy.deepcopy(module).eval()
        module.to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        names: dict[str, Any] = {"input_names": ["x"], "output_names": ["y"], "dynamic_axes": {"x": {0: "n"}}}
        torch.onnx.export(module, (torch.zeros(2, 3, 32, 32),), str(file), dynamo=False, **names)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.network, self.path = onnxruntime.InferenceSession(file, options, ["CPUExecutionProvider"]), path
        self.known: dict[str, torch.Tensor] = torch.load(path) if path.is_file() else {}
        self.fresh = 0

    @torch.compiler.disable
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        key = hashlib.blake2b(inputs.contiguous().numpy().tobytes(), digest_size=12).hexdigest()
        if key not in self.known:
            (found,) = self.network.run(None, {"x": inputs.contiguous().numpy()})
            self.known[key] = torch.from_numpy(found)
            self.fresh += 1
            if self.fresh % 100 == 0:
                self.save()
        return self.known[key]

    def save(self) -> None:
        aside = self.path.with_suffix(".aside")
        torch.save(self.known, aside)
        aside.replace(self.path)


def _teaching(folder: Path | None, row: Row, seed: int) -> Callable[[nn.Module], nn.Module]:
    if folder is None:
        return lambda module: module
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{row.network}-seed{seed}-batch{row.batch_size}.pt"
    return lambda module: Answers(module, path)


def command(row: Row, weights: Path, data: Path, seed: int, device: str, output: Path) -> list[str]:
    """Return the arguments of ``prunec`` that make the row; a row that starts from another has it beside ``output``."""
    given = f"--arch {row.network} --data {data} --seed {seed} --steps {row.steps} --batch-size {row.batch_size} "
    given += f"--device {device} "
    if not row.start:
        given += f"--weights {weights}/cifar10-{row.network}.safetensors "
    elif row.start != "scratch":
        given += f"--weights {output.parent}/{row.start}-seed{seed}/pruned.safetensors "
    if row.macs < 1:
        given += f"--target-macs {row.macs} "
    return ["train-prune", "-o", str(output), *shlex.split(f"{given} {row.options}"), *_how(row, device)]


def _how(row: Row, device: str) -> list[str]:
    return [option for option in row.how.split() if option != "--compile" or device == "cpu"]


def train_prune(
    row: Row, weights: Path, data: Path, seed: int, device: str, answers: Path | None, folder: Path
) -> dict[str, Any]:
    """Run the row's command; return sizes and scores."""
    wrapped, load = _teaching(answers, row, seed), checkpoints.load_teacher
    checkpoints.load_teacher = lambda *given: wrapped(load(*given))
    arguments = command(row, weights, data, seed, device, folder)
    if (folder / "checkpoint").is_dir():
        arguments = ["train-prune", "-o", str(folder), "--resume", "--device", device, *_how(row, device)]
    if execute(arguments):
        raise SystemExit(f"the run ended with an error; it is in {folder}")
    found = read_json(folder / "summary.json")
    return {
        "params": [found[when]["params"] for when in ("before", "after")],
        "macs": [found[when]["macs"] for when in ("before", "after")],
        "scores": found[found["metric"]],
    }


def statistics(network: str, weights: Path, data: Path) -> str:
    """Return what a network scores with the statistics it came with, and with those of 2,500 training images."""
    row = Row("train-prune", network, 1.0, 20)
    setup = _setup(row, weights, data, 0, "cpu")
    setup.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    found = {"as given": _score(setup.module, setup)}
    for name, augmented in (("plain images", False), ("augmented images", True)):
        _settle(setup.module, setup, augmented=augmented)
        found[name] = _score(setup.module, setup)
    return "\n".join(f"{name}: {score:.2%}" for name, score in found.items())


def _setup(row: Row, weights: Path, data: Path, seed: int, device: str) -> Setup:
    given: dict[str, Any] = {"arch": row.network, "weights": f"{weights}/cifar10-{row.network}.safetensors"}
    given |= {"data": str(data), "seed": seed, "steps": row.steps, "batch_size": row.batch_size}
    given |= {"precision": "bf16", "channels_last": True, "compile": device == "cpu", "device": device}
    if row.macs < 1:
        given["target_macs"] = row.macs
    with tempfile.TemporaryDirectory() as unused:
        return prepare(make_config(f"{unused}/run", **given), Alone())


def single_cut(
    row: Row, weights: Path, data: Path, seed: int, device: str, answers: Path | None, folder: Path
) -> dict[str, Any]:
    """Cut the row's network and fine-tune it; return sizes and scores."""
    setup = _setup(row, weights, data, seed, device)
    given_module = setup.module.eval()
    teacher = _teaching(answers, row, seed)(copy.deepcopy(given_module))
    before = _cost(copy.deepcopy(given_module).cpu(), setup)
    learning = Teacher(teacher, WEIGHT, setup.objective)
    done = 0
    if row.method == "torch-pruning-slimming":
        done = row.steps // 2
        fine_tune(given_module, setup, learning, row.lr, range(done), _shrink)
    given_module.to("cpu", memory_format=torch.contiguous_format)
    module = cut(row.method, given_module, setup, row.macs, seed, folder)
    after = _cost(module, setup)
    setup.execution.place(module)
    _settle(module, setup)
    scores = {"removed": _score(module, setup)}
    fine_tune(module, setup, learning, row.lr, range(done, row.steps))
    scores["after"] = _score(module, setup)
    return {"params": [before.params, after.params], "macs": [before.macs, after.macs], "scores": scores}


def cut(method: str, module: nn.Module, setup: Setup, macs: float, seed: int, folder: Path) -> nn.Module:
    """Return the network with a share of its MACs, chosen by ``method``; its plan goes to ``folder``."""
    if method == "uniform":
        return _uniform(setup, macs)
    if method.startswith("torch-pruning-"):
        return _by_torch_pruning(module, setup, macs, method.removeprefix("torch-pruning-"))
    criterion = method.removeprefix("cut-").removesuffix("-refit")
    saliency = _saliency(module, setup) if criterion == "taylor" else None
    options = {"criterion": criterion, "target_macs": macs, "multiple_of": 1, "seed": seed, "saliency": saliency}
    with tempfile.TemporaryDirectory() as images:
        if criterion == "reconstruct" or method.endswith("-refit"):
            batches = sampled_batches(setup.data.train, setup.pipeline, 125, 8, seed)
            np.save(f"{images}/images.npy", np.concatenate([inputs.cpu().numpy() for inputs, _ in batches]))
            options["calibration"] = Calibration(images, orders=1)  # as train-prune does
        pruned = prunec.prune_module(module, setup.example_inputs, validate=False, **options)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "plan.json", replace(pruned.plan, refits=()).to_json() + "\n")
    result: nn.Module = pruned.module
    return result


def _saliency(module: nn.Module, setup: Setup) -> dict[str, np.ndarray[Any, Any]]:
    """Return (w · ∂loss/∂w)² of the labels' loss, a mean over batches (Molchanov et al., CVPR 2019, eq. 8)."""
    total = {name: np.zeros(tuple(p.shape)) for name, p in module.named_parameters()}
    for step in range(_TAYLOR_BATCHES):
        inputs, targets = setup.batches.at(step)
        module.zero_grad()
        setup.objective.loss(setup.objective.logits(module(inputs.cpu())), targets.cpu()).backward()
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None, name
            total[name] += (parameter.detach() * parameter.grad).double().square().numpy() / _TAYLOR_BATCHES
    module.zero_grad()
    return total


def _by_torch_pruning(module: nn.Module, setup: Setup, macs: float, importance: str) -> nn.Module:
    """Return what Torch-Pruning leaves: one global ratio, the largest network that meets the budget."""
    import torch_pruning as tp

    kinds = {
        "l2": partial(tp.importance.MagnitudeImportance, p=2),
        "group": partial(tp.importance.GroupMagnitudeImportance, p=2),
        "slimming": tp.importance.BNScaleImportance,
    }
    whole, best = _cost(module, setup).macs, None
    low, high = 0.0, 0.95
    for _ in range(9):
        ratio = (low + high) / 2
        trial = copy.deepcopy(module)
        last = [m for m in trial.modules() if isinstance(m, nn.Linear)]
        tool = tp.pruner.MagnitudePruner(
            trial,
            setup.example_inputs[0],
            importance=kinds[importance](),
            global_pruning=True,
            pruning_ratio=ratio,
            max_pruning_ratio=0.9,
            ignored_layers=last,
        )
        tool.step()
        if _cost(trial, setup).macs <= macs * whole:
            best, high = trial, ratio
        else:
            low = ratio
    assert best is not None, "no ratio meets the budget"
    return best


def _uniform(setup: Setup, macs: float) -> nn.Module:
    """Return a new CIFAR ResNet-20, the widest that meets the budget with its stages in their usual proportion.

    Its shortcuts pad as many channels in front as behind, so two stages differ by an even number.
    """
    whole = _cost(copy.deepcopy(setup.module).cpu(), setup).macs
    for percent in range(100, 0, -1):
        first = max(1, round(0.16 * percent))
        second, third = (2 * round((stage * percent / 100 - first) / 2) + first for stage in (32, 64))
        module = CifarResNet(3, widths=(first, second, third))
        if _cost(module.eval(), setup).macs <= macs * whole:
            return module
    raise AssertionError("no width meets the budget")


def _shrink(module: nn.Module) -> None:
    """Add the L1 subgradient on γ, with Network Slimming's own weight of it."""
    for each in module.modules():
        if isinstance(each, nn.BatchNorm2d) and each.weight.grad is not None:
            each.weight.grad.add_(each.weight.detach().sign(), alpha=1e-4)


def _cost(module: nn.Module, setup: Setup) -> Any:
    """Return parameters and MACs as prunec counts them, of any tool's network."""
    return prunec.analyze_module(module, setup.example_inputs)


def fine_tune(
    module: nn.Module,
    setup: Setup,
    teacher: Teacher,
    lr: float,
    steps: range,
    penalty: Callable[[nn.Module], None] = lambda _: None,
) -> None:
    """Train in place as train-prune fine-tunes; ``penalty`` changes the gradients of each step."""
    config = setup.config
    optimizer, ema = base_optimizer(module, config, lr), Ema(module, config.ema_decay)
    forward = setup.execution.forward(module, print)
    module.train()
    for number, step in enumerate(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 + math.cos(math.pi * number / len(steps))) / 2
        inputs, targets = setup.batches.at(step)
        optimizer.zero_grad()
        with setup.execution.autocast():
            loss = teacher.loss(inputs, setup.objective.logits(forward(inputs)).float(), targets)
        loss.backward()
        penalty(module)
        optimizer.step()
        ema.update()
    ema.copy_to_module()
    _settle(module, setup)


def _settle(module: nn.Module, setup: Setup, *, augmented: bool = True) -> None:
    config = setup.config
    batches = sampled_batches(setup.data.train, setup.pipeline, config.batch_size, 20, config.seed, augmented=augmented)
    reestimate(module, (inputs for inputs, _ in batches))


def _score(module: nn.Module, setup: Setup) -> float:
    data = setup.data
    with evaluating(module):
        found = evaluate(module, data.test, setup.pipeline, setup.objective, data.image_shape, Alone())
    return found[setup.objective.metric]


def run(name: str, weights: Path, data: Path, seed: int, device: str, answers: Path | None, scratch: Path) -> None:
    """Run a row, and keep what belongs in the repository."""
    row, folder = ROWS[name], scratch / f"{name}-seed{seed}"
    started, used, begun = time.time(), time.process_time(), _steps_done(folder)
    make = train_prune if row.method == "train-prune" else single_cut
    found = make(row, weights, data, seed, device, answers, folder)
    kept = RESULTS / folder.name
    kept.mkdir(parents=True, exist_ok=True)
    for file in _KEPT:
        if (folder / file).is_file():
            text = (folder / file).read_text(encoding="utf-8")
            for path, word in ((weights, "WEIGHTS"), (data, _folder(row)), (scratch, "RUNS")):
                text = text.replace(str(path), word)
            write_text(kept / file, text)
    document = {
        "row": name,
        "method": row.method,
        "seed": seed,
        "command": _command_in_words(name, seed, device),
        "steps": row.steps,
        "steps_elsewhere": begun,
        "batch_size": row.batch_size,
        **found,
        "seconds": round(time.time() - started),
        "cpu_seconds": round(time.process_time() - used),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "numpy", "prunec")},
        "hardware": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
        + (f", {torch.cuda.get_device_name()}" if device == "cuda" else ""),
        "threads": torch.get_num_threads(),
    }
    write_json(kept / "run.json", document)
    print(json.dumps(document["scores"]), flush=True)


def _steps_done(folder: Path) -> int:
    """Return the steps of a run that was begun before, perhaps on another machine; 0 for a new one."""
    log = folder / "metrics.jsonl"
    if not (folder / "checkpoint").is_dir() or not log.is_file():
        return 0
    return int(json.loads(log.read_text(encoding="utf-8").splitlines()[-1])["step"])


def _folder(row: Row) -> str:
    return f"{row.data.upper()}_FOLDER"


def _command_in_words(name: str, seed: int, device: str) -> str:
    data, where = _folder(ROWS[name]), " --device cuda" if device == "cuda" else ""
    return f"python benchmarks/results_table.py run {name} --weights WEIGHTS --data {data} --seed {seed}{where}"


# --- the table ----------------------------------------------------------------------------------------


def table() -> str:
    """Return the rows that were run as a markdown table: a mean over seeds, with the smallest and largest."""
    lines = [
        "| row | seeds | MACs left | parameters left | after the cut | at the end | CPU time |",
        "|---|" + "---|" * 6,
    ]
    for name, runs in _runs().items():
        cells = [", ".join(str(each["seed"]) for each in runs)]
        cells += [f"{runs[0][kind][1] / runs[0][kind][0]:.1%}" for kind in ("macs", "params")]
        cells += [_mean([each["scores"][moment] for each in runs]) for moment in ("removed", "after")]
        cells.append(f"{sum(each['cpu_seconds'] for each in runs) / len(runs) / 60:.0f} min")
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _mean(values: list[float]) -> str:
    spread = f" ({min(values):.2%} to {max(values):.2%})" if len(values) > 1 else ""
    return f"{sum(values) / len(values):.2%}{spread}"


def _runs() -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for name in ROWS:
        runs = [read_json(path) for path in sorted(RESULTS.glob(f"{name}-seed*/run.json"))]
        if runs:
            found[name] = runs
    return found


_STYLE = (
    "<style>:root{--ink:#1c2430;--soft:#5d6b7d;--line:#e2e7ee;--accent:#2f6fde;--c0:#98a4b3}"
    "text{font:11px system-ui,sans-serif;fill:var(--ink)}.title{font-weight:600;font-size:13.5px}"
    ".tick{fill:var(--soft)}.grid{stroke:var(--line)}.line{fill:none;stroke-width:1.8}</style>"
)


def plot() -> str:
    """Return ResNet-20's accuracy against MACs as an SVG document: a point per row (mean over seeds), and a key.

    Rows of less than 2,400 steps compare settings only, and are left out.
    """
    found = []
    for name, runs in _runs().items():
        if ROWS[name].network == "resnet20" and ROWS[name].steps >= 2400:
            score = sum(each["scores"]["after"] for each in runs) / len(runs)
            found.append((score, name.removeprefix("resnet20-"), float(runs[0]["macs"][1])))
    found.sort(reverse=True)
    points = [(str(number), macs, score) for number, (score, _, macs) in enumerate(found, 1)]
    drawn = pareto_chart("ResNet-20 on CIFAR-10: accuracy against MACs", points, width=470, height=420)
    opening, rest = drawn.replace('viewBox="0 0 470 420" width="470"', 'viewBox="0 0 760 420" width="760"').split(
        ">", 1
    )
    key = "".join(
        f'<text x="490" y="{40 + 20 * number}">{number + 1}  {name}: {score:.2%}</text>'
        for number, (score, name, _) in enumerate(found)
    )
    back = '<rect width="100%" height="100%" fill="#fff"/>'
    return f'{opening} xmlns="http://www.w3.org/2000/svg">{_STYLE}{back}{key}{rest}\n'


def main() -> None:
    """Run a row, or print the table and write the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    running = verbs.add_parser("run", help="run a row")
    running.add_argument("row", choices=sorted(ROWS))
    scoring = verbs.add_parser("statistics", help="score a network with other BatchNorm statistics")
    scoring.add_argument("network")
    for verb in (running, scoring):
        verb.add_argument("--weights", type=Path, required=True, help="folder of cifar10-NETWORK.safetensors")
        verb.add_argument("--data", type=Path, required=True, help="CIFAR-10; nuclei or CamVid for segnet")
    running.add_argument("--seed", type=int, default=0)
    running.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    running.add_argument("--answers", type=Path, help="folder that keeps what the unpruned network answers")
    running.add_argument("--scratch", type=Path, default=Path("runs"), help="where run folders are made; default: runs")
    verbs.add_parser("table", help="print the rows that were run, and draw them")
    given = parser.parse_args()
    if given.verb == "statistics":
        print(statistics(given.network, given.weights, given.data))
        return
    if given.verb == "run":
        run(given.row, given.weights, given.data, given.seed, given.device, given.answers, given.scratch)
        return
    print(table())
    write_text(PLOT, plot())
    print(f"wrote {PLOT}", file=sys.stderr)


if __name__ == "__main__":
    main()
