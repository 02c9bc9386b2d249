"""What a plan costs: latency by a table, MACs or parameters, per layer and in all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prunekit.core.graph import WEIGHT_BYTES, ChannelGraph, Layer
from prunekit.core.plan import ChannelPlan, check_same
from prunekit.latency import LatencyTable


class CostModel(Protocol):
    """Prices one layer at many widths at once."""

    @property
    def unit(self) -> str:
        """What the costs are in."""
        ...

    @property
    def constant(self) -> float:
        """The part of every network's cost that no layer explains."""
        ...

    def layer(self, layer: Layer, cin: ArrayLike, cout: ArrayLike) -> NDArray[np.float64]:
        """Cost of all calls of ``layer`` at in- and out-widths (arrays broadcast)."""
        ...


@dataclass(frozen=True)
class LatencyCost:
    """Milliseconds predicted by a table."""

    table: LatencyTable
    unit: str = "ms"
    constant: float = 0.0

    def layer(self, layer: Layer, cin: ArrayLike, cout: ArrayLike) -> NDArray[np.float64]:
        """Milliseconds."""
        return self.table.layer_us(layer, cin, cout) / 1e3


@dataclass(frozen=True)
class MacsCost:
    """Multiply-accumulates of one sample."""

    unit: str = "MACs"
    constant: float = 0.0

    def layer(self, layer: Layer, cin: ArrayLike, cout: ArrayLike) -> NDArray[np.float64]:
        """MACs, from the layer's own formula."""
        return np.asarray(layer.macs(*_ints(cin, cout)), dtype=np.float64)


@dataclass(frozen=True)
class ParamsCost:
    """Weights and biases of the layers."""

    unit: str = "parameters"
    constant: float = 0.0

    def layer(self, layer: Layer, cin: ArrayLike, cout: ArrayLike) -> NDArray[np.float64]:
        """Parameters; a layer called several times holds its weights once."""
        return np.asarray(layer.params(*_ints(cin, cout)), dtype=np.float64)


@dataclass(frozen=True)
class WeightBytes:
    """Bytes of the layers' weights in fp32; what memory is besides depends on no layer alone."""

    unit: str = "bytes"
    constant: float = 0.0

    def layer(self, layer: Layer, cin: ArrayLike, cout: ArrayLike) -> NDArray[np.float64]:
        """Bytes."""
        return WEIGHT_BYTES * np.asarray(layer.params(*_ints(cin, cout)), dtype=np.float64)


def _ints(cin: ArrayLike, cout: ArrayLike) -> tuple[Any, Any]:
    """Widths as integer arrays; the layer's formulas take arrays as they take numbers."""
    return np.asarray(cin, dtype=np.int64), np.asarray(cout, dtype=np.int64)


def layer_cost(
    costs: CostModel, layer: Layer, cin: ArrayLike, cout: ArrayLike
) -> NDArray[np.float64]:
    """Cost of all calls of ``layer``; nothing where a width is zero: its block is gone."""
    left, right = np.asarray(cin), np.asarray(cout)
    present = (left > 0) & (right > 0)
    if present.all():
        return costs.layer(layer, left, right)
    return np.where(present, costs.layer(layer, np.maximum(left, 1), np.maximum(right, 1)), 0.0)


def total(graph: ChannelGraph, widths: Mapping[str, int], costs: CostModel) -> float:
    """The cost of the whole network at the given group widths."""
    return costs.constant + sum(
        float(layer_cost(costs, layer, layer.width("in", widths), layer.width("out", widths)))
        for layer in graph.layers
    )


@dataclass(frozen=True)
class Prediction:
    """Predicted end-to-end latency in milliseconds with its 90 % interval."""

    ms: float
    low_ms: float
    high_ms: float


def predict(graph: ChannelGraph, plan: ChannelPlan, table: LatencyTable) -> Prediction:
    """Latency of ``plan``; the interval holds what the table is unsure of at these widths."""
    check_same(plan.fingerprint, graph.fingerprint)
    ms = total(graph, plan.widths, LatencyCost(table))
    error = table.half_width(graph, plan.widths)
    return Prediction(ms, ms * max(0.0, 1 - error), ms * (1 + error))
