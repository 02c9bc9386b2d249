"""``prunekit prune``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from prunekit.cli.common import (
    Config,
    Gpu,
    GpuPrecision,
    Json,
    Overwrite,
    Quiet,
    Resume,
    RunFolder,
    Verbose,
    print_json,
    print_run,
    print_table,
    run_in,
    set_verbosity,
    target_of,
)
from prunekit.cli.flags import Given, settings

if TYPE_CHECKING:
    from prunekit.pipeline.recipes.prune import Recipe
    from prunekit.report import Report


STATUS = {"met": 0, "missed": 1, "open": 3}


@settings("prunekit.pipeline.recipes.prune:Recipe")
def prune(
    given: Given[Recipe],
    config: Config = None,
    gpu: Gpu = False,
    precision: GpuPrecision = None,
    output: RunFolder = Path("run"),
    resume: Resume = False,
    overwrite: Overwrite = False,
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> int:
    """Prune MODEL to a latency, end to end: profile, prune, slim, train, export, measure, report.

    The target is met only by a measurement of the exported artifact against the dense one, as
    surely as --confidence says. Exit status 1: it is missed; 3: the machine is too noisy to tell.
    """
    set_verbosity(verbose, quiet)
    from prunekit.pipeline.job import set_up
    from prunekit.pipeline.prune import check
    from prunekit.pipeline.prune import prune as run_pipeline
    from prunekit.support.processes import rank

    recipe = given.recipe(config, target=target_of(gpu, given.text("target"), precision))
    check(recipe)
    with run_in(output, recipe, overwrite, resume):
        report = run_pipeline(set_up(recipe), output, overwrite=overwrite, resume=resume)
    if rank() == 0:
        _show(report, output, json)
    return STATUS[report.latency.outcome]


def _show(report: Report, output: Path, json: bool) -> None:
    from prunekit.report.markdown import GROUP_HEAD, group_rows, summary_rows, verdict, why_open
    from prunekit.support.progress import say

    if json:
        print_json(report.model_dump(mode="json"))
        return
    print_table(verdict(report), ("", "dense", "pruned", "pruned / dense"), summary_rows(report))
    if reason := why_open(report.latency):
        say(f"note: {reason}")
    print_table("Groups", GROUP_HEAD, group_rows(report))
    print_run(output, report.artifacts)
