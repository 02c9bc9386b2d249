"""``prunekit table``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunekit.cli.common import Json, print_json, print_table, print_text


def register(app: typer.Typer) -> None:
    """Add the group of commands."""
    group = typer.Typer(help="Look at latency tables.", no_args_is_help=True)
    group.command("show")(show)
    app.add_typer(group, name="table")


def show(
    path: Annotated[Path, typer.Argument(metavar="TABLE", help="A latency table's file.")],
    json: Json = False,
) -> None:
    """Show what a latency table holds and how well it predicts."""
    from dataclasses import asdict

    from prunekit.latency import LatencyTable

    table = LatencyTable.load(path)
    calibration = table.calibration
    if json:
        print_json(
            {
                "target": asdict(table.target),
                "environment": asdict(table.environment),
                "protocol": asdict(table.protocol),
                "granularity": table.granularity,
                "calibration": asdict(calibration),
                "networks": [asdict(net) for net in table.networks],
                "entries": [
                    {"shape": str(entry.shape), "samples": [asdict(s) for s in entry.samples]}
                    for entry in table.entries
                ],
            }
        )
        return
    print_text(
        f"{table.target.describe()} on {table.environment.device_name}, "
        f"{table.environment.runtime_version}, {table.environment.created}\n"
        f"granularity {table.granularity}; {table.protocol.source} from {table.protocol.nets} "
        f"networks, {table.protocol.rounds} rounds ({table.protocol.stopped})\n"
        f"error on networks left out: {calibration.mape:.1%}, worst {calibration.worst:.1%} "
        f"({calibration.nets} networks)"
    )
    print_table(
        "networks",
        ("model", "channels kept", "end to end (ms)", "spread (ms)", "layers (ms)", "runs"),
        [
            (
                net.model,
                f"{net.kept:.0%}",
                f"{net.end_to_end_us / 1e3:.3f}",
                f"{net.spread_us / 1e3:.3f}",
                f"{net.layers_us / 1e3:.3f}",
                str(net.runs),
            )
            for net in table.networks
        ],
    )
    rows = []
    for entry in table.entries:
        widest = max(entry.samples, key=lambda s: (s.cin * s.cout, s.cin + s.cout))
        least = min(entry.samples, key=lambda s: (s.cin * s.cout, s.cin + s.cout))
        rows.append(
            (
                str(entry.shape),
                str(len(entry.samples)),
                f"{least.cin}->{least.cout}",
                f"{least.us:.1f}",
                f"{widest.cin}->{widest.cout}",
                f"{widest.us:.1f}",
            )
        )
    head = ("layer shape", "samples", "narrowest", "us", "widest", "us")
    print_table("entries", head, rows)
