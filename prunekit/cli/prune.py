"""``prunekit prune``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunekit.cli.common import (
    Gpu,
    GpuPrecision,
    Json,
    Overwrite,
    Quiet,
    Resume,
    Verbose,
    option,
    print_json,
    print_table,
    print_text,
    set_verbosity,
    target_of,
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("prune")(prune)


def prune(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help=(
                "torchvision:NAME, timm:NAME, zoo:NAME, path/file.py:factory, "
                "package.module:factory or a run folder"
            ),
        ),
    ] = None,
    output: Annotated[Path, option("The run folder to make.", "-o", "--output")] = Path("run"),
    config: Annotated[
        Path | None, option("A recipe (TOML) with the same settings; flags win.", "--config")
    ] = None,
    data: Annotated[
        str | None,
        option(
            "digits, imagefolder:PATH, cifar10:PATH, ..., package.module:factory; none: untrained."
        ),
    ] = None,
    input: Annotated[str | None, option("Input shape, batch first.", "--input")] = None,  # noqa: A002
    target: Annotated[str | None, option("runtime[:device][:precision].")] = None,
    gpu: Gpu = False,
    precision: GpuPrecision = None,
    threads: Annotated[int | None, option("Threads of the target (1).")] = None,
    target_latency: Annotated[
        str | None, option("50% of dense, 12.5ms, or 2x faster (50%).")
    ] = None,
    limit: Annotated[
        list[str] | None,
        option(
            "One more budget, such as macs=40% or params=1.5M (of convolutions and linear "
            "layers); may be repeated."
        ),
    ] = None,
    table: Annotated[
        str | None, option("A latency table made before; default: profile now.")
    ] = None,
    method: Annotated[
        str | None, option("iee, halp or oneshot; default: halp where it can train.")
    ] = None,
    iee: Annotated[
        list[str] | None,
        option("Option of method iee, such as omega=0.3; may be repeated.", metavar="KEY=VALUE"),
    ] = None,
    criterion: Annotated[
        str | None,
        option("taylor, magnitude, fpgm, ...; default: taylor where there is data."),
    ] = None,
    solver: Annotated[
        str | None, option("joint, knapsack, greedy, uniform or milp (joint).")
    ] = None,
    granularity: Annotated[int | None, option("Widths are multiples of this.")] = None,
    depth: Annotated[
        bool | None, option("Whole residual blocks may go as well.", "--depth")
    ] = None,
    heads: Annotated[
        str | None,
        option("What goes of attentions: whole heads, or width of all heads alike (whole)."),
    ] = None,
    score_batches: Annotated[int | None, option("Batches that one-shot scores use (8).")] = None,
    pruning_steps: Annotated[int | None, option("Pruning steps of halp (8).")] = None,
    profile_nets: Annotated[int | None, option("Networks the profile measures (12).")] = None,
    profile_seconds: Annotated[float | None, option("Time limit of the profile (120).")] = None,
    measure_seconds: Annotated[
        float | None, option("Time limit of one measurement while landing (8).")
    ] = None,
    from_scratch: Annotated[
        bool | None,
        option(
            "Begin with random weights: the dense network's training first, or iee's.",
            "--from-scratch",
        ),
    ] = None,
    dense_epochs: Annotated[
        int | None, option("Epochs of that (as --epochs), or on given weights (0).")
    ] = None,
    pretrained: Annotated[
        bool | None, option("torchvision's or timm's weights.", "--pretrained")
    ] = None,
    weights: Annotated[str | None, option("Dense weights, a .safetensors file.")] = None,
    reparameterize: Annotated[
        bool | None,
        option(
            "Fold blocks that train with branches, as they are deployed (yes).",
            "--reparameterize/--no-reparameterize",
        ),
    ] = None,
    epochs: Annotated[int | None, option("Epochs of pruning and fine-tuning (15).")] = None,
    batch_size: Annotated[int | None, option("Training batch over all processes (64).")] = None,
    optimizer: Annotated[str | None, option("sgd or adamw (sgd).")] = None,
    lr: Annotated[float | None, option("Learning rate of dense training.")] = None,
    fine_tune_lr: Annotated[float | None, option("Learning rate after it (a fifth).")] = None,
    momentum: Annotated[float | None, option("SGD momentum (0.9).")] = None,
    weight_decay: Annotated[float | None, option("Weight decay (0.0005).")] = None,
    warmup_epochs: Annotated[float | None, option("Linear warm-up (1).")] = None,
    label_smoothing: Annotated[float | None, option("Label smoothing (0).")] = None,
    ema: Annotated[float | None, option("Decay of averaged weights; 0 is off (0).")] = None,
    mixed_precision: Annotated[str | None, option("no, fp16 or bf16 (no).")] = None,
    clip_norm: Annotated[float | None, option("Gradient norm limit; 0 is off (0).")] = None,
    distill: Annotated[
        float | None, option("Share of the dense teacher's term in the loss, 0 to 1 (0).")
    ] = None,
    distill_temperature: Annotated[float | None, option("Its temperature (4).")] = None,
    workers: Annotated[int | None, option("Data-loading processes (0).")] = None,
    device: Annotated[str | None, option("Training device: auto, cpu or cuda (auto).")] = None,
    seed: Annotated[int | None, option("Seed of everything random (0).")] = None,
    tensorboard: Annotated[
        bool | None, option("Also log to OUTPUT/tensorboard.", "--tensorboard")
    ] = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> int:
    """Prune MODEL to a latency, end to end: profile, prune, slim, train, export, measure, report.

    The target is met only by a measurement of the exported artifact against the dense one.
    """
    set_verbosity(verbose, quiet)
    from prunekit.errors import FileError, InterruptedRunError
    from prunekit.pipeline.folder import RECIPE, check_folder
    from prunekit.pipeline.prune import prune as run_pipeline
    from prunekit.pipeline.recipe import Recipe, make_recipe, pairs
    from prunekit.pipeline.setup import set_up
    from prunekit.ranks import from_main, rank
    from prunekit.report.markdown import summary_rows, verdict

    flags = {name: context.params.get(name) for name in Recipe.model_fields}
    flags["target"] = target_of(gpu, target, precision)
    flags["limit"] = tuple(flags["limit"]) if flags["limit"] else None
    flags["iee"] = pairs(flags["iee"], "--iee") if flags["iee"] else None
    recipe = make_recipe(flags, config)
    if rank() > 0:
        set_verbosity(verbose=False, quiet=True)
    from_main(lambda: check_folder(output, recipe, overwrite=overwrite, resume=resume))
    try:
        job = set_up(recipe)
        report = run_pipeline(job, output, overwrite=overwrite, resume=resume)
    except KeyboardInterrupt:
        raise InterruptedRunError(
            f"interrupted; finished rounds and epochs are in {output}: same command with --resume"
            if (output / RECIPE).is_file()
            else "interrupted before anything was finished; nothing is kept"
        ) from None
    except FileError as error:
        if not (output / RECIPE).is_file():
            raise
        raise FileError(
            f"{error}; finished epochs are in {output}: same command with --resume"
        ) from error
    if rank() > 0:  # one of several processes speaks
        pass
    elif json:
        print_json(report.model_dump(mode="json"))
    else:
        print_table(
            verdict(report), ("", "dense", "pruned", "pruned / dense"), summary_rows(report)
        )
        for what, where in report.artifacts.items():
            print_text(f"{what:>14}: {where}")
        print_text(f"{'report':>14}: {output / 'report.json'}")
    return 0 if report.latency.met else 1
