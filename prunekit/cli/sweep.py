"""``prunekit sweep``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunekit.cli.common import (
    Base,
    Heads,
    Input,
    Json,
    Keep,
    MinWidth,
    Model,
    Overwrite,
    Quiet,
    Reparameterize,
    Seed,
    Threads,
    Verbose,
    option,
    print_json,
    print_table,
    print_text,
    refuse_existing,
    refuse_same,
    set_verbosity,
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("sweep")(sweep)


def sweep(
    model: Model,
    base: Base = None,
    input: Input = None,  # noqa: A002 - the flag's name
    target: Annotated[str, option("runtime[:device][:precision].")] = "onnxruntime:cpu",
    threads: Threads = 1,
    table: Annotated[
        Path | None, option("A latency table made before; default: profile now.")
    ] = None,
    points: Annotated[int, option("Latencies to solve for.", min=2)] = 20,
    data: Annotated[str | None, option("digits, imagefolder:PATH, ..., for scores.")] = None,
    criterion: Annotated[
        str | None, option("taylor, magnitude, ...; default: taylor where there is data.")
    ] = None,
    solver: Annotated[str, option("joint, knapsack, greedy or uniform.")] = "joint",
    granularity: Annotated[int | None, option("Widths are multiples of this.", min=1)] = None,
    keep: Keep = None,
    min_width: MinWidth = None,
    weights: Annotated[str | None, option("Dense weights, a .safetensors file.")] = None,
    pretrained: Annotated[bool, option("torchvision's or timm's weights.", "--pretrained")] = False,
    output: Annotated[Path, option("Where the plans go, as JSON.", "-o", "--output")] = Path(
        "sweep.json"
    ),
    plot: Annotated[Path | None, option("Draw the curve: a .html file.")] = None,
    heads: Heads = "whole",
    reparameterize: Reparameterize = True,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Saliency kept over latency for MODEL: the best plan within each of many latencies.

    Nothing is trained. One profile (or a table) and one scoring serve all latencies, so that the
    knee is seen before any training.
    """
    set_verbosity(verbose, quiet)
    from dataclasses import asdict

    from prunekit.pipeline.job import set_up
    from prunekit.pipeline.recipes.prune import make_recipe
    from prunekit.pipeline.sweep import check
    from prunekit.pipeline.sweep import sweep as run_sweep
    from prunekit.pipeline.table import load_table, make_table
    from prunekit.profiling import HarvestPlan
    from prunekit.report.sweep import cells, sweep_html
    from prunekit.support.errors import InterruptedRunError, PrunekitError, UsageError
    from prunekit.support.files import save_json, write_text

    if plot is not None and plot.suffix != ".html":
        raise UsageError(f"cannot draw {plot}; use a .html file")
    own = output.with_name(f"{output.stem}-table.json")
    refuse_same(table=table or own, output=output, plot=plot)
    for path in (output, *([plot] if plot else [])):
        refuse_existing(path, overwrite, False)
    if table is None and own.exists() and not overwrite:
        raise UsageError(
            f"the profile of an earlier sweep is at {own}; use it (--table {own}), --overwrite or "
            "another -o"
        )
    recipe = make_recipe(
        {
            "model": model,
            "base": base,
            "input": input,
            "target": target,
            "threads": threads,
            "data": data,
            "criterion": criterion,
            "solver": solver,
            "granularity": granularity,
            "keep": tuple(keep) if keep else None,
            "min_width": min_width,
            "weights": weights,
            "pretrained": pretrained or None,
            "heads": heads,
            "reparameterize": reparameterize,
            "seed": seed,
            "method": "oneshot",
        }
    )
    job = set_up(recipe)
    check(job)
    journal = own.with_name(own.name + ".journal.jsonl")
    try:
        known = (
            load_table(table, job.graph, job.target)
            if table is not None
            else make_table(
                *(job.module, job.graph, job.example, job.target, own),
                journal=journal,
                plan=HarvestPlan(seed=seed),
                granularity=granularity,
                name=model,
                resume=False,
            )
        )
    except KeyboardInterrupt:
        journal.unlink(missing_ok=True)  # a sweep is short enough to begin again
        raise
    try:
        found = run_sweep(job, known, points)
    except PrunekitError as error:
        if table is not None:
            raise
        raise type(error)(f"{error}; the profile is kept: --table {own}") from error
    except KeyboardInterrupt:
        if table is not None:
            raise
        raise InterruptedRunError(f"interrupted; the profile is kept: --table {own}") from None
    save_json(output, found, "sweep", 1)
    if plot is not None:
        write_text(plot, sweep_html(found))
    if json:
        print_json(asdict(found))
        return
    print_table(
        f"{found.criterion} kept within a latency, dense {found.dense_ms:.4g} ms",
        ("latency", "ms", "kept", "MACs", "parameters", ""),
        [(*cells(point), "knee" if point.knee else "") for point in found.points],
    )
    print_text(f"plans: {output}")
    if plot is not None:
        print_text(f"curve: {plot}")
