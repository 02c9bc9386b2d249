"""``prunekit table``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunekit.cli.common import (
    PLAIN,
    Json,
    Overwrite,
    Sectioned,
    option,
    print_json,
    print_table,
    print_text,
    refuse_existing,
)

if TYPE_CHECKING:
    from prunekit.core.graph import LayerShape
    from prunekit.latency import LatencyTable, TableDiff

PLOTTED = 4
"""So many layer shapes are drawn where none is asked for."""
DETAILED = 6
"""At most so many are drawn as bars."""
BARS = 16
"""At most so many steps of a staircase."""

table = typer.Typer(
    name="table",
    help="Look at latency tables, compare and join them.",
    no_args_is_help=True,
    **PLAIN,
)

Table = Annotated[
    Path, typer.Argument(metavar="TABLE", help="A latency table's file, or one of table list.")
]
Joined = Annotated[Path, option("The joined table's file.", "-o", "--output", section="Output")]
Layer = Annotated[
    str | None, option("Only layer shapes whose text has this, with their staircases.")
]
Plot = Annotated[
    Path | None,
    option("Draw staircases, by default the dearest: .html, .svg or .png.", metavar="FILE"),
]


@table.command("list", cls=Sectioned)
def list_shipped(json: Json = False) -> None:
    """The latency tables that come with the package; a name goes wherever a table's file does."""
    from prunekit.latency import LatencyTable
    from prunekit.latency.shipped import shipped_tables

    shipped = [(path, LatencyTable.load(path)) for path in shipped_tables()]
    if json:
        print_json(
            {
                path.stem: {
                    "target": table.target.describe(),
                    "device": table.environment.device_name,
                    "runtime": table.environment.runtime_version,
                    **table.calibration.errors,
                }
                for path, table in shipped
            }
        )
        return
    print_table(
        "tables that come with the package",
        ("name", "target", "device", "error", "worst"),
        [
            (
                path.stem,
                table.target.describe(),
                f"{table.environment.device_name}, {table.environment.runtime_version}",
                *(
                    "unknown" if error is None else f"{error:.1%}"
                    for error in table.calibration.errors.values()
                ),
            )
            for path, table in shipped
        ],
    )


