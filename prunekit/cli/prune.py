"""``prunekit prune``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunekit.cli.common import (
    Base,
    Gpu,
    GpuPrecision,
    Json,
    Keep,
    MinWidth,
    Overwrite,
    Quiet,
    Resume,
    Verbose,
    option,
    print_json,
    print_table,
    print_text,
    resumable,
    sections,
    set_verbosity,
    target_of,
)
from prunekit.cli.training import (
    BatchSize,
    ClipNorm,
    Config,
    DataText,
    Device,
    Distill,
    DistillTemperature,
    Ema,
    FineTuneLr,
    LabelSmoothing,
    Lr,
    MaybeInput,
    MaybeModel,
    MaybeReparameterize,
    MaybeSeed,
    MaybeThreads,
    MixedPrecision,
    Momentum,
    Optimizer,
    Output,
    Pretrained,
    Tensorboard,
    WarmupEpochs,
    WeightDecay,
    Weights,
    Workers,
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    headings = sections(
        target="Target and budget",
        table="Latency table and measurements",
        method="What goes",
        from_scratch="Dense network",
        epochs="Training",
        resume="Output",
    )
    app.command("prune", cls=headings)(prune)


def prune(
    context: typer.Context,
    model: MaybeModel = None,
    base: Base = None,
    output: Output = Path("run"),
    config: Config = None,
    data: DataText = None,
    input: MaybeInput = None,  # noqa: A002
    target: Annotated[str | None, option("runtime[:device][:precision].")] = None,
    gpu: Gpu = False,
    precision: GpuPrecision = None,
    threads: MaybeThreads = None,
    target_latency: Annotated[
        str | None, option("50% of dense, 12.5ms, or 2x faster (50%).")
    ] = None,
    limit: Annotated[
        list[str] | None,
        option(
            "One more budget, such as macs=40%, params=1.5M (of convolutions and linear layers) or "
            "memory=8MiB (weights and activations); may be repeated.",
            metavar="BUDGET",
        ),
    ] = None,
    table: Annotated[
        str | None, option("A latency table made before; default: profile now.")
    ] = None,
    profile_nets: Annotated[int | None, option("Networks the profile measures (12).")] = None,
    profile_seconds: Annotated[float | None, option("Time limit of the profile (120).")] = None,
    measure_seconds: Annotated[
        float | None, option("Time limit of one measurement while landing (8).")
    ] = None,
    granularity: Annotated[int | None, option("Widths are multiples of this.")] = None,
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
    keep: Keep = None,
    min_width: MinWidth = None,
    depth: Annotated[
        bool | None, option("Whole residual blocks may go as well.", "--depth")
    ] = None,
    heads: Annotated[
        str | None,
        option("What goes of attentions: whole heads, or width of all heads alike (whole)."),
    ] = None,
    score_batches: Annotated[int | None, option("Batches that one-shot scores use (8).")] = None,
    pruning_steps: Annotated[int | None, option("Pruning steps of halp (8).")] = None,
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
    pretrained: Pretrained = None,
    weights: Weights = None,
    reparameterize: MaybeReparameterize = None,
    epochs: Annotated[int | None, option("Epochs of pruning and fine-tuning (15).")] = None,
    batch_size: BatchSize = None,
    optimizer: Optimizer = None,
    lr: Lr = None,
    fine_tune_lr: FineTuneLr = None,
    momentum: Momentum = None,
    weight_decay: WeightDecay = None,
    warmup_epochs: WarmupEpochs = None,
    label_smoothing: LabelSmoothing = None,
    ema: Ema = None,
    mixed_precision: MixedPrecision = None,
    clip_norm: ClipNorm = None,
    distill: Distill = None,
    distill_temperature: DistillTemperature = None,
    workers: Workers = None,
    device: Device = None,
    seed: MaybeSeed = None,
    tensorboard: Tensorboard = None,
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
    from prunekit.pipeline.job import set_up
    from prunekit.pipeline.output_folder import check_folder
    from prunekit.pipeline.prune import check
    from prunekit.pipeline.prune import prune as run_pipeline
    from prunekit.pipeline.recipes.base import pairs
    from prunekit.pipeline.recipes.prune import Recipe, make_recipe
    from prunekit.report.markdown import GROUP_HEAD, group_rows, summary_rows, verdict
    from prunekit.support.processes import on_rank_zero, rank

    flags = {name: context.params.get(name) for name in Recipe.model_fields}
    flags["target"] = target_of(gpu, target, precision)
    for several in ("limit", "keep"):
        given = flags[several]
        flags[several] = tuple(given) if given else None
    flags["iee"] = pairs(flags["iee"], "--iee") if flags["iee"] else None
    recipe = make_recipe(flags, config)
    check(recipe)
    if rank() > 0:
        set_verbosity(verbose=False, quiet=True)
    on_rank_zero(lambda: check_folder(output, recipe, overwrite=overwrite, resume=resume))
    with resumable(output):
        job = set_up(recipe)
        report = run_pipeline(job, output, overwrite=overwrite, resume=resume)
    if rank() > 0:  # one of several processes speaks
        pass
    elif json:
        print_json(report.model_dump(mode="json"))
    else:
        print_table(
            verdict(report), ("", "dense", "pruned", "pruned / dense"), summary_rows(report)
        )
        print_table("Groups", GROUP_HEAD, group_rows(report))
        for what, where in report.artifacts.items():
            print_text(f"{what:>14}: {where}")
        print_text(f"{'report':>14}: {output / 'report.json'}")
    return 0 if report.latency.met else 1
