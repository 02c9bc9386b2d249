"""``prunekit sparsify``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from prunekit.cli.common import (
    Config,
    Json,
    Overwrite,
    Quiet,
    Resume,
    RunFolder,
    Verbose,
    print_json,
    print_run,
    print_table,
    print_text,
    run_in,
    set_verbosity,
)
from prunekit.cli.flags import Given, settings

if TYPE_CHECKING:
    from prunekit.pipeline.recipes.sparsify import SparseRecipe
    from prunekit.report import SparsityReport


@settings("prunekit.pipeline.recipes.sparsify:SparseRecipe")
def sparsify(
    given: Given[SparseRecipe],
    config: Config = None,
    output: RunFolder = Path("run"),
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
    from prunekit.pipeline.sparsify import set_up_sparse
    from prunekit.pipeline.sparsify import sparsify as run_pipeline
    from prunekit.support.processes import rank

    recipe = given.recipe(config)
    with run_in(output, recipe, overwrite, resume):
        report = run_pipeline(set_up_sparse(recipe), output, overwrite=overwrite, resume=resume)
    if rank() == 0:
        _show(report, output, json)


def _show(report: SparsityReport, output: Path, json: bool) -> None:
    from prunekit.report.sparsity import sparsity_rows, sparsity_verdict, speed_verdict

    if json:
        print_json(report.model_dump(mode="json"))
        return
    head = ("", "dense", "sparse", "sparse / dense")
    print_table(sparsity_verdict(report), head, sparsity_rows(report))
    print_text(speed_verdict(report))
    print_run(output, report.artifacts)
