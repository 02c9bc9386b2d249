"""``prunekit profile``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunekit.cli.common import (
    Base,
    Gpu,
    GpuPrecision,
    Heads,
    Input,
    Json,
    Model,
    Overwrite,
    Quiet,
    Reparameterize,
    Resume,
    Seconds,
    Seed,
    Threads,
    Verbose,
    print_json,
    print_text,
    refuse_existing,
    refuse_same,
    set_verbosity,
    target_of,
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("profile")(profile)


def profile(
    model: Model,
    base: Base = None,
    input: Input = None,  # noqa: A002 - the flag's name
    target: Annotated[
        str | None,
        typer.Option(
            "--target", help="runtime[:device][:precision] (onnxruntime:cpu); see prunekit targets."
        ),
    ] = None,
    gpu: Gpu = False,
    precision: GpuPrecision = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Batch of the target; default: --input's.")
    ] = None,
    threads: Threads = 1,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The table's file.")] = None,
    nets: Annotated[
        int | None,
        typer.Option(
            min=4, help="Networks to measure, dense included; default: 12, or 5 with --transfer."
        ),
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Rounds that each network is in; default: 8.")
    ] = None,
    max_seconds: Seconds = 120.0,
    target_error: Annotated[
        str,
        typer.Option(
            metavar="PERCENT",
            help="End early once the mean error on networks left out is this, such as 1.5%.",
        ),
    ] = "0%",
    granularity: Annotated[
        int | None, typer.Option(min=1, help="Channel granularity; default: the target's.")
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            help="Measure share I of N of the networks (2/4; auto under torchrun) into a file of "
            "its own; prunekit table merge joins them."
        ),
    ] = None,
    transfer: Annotated[
        Path | None,
        typer.Option(
            metavar="TABLE",
            help="Calibrate this table of another device to the one here by a few whole networks.",
        ),
    ] = None,
    source: Annotated[
        str,
        typer.Option(
            help="Where layer times come from: harvest (whole networks, watched), grid (single "
            "operators), differences (whole networks, by regression); auto: harvest where the "
            "runtime tells times of layers, else differences."
        ),
    ] = "auto",
    seed: Seed = 0,
    reparameterize: Reparameterize = True,
    heads: Heads = "whole",
    resume: Resume = False,
    overwrite: Overwrite = False,
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Build a latency table for MODEL on a target, by measuring whole networks."""
    set_verbosity(verbose, quiet)
    from prunekit.core.run_folder import rounds_in
    from prunekit.core.target import Target
    from prunekit.latency import LatencyTable
    from prunekit.latency.shipped import find_table
    from prunekit.networks.saved import saved_input
    from prunekit.pipeline.job import set_up
    from prunekit.pipeline.recipes.base import parse_shape
    from prunekit.pipeline.recipes.prune import Recipe, make_recipe
    from prunekit.pipeline.table import SOURCES, finished_table, make_table
    from prunekit.profiling import HarvestPlan
    from prunekit.profiling.differences import LEAST_NETS
    from prunekit.profiling.sharding import parse_shard, shard_path
    from prunekit.profiling.transferring import TRANSFER_NETS
    from prunekit.support.errors import InterruptedRunError, UsageError
    from prunekit.support.parsing import parse_percent
    from prunekit.support.processes import world

    asked = target_of(gpu, target, precision)
    wanted = "onnxruntime:cpu" if asked is None else asked
    shape = input or saved_input(model) or Recipe.model_fields["input"].default
    if batch is not None:
        shape = "x".join(map(str, (batch, *parse_shape(shape)[1:])))
    if shard is not None and transfer is not None:
        raise UsageError("--shard and --transfer exclude each other; a transfer is short enough")
    if source not in ("auto", *SOURCES):
        known = ", ".join(("auto", *SOURCES))
        raise UsageError(f"unknown --source {source!r}; known: {known}")
    if source in ("grid", "differences") and shard is not None:
        raise UsageError(f"--source {source} does not go with --shard; drop one")
    if source == "grid" and (nets is not None or rounds is not None):
        raise UsageError(
            f"{'--nets' if nets is not None else '--rounds'} does not go with --source grid, which "
            "measures for --max-seconds; drop one"
        )
    if source == "differences" and nets is not None and nets < LEAST_NETS:
        raise UsageError(f"--source differences needs --nets {LEAST_NETS} or more, not {nets}")
    if source != "auto" and transfer is not None:
        raise UsageError(f"--source {source} does not go with --transfer; drop one")
    wanted_error = parse_percent(target_error, "--target-error")
    if wanted_error and (source in ("grid", "differences") or transfer is not None):
        how = "--transfer" if transfer is not None else f"--source {source}"
        raise UsageError(f"--target-error does not go with {how}; drop one")
    part = (1, 1) if shard is None else parse_shard(shard)
    if world() > 1:
        raise UsageError("several processes would measure the same networks; add --shard auto")
    recipe = make_recipe(
        {
            "model": model,
            "base": base,
            "input": shape,
            "target": wanted,
            "threads": threads,
            "seed": seed,
            "reparameterize": reparameterize,
            "heads": heads,
        }
    )
    path = output or Path(_default_name(model, str(Target.parse(wanted)), shape, threads))
    path = path if shard is None else shard_path(path, part)
    journal = path.with_name(path.name + ".journal.jsonl")
    refuse_existing(path, overwrite, resume)
    source_file = None if transfer is None else find_table(transfer)
    refuse_same(transfer=source_file, output=path)
    origin = None if source_file is None else LatencyTable.load(source_file)
    count = nets or (HarvestPlan.nets if transfer is None else TRANSFER_NETS)
    plan = HarvestPlan(
        count,
        rounds or HarvestPlan.rounds,
        max_seconds=max_seconds,
        seed=seed,
        shard=part,
        target_error=wanted_error,
    )
    job = set_up(recipe)
    try:
        finished = resume and path.exists() and not journal.exists()
        table = (
            finished_table(path, job.graph, job.target, plan, granularity, source, origin)
            if finished
            else make_table(
                job.module,
                job.graph,
                job.example,
                job.target,
                path,
                journal=journal,
                plan=plan,
                granularity=granularity,
                name=model,
                resume=resume,
                overwrite=overwrite,
                origin=origin,
                source=source,
            )
        )
    except KeyboardInterrupt:
        raise InterruptedRunError(
            f"interrupted; the finished rounds are in {journal}: same command with --resume"
            if rounds_in(journal)
            else "interrupted before a round was finished; nothing is kept"
        ) from None
    if json:
        print_json(
            {
                "table": str(path),
                "target": str(table.target),
                "device": table.environment.device_name,
                "granularity": table.granularity,
                "entries": len(table.entries),
                "networks": len(table.networks),
                "rounds": table.protocol.rounds,
                "stopped": table.protocol.stopped,
                "drift": table.protocol.drift,
                "disturbed": table.protocol.disturbed,
                "dense_ms": table.networks[0].end_to_end_us / 1e3,
                **table.calibration.errors,
            }
        )
    else:
        print_text(f"latency table: {path}")


def _default_name(model: str, target: str, shape: str, threads: int) -> str:
    parts = (model.split(":")[-1], target, shape, f"{threads}t")
    return "-".join(part.replace(":", "_").replace("/", "_") for part in parts) + ".json"
