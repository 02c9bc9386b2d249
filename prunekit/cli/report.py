"""``prunekit report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunekit.cli.common import Json, print_json, print_text


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("report")(report)


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run folder.")],
    json: Json = False,
) -> None:
    """Show a finished run's report as Markdown (or JSON), and write report.html beside it."""
    from prunekit.errors import UsageError
    from prunekit.report import Report, to_html, to_markdown
    from prunekit.serialize import write_text

    path = run / "report.json"
    if run.is_dir() and not path.is_file():
        raise UsageError(f"{run} has no report.json; is the run finished?")
    found = Report.load(path)
    write_text(run / "report.html", to_html(found))
    if json:
        print_json(found.model_dump(mode="json"))
    else:
        print_text(to_markdown(found))
