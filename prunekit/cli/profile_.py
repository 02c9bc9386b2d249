"""``prunekit profile``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from prunekit.cli.common import (
    Gpu,
    GpuPrecision,
    Json,
    Overwrite,
    Quiet,
    Resume,
    Seconds,
    Verbose,
    option,
    print_json,
    print_text,
    refuse_existing,
    refuse_same,
    set_verbosity,
    target_of,
)
from prunekit.cli.flags import Given, settings

if TYPE_CHECKING:
    from prunekit.latency import LatencyTable
    from prunekit.pipeline.recipes.prune import Recipe
    from prunekit.profiling import HarvestPlan

KNOWN_SOURCES = ("auto", "harvest", "grid", "differences")

BatchOfTarget = Annotated[
    int | None, option("Batch of the target; default: --input's.", section="Target", min=1)
]
TableFile = Annotated[Path | None, option("The table's file.", "-o", "--output", section="Output")]
Nets = Annotated[
    int | None,
    option("Networks to measure, dense included; default: 12, or 5 with --transfer.", min=4),
]
Rounds = Annotated[int | None, option("Rounds that each network is in; default: 8.", min=1)]
TargetError = Annotated[
    str,
    option(
        "End early once the mean error on networks left out is this, such as 1.5%.",
        metavar="PERCENT",
    ),
]
Shard = Annotated[
    str | None,
    option(
        "Measure share I of N of the networks (2/4; auto under torchrun) into a file of its own; "
        "prunekit table merge joins them."
    ),
]
Transfer = Annotated[
    Path | None,
    option(
        "Calibrate this table of another device to the one here by a few whole networks.",
        metavar="TABLE",
    ),
]
Source = Annotated[
    str,
    option(
        "Where layer times come from: harvest (whole networks, watched), grid (single operators), "
        "differences (whole networks, by regression); auto: harvest where the runtime tells times "
        "of layers, else differences.",
        known=KNOWN_SOURCES,
    ),
]
FLAGS = (
    *("model", "base", "input", "example", "target", "threads"),
    *("granularity", "heads", "reparameterize", "seed"),
)


@settings("prunekit.pipeline.recipes.prune:Recipe", *FLAGS)
def profile(
    given: Given[Recipe],
    gpu: Gpu = False,
    precision: GpuPrecision = None,
    batch: BatchOfTarget = None,
    nets: Nets = None,
    rounds: Rounds = None,
    max_seconds: Seconds = 120.0,
    target_error: TargetError = "0%",
    shard: Shard = None,
    transfer: Transfer = None,
    source: Source = "auto",
    output: TableFile = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Build a latency table for MODEL on a target, by measuring whole networks."""
    set_verbosity(verbose, quiet)
    from prunekit.latency import LatencyTable
    from prunekit.latency.shipped import find_table
    from prunekit.profiling import HarvestPlan
    from prunekit.profiling.sharding import parse_shard, shard_path
    from prunekit.profiling.transferring import TRANSFER_NETS
    from prunekit.support.parsing import parse_percent

    recipe = _recipe(given, target_of(gpu, given.text("target"), precision), batch)
    _check_source(source, nets, rounds, shard=shard is not None, transfer=transfer is not None)
    plan = HarvestPlan(
        nets or (HarvestPlan.nets if transfer is None else TRANSFER_NETS),
        rounds or HarvestPlan.rounds,
        max_seconds=max_seconds,
        seed=recipe.seed,
        shard=(1, 1) if shard is None else parse_shard(shard),
        target_error=parse_percent(target_error, "--target-error"),
    )
    _check_plan(plan, source, transfer=transfer is not None)
    path = output or Path(_default_name(recipe))
    path = path if shard is None else shard_path(path, plan.shard)
    refuse_existing(path, overwrite, resume)
    origin_file = None if transfer is None else find_table(transfer)
    refuse_same(transfer=origin_file, output=path)
    origin = None if origin_file is None else LatencyTable.load(origin_file)
    table = _profile(recipe, plan, path, source, origin, resume=resume, overwrite=overwrite)
    if json:
        print_json({"table": str(path), **_facts(table)})
    else:
        print_text(f"latency table: {path}")


