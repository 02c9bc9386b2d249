"""Static, SET, RigL and GMP: what each does differently in the common loop."""

from __future__ import annotations

import torch
from torch import Tensor

from prunekit.networks import zeros
from prunekit.sparsify import choose
from prunekit.sparsify.sparsifier import Sparsifier


class Static(Sparsifier):
    """A fixed structure, drawn at random or taken from a trained network's best weights."""

    name = "static"
    exchanges = False
    reads = ("seed",)


class SET(Sparsifier):
    """Low scores drop, random weights grow at zero (Mocanu et al. 2018, arXiv 1707.04780)."""

    name = "set"

    def growth_scores(self) -> list[Tensor]:
        """Draws of this exchange."""
        return self._scorer.draws(1 + self._state.cycle)


class RigL(Sparsifier):
    """Low scores drop, large gradients grow at zero (Evci et al. 2020, arXiv 1911.11134).

    The dense gradient is read at the steps before an exchange only, and these steps are made, where
    the paper's own code leaves them out. A weight that drops and grows in the same exchange begins
    at zero like any other that grows; that code leaves it its value.
    """

    name = "rigl"
    by_gradient = True

    def growth_scores(self) -> list[Tensor]:
        """The size of the loss's gradient."""
        return self._state.gradients


class GMP(Sparsifier):
    """Weights drop little by little and none grows (Zhu and Gupta 2017, arXiv 1710.01878).

    Training begins dense; the share of zeros follows the cubic schedule to what is asked.
    """

    name = "gmp"
    reads = ("every", "until", "seed")

    def first_counts(self) -> list[int]:
        """All."""
        return self._sparse.sizes

    def counts_after_drop(self) -> list[int]:
        """On the cubic way from dense to the target, which the last exchange reaches."""
        left = (1 - min(1.0, (self._state.cycle + 1) / self._updates)) ** 3
        return [
            target + round((size - target) * left)
            for target, size in zip(self.target, self._sparse.sizes, strict=True)
        ]

    @property
    def _updates(self) -> int:
        return self.schedule.last_step // self._lengths[0]

    def _is_last(self, iou: float) -> bool:
        del iou  # the target is reached at the last exchange, and not before
        return self._state.cycle >= self._updates

    def drop_scores(self) -> list[Tensor]:
        """Under an N:M pattern the best N of each M may not go."""
        scores = super().drop_scores()
        if not self.pattern.structured:
            return scores
        active = [
            part.masked_fill(~on, choose.ABSENT)
            for part, on in zip(scores, self._masks.active, strict=True)
        ]
        return [
            part.masked_fill(zeros.top_of_blocks(part, self.pattern), torch.inf) for part in active
        ]
