"""The latency table: a JSON file of samples, readable in a diff, safe to share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prunekit.errors import TableError
from prunekit.graph import ChannelGraph, Layer, LayerShape
from prunekit.latency.pooling import pooled
from prunekit.latency.surface import Surface
from prunekit.serialize import load_json, save_json
from prunekit.target import Environment, Target

TABLE_VERSION = 1


@dataclass(frozen=True)
class Protocol:
    """How the samples were taken."""

    source: str
    nets: int
    rounds: int
    turns: int
    seed: int
    stopped: str = ""


@dataclass(frozen=True)
class Sample:
    """One layer at one width in one network: microseconds a call, their spread (IQR), runs."""

    net: int
    cin: int
    cout: int
    us: float
    spread_us: float
    runs: int
    calls: int = 1


@dataclass(frozen=True)
class Entry:
    """All samples of one layer shape."""

    shape: LayerShape
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class Network:
    """One whole network that was measured: its layers' summed time and its end-to-end time.

    ``session`` names the profile it was measured in, where a table joins several.
    """

    model: str
    kept: float
    calls: int
    layers_us: float
    end_to_end_us: float
    spread_us: float
    runs: int
    session: str = ""


@dataclass(frozen=True)
class Calibration:
    """End to end = sum over layer calls of scale x profiled time + per_call_us.

    ``per_call_us`` is negative as a rule: watching a kernel costs the profiler a few microseconds.
    ``mape`` and ``worst`` are the errors of nets left out of the fit.
    """

    scale: float = 1.0
    per_call_us: float = 0.0
    mape: float = 0.0
    worst: float = 0.0
    nets: int = 0

    def __str__(self) -> str:
        """The error in words."""
        if not self.nets:
            return "error on networks left out unknown, too few networks"
        return f"error on networks left out {self.mape:.1%}, worst {self.worst:.1%}"


@dataclass(frozen=True)
class LatencyTable:
    """Measured layer latencies of one target on one device."""

    target: Target
    environment: Environment
    protocol: Protocol
    granularity: int
    models: tuple[str, ...]
    """Fingerprints of the models profiled; a table prices any model whose layer shapes it has."""
    entries: tuple[Entry, ...]
    networks: tuple[Network, ...]
    calibration: Calibration = field(default=Calibration())
    origin: Environment | None = None
    """Where the layers were measured, if not here: then the networks were timed end to end only,
    their layers' time is what the layers cost there, and ``Sample.net`` counts networks there."""

    def save(self, path: str | Path) -> None:
        """Write the table as JSON."""
        save_json(path, self, "latency table", TABLE_VERSION)

    @classmethod
    def load(cls, path: str | Path) -> LatencyTable:
        """Read a table; a damaged or edited file is named in the error."""
        return load_json(path, cls, "latency table", TABLE_VERSION)

    @cached_property
    def by_shape(self) -> dict[LayerShape, Entry]:
        """Entries by layer shape."""
        return {entry.shape: entry for entry in self.entries}

    @cached_property
    def pooled(self) -> tuple[tuple[Entry, ...], tuple[Network, ...]]:
        """Entries and networks with all sessions at one speed and repeated networks as one."""
        return pooled(self.entries, self.networks)

    @cached_property
    def _surfaces(self) -> dict[LayerShape, Surface]:
        return surfaces(self.pooled[0], self.granularity)

    def shape_us(self, shape: LayerShape, cin: ArrayLike, cout: ArrayLike) -> NDArray[np.float64]:
        """Microseconds of one call of a layer of ``shape``, end-to-end calibrated."""
        surface = self._surfaces.get(shape)
        if surface is None:
            raise TableError(f"no timing for {shape} in the latency table for {self.target}")
        return self.calibration.scale * surface.us(cin, cout) + self.calibration.per_call_us

    def layer_us(self, layer: Layer, cin: ArrayLike, cout: ArrayLike) -> NDArray[np.float64]:
        """Microseconds of all calls of ``layer`` at the given widths, end-to-end calibrated."""
        if layer.shape not in self.by_shape:
            raise TableError(
                f"no timing for layer {layer.name!r} ({layer.shape}) in the latency table for "
                f"{self.target}; run `prunekit profile` for this model and input"
            )
        return layer.calls * self.shape_us(layer.shape, cin, cout)

    def check(self, graph: ChannelGraph, target: Target, environment: Environment | None) -> None:
        """Refuse a table of another target, another device or without this model's layers."""
        if self.target != target:
            raise TableError(
                f"the latency table is for {self.target.describe()}, not {target.describe()}; "
                "run `prunekit profile` for this target"
            )
        if environment is not None and (gap := self.environment.difference(environment)):
            raise TableError(
                f"the latency table was measured elsewhere: {gap} here; "
                "run `prunekit profile` on this device"
            )
        self.check_layers(graph)

    def check_layers(self, graph: ChannelGraph) -> None:
        """Refuse a table without this model's layers, or with narrower ones."""
        for layer in graph.layers:
            self.layer_us(layer, layer.in_channels, layer.out_channels)
            samples = self.by_shape[layer.shape].samples
            widest = max(s.cin for s in samples), max(s.cout for s in samples)
            if layer.in_channels > widest[0] or layer.out_channels > widest[1]:
                raise TableError(
                    f"the latency table has layer {layer.name!r} ({layer.shape}) up to widths "
                    f"{widest[0]}->{widest[1]}, not {layer.in_channels}->{layer.out_channels}: it "
                    "is of another model; run `prunekit profile` for this one"
                )

    def calibrated(self) -> LatencyTable:
        """The table with its end-to-end calibration fitted to its networks."""
        if self.origin is not None:
            return replace(self, calibration=recalibrate(self.networks))
        return replace(self, calibration=calibrate(*self.pooled, self.granularity))


