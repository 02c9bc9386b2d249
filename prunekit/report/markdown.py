"""The report as Markdown, and the rows of the final table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

from prunekit.core.estimate import BUSY
from prunekit.report.grids import epoch_grid, few, update_grid
from prunekit.report.schema import AccuracyPart, LatencyPart, Report, ScorePart


def accuracy_rows(accuracy: AccuracyPart) -> list[tuple[str, str, str, str]]:
    """A row for every metric, that which decides first: (what, dense, pruned, apart)."""
    return [row for part in (accuracy, *accuracy.others) if (row := _score_row(part)) is not None]


def _score_row(score: ScorePart) -> tuple[str, str, str, str] | None:
    if score.pruned is None:
        return None
    metric, dense, apart = score.measure, "not trained", ""
    if score.dense is not None:
        dense = metric.text(score.dense)
        apart = metric.apart(score.dense, score.pruned)
    return score.label, dense, metric.text(score.pruned), apart


def summary_rows(report: Report) -> list[tuple[str, str, str, str]]:
    """(what, dense, pruned, ratio) for the table a person reads."""
    latency = report.latency
    rows = [
        (
            "latency (ms)",
            _ms(latency.dense_ms, latency.dense_ci_ms),
            _ms(latency.pruned_ms, latency.pruned_ci_ms),
            f"{latency.ratio:.1%} [{latency.ratio_ci[0]:.1%}, {latency.ratio_ci[1]:.1%}]",
        )
    ]
    rows += accuracy_rows(report.accuracy)
    for name, pair, unit, suffix in (
        ("MACs", report.macs, 1e6, " M"),
        ("parameters", report.params, 1e6, " M"),
        ("memory (computed)", report.memory, 2**20, " MiB"),
        ("file size", report.file_bytes, 2**20, " MiB"),
    ):
        if pair is None:
            continue
        rows.append(
            (
                name,
                f"{pair.dense / unit:.2f}{suffix}",
                f"{pair.pruned / unit:.2f}{suffix}",
                f"{pair.pruned / pair.dense:.1%}",
            )
        )
    return rows


GROUP_HEAD = ("group", "channels", "saliency kept", "ms saved", "")
GROUP_NOTE = (
    "Milliseconds saved are predicted: what the network would take longer with that group whole "
    "again and all others as they are."
)


def group_rows(report: Report) -> list[tuple[str, ...]]:
    """What became of every group, in the network's order."""
    return [
        (
            name,
            f"{group.before} -> {group.after}",
            "" if group.saliency is None else f"{group.saliency:.1%}",
            f"{group.saved_ms:.4f}" if group.after < group.before else "",
            "least" if group.at_minimum else "",
        )
        for name, group in report.groups.items()
    ]


def export_grid(report: Report) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """What was exported later: head and rows of a table."""
    head = ("file", "format", "precision", "outputs apart", report.accuracy.label)
    tell = report.accuracy.measure.text
    return head, [
        (
            PurePath(part.path).name,
            part.format,
            part.precision,
            "" if part.apart is None else f"{part.apart:.1e}",
            "not measured" if part.accuracy is None else tell(part.accuracy),
        )
        for part in report.exports
    ]


def _ms(median: float, interval: tuple[float, float]) -> str:
    return f"{median:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"


def chance(probability: float) -> str:
    """A probability in percent, never rounded to what is certain."""
    if probability > 0.999:
        return "over 99.9 %"
    if probability < 0.001:
        return "under 0.1 %"
    return f"{100 * probability:.1f} %"


def why_open(latency: LatencyPart) -> str:
    """What keeps the answer open, and what would help; empty where it is not."""
    if latency.outcome != "open":
        return ""
    if latency.lost > BUSY:
        return (
            f"Other processes took {latency.lost:.0%} of the processor's time, which leaves open "
            "whether the target is met: stop them, and time both files with `prunekit bench`."
        )
    return (
        "The machine is too noisy to tell whether the target is met: fix the processor's clock, or "
        "measure longer (--measure-seconds)."
    )


REPAIR_HEAD = ("moment", "score", "distance from the dense outputs", "seconds")


def repair_rows(report: Report) -> list[tuple[str, str, str, str]]:
    """Right after slimming, repaired, after training."""
    if report.repair is None:
        return []
    tell = report.accuracy.measure.text
    return [
        (
            row.what,
            "" if row.score is None else tell(row.score),
            "" if row.distance is None else f"{row.distance:.3f}",
            "" if row.seconds is None else f"{row.seconds:.1f}",
        )
        for row in report.repair.rows
    ]


