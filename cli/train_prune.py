"""``prunec train-prune``: train towards sparsity, remove, fine-tune, export, check."""

from __future__ import annotations

from typing import Any

import click

from prunec.cli.options import debug_option, is_main_process, json_option, keep_option, shape_option

_POSITIVE = click.FloatRange(min=0, min_open=True)
_FRACTION = click.FloatRange(min=0, max=1, min_open=True, max_open=True)


@click.command(name="train-prune")
@click.option("-o", "--output", required=True, metavar="RUN_DIR", help="The folder to make: model, plan, log, report.")
@click.option("--arch", metavar="NAME", help="A built-in architecture (prunec archs), torchvision:NAME or timm:NAME.")
@click.option("--model", metavar="package.module:factory", help="Your own network: a function that returns a module.")
@click.option("--onnx", metavar="FILE", help="An ONNX file's network; pruned.onnx has its input and output.")
@click.option(
    "--restore-batchnorm", metavar="WHEN", help="With --onnx: put folded BatchNorms back, auto (default) or never."
)
@click.option("--weights", metavar="FILE", help="State dict to start from (.safetensors, .pt); default: from scratch.")
@shape_option
@click.option(
    "--data",
    metavar="NAME|DIR",
    help="digits, digits-on-photos, CIFAR-10, or a folder: train/CLASS/* and test/CLASS/*, or images/ and masks/.",
)
@click.option("--augment", metavar="HOW", help="Changes to training images: none, shift, crop-flip, paper or scene.")
@click.option("--data-memory", type=_POSITIVE, metavar="GIB", help="Larger sets stay in files; default 4.")
@click.option("--normalise", metavar="KIND", help="How images become inputs: standardise, imagenet or dataset.")
@click.option("--preset", metavar="NAME", help="A named recipe (prunec presets); options override it.")
@click.option("--epochs", type=_POSITIVE, help="Length of the whole run, in passes over the training images.")
@click.option("--steps", type=click.IntRange(min=1), help="Length of the whole run in steps, instead of epochs.")
@click.option("--batch-size", type=click.IntRange(min=1), help="Images per step.")
@click.option("--accumulate", type=click.IntRange(min=1), metavar="N", help="Batches per step; default 1.")
@click.option("--optimizer", metavar="KIND", help="sgd (default), nesterov or adamw; gammas make ISTA's own steps.")
@click.option(
    "--distill",
    type=click.FloatRange(0, 1),
    help="Weight of the unpruned network's answers in fine-tuning; default: 0.9 with weights and classes, else 0.",
)
@click.option("--drive-beta", is_flag=True, default=None, help="Also shrink the betas of channels whose gamma is zero.")
@click.option("--lr", type=_POSITIVE, help="Learning rate of SGD before fine-tuning.")
@click.option("--gamma-lr", type=_POSITIVE, help="Step size mu of the penalised gammas; default: --lr, or chosen.")
@click.option("--finetune-lr", type=_POSITIVE, help="Learning rate with which fine-tuning starts; it falls to zero.")
@click.option("--weight-decay", type=click.FloatRange(min=0), help="Weight decay; gammas and biases have none.")
@click.option(
    "--shares",
    metavar="F,F,F",
    callback=lambda _context, _parameter, value: _fractions(value, "0.3,0.4,0.3"),
    help="How the run is divided among warm-up, ISTA and fine-tuning: 0.3,0.4,0.3; default: the preset's, but from "
    "weights to a budget fine-tuning only.",
)
@click.option(
    "--criterion",
    metavar="KIND",
    help="How a budget is met if too few gammas are zero: l1 (smallest filters) or reconstruct (channels that the rest "
    "can make up for on training images); default: l1, but from weights to a budget of MACs or of "
    "parameters reconstruct, unless half of the MACs or more stay and 2,000 steps of fine-tuning follow.",
)
@click.option("--rho", type=click.FloatRange(min=0), help="Weight of the penalty on the gammas; default: chosen.")
@click.option("--alpha", type=_POSITIVE, help="Factor of the gamma-W rescaling; default: chosen.")
@click.option("--penalty", metavar="KIND", help="What a channel costs: memory (the paper's), macs or uniform.")
@click.option("--residual", metavar="KIND", help="Residual streams: group (prune whole streams' channels) or keep.")
@click.option("--border", metavar="KIND", help="Removed constants at zero padding: auto, exact or bias.")
@click.option("--target-macs", type=_FRACTION, metavar="F", help="Fraction of the MACs to reach; adjusts rho.")
@click.option("--target-params", type=_FRACTION, metavar="F", help="Fraction of the parameters to reach; adjusts rho.")
@click.option(
    "--multiple-of", type=click.IntRange(min=1), metavar="N", help="Layers keep a multiple of N channels; default 1."
)
@click.option(
    "--target-latency",
    type=_FRACTION,
    metavar="F",
    help="Fraction of the network's latency to reach, measured in ONNX Runtime on this CPU; default: no target.",
)
@click.option(
    "--milestones",
    metavar="F,F,…",
    callback=lambda _context, _parameter, value: _fractions(value, "0.7,0.5,0.3"),
    help="Falling fractions of the MACs, 0.7,0.5,0.3: a pruned, fine-tuned network at each, from one run.",
)
@click.option("--on-symptom", metavar="WHAT", help="At symptoms of a wrong rho, alpha or mu: warn (default) or stop.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Where to train; auto takes CUDA.")
@click.option(
    "--precision", metavar="KIND", help="Training steps in fp32 (default), bf16, or fp16 on CUDA; results are fp32."
)
@click.option(
    "--channels-last/--no-channels-last", default=None, help="NHWC layout in training; default: on CUDA, below fp32."
)
@click.option("--compile", is_flag=True, default=None, help="Run training steps through torch.compile.")
@click.option("--tensorboard", is_flag=True, default=None, help="Write the log as TensorBoard curves too.")
@click.option("--seed", type=click.IntRange(min=0), help="Seed of everything random; default 0.")
@click.option("--log-every", type=click.IntRange(min=1), metavar="N", help="Steps between two rows of metrics.jsonl.")
@click.option(
    "--checkpoint-every",
    type=click.IntRange(min=1),
    metavar="N",
    help="Steps between checkpoints; default: one a minute.",
)
@click.option("--resume", is_flag=True, help="Continue the run in RUN_DIR, or start one; --lr, --rho, … may change.")
@click.option("--force", is_flag=True, help="Replace an existing run.")
@keep_option
@json_option
@debug_option
def train_prune(
    output: str,
    resume: bool,
    input_shapes: dict[str, tuple[int, ...]],
    keep: tuple[str, ...],
    as_json: bool,
    **given: Any,
) -> None:
    """Train until channels are constant, remove them, fine-tune.

    The result is exported and checked in ONNX Runtime. Without a network it trains the demo,
    a small one on handwritten digits; `--arch segnet` alone trains one that makes masks.
    """
    from prunec.cli.render import show_json, show_run, tell
    from prunec.training.logs.progress import Silent, for_stream
    from prunec.training.run.run import train_prune as run
    from prunec.training.settings.presets import holds_run, make_config, resume_config

    given["keep"] = keep or None
    given["input_shape"] = _image_shape(input_shapes)
    # Without a network a run would be the demo, which nobody means who mistypes the folder of another.
    unnamed = not any(given.get(name) for name in ("preset", "arch", "model", "onnx", "weights", "data"))
    if resume and (unnamed or holds_run(output)):
        config = resume_config(output, **given)
    else:
        if resume and is_main_process():
            tell(f"{output} holds no run: starting one")
        config = make_config(output, preset=given.pop("preset") or "", **given)
    progress = for_stream() if is_main_process() else Silent()
    try:
        result = run(config, progress)
    finally:
        progress.close()
    if not is_main_process():
        return
    if as_json:
        show_json(result.to_json_dict())
    else:
        show_run(result)


def _fractions(value: str | None, example: str) -> tuple[float, ...] | None:
    if value is None:
        return None
    try:
        return tuple(float(part) for part in value.split(","))
    except ValueError as error:
        raise click.BadParameter(f"give fractions with commas between them: {example}") from error


def _image_shape(shapes: dict[str, tuple[int, ...]]) -> tuple[int, ...] | None:
    """Return (C, H, W) without the batch: a run chooses its own batch size."""
    from prunec.errors import BadInput

    if not shapes:
        return None
    shape = next(iter(shapes.values()))
    if len(shapes) != 1 or len(shape) != 4:
        given = ", ".join("x".join(map(str, shape)) for shape in shapes.values())
        raise BadInput(
            f"--input-shape {given} is not one batch of images",
            why="training takes networks with one image input, and counts the batch axis",
            do="give N x C x H x W, such as --input-shape 1x3x224x224",
        )
    return shape[1:]
