"""``prunekit report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunekit.cli.common import Json, print_json, print_text


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run folder.")],
    json: Json = False,
) -> None:
    """Show a finished run's report as Markdown (or JSON), and write report.html beside it."""
    from prunekit.core.run_folder import PAGE, REPORT, is_sparse
    from prunekit.report import (
        Report,
        SparsityReport,
        sparsity_html,
        sparsity_markdown,
        to_html,
        to_markdown,
    )
    from prunekit.support.errors import UsageError
    from prunekit.support.files import write_text

    path = run / REPORT
    if run.is_dir() and not path.is_file():
        raise UsageError(f"{run} has no report.json; is the run finished?")
    run_report: Report | SparsityReport
    if is_sparse(run):
        run_report = SparsityReport.load(path)
        page, text = sparsity_html(run_report), sparsity_markdown(run_report)
    else:
        run_report = Report.load(path)
        page, text = to_html(run_report), to_markdown(run_report)
    write_text(run / PAGE, page)
    if json:
        print_json(run_report.model_dump(mode="json"))
    else:
        print_text(text)
