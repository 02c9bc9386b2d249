"""The sparsity plan: how many weights of every layer are kept, and in which pattern."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from prunekit.core.density import Pattern
from prunekit.support.errors import FileError
from prunekit.support.files import load_json, save_json

SPARSITY_VERSION = 1


@dataclass(frozen=True)
class SparseLayer:
    """A weight tensor and how many of its elements are not masked; ``dense`` ones all are not."""

    name: str
    shape: tuple[int, ...]
    kept: int
    dense: bool = False

    @property
    def size(self) -> int:
        """How many weights it has."""
        return math.prod(self.shape)

    @property
    def density(self) -> float:
        """The share of its weights that is kept."""
        return self.kept / self.size


@dataclass(frozen=True)
class SparsityPlan:
    """What a sparse network is: its layers in order, the pattern, and how it came about.

    Which weights are kept follows from the weights themselves: all others are exactly zero.
    """

    layers: tuple[SparseLayer, ...]
    pattern: str
    distribution: str
    method: str
    criterion: str

    @property
    def sparse(self) -> tuple[SparseLayer, ...]:
        """The layers that are masked."""
        return tuple(layer for layer in self.layers if not layer.dense)

    @property
    def sparsity(self) -> float:
        """The share of zeros in the masked layers."""
        return _zeros(self.sparse)

    @property
    def overall(self) -> float:
        """The share of zeros in all linear and convolutional layers."""
        return _zeros(self.layers)

    def save(self, path: str | Path) -> None:
        """Write ``sparsity.json``."""
        save_json(path, self, "sparsity", SPARSITY_VERSION)

    @classmethod
    def load(cls, path: str | Path) -> SparsityPlan:
        """Read ``sparsity.json``; a damaged or edited file is named in the error."""
        plan = load_json(path, cls, "sparsity", SPARSITY_VERSION)
        Pattern.parse(plan.pattern)
        for layer in plan.layers:
            if not 0 < layer.kept <= layer.size:
                raise FileError(f"{path}: layer {layer.name!r} keeps weights it does not have")
        return plan


def _zeros(layers: tuple[SparseLayer, ...]) -> float:
    """Their share of zeros; none where there is no layer."""
    size = sum(layer.size for layer in layers)
    return 1 - sum(layer.kept for layer in layers) / size if size else 0.0
