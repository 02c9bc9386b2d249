"""Saliency scores: one non-negative number per channel of every prunable group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prunekit.support.errors import UsageError

PRESENT = 1e-30
"""Ranks a channel that scores zero above one that is not there."""


@dataclass(frozen=True, eq=False)
class Scores:
    """``by_group[id]`` has shape (group size,), not negative, over ``batches`` batches."""

    by_group: Mapping[str, NDArray[np.float64]]
    criterion: str
    batches: int = 0

    def __post_init__(self) -> None:
        for group, values in self.by_group.items():
            if not np.isfinite(values).all():
                raise UsageError(
                    f"{self.criterion} scores of group {group!r} are not finite; "
                    "check the loss and the weights for NaN"
                )
            if (values < 0).any():
                raise UsageError(f"{self.criterion} scores of group {group!r} are negative")

    def ranking(self, group: str) -> NDArray[np.int64]:
        """Channel indices of ``group``, best first; ties keep the lower index first."""
        return np.argsort(-self.by_group[group], kind="stable")
