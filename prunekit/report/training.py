"""The section of a report on its training: charts, and the same as tables."""

from __future__ import annotations

from typing import NamedTuple

from prunekit.report.curves import (
    Panel,
    epoch_panel,
    loss_scale,
    predicted_panel,
    share_scale,
    stages_of,
    structure_panel,
)
from prunekit.report.grids import Grid, epoch_grid, update_grid
from prunekit.report.heat_map import HeatMap, heat_map
from prunekit.report.schema import EpochPart, Report, UpdatePart
from prunekit.report.words import loss_text, plural


class Training(NamedTuple):
    """Everything the section draws."""

    lead: str
    stages: list[tuple[str, str]]
    panels: list[Panel]
    heat: HeatMap | None
    grids: list[Grid]


def training(report: Report) -> Training | None:
    """The section's charts and tables; None where nothing was trained and nothing changed."""
    return charts(report.epochs, report.updates, predicted_panel(report), heat_map(report))


def charts(
    epochs: tuple[EpochPart, ...],
    updates: tuple[UpdatePart, ...],
    predicted: Panel | None = None,
    heat: HeatMap | None = None,
) -> Training | None:
    """:func:`training` of any run, whose structure may have no latency and no widths."""
    if not (epochs or updates):
        return None
    panels = [
        epoch_panel("loss", "Training loss", epochs, lambda e: e.loss, loss_text, loss_scale),
        epoch_panel(
            *("accuracy", "Validation accuracy", epochs),
            *(lambda e: e.accuracy, lambda v: f"{v:.2%}", share_scale),
        ),
        predicted,
        structure_panel(updates),
    ]
    return Training(
        lead=_lead(epochs, updates),
        stages=[
            (stage, f"epochs {first} to {last}" if last > first else f"epoch {first}")
            for stage, first, last in stages_of(epochs)
        ],
        panels=[panel for panel in panels if panel is not None],
        heat=heat,
        grids=[grid for grid in (epoch_grid(epochs), update_grid(updates)) if grid.rows],
    )


def _lead(epochs: tuple[EpochPart, ...], updates: tuple[UpdatePart, ...]) -> str:
    parts = []
    if epochs:
        stages = len(stages_of(epochs))
        text = plural(len(epochs), "epoch") + (f" in {stages} stages" if stages > 1 else "")
        seen = [e.accuracy for e in epochs if e.accuracy is not None]
        if seen:
            text += f", the last ending at {seen[-1]:.2%} validation accuracy"
        parts.append(f"{text}.")
    if updates:
        text = f"{plural(len(updates), 'update')} of the structure"
        ratios = [u.predicted_ratio for u in updates if u.predicted_ratio is not None]
        if ratios:
            text += f", the last predicted at {ratios[-1]:.1%} of the dense latency"
        parts.append(f"{text}.")
    return " ".join(parts)