def repair_words(report: Report) -> str:
    """One sentence: by what, with how many images, and what stayed."""
    part = report.repair
    if part is None:
        return ""
    source = f"with {part.images} images" if part.images else "without images"
    left = f"; {len(part.left)} stay as they were" if part.left else ""
    return f"Repaired by {part.method} {source}, {part.layers} layers{left}."


def seconds_rows(report: Report) -> list[tuple[str, str, str]]:
    """(stage, seconds, share) of the command."""
    whole = sum(report.seconds.values())
    return [
        (stage, f"{seconds:.1f}", f"{seconds / whole:.0%}" if whole else "")
        for stage, seconds in report.seconds.items()
    ]


def verdict(report: Report) -> str:
    """One sentence: asked, measured, met or not."""
    latency = report.latency
    word = {"met": "met", "missed": "NOT met", "open": "OPEN"}[latency.outcome]
    sure = "" if latency.probability is None else f" (probability {chance(latency.probability)})"
    return (
        f"target {report.budget.requested} {word}{sure}: measured {latency.ratio:.1%} of dense "
        f"[{latency.ratio_ci[0]:.1%}, {latency.ratio_ci[1]:.1%}] on {report.target}"
    )


def to_markdown(report: Report) -> str:
    """The whole report for a person, GitHub-flavoured."""
    lines = [f"# {report.model}", "", f"**{verdict(report)}**", ""]
    lines += markdown_table(("", "dense", "pruned", "pruned / dense"), summary_rows(report))
    cost = report.training_cost
    flops = "none" if cost.relative_flops is None else f"x{cost.relative_flops:.2f} of a dense run"
    allocation, table, environment = report.allocation, report.table, report.environment
    lines += [
        "",
        f"- target: {report.target.describe()} on {environment.device_name}, "
        f"{environment.runtime_version}, measured {environment.created}",
        f"- method: {allocation.method} with {allocation.criterion}, solver {allocation.solver} "
        f"(gap {allocation.gap:.4%}), granularity {allocation.granularity}, "
        f"saliency kept {allocation.value:.1%}",
        f"- training: {flops}, {cost.seconds:.0f} s (dense {cost.dense_seconds:.0f} s)",
        f"- latency table: {table.nets} networks, {table.rounds} rounds; error on networks left "
        f"out {table.error}",
        f"- predicted {report.latency.predicted_ms:.3f} ms; seed {report.seed}",
        "",
        "## Landing",
        "",
    ]
    lines += markdown_table(
        ("asked (predicted)", "predicted", "measured", "chosen"),
        [
            (
                f"{a.asked:.1%}" if a.asked else "smallest",
                f"{a.predicted:.1%}",
                f"{a.ratio:.1%} [{a.ratio_ci[0]:.1%}, {a.ratio_ci[1]:.1%}]",
                "yes" if a.chosen else "",
            )
            for a in report.landing
        ],
    )
    if report.repair is not None:
        lines += ["", "## Repair", "", repair_words(report), ""]
        lines += markdown_table(REPAIR_HEAD, repair_rows(report))
    if report.seconds:
        lines += ["", "## Seconds", ""]
        lines += markdown_table(("stage", "seconds", "share"), seconds_rows(report))
    for grid in (epoch_grid(few(report.epochs)), update_grid(few(report.updates))):
        if grid.rows:
            what = f"{grid.what}s (first, middle and last)"
            lines += ["", f"## Training: {what}", "", *markdown_table(grid.head, grid.rows)]
    lines += ["", "## Widths", ""]
    if report.groups:
        lines += markdown_table(GROUP_HEAD, group_rows(report))
        lines += ["", GROUP_NOTE]
    else:
        lines += markdown_table(
            ("group", "before", "after"),
            [(name, str(before), str(after)) for name, (before, after) in report.widths.items()],
        )
    if report.frozen:
        lines += ["", "## Not prunable", ""]
        lines += markdown_table(("group", "why"), list(report.frozen.items()))
    if report.exports:
        head, rows = export_grid(report)
        lines += ["", "## Exports", "", *markdown_table(head, rows)]
    lines += ["", "## Artifacts", ""]
    lines += markdown_table(("what", "where"), list(report.artifacts.items()))
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """Text that cannot end its cell."""
    return " ".join(text.replace("|", "\\|").split())


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table, line by line."""
    return [
        f"| {' | '.join(head)} |",
        f"|{'|'.join(' --- ' for _ in head)}|",
        *(f"| {' | '.join(map(_cell, row))} |" for row in rows),
    ]
