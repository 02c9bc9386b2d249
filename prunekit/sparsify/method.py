"""What sparse methods differ in: what begins, what drops, what grows, what a step trains."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.optim import Optimizer

from prunekit.core.density import Pattern
from prunekit.criteria import WeightCriterion
from prunekit.sparsify.layers import SparseLayers
from prunekit.sparsify.masks import Masks
from prunekit.sparsify.schedule import SparsitySchedule
from prunekit.sparsify.scoring import Scorer
from prunekit.sparsify.settings import Settings
from prunekit.sparsify.state import SparsifierState
from prunekit.sparsify.work import Work


class Method:
    """The answers that the loop of :class:`prunekit.sparsify.Sparsifier` asks a method for."""

    name: ClassVar[str] = ""
    exchanges: ClassVar[bool] = True
    """Whether weights change hands."""
    explores: ClassVar[bool] = False
    """Whether inactive weights are trained before some of them grow."""
    by_gradient: ClassVar[bool] = False
    """Whether growth reads the dense gradient of the exchange's step."""
    reads: ClassVar[tuple[str, ...]] = ("every", "fraction", "decay", "until", "stop_iou", "seed")
    """The fields of the schedule that mean something to the method."""

    settings: Settings
    _sparse: SparseLayers
    _masks: Masks
    _scorer: Scorer
    _work: Work
    _state: SparsifierState

    # --- what was asked for -------------------------------------------------------------------

    @property
    def schedule(self) -> SparsitySchedule:
        """When weights are exchanged, and how many."""
        return self.settings.schedule

    @property
    def pattern(self) -> Pattern:
        """How zeros lie."""
        return self.settings.pattern

    @property
    def criterion(self) -> WeightCriterion:
        """What weights are scored by."""
        return self.settings.criterion

    @property
    def target(self) -> list[int]:
        """Weights that each sparse layer keeps, as the distribution says."""
        return self._sparse.target

    @property
    def _lengths(self) -> tuple[int, int, int]:
        """H, J and Q in steps."""
        return self.schedule.lengths(exploring=self.explores)

    # --- what each may answer otherwise --------------------------------------------------------

    def remember(self) -> None:
        """Take what is needed of the weights as they are before any is masked."""

    def first_counts(self) -> list[int]:
        """Active weights of each layer at the start."""
        return self.target

    def counts_after_drop(self) -> list[int]:
        """Active weights of each layer once those that go have gone."""
        part = self.schedule.fraction_at(self._state.done)
        # no more than can grow instead, and one stays
        return [
            n - min(round(part * n), n - 1, size - n)
            for n, size in zip(self._masks.counts(), self._sparse.sizes, strict=True)
        ]

    def drop_scores(self) -> list[Tensor]:
        """Scores of the stage that ends, by which active weights stay."""
        return self._scorer.result()

    def growth_scores(self) -> list[Tensor] | None:
        """Scores by which inactive weights grow, or None where nothing grows."""
        return None

    @property
    def reads_gradients(self) -> bool:
        """Whether the last step of this stage hands out the dense gradient."""
        return self.by_gradient and self._state.stage == "train"

    def mask_gradients_(self) -> None:
        """Leave gradient to what this stage trains."""
        self._masks.clear_gradients_()

    def hold_(self, optimizer: Optimizer) -> None:
        """Put back what this stage does not train."""
        self._masks.after_step_(optimizer)

    def count_step(self) -> None:
        """Add the cost of the step just made."""
        self._work.add(self._masks.counts(), dense_gradient=bool(self._state.gradients))
