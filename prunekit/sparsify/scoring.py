"""Scores of the weights of a sparse training: accumulated over a stage, or drawn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from prunekit.criteria import WeightCriterion
from prunekit.support.errors import TrainingError
from prunekit.support.processes import average_
from prunekit.train.method_state import Forms, Numbered, Plain

SCORER_FORMS: Forms = {"sums": Numbered("sum"), "added": Plain("scored", int)}
"""How what a stage has scored is saved."""


class Scorer:
    """A criterion at work on the same weights, stage after stage."""

    def __init__(
        self, criterion: WeightCriterion, names: list[str], weights: Sequence[Tensor], seed: int
    ) -> None:
        self.criterion, self.names, self.weights, self.seed = criterion, names, weights, seed
        self.sums: list[Tensor] = []
        """Accumulated scores of the stage, for criteria that need gradients."""
        self.added = 0

    def reset(self) -> None:
        """A stage begins."""
        self.sums, self.added = [], 0

    def now(self) -> list[Tensor]:
        """Of the weights as they are, with the gradients they have."""
        return [
            self.criterion.weight_scores(name, weight, weight.grad).float()
            for name, weight in zip(self.names, self.weights, strict=True)
        ]

    def add(self) -> None:
        """Take in this step's scores, unless gradients overflowed."""
        scores = self.now()
        if not finite(scores):
            return
        if self.sums:
            torch._foreach_add_(self.sums, scores)
        else:
            self.sums = scores
        self.added += 1

    @property
    def waits(self) -> bool:
        """Whether the stage has had no step with finite gradients yet."""
        return self.criterion.needs_gradients and not self.added

    def result(self) -> list[Tensor]:
        """Of the stage that ends: averages over its steps, or of the weights as they are."""
        if self.criterion.needs_gradients:
            scores = [part / self.added for part in self.sums]
        else:
            scores = self.now()
            if not finite(scores):
                raise TrainingError(
                    f"{self.criterion.name} scores of the weights are not finite; "
                    "lower the learning rate or set `clip_norm`"
                )
        average_(scores)
        return scores

    def draws(self, number: int) -> list[Tensor]:
        """Random scores, a function of seed, ``number`` and layer alone."""
        return [
            torch.from_numpy(
                np.random.default_rng([self.seed, number, i]).random(
                    tuple(weight.shape), dtype=np.float32
                )
            ).to(weight.device)
            for i, weight in enumerate(self.weights)
        ]

    def first(self, start: str) -> list[Tensor]:
        """What the first structure is chosen by: draws, or scores, by magnitude for lack of data.

        A criterion that needs gradients has none before the first step.
        """
        if start == "random":
            return self.draws(0)
        if self.criterion.needs_gradients:
            return [weight.detach().abs() for weight in self.weights]
        return self.now()


def finite(parts: list[Tensor]) -> bool:
    """Whether no value is infinite or not a number."""
    # a sum is finite where all of it is, and ten times as fast to tell
    return all(bool(torch.isfinite(part.sum(dtype=torch.float32))) for part in parts)