def surfaces(
    entries: Iterable[Entry], block: int, without: int | None = None
) -> dict[LayerShape, Surface]:
    """The fitted surface of every shape, leaving out the samples of net ``without``."""
    fitted = {}
    for entry in entries:
        rows = [(s.cin, s.cout, s.us) for s in entry.samples if s.net != without]
        if rows:
            cin, cout, us = (np.array(column) for column in zip(*rows, strict=True))
            diagonal = entry.shape.kind == "depthwise"
            fitted[entry.shape] = Surface.fit(cin, cout, us, block, diagonal)
    return fitted


def calibrate(entries: tuple[Entry, ...], networks: tuple[Network, ...], block: int) -> Calibration:
    """Fit scale and cost per call, and find the error by leaving out one net after another.

    Every net's sum is priced by the surfaces, as a prediction will be, not by its own samples.
    """
    whole = _sums(entries, surfaces(entries, block), len(networks))

    def without(net: int) -> NDArray[np.float64]:
        return _sums(entries, surfaces(entries, block, without=net), len(networks))

    return _calibration(networks, whole, without)


def recalibrate(networks: tuple[Network, ...]) -> Calibration:
    """Scale and cost per call of networks whose layers were measured elsewhere, with the error."""
    sums = np.array([net.layers_us for net in networks])
    return _calibration(networks, sums, lambda _: sums)


def _calibration(
    networks: tuple[Network, ...],
    sums: NDArray[np.float64],
    sums_without: Callable[[int], NDArray[np.float64]],
) -> Calibration:
    """``sums_without``: every network's layer time as priced without one of them.

    The first network and other dense ones are in every fit: nothing is predicted beyond them.
    """
    measured = np.array([net.end_to_end_us for net in networks])
    calls = np.array([net.calls for net in networks], dtype=np.float64)
    scale, per_call = _fit_line(sums, calls, measured)
    errors = []
    for left_out in range(1, len(networks)) if len(networks) >= 4 else ():
        if networks[left_out].kept >= 1:
            continue
        priced = sums_without(left_out)
        if not np.isfinite(priced[left_out]):
            continue
        others = np.arange(len(networks)) != left_out
        slope, each = _fit_line(priced[others], calls[others], measured[others])
        predicted = slope * priced[left_out] + each * calls[left_out]
        errors.append(abs(predicted / measured[left_out] - 1))
    return Calibration(
        scale=scale,
        per_call_us=per_call,
        mape=float(np.mean(errors)) if errors else 0.0,
        worst=float(np.max(errors)) if errors else 0.0,
        nets=len(errors),
    )


def _sums(
    entries: tuple[Entry, ...], fitted: dict[LayerShape, Surface], count: int
) -> NDArray[np.float64]:
    """Every network's summed layer time as the surfaces price it."""
    total = np.zeros(count)
    for entry in entries:
        surface = fitted.get(entry.shape)
        for sample in entry.samples:
            price = float(surface.us(sample.cin, sample.cout)) if surface else np.nan
            total[sample.net] += price * sample.calls
    return total


def _fit_line(
    sums: NDArray[np.float64], calls: NDArray[np.float64], measured: NDArray[np.float64]
) -> tuple[float, float]:
    """Scale and cost per call with the least relative error; the scale alone for a few nets."""
    design = np.stack([sums / measured, calls / measured], axis=1)
    if len(measured) >= 3:
        (scale, per_call), *_ = np.linalg.lstsq(design, np.ones(len(measured)), rcond=None)
        if scale > 0:
            return float(scale), float(per_call)
    return float(np.median(measured / sums)), 0.0
