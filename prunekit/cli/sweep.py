"""``prunekit sweep``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from prunekit.cli.common import (
    Json,
    Overwrite,
    Quiet,
    Verbose,
    option,
    print_json,
    print_table,
    print_text,
    refuse_existing,
    refuse_same,
    set_verbosity,
)
from prunekit.cli.flags import Given, settings

if TYPE_CHECKING:
    from prunekit.latency import LatencyTable
    from prunekit.pipeline.job import Job
    from prunekit.pipeline.recipes.prune import Recipe
    from prunekit.report.sweep import Sweep

Table = Annotated[Path | None, option("A latency table made before; default: profile now.")]
Points = Annotated[int, option("Latencies to solve for.", min=2)]
Plans = Annotated[Path, option("Where the plans go, as JSON.", "-o", "--output", section="Output")]
Plot = Annotated[Path | None, option("Draw the curve: a .html file.", section="Output")]
FLAGS = (
    *("model", "base", "input", "example", "data", "target", "threads"),
    *("criterion", "solver", "granularity", "keep", "min_width", "heads"),
    *("weights", "weights_entry", "pretrained", "reparameterize", "seed"),
)


@settings("prunekit.pipeline.recipes.prune:Recipe", *FLAGS)
def sweep(
    given: Given[Recipe],
    table: Table = None,
    points: Points = 20,
    output: Plans = Path("sweep.json"),
    plot: Plot = None,
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
    from prunekit.pipeline.sweep import check
    from prunekit.pipeline.table import load_table
    from prunekit.report.sweep import sweep_html
    from prunekit.support.files import save_json, write_text

    own = output.with_name(f"{output.stem}-table.json")
    _check_files(own, table, output, plot, overwrite)
    job = set_up(given.recipe(method="oneshot"))
    check(job)
    if table is None:
        curve = _solve(job, _profiled(job, own), points, kept=own)
    else:
        curve = _solve(job, load_table(table, job.graph, job.target), points)
    save_json(output, curve, "sweep", 1)
    if plot is not None:
        write_text(plot, sweep_html(curve))
    if json:
        print_json(asdict(curve))
        return
    _print(curve)
    print_text(f"plans: {output}")
    if plot is not None:
        print_text(f"curve: {plot}")


def _check_files(
    own: Path, table: Path | None, output: Path, plot: Path | None, overwrite: bool
) -> None:
    """Refuse files that exist, and the profile of an earlier sweep."""
    from prunekit.support.errors import UsageError

    if plot is not None and plot.suffix != ".html":
        raise UsageError(f"cannot draw {plot}; use a .html file")
    refuse_same(table=table or own, output=output, plot=plot)
    for path in (output, *([plot] if plot else [])):
        refuse_existing(path, overwrite, False)
    if table is None and own.exists() and not overwrite:
        raise UsageError(
            f"the profile of an earlier sweep is at {own}; use it (--table {own}), --overwrite or "
            "another -o"
        )


def _profiled(job: Job, path: Path) -> LatencyTable:
    """The table of a profile made now; a sweep is short enough to begin it again."""
    from prunekit.pipeline.table import make_table
    from prunekit.profiling import HarvestPlan

    journal = path.with_name(path.name + ".journal.jsonl")
    try:
        return make_table(
            *(job.module, job.graph, job.example, job.target, path),
            journal=journal,
            plan=HarvestPlan(seed=job.recipe.seed),
            granularity=job.recipe.granularity,
            name=job.recipe.model,
            resume=False,
        )
    except KeyboardInterrupt:
        journal.unlink(missing_ok=True)
        raise


def _solve(job: Job, table: LatencyTable, points: int, kept: Path | None = None) -> Sweep:
    """The curve; what stops it says where a profile made for it is ``kept``."""
    from prunekit.pipeline.sweep import sweep as run_sweep
    from prunekit.support.errors import InterruptedRunError, PrunekitError

    try:
        return run_sweep(job, table, points)
    except PrunekitError as error:
        if kept is None:
            raise
        raise type(error)(f"{error}; the profile is kept: --table {kept}") from error
    except KeyboardInterrupt:
        if kept is None:
            raise
        raise InterruptedRunError(f"interrupted; the profile is kept: --table {kept}") from None


def _print(curve: Sweep) -> None:
    from prunekit.report.sweep import cells

    print_table(
        f"{curve.criterion} kept within a latency, dense {curve.dense_ms:.4g} ms",
        ("latency", "ms", "kept", "MACs", "parameters", ""),
        [(*cells(point), "knee" if point.knee else "") for point in curve.points],
    )