def _recipe(given: Given[Recipe], target: str | None, batch: int | None) -> Recipe:
    """What is profiled, with the batch that was asked for."""
    from prunekit.core.inputs import with_batch
    from prunekit.support.errors import UsageError

    recipe = given.recipe(target=target)
    if batch is None:
        return recipe
    if recipe.example is not None:
        raise UsageError("--batch goes with --input; an --example has a batch of its own")
    return recipe.model_copy(update={"input": with_batch(recipe.input, batch)})


def _check_source(
    source: str, nets: int | None, rounds: int | None, *, shard: bool, transfer: bool
) -> None:
    """Refuse flags that do not go together."""
    from prunekit.profiling.differences import LEAST_NETS
    from prunekit.support.errors import UsageError

    if shard and transfer:
        raise UsageError("--shard and --transfer exclude each other; a transfer is short enough")
    if source not in KNOWN_SOURCES:
        raise UsageError(f"unknown --source {source!r}; known: {', '.join(KNOWN_SOURCES)}")
    if source in ("grid", "differences") and shard:
        raise UsageError(f"--source {source} does not go with --shard; drop one")
    if source == "grid" and (nets is not None or rounds is not None):
        raise UsageError(
            f"{'--nets' if nets is not None else '--rounds'} does not go with --source grid, which "
            "measures for --max-seconds; drop one"
        )
    if source == "differences" and nets is not None and nets < LEAST_NETS:
        raise UsageError(f"--source differences needs --nets {LEAST_NETS} or more, not {nets}")
    if source != "auto" and transfer:
        raise UsageError(f"--source {source} does not go with --transfer; drop one")


def _check_plan(plan: HarvestPlan, source: str, *, transfer: bool) -> None:
    """Refuse a plan that cannot be carried out here."""
    from prunekit.support.errors import UsageError
    from prunekit.support.processes import world

    if plan.target_error and (source in ("grid", "differences") or transfer):
        other = "--transfer" if transfer else f"--source {source}"
        raise UsageError(f"--target-error does not go with {other}; drop one")
    if world() > 1:
        raise UsageError("several processes would measure the same networks; add --shard auto")


def _profile(
    recipe: Recipe,
    plan: HarvestPlan,
    path: Path,
    source: str,
    origin: LatencyTable | None,
    *,
    resume: bool,
    overwrite: bool,
) -> LatencyTable:
    """Measure, or go on measuring; a table that is whole already is checked and kept."""
    from prunekit.core.run_folder import rounds_in
    from prunekit.pipeline.job import set_up
    from prunekit.pipeline.table import finished_table, make_table
    from prunekit.support.errors import InterruptedRunError

    job = set_up(recipe)
    journal = path.with_name(path.name + ".journal.jsonl")
    if resume and path.exists() and not journal.exists():
        return finished_table(
            *(path, job.graph, job.target, plan, recipe.granularity, source, origin)
        )
    try:
        return make_table(
            *(job.module, job.graph, job.example, job.target, path),
            journal=journal,
            plan=plan,
            granularity=recipe.granularity,
            name=recipe.model,
            resume=resume,
            overwrite=overwrite,
            origin=origin,
            source=source,
        )
    except KeyboardInterrupt:
        raise InterruptedRunError(
            f"interrupted; the finished rounds are in {journal}: same command with --resume"
            if rounds_in(journal)
            else "interrupted before a round was finished; nothing is kept"
        ) from None


def _facts(table: LatencyTable) -> dict[str, object]:
    return {
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


def _default_name(recipe: Recipe) -> str:
    from prunekit.core.target import Target

    target = str(Target.parse(recipe.target))
    parts = (
        recipe.model.split(":")[-1],
        target,
        recipe.example or recipe.input,
        f"{recipe.threads}t",
    )
    return "-".join(re.sub(r"[^\w.+-]", "_", part) for part in parts) + ".json"
