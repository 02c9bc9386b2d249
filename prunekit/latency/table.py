"""The latency table: a JSON file of samples, readable in a diff, safe to share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prunekit.core.graph import ChannelGraph, Layer, LayerShape
from prunekit.core.target import Environment, Target
from prunekit.latency.calibration import Calibration, calibrate, fit_surfaces, recalibrate
from prunekit.latency.pooling import pooled
from prunekit.latency.probe import Probe
from prunekit.latency.records import Entry, Network
from prunekit.latency.surface import Surface
from prunekit.support.errors import TableError
from prunekit.support.files import load_json, save_json

TABLE_VERSION = 1


@dataclass(frozen=True)
class Protocol:
    """How the samples were taken.

    ``drift`` is by how much the device's speed changed from round to round (slowest over fastest,
    less one), ``disturbed`` the share of runs that other processes interrupted. ``shards`` are the
    parts of divided profiles that are in it, such as ``2/4 of zoo:resnet20 (0f9c11d2)``. ``asked``
    are the networks and rounds that the profile was to have, None of a grid and of joined tables.
    """

    source: str
    nets: int
    rounds: int
    turns: int
    seed: int
    stopped: str = ""
    drift: float = 0.0
    disturbed: float = 0.0
    shards: tuple[str, ...] = ()
    asked: tuple[int, int] | None = None

    @property
    def missing_shards(self) -> tuple[str, ...]:
        """The other parts of every divided profile of which some are here."""
        profiles = sorted({shard.partition("/")[2] for shard in self.shards})
        every = [
            f"{number}/{profile}"
            for profile in profiles
            for number in range(1, int(profile.split()[0]) + 1)
        ]
        return tuple(shard for shard in every if shard not in self.shards)


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
    probe: Probe | None = None
    """What the device's granularity was found by; None where the user gave it."""

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

    @property
    def apart(self) -> bool:
        """Whether the layers were not measured in the networks that were.

        Then ``Sample.net`` says nothing, and the networks' layer time is what the surfaces say.
        """
        return self.origin is not None or self.protocol.source in ("grid", "differences")

    @cached_property
    def surfaces(self) -> dict[LayerShape, Surface]:
        """The fitted surface of every layer shape."""
        return fit_surfaces(self.pooled[0], self.granularity)

    def shape_us(self, shape: LayerShape, cin: ArrayLike, cout: ArrayLike) -> NDArray[np.float64]:
        """Microseconds of one call of a layer of ``shape``, end-to-end calibrated."""
        surface = self.surfaces.get(shape)
        if surface is None:
            raise TableError(f"no timing for {shape} in the latency table for {self.target}")
        return self.calibration.call_us(surface.us(cin, cout))

    def layer_us(self, layer: Layer, cin: ArrayLike, cout: ArrayLike) -> NDArray[np.float64]:
        """Microseconds of all calls of ``layer`` at the given widths, end-to-end calibrated."""
        if layer.shape not in self.by_shape:
            raise TableError(
                f"no timing for layer {layer.name!r} ({layer.shape}) in the latency table for "
                f"{self.target}; run `prunekit profile` for this model and input"
            )
        return layer.calls * self.shape_us(layer.shape, cin, cout)

    def deviation(
        self,
        graph: ChannelGraph,
        widths: Mapping[str, int],
        fitted: Mapping[LayerShape, Surface] | None = None,
    ) -> float:
        """Relative standard deviation of the layers' summed time at the given group widths.

        ``fitted`` are surfaces to ask instead of the table's own. Layers are taken to err together,
        as they were measured to, rather than to make up for each other.
        """
        known = self.surfaces if fitted is None else fitted
        total = unsure = 0.0
        for layer in graph.layers:
            surface = known[layer.shape]
            cin, cout = layer.width("in", widths), layer.width("out", widths)
            if not cin or not cout:  # of a block that is gone
                continue
            us = layer.calls * float(surface.us(cin, cout))
            total += us
            unsure += us * float(surface.deviation(cin, cout))
        return unsure / total

    def half_width(self, graph: ChannelGraph, widths: Mapping[str, int]) -> float:
        """Half of the 90 % interval of the latency at the given group widths, relative to it."""
        size = self.network_us(graph, widths) / self.network_us(graph, {})
        return self.calibration.half_width(
            self.deviation(graph, widths), max(size, 1e-3), self.protocol.drift
        )

    def network_us(self, graph: ChannelGraph, widths: Mapping[str, int]) -> float:
        """Microseconds of all layers at the given group widths; none for a block that is gone."""
        return sum(
            float(self.layer_us(x, cin, cout))
            for x in graph.layers
            if (cin := x.width("in", widths)) and (cout := x.width("out", widths))
        )

    def check(self, graph: ChannelGraph, target: Target, environment: Environment | None) -> None:
        """Refuse a table of another target, another device or without this model's layers."""
        if self.target != target:
            raise TableError(
                f"the latency table is for {self.target.describe()}, not {target.describe()}; "
                "run `prunekit profile` for this target"
            )
        if environment is not None and (gap := self.environment.difference(environment)):
            raise TableError(
                f"the latency table was measured elsewhere: {gap} here; run `prunekit profile` on "
                "this device, with --transfer TABLE if it is of the same kind"
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
        if self.apart:
            return replace(self, calibration=recalibrate(self.networks))
        return replace(self, calibration=calibrate(*self.pooled, self.granularity))
