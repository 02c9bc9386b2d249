"""``prunekit sparsify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunekit.cli.common import (
    Base,
    Json,
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
    LabelSmoothing,
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
        sparsity="What becomes zero",
        target="Targets",
        from_scratch="Dense network",
        epochs="Training",
        resume="Output",
    )
    app.command("sparsify", cls=headings)(sparsify)


def sparsify(
    context: typer.Context,
    model: MaybeModel = None,
    base: Base = None,
    output: Output = Path("run"),
    config: Config = None,
    data: DataText = None,
    input: MaybeInput = None,  # noqa: A002
    sparsity: Annotated[
        str | None, option("Share of zeros in the sparse layers, 90% or 0.9 (90%).")
    ] = None,
    distribution: Annotated[
        str | None, option("How layers share it: erk or uniform (erk).")
    ] = None,
    pattern: Annotated[
        str | None, option("unstructured, or N:M along the inputs, such as 2:4 (unstructured).")
    ] = None,
    method: Annotated[
        str | None, option("iee, rigl, set, gmp or static (iee); static needs no data.")
    ] = None,
    criterion: Annotated[
        str | None, option("magnitude, taylor, taylor_weight or random (magnitude).")
    ] = None,
    ranking: Annotated[
        str | None, option("layer, or global: layers exchange weights (layer).")
    ] = None,
    dense: Annotated[
        list[str] | None,
        option(
            "Layer that stays dense beside the first: a name, a module or a pattern such as "
            "layer1.*; may be repeated; none makes the first sparse too.",
            metavar="LAYER",
        ),
    ] = None,
    options: Annotated[
        list[str] | None,
        option(
            "Setting of the schedule, such as every=50; may be repeated.",
            "--option",
            metavar="KEY=VALUE",
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        option(
            "Where dense and sparse are timed, runtime[:device][:precision]; may be repeated "
            "(onnxruntime:cpu, and openvino:cpu where it is installed).",
            metavar="TARGET",
        ),
    ] = None,
    threads: MaybeThreads = None,
    measure_seconds: Annotated[
        float | None, option("Time limit of the measurement on each target (8).")
    ] = None,
    from_scratch: Annotated[
        bool | None, option("Begin with random weights.", "--from-scratch")
    ] = None,
    dense_epochs: Annotated[int | None, option("Epochs of dense training before (0).")] = None,
    pretrained: Pretrained = None,
    weights: Weights = None,
    reparameterize: MaybeReparameterize = None,
    epochs: Annotated[int | None, option("Epochs of sparse training (15).")] = None,
    batch_size: BatchSize = None,
    optimizer: Optimizer = None,
    lr: Annotated[float | None, option("Learning rate of training from random weights.")] = None,
    fine_tune_lr: Annotated[
        float | None, option("Learning rate of training from trained weights (a fifth).")
    ] = None,
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
) -> None:
    """Train MODEL with most of its weights at zero, and measure what that brings.

    The result is a plain network whose zeros are exact. The report says which runtimes gain.
    """
    set_verbosity(verbose, quiet)
    from prunekit.pipeline.output_folder import check_folder
    from prunekit.pipeline.recipes.base import pairs, read_recipe
    from prunekit.pipeline.recipes.sparsify import SparseRecipe
    from prunekit.pipeline.sparsify import set_up_sparse
    from prunekit.pipeline.sparsify import sparsify as run_pipeline
    from prunekit.report.sparsity import sparsity_rows, sparsity_verdict, speed_verdict
    from prunekit.support.processes import on_rank_zero, rank

    flags = {name: context.params.get(name) for name in SparseRecipe.model_fields}
    for several in ("dense", "target"):
        flags[several] = tuple(flags[several] or ()) or None
    flags["option"] = pairs(options, "--option", "every=50") if options else None
    recipe = read_recipe(SparseRecipe, flags, config)
    if rank() > 0:
        set_verbosity(verbose=False, quiet=True)
    on_rank_zero(lambda: check_folder(output, recipe, overwrite=overwrite, resume=resume))
    with resumable(output):
        job = set_up_sparse(recipe)
        report = run_pipeline(job, output, overwrite=overwrite, resume=resume)
    if rank() > 0:  # one of several processes speaks
        return
    if json:
        print_json(report.model_dump(mode="json"))
        return
    print_table(
        sparsity_verdict(report), ("", "dense", "sparse", "sparse / dense"), sparsity_rows(report)
    )
    print_text(speed_verdict(report))
    for what, where in report.artifacts.items():
        print_text(f"{what:>14}: {where}")
    print_text(f"{'report':>14}: {output / 'report.json'}")
