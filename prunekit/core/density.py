"""How many weights every layer keeps: sparsity, patterns, and the distributions over layers."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from prunekit.support.errors import UsageError
from prunekit.support.parsing import share_of

Distribution = Literal["erk", "uniform"]


@dataclass(frozen=True)
class WeightShape:
    """A weight tensor: (outputs, inputs per group, kernel ...)."""

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many weights it has."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Pattern:
    """Which weights may be there together: any (``m`` = 1), or ``n`` of each ``m`` in a row.

    Rows run along the input dimension, axis 1 of the weight: the inputs of a linear layer, the
    input channels of a convolution at each place of its kernel, as sparse kernels take them.
    """

    n: int = 1
    m: int = 1

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """``unstructured`` or ``N:M`` such as ``2:4``."""
        if text == "unstructured":
            return cls()
        match = re.fullmatch(r"(\d+):(\d+)", text)
        if not match or not 0 < int(match[1]) < int(match[2]):
            raise UsageError(
                f"cannot read pattern {text!r}; write unstructured, or N:M with N below M, "
                "such as 2:4"
            )
        return cls(int(match[1]), int(match[2]))

    @property
    def structured(self) -> bool:
        """Whether it is N:M."""
        return self.m > 1

    @property
    def sparsity(self) -> float:
        """The share of zeros that N:M means."""
        return 1 - self.n / self.m

    def check(self, layers: Sequence[WeightShape]) -> None:
        """Raise UsageError naming the layers whose inputs cannot be grouped by M."""
        wrong = [layer for layer in layers if self.structured and layer.shape[1] % self.m]
        if wrong:
            first, rest = wrong[0], [layer.name for layer in wrong[1:]]
            others = f"; nor {', '.join(rest[:5])}" + (", ..." if len(rest) > 5 else "")
            flags = " ".join(f"--dense {layer.name}" for layer in wrong[:6])
            flags += " ..." if len(wrong) > 6 else ""
            raise UsageError(
                f"pattern {self} does not divide layer {first.name}, which has "
                f"{first.shape[1]} inputs, no multiple of {self.m}{others if rest else ''}; "
                f"keep {'them' if rest else 'it'} dense ({flags}) or use another pattern"
            )

    def __str__(self) -> str:
        return f"{self.n}:{self.m}" if self.structured else "unstructured"


def parse_sparsity(text: str) -> float:
    """``90%`` or ``0.9`` as a share of zeros, above 0 and below 1."""
    value = share_of(text)
    if not 0 < value < 1:
        raise UsageError(
            f"`sparsity` must be above 0 and below 1 (0 % and 100 %), not {text!r}; "
            "write 90% or 0.9"
        )
    return value


def densities(layers: Sequence[WeightShape], keep: int, distribution: Distribution) -> list[float]:
    """The share of weights that each layer keeps, so that ``keep`` weights are kept in all.

    ``erk`` (Erdos-Renyi kernel, Evci et al. 2020, arXiv 1911.11134): in proportion to the sum of
    the weight's dimensions over their product. A layer that would need more than all of its
    weights is dense, and what it cannot hold goes to the others.
    """
    raw = [1.0 if distribution == "uniform" else sum(layer.shape) / layer.size for layer in layers]
    full: set[int] = set()
    while True:
        rest = keep - sum(layers[i].size for i in full)
        weight = sum(
            r * layer.size
            for i, (r, layer) in enumerate(zip(raw, layers, strict=True))
            if i not in full
        )
        scale = rest / weight if weight else 0.0
        over = {i for i, r in enumerate(raw) if i not in full and scale * r > 1}
        if not over:
            return [1.0 if i in full else scale * r for i, r in enumerate(raw)]
        full |= over


def counts(
    layers: Sequence[WeightShape],
    sparsity: float,
    distribution: Distribution = "erk",
    pattern: Pattern | None = None,
) -> dict[str, int]:
    """How many weights each layer keeps; the sum is ``round((1 - sparsity) * all weights)``.

    Every layer keeps at least one weight. Raises UsageError, with the sparsity that is possible,
    where the layers do not allow what is asked.
    """
    pattern = pattern or Pattern()
    if distribution not in get_args(Distribution):
        raise UsageError(f"`distribution` must be erk or uniform, not {distribution!r}")
    pattern.check(layers)
    total = sum(layer.size for layer in layers)
    if pattern.structured:
        if abs(sparsity - pattern.sparsity) > 1e-9:
            raise UsageError(
                f"pattern {pattern} means a sparsity of {pattern.sparsity:.4g}, "
                f"not {sparsity:.4g}; leave `sparsity` out or ask for that"
            )
        return {layer.name: layer.size // pattern.m * pattern.n for layer in layers}
    if not 0 < sparsity < 1:
        raise UsageError(f"`sparsity` must be above 0 and below 1, not {sparsity!r}")
    keep = round((1 - sparsity) * total)
    if keep < len(layers):
        raise UsageError(
            f"a sparsity of {sparsity:.6g} leaves {keep} of {total} weights for {len(layers)} "
            f"layers, which need one each; ask for at most {1 - len(layers) / total:.6g}"
        )
    if keep >= total:
        raise UsageError(
            f"a sparsity of {sparsity:.6g} removes none of {total} weights; "
            f"ask for at least {1 / total:.2g}"
        )
    wanted = [
        density * layer.size
        for density, layer in zip(densities(layers, keep, distribution), layers, strict=True)
    ]
    sizes = [layer.size for layer in layers]
    rounded = _whole(wanted, sizes, keep)
    return {layer.name: count for layer, count in zip(layers, rounded, strict=True)}


def _whole(wanted: list[float], sizes: list[int], total: int) -> list[int]:
    """Whole numbers next to ``wanted``, from 1 to the sizes, with exactly this sum.

    The largest remainders are rounded up; ties go to the earlier layer.
    """
    numbers = [min(size, max(1, math.floor(w))) for w, size in zip(wanted, sizes, strict=True)]
    while (missing := total - sum(numbers)) != 0:
        up = missing > 0
        open_ = [i for i, n in enumerate(numbers) if (n < sizes[i] if up else n > 1)]
        open_.sort(key=lambda i: (numbers[i] - wanted[i]) * (1 if up else -1))
        for i in open_[: abs(missing)]:
            numbers[i] += 1 if up else -1
    return numbers
