"""The report of a sparse network: what it is, what it scores, and whether any runtime gains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prunekit.core.sparsity import SparsityPlan
from prunekit.core.target import Environment, Target
from prunekit.report.grids import epoch_grid, few, update_grid
from prunekit.report.html import (
    artifact_links,
    cost_facts,
    environment_facts,
    recipe_text,
    without_empty,
)
from prunekit.report.markdown import accuracy_rows, markdown_table
from prunekit.report.schema import (
    AccuracyPart,
    EpochPart,
    Pair,
    Part,
    TrainingPart,
    UpdatePart,
)
from prunekit.report.templates import template
from prunekit.report.training import charts
from prunekit.report.words import duration
from prunekit.support.files import load_json, save_json

KIND = "sparsity report"
SPARSITY_REPORT_VERSION = 1
GAIN = 0.97
"""A runtime gains speed where the whole interval of sparse / dense lies below this."""


class SpeedPart(Part):
    """Medians of interleaved runs of the sparse and the dense file on one target."""

    target: Target
    environment: Environment
    dense_ms: float
    sparse_ms: float
    ratio: float
    ratio_ci: tuple[float, float]
    rounds: int
    confidence: float = 0.95

    @property
    def gains(self) -> bool:
        """Whether the pattern makes this runtime faster."""
        return self.ratio_ci[1] < GAIN


class SparsityReport(Part):
    """Everything a reader or a tool needs to believe a sparse run, or to repeat it.

    In the pairs ``pruned`` counts weights that are kept, and what multiplies them.
    """

    model: str
    asked: float
    plan: SparsityPlan
    ranking: str
    accuracy: AccuracyPart
    params: Pair
    macs: Pair
    file_bytes: Pair
    training_cost: TrainingPart
    survival: float | None
    """The share of all weights ever grown that are in the network."""
    speed: tuple[SpeedPart, ...]
    artifacts: dict[str, str]
    digests: dict[str, str]
    seed: int
    recipe: dict[str, Any]
    versions: dict[str, str]
    epochs: tuple[EpochPart, ...] = ()
    updates: tuple[UpdatePart, ...] = ()

    def save(self, path: str | Path) -> None:
        """Write ``report.json``."""
        save_json(path, self, KIND, SPARSITY_REPORT_VERSION)

    @classmethod
    def load(cls, path: str | Path) -> SparsityReport:
        """Read ``report.json``; a damaged or edited file is named in the error."""
        return load_json(path, cls, KIND, SPARSITY_REPORT_VERSION)


def sparsity_verdict(report: SparsityReport) -> str:
    """One sentence: how sparse, how accurate."""
    plan = report.plan
    text = (
        f"{plan.sparsity:.2%} of the weights of {len(plan.sparse)} layers are zero "
        f"({plan.overall:.2%} of all layers'), {plan.pattern}"
    )
    accuracy, metric = report.accuracy, report.accuracy.measure
    if accuracy.pruned is not None:
        name = "top-1 accuracy" if metric.name == "top-1" else metric.name
        text += f": {name} {metric.text(accuracy.pruned)}"
        if accuracy.dense is not None:
            text += f", dense {metric.text(accuracy.dense)}"
    return text


def speed_verdict(report: SparsityReport) -> str:
    """One sentence: which runtimes gain from the zeros, as measured."""
    faster = [str(part.target) for part in report.speed if part.gains]
    measured = ", ".join(str(part.target) for part in report.speed)
    if faster:
        return f"Faster for its zeros on {', '.join(faster)} (measured on {measured})."
    if not report.speed:
        return "Speed was not measured."
    also = (
        " TensorRT's sparse kernels take the pattern 2:4, which the ONNX file is marked with; "
        "not measured here."
        if report.plan.pattern == "2:4" and "tensorrt" not in measured
        else ""
    )
    return f"No runtime measured here gains speed from the zeros ({measured}).{also}"


def sparsity_rows(report: SparsityReport) -> list[tuple[str, str, str, str]]:
    """(what, dense, sparse, ratio) for the table a person reads."""
    rows = accuracy_rows(report.accuracy)
    for name, pair, unit, suffix in (
        ("weights and biases kept", report.params, 1e6, "M"),
        ("MACs with them", report.macs, 1e6, "M"),
        ("file size", report.file_bytes, 2**20, "MiB"),
    ):
        rows.append(
            (
                name,
                f"{pair.dense / unit:.3f} {suffix}",
                f"{pair.pruned / unit:.3f} {suffix}",
                f"{pair.pruned / pair.dense:.1%}",
            )
        )
    rows += [
        (
            f"latency on {part.target} (ms)",
            f"{part.dense_ms:.3f}",
            f"{part.sparse_ms:.3f}",
            f"{part.ratio:.1%} [{part.ratio_ci[0]:.1%}, {part.ratio_ci[1]:.1%}]",
        )
        for part in report.speed
    ]
    return rows


def layer_rows(report: SparsityReport) -> list[tuple[str, str, str, str]]:
    """(layer, shape, weights kept, density)."""
    return [
        (
            layer.name,
            "x".join(map(str, layer.shape)),
            f"{layer.kept} of {layer.size}",
            "dense" if layer.dense else f"{layer.density:.2%}",
        )
        for layer in report.plan.layers
    ]


def _method(report: SparsityReport) -> str:
    plan = report.plan
    return f"{plan.method} with {plan.criterion}, {plan.distribution}, ranking {report.ranking}"


def sparsity_markdown(report: SparsityReport) -> str:
    """The whole report for a person, GitHub-flavoured."""
    cost = report.training_cost
    flops = "none" if cost.relative_flops is None else f"x{cost.relative_flops:.2f} of a dense run"
    lines = [f"# {report.model}", "", f"**{sparsity_verdict(report)}**", "", speed_verdict(report)]
    lines += ["", *markdown_table(("", "dense", "sparse", "sparse / dense"), sparsity_rows(report))]
    lines += ["", f"- method: {_method(report)}; seed {report.seed}"]
    lines += [f"- training: {flops}, {duration(cost.seconds)}"]
    if report.survival is not None:
        lines += [f"- of all weights ever grown {report.survival:.1%} are in the network"]
    for part in report.speed[:1]:
        lines += [f"- measured on {part.environment.device_name}, {part.environment.created}"]
    for grid in (epoch_grid(few(report.epochs)), update_grid(few(report.updates))):
        if grid.rows:
            what = f"{grid.what}s (first, middle and last)"
            lines += ["", f"## Training: {what}", "", *markdown_table(grid.head, grid.rows)]
    lines += ["", "## Layers", ""]
    lines += markdown_table(("layer", "weight", "kept", "density"), layer_rows(report))
    lines += ["", "## Artifacts", ""]
    lines += markdown_table(("what", "where"), list(report.artifacts.items()))
    return "\n".join(lines) + "\n"


def sparsity_html(report: SparsityReport) -> str:
    """The whole report as one page, nothing loaded from elsewhere."""
    plan = report.plan
    facts = [
        ("Environment", environment_facts(report.speed[0].environment) if report.speed else []),
        (
            "Sparsity",
            [
                ("method", plan.method),
                ("criterion", plan.criterion),
                ("ranking", report.ranking),
                ("pattern", plan.pattern),
                ("distribution", plan.distribution),
                ("asked for", f"{report.asked:.2%}"),
                (
                    "survival of what grew",
                    "" if report.survival is None else f"{report.survival:.1%}",
                ),
                ("seed", str(report.seed)),
            ],
        ),
        ("Training cost", cost_facts(report.training_cost)),
        ("Versions", list(report.versions.items())),
    ]
    return template("sparsity.html.j2").render(
        report=report,
        command="prunekit sparsify",
        verdict=sparsity_verdict(report),
        speed=speed_verdict(report),
        summary=sparsity_rows(report),
        layers=[
            (row, 1.0 if layer.dense else layer.density)
            for row, layer in zip(layer_rows(report), plan.layers, strict=True)
        ],
        training=charts(report.epochs, report.updates),
        facts=without_empty(facts),
        recipe=recipe_text(report.recipe),
        artifacts=artifact_links(report.artifacts),
    )
