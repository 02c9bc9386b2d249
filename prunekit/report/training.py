"""The section of a report on its training: charts, and the same as tables."""

from __future__ import annotations

from typing import NamedTuple

from prunekit.core.metric import PERCENT
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
        _score_panel(epochs),
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


def _score_panel(epochs: tuple[EpochPart, ...]) -> Panel | None:
    """The metric that decides."""
    scored = next((epoch for epoch in epochs if epoch.value is not None), None)
    if scored is None:
        return None
    name, scale = scored.value_name, share_scale if scored.unit == PERCENT else loss_scale
    title = f"Validation {name}"
    return epoch_panel(name, title, epochs, lambda e: e.value, scored.value_text, scale)


def _lead(epochs: tuple[EpochPart, ...], updates: tuple[UpdatePart, ...]) -> str:
    parts = []
    if epochs:
        stages = len(stages_of(epochs))
        text = plural(len(epochs), "epoch") + (f" in {stages} stages" if stages > 1 else "")
        scored = [e for e in epochs if e.value is not None]
        if scored and (value := scored[-1].value) is not None:
            last = scored[-1]
            text += f", the last ending at {last.value_text(value)} validation {last.value_name}"
        parts.append(f"{text}.")
    if updates:
        text = f"{plural(len(updates), 'update')} of the structure"
        ratios = [u.predicted_ratio for u in updates if u.predicted_ratio is not None]
        if ratios:
            text += f", the last predicted at {ratios[-1]:.1%} of the dense latency"
        parts.append(f"{text}.")
    return " ".join(parts)
