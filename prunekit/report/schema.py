"""``report.json``: versioned, because other tools read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from prunekit.core.metric import PERCENT, Metric
from prunekit.core.target import Environment, Target
from prunekit.support.files import load_json, save_json

REPORT_VERSION = 1


class Part(BaseModel):
    """A part of a report: fixed, and of known fields only."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class BudgetPart(Part):
    """What was asked: ``limit_ms`` is the limit in this run's milliseconds."""

    kind: str
    requested: str
    limit_ms: float


class LatencyPart(Part):
    """Medians of interleaved runs on the target.

    ``met``: it is as sure as ``sure`` that the ratio is within the limit on this machine;
    ``probability`` says how sure, None in reports of before it was told. ``mended``: how often the
    trained network was cut further.
    """

    dense_ms: float
    pruned_ms: float
    dense_ci_ms: tuple[float, float]
    pruned_ci_ms: tuple[float, float]
    ratio: float
    ratio_ci: tuple[float, float]
    confidence: float
    rounds: int
    predicted_ms: float
    limit_ratio: float
    met: bool
    probability: float | None = None
    sure: float = 0.95
    sessions: int = 0
    lost: float = 0.0
    """The share of the processor's time that other processes took."""
    mended: int = 0

    @property
    def outcome(self) -> Literal["met", "missed", "open"]:
        """Missed only where that is as sure as a target that is met has to be."""
        if self.met:
            return "met"
        is_open = self.probability is not None and self.probability > 1 - self.sure
        return "open" if is_open else "missed"


class ScorePart(Part):
    """One metric in the precision deployed, on the validation set; None without data.

    In percent it is kept as 0 to 1, else in its ``unit``.
    """

    dense: float | None
    pruned: float | None
    metric: str = "top-1"
    unit: str = PERCENT
    higher_is_better: bool = True

    @property
    def measure(self) -> Metric:
        """How its values are told."""
        return Metric("", self.metric, self.unit, self.higher_is_better)

    @property
    def label(self) -> str:
        """What it is called beside other figures."""
        return f"accuracy ({self.metric})" if self.metric == "top-1" else self.metric


class AccuracyPart(ScorePart):
    """The metric that decides, and the ``others`` of the ``task``."""

    task: str = "classification"
    others: tuple[ScorePart, ...] = ()


class RepairRow(Part):
    """One moment of the slim network: what it scores by the task, and how far its outputs are.

    ``distance`` is from the dense network's outputs, as a share of their deviation, on images that
    nothing was fitted to; both are None where they are not known.
    """

    what: str
    score: float | None = None
    distance: float | None = None
    seconds: float | None = None


class RepairPart(Part):
    """How the slim network was repaired before any training; ``left`` says what was not, and why.

    Of ``auto``, ``method`` is what it chose.
    """

    method: str
    images: int
    layers: int
    left: dict[str, str] = Field(default_factory=dict)
    rows: tuple[RepairRow, ...] = ()


class Pair(Part):
    """A count before and after."""

    dense: int
    pruned: int


class TrainingPart(Part):
    """``relative_flops``: all training over one dense training run; None without training."""

    relative_flops: float | None
    seconds: float
    dense_seconds: float


class AllocationPart(Part):
    """How the widths were chosen."""

    solver: str
    gap: float
    status: str
    value: float
    method: str
    criterion: str
    granularity: int


class GroupPart(Part):
    """One channel group of the plan.

    ``saved_ms`` is predicted: what the network would take longer with this group whole again.
    ``saliency`` is the share of the group's scores that is kept, of the channels that were left
    when scores were last taken; None where there are none.
    """

    before: int
    after: int
    saliency: float | None
    saved_ms: float
    at_minimum: bool


class AttemptPart(Part):
    """One plan of the measured loop; ``asked`` is 0 for the smallest plan there is."""

    asked: float
    predicted: float
    ratio: float
    ratio_ci: tuple[float, float]
    chosen: bool


class TablePart(Part):
    """The latency table behind the predictions and its error on networks left out of the fit.

    None where there were too few.
    """

    source: str
    nets: int
    rounds: int
    mape: float | None
    worst: float | None

    @property
    def error(self) -> str:
        """The error in words."""
        if self.mape is None or self.worst is None:
            return "unknown"
        return f"{self.mape:.1%} (worst {self.worst:.1%})"


class ExportPart(Part):
    """A file that was exported from the run later, with the accuracy measured on that file.

    ``apart``: its outputs' distance from PyTorch's in fp32, as a share of them.
    """

    path: str
    format: str
    precision: str
    sha256: str
    apart: float | None
    accuracy: float | None


class EpochPart(Part):
    """One epoch of a training stage; ``step`` and ``seconds`` count from the stage's beginning.

    ``score`` is the task's ``metric``, in its ``unit``, where that is not ``accuracy``.
    """

    stage: str
    epoch: int
    step: int | None = None
    loss: float | None = None
    lr: float | None = None
    accuracy: float | None = None
    metric: str | None = None
    unit: str = PERCENT
    score: float | None = None
    seconds: float | None = None

    @property
    def value(self) -> float | None:
        """The metric that decides."""
        return self.accuracy if self.score is None else self.score

    @property
    def value_name(self) -> str:
        """What that metric is called in logs."""
        return self.metric or "accuracy"

    def value_text(self, value: float) -> str:
        """One of its values as it is told."""
        return Metric("", self.value_name, self.unit).text(value)


class UpdatePart(Part):
    """One change of the structure while training goes on; ``stage`` is the one it happened in.

    ``iou`` compares the structure with the one before, ``survival`` is the share of the channels
    grown last that are still there; both None where the method has no such thing.
    """

    stage: str | None = None
    step: int
    cycle: int
    predicted_ratio: float | None = None
    omega: float | None = None
    iou: float | None = None
    grown: int | None = None
    survival: float | None = None
    relative_flops: float | None = None
    widths: dict[str, int] = Field(default_factory=dict)


class Report(Part):
    """Everything a reader or a tool needs to believe a run, or to repeat it."""

    model: str
    target: Target
    environment: Environment
    budget: BudgetPart
    latency: LatencyPart
    accuracy: AccuracyPart
    macs: Pair
    params: Pair
    memory: Pair | None = None
    """Bytes of weights and of activations at their peak, in fp32: computed, not measured."""
    file_bytes: Pair
    training_cost: TrainingPart
    allocation: AllocationPart
    repair: RepairPart | None = Field(None, exclude_if=lambda part: part is None)
    """Where the slim network was repaired before any training."""
    landing: tuple[AttemptPart, ...]
    table: TablePart
    widths: dict[str, tuple[int, int]]
    groups: dict[str, GroupPart] = Field(default_factory=dict)
    frozen: dict[str, str]
    artifacts: dict[str, str]
    digests: dict[str, str]
    """SHA-256 of the two files that were timed, by their names among the artifacts."""
    seed: int
    recipe: dict[str, Any]
    versions: dict[str, str]
    epochs: tuple[EpochPart, ...] = ()
    updates: tuple[UpdatePart, ...] = ()
    exports: tuple[ExportPart, ...] = ()
    seconds: dict[str, float] = Field(default_factory=dict)
    """Of the command's stages, in the order they began; each second is counted once."""

    def save(self, path: str | Path) -> None:
        """Write ``report.json``."""
        save_json(path, self, "report", REPORT_VERSION)

    @classmethod
    def load(cls, path: str | Path) -> Report:
        """Read ``report.json``; a damaged or edited file is named in the error."""
        return load_json(path, cls, "report", REPORT_VERSION)
