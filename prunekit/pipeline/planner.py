"""Plans of a run: for a predicted latency, the smallest, and the one that lands as measured."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from prunekit.allocation import Allocation, allocate
from prunekit.allocation.solvers import Allocator
from prunekit.core.budget import Budget
from prunekit.core.scores import Scores
from prunekit.criteria import Magnitude, score
from prunekit.latency import LatencyTable
from prunekit.pipeline.against_dense import DenseComparison
from prunekit.pipeline.job import Job
from prunekit.pipeline.landing import Attempt, Landing, aim, land
from prunekit.support.errors import InfeasibleError
from prunekit.support.files import read_object, write_text

UNSCORED = Scores({}, "none")


@dataclass(frozen=True)
class Share:
    """A share of the dense latency that a resumed run keeps to."""

    ratio: float

    def save(self, path: str | Path) -> None:
        """Write it for a run that is resumed."""
        write_text(path, json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: str | Path) -> Share:
        """Read what :meth:`save` wrote."""
        return cls(float(read_object(path, "share")["ratio"]))


@dataclass(frozen=True)
class Planner:
    """Allocates under one table and measures what it plans; ratios are shares of dense latency."""

    job: Job
    table: LatencyTable
    solver: Allocator
    comparison: DenseComparison

    def allocate(
        self,
        scores: Scores,
        ratio: float,
        at_most: dict[str, int] | None = None,
        *,
        at_least: dict[str, int] | None = None,
        limited: bool = True,
    ) -> Allocation:
        """The best plan predicted to take at most ``ratio``, and within the recipe's limits."""
        recipe = self.job.recipe
        return allocate(
            self.job.graph,
            scores,
            self.table,
            Budget.share(ratio),
            self.solver,
            granularity=recipe.granularity,
            at_most=at_most,
            at_least=at_least,
            limits=recipe.limits if limited else (),
            depth=recipe.depth,
        )

    def smallest(self, scores: Scores, *, limited: bool = False) -> Allocation:
        """Every group at its smallest width; with ``limited``, where the limits allow it."""
        graph, recipe = self.job.graph, self.job.recipe
        least = graph.smallest_widths(recipe.granularity or self.table.granularity)
        if recipe.depth:
            least |= {g: 0 for groups in graph.droppable.values() for g in groups}
        return self.allocate(scores, 1.0, at_most=least, limited=limited)

    def nearest(
        self,
        scores: Scores,
        ratio: float,
        at_most: dict[str, int] | None = None,
        *,
        at_least: dict[str, int] | None = None,
        limited: bool = True,
    ) -> Allocation:
        """The best plan within ``ratio``, or the smallest where even that takes more."""
        try:
            return self.allocate(scores, ratio, at_most, at_least=at_least, limited=limited)
        except InfeasibleError:
            return self.smallest(scores)

    def check_reachable(self, target: float) -> None:
        """Refuse a target below the smallest network's latency, as measured, before training.

        And limits that not even the smallest plan keeps.
        """
        if self.job.recipe.limits:
            self.smallest(UNSCORED, limited=True)
        least = self.smallest(UNSCORED)
        if least.ratio < target * (1 - max(self.table.calibration.worst, 0.05)):
            return
        timed = self.comparison.measure(least.plan, target)
        ratio, (whole, small) = timed.ratios[0], timed.measurements
        if ratio.probability_below(target) < 0.5:
            raise InfeasibleError(
                f"{self.comparison.budget} is below what is reachable: the smallest network "
                f"measures {ratio.ratio:.1%} [{ratio.low:.1%}, {ratio.high:.1%}] of the dense one, "
                f"{small.median_ms:.4g} of {whole.median_ms:.4g} ms; ask for "
                f"{math.ceil(100 * ratio.high)}% or more"
            )

    def land(
        self,
        scores: Scores,
        at_most: dict[str, int] | None,
        target: float,
        known: tuple[Attempt, ...] = (),
        *,
        at_least: dict[str, int] | None = None,
    ) -> Landing:
        """The measured loop on the given scores."""
        return land(
            lambda ratio: self.allocate(scores, ratio, at_most, at_least=at_least),
            partial(self.smallest, scores, limited=True),
            partial(self.comparison.landing_ratio, target=target),
            target,
            known,
            self.job.recipe.confidence,
        )

    def corrected(self, target: float) -> float:
        """The predicted ratio to train towards, so that ``target`` is measured in the end."""
        scores = score(self.job.module, self.job.graph, Magnitude())
        near = self.nearest(scores, target)
        measured = self.comparison.landing_ratio(near.plan, target)
        wanted = target * aim(measured.estimate.scale, self.job.recipe.confidence)
        least = self.smallest(scores).ratio * 1.0001
        return min(0.99, max(least, wanted * near.ratio / measured.ratio))