@table.command(cls=Sectioned)
def merge(
    paths: Annotated[list[Path], typer.Argument(metavar="TABLE...", help="Two tables or more.")],
    output: Joined,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Join tables of one target and device: shards of a profile, or profiles of several models."""
    from prunekit import latency
    from prunekit.latency.shipped import find_table
    from prunekit.support.errors import UsageError
    from prunekit.support.progress import say

    if len(paths) < 2:
        raise UsageError("merge takes two tables or more")
    refuse_existing(output, overwrite)
    tables = [latency.LatencyTable.load(find_table(path)) for path in paths]
    table = latency.merge(tables, [*map(str, paths)])
    table.save(output)
    calibration = table.calibration
    if missing := table.protocol.missing_shards:
        say(
            f"note: shard{'' if len(missing) == 1 else 's'} {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing; the table holds what the others "
            "measured, and can be merged with the rest later"
        )
    if json:
        print_json(
            {
                "table": str(output),
                "target": str(table.target),
                "device": table.environment.device_name,
                "granularity": table.granularity,
                "entries": len(table.entries),
                "networks": len(table.networks),
                "sessions": len({net.session for net in table.networks}),
                **calibration.errors,
            }
        )
        return
    print_text(
        f"latency table: {output}, {len(table.entries)} layer shapes from {len(table.networks)} "
        f"networks; {calibration}"
    )


@table.command(cls=Sectioned)
def diff(
    first: Annotated[Path, typer.Argument(metavar="A", help="A latency table's file.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another one's.")],
    json: Json = False,
) -> None:
    """Show where two tables differ: devices, versions, and the layers that changed most."""
    from prunekit import latency
    from prunekit.latency.shipped import find_table

    tables = [latency.LatencyTable.load(find_table(path)) for path in (first, second)]
    difference = latency.diff(*tables)
    if json:
        print_json(_diff_json(difference))
    else:
        _print_diff(difference, str(first), str(second))


def _diff_json(difference: TableDiff) -> dict[str, object]:
    from dataclasses import asdict

    return {
        "differences": [asdict(fact) for fact in difference.facts],
        "networks": difference.networks,
        "ratio": difference.ratio,
        "low": difference.low,
        "high": difference.high,
        "shapes": [
            {
                "shape": str(one.shape),
                "apart": one.apart,
                "widths": [asdict(row) for row in one.widths],
            }
            for one in difference.shapes
        ],
        "only_a": [str(shape) for shape in difference.only_a],
        "only_b": [str(shape) for shape in difference.only_b],
    }


def _print_diff(difference: TableDiff, a: str, b: str) -> None:
    print_text(f"A: {a}\nB: {b}")
    for fact in difference.facts:
        print_text(f"{fact.what}: {fact.a or 'none'} in A, {fact.b or 'none'} in B")
    if not difference.facts:
        print_text("same target, device and versions")
    if difference.ratio is None:
        print_text("nothing to compare: no network and no layer shape is in both")
    elif difference.networks:
        count = f"{difference.networks} network{'' if difference.networks == 1 else 's'}"
        print_text(
            f"B takes {_ratio(difference.ratio)} times as long as A, the median of {count} in both "
            f"(from {_ratio(difference.low)} to {_ratio(difference.high)})"
        )
    else:
        print_text(
            f"no network is in both; B's layers take {_ratio(difference.ratio)} times as long as "
            "A's at their widest, the median of all shapes"
        )
    if difference.shapes:
        print_table(
            "time in B over time in A, the furthest from the whole first",
            ("layer shape", "at", "width", "A (us)", "B (us)", "B/A"),
            [
                (
                    str(one.shape) if number == 0 else "",
                    row.at,
                    f"{row.cin}->{row.cout}",
                    f"{row.a_us:.1f}",
                    f"{row.b_us:.1f}",
                    _ratio(row.ratio),
                )
                for one in difference.shapes
                for number, row in enumerate(one.widths)
            ],
        )
    for name, shapes in (("A", difference.only_a), ("B", difference.only_b)):
        for shape in shapes:
            print_text(f"only in {name}: {shape}")


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


@table.command(cls=Sectioned)
def show(
    path: Table,
    layer: Layer = None,
    plot: Plot = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Show what a latency table holds, how well it predicts, and the steps its device works in."""
    from prunekit.latency import LatencyTable
    from prunekit.latency.shipped import find_table
    from prunekit.latency.staircase import dearest, find_shapes

    if plot is not None:
        refuse_existing(plot, overwrite)
    table = LatencyTable.load(find_table(path))
    shapes = dearest(table) if layer is None else find_shapes(table, layer)
    if plot is not None:
        _plot(table, shapes if layer is not None else shapes[:PLOTTED], plot)
    if json:
        print_json(_table_json(table, {*shapes}))
        return
    _print_facts(table)
    if layer is None:
        _print_networks(table)
        _print_entries(table, shapes)
    else:
        _print_layers(table, shapes, layer)


def _table_json(table: LatencyTable, shapes: set[LayerShape]) -> dict[str, object]:
    from dataclasses import asdict

    return {
        "target": asdict(table.target),
        "environment": asdict(table.environment),
        "origin": asdict(table.origin) if table.origin else None,
        "protocol": asdict(table.protocol),
        "granularity": table.granularity,
        "probe": asdict(table.probe) if table.probe else None,
        "calibration": asdict(table.calibration) | table.calibration.errors,
        "networks": [asdict(net) for net in table.networks],
        "entries": [
            {"shape": str(entry.shape), "samples": [asdict(sample) for sample in entry.samples]}
            for entry in table.entries
            if entry.shape in shapes
        ],
    }


def _print_facts(table: LatencyTable) -> None:
    """What was measured where, and how well that predicts."""
    print_text(
        f"{table.target.describe()} on {table.environment.device_name}, "
        f"{table.environment.runtime_version}, {table.environment.created}\n"
        f"granularity {table.granularity}; {table.protocol.source} from {table.protocol.nets} "
        f"networks, {table.protocol.rounds} rounds ({table.protocol.stopped})\n"
        f"{table.calibration} ({table.calibration.nets} networks)"
    )
    if table.probe is not None:
        print_text(f"device: {table.probe}")
    if table.protocol.drift or table.protocol.disturbed:
        print_text(
            f"the device's speed changed by {table.protocol.drift:.0%} from round to round; "
            f"{table.protocol.disturbed:.0%} of the runs were interrupted"
        )
    if table.origin is not None:
        print_text(f"layers measured on {table.origin.device_name}, {table.origin.runtime_version}")


def _print_layers(table: LatencyTable, shapes: list[LayerShape], layer: str) -> None:
    """The staircases of the layer shapes that match ``--layer``."""
    from prunekit.support.progress import say

    for shape in shapes[:DETAILED]:
        _print_staircases(table, shape)
    if len(shapes) > DETAILED:
        say(f"note: {len(shapes) - DETAILED} more layer shapes match --layer {layer!r}")


def _print_networks(table: LatencyTable) -> None:
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


def _print_entries(table: LatencyTable, shapes: list[LayerShape]) -> None:
    """A row for each layer shape, from its narrowest sample to its widest."""
    rows = []
    for shape in shapes:
        samples = table.by_shape[shape].samples
        widest = max(samples, key=lambda s: (s.cin * s.cout, s.cin + s.cout))
        least = min(samples, key=lambda s: (s.cin * s.cout, s.cin + s.cout))
        rows.append(
            (
                str(shape),
                str(len(samples)),
                f"{least.cin}->{least.cout}",
                f"{least.us:.1f}",
                f"{widest.cin}->{widest.cout}",
                f"{widest.us:.1f}",
                _sparkline(table, shape),
            )
        )
    head = ("layer shape", "samples", "narrowest", "us", "widest", "us", "over width")
    print_table("entries, the dearest first", head, rows)


def _plot(table: LatencyTable, shapes: list[LayerShape], path: Path) -> None:
    from prunekit.report.staircase import plot
    from prunekit.support.files import write_bytes
    from prunekit.support.progress import say

    write_bytes(path, plot(table, shapes, path.suffix.lower()))
    say(f"staircases: {path}")


def _sparkline(table: LatencyTable, shape: LayerShape) -> str:
    """The first staircase in a few characters, from no time at all to its highest."""
    from prunekit.latency.staircase import staircases

    times = [us for _, us in staircases(table, shape)[0].steps(BARS)]
    marks = "▁▂▃▄▅▆▇█" if _unicode() else "_.-=+*#@"
    top = max(*times, 1e-9)
    return "".join(marks[round(max(us, 0.0) / top * (len(marks) - 1))] for us in times)


def _print_staircases(table: LatencyTable, shape: LayerShape) -> None:
    """A bar for the end of each step, and what was measured on it."""
    from prunekit.latency.staircase import staircases

    for stair in staircases(table, shape):
        steps = stair.steps(BARS)
        top = max(us for _, us in steps)
        rows, low = [], 0
        for width, us in steps:
            count = sum(low < spot.width <= width for spot in stair.spots)
            length = round(40 * max(us, 0.0) / max(top, 1e-9))
            rows.append(
                (("█" if _unicode() else "#") * length, str(width), f"{us:.1f}", str(count))
            )
            low = width
        other = {"out": f", in-width {stair.full}", "in": f", out-width {stair.full}", "both": ""}
        side = "width" if stair.side == "both" else f"{stair.side}-width"
        print_table(f"{shape}{other[stair.side]}", ("time", side, "us", "samples"), rows)


def _unicode() -> bool:
    import sys

    return "utf" in (sys.stdout.encoding or "").lower()
