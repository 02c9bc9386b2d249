"""From profiled layers to the latency of a whole network: the line between them and its error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

from prunekit.core.graph import LayerShape
from prunekit.latency.records import Entry, Network
from prunekit.latency.surface import Surface

RESIDUAL = 0.01
"""Deviation of a dense network from the sum of its layers, before it is known better.

It grows with the root of a network's time, so that it is relatively larger for small ones.
"""
TINY = 0.12
"""Networks below this share of the dense one's latency do not calibrate."""
TURNS = 8
"""In how many at most a line and the calls that it is for are found."""
LEAST_SHARE = 0.05
"""Of its scaled time, which a layer's call costs at least, however much is taken off per call."""
DENSE_WEIGHT = 20.0
"""The dense network is measured in more rounds and placements, and all else is relative to it."""
CONFIDENCE = 0.9
"""Of a prediction's interval."""


@dataclass(frozen=True)
class Calibration:
    """End to end = sum over layer calls of scale x profiled time + per_call_us.

    ``per_call_us`` is negative as a rule: watching a kernel costs the profiler a few microseconds.
    No call costs less than :data:`LEAST_SHARE` of its scaled time.
    ``mape`` and ``worst`` are the errors of nets left out of the fit. ``factor`` turns a
    prediction's standard deviation into half the width of its 90 % interval: what Student's t asks
    for, times how much larger those errors were than the deviations said.
    """

    scale: float = 1.0
    per_call_us: float = 0.0
    mape: float = 0.0
    worst: float = 0.0
    nets: int = 0
    factor: float = 4.0

    def with_errors(self, errors: Sequence[float], scaled: Sequence[float]) -> Calibration:
        """With what networks left out say: their errors, and those over their deviations."""
        if not errors:
            return self
        quantile = float(stdtrit(len(errors), (1 + CONFIDENCE) / 2))
        return replace(
            self,
            mape=float(np.mean(errors)),
            worst=float(np.max(errors)),
            nets=len(errors),
            factor=max(0.5, quantile * float(np.sqrt(np.mean(np.square(scaled))))),
        )

    @property
    def errors(self) -> dict[str, float | None]:
        """``mape`` and ``worst``, None where no network was left out."""
        known = self.nets > 0
        return {"mape": self.mape if known else None, "worst": self.worst if known else None}

    def __str__(self) -> str:
        """The error in words."""
        if not self.nets:
            return "error on networks left out unknown, too few networks"
        return f"error on networks left out {self.mape:.1%}, worst {self.worst:.1%}"

    def call_us(self, profiled_us: ArrayLike) -> NDArray[np.float64]:
        """End-to-end microseconds of one call of a layer that was profiled to take so long."""
        scaled = self.scale * np.asarray(profiled_us, dtype=np.float64)
        return np.maximum(scaled + self.per_call_us, LEAST_SHARE * scaled)

    def half_width(self, deviation: float, size: float, drift: float = 0.0) -> float:
        """Half of the relative 90 % interval of a network ``size`` times the dense one's latency.

        ``deviation`` is its layers' relative standard deviation. Of a device whose speed drifted by
        ``drift`` an eighth of that is added: slow rounds are left out, as far as they are known.
        """
        return float(np.hypot(self.factor * deviation_of(deviation, size), drift / 8))


def fit_surfaces(
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
    whole = _priced(entries, fit_surfaces(entries, block), len(networks))

    def without(net: int) -> _Priced:
        return _priced(entries, fit_surfaces(entries, block, without=net), len(networks))

    return _calibration(networks, whole, without)


def recalibrate(networks: tuple[Network, ...]) -> Calibration:
    """Scale and cost per call of networks whose layers were measured elsewhere, with the error."""
    calls = np.array([net.calls for net in networks], dtype=np.float64)
    each = np.array([net.layers_us for net in networks]) / calls
    priced = _Priced(each, np.arange(len(networks)), calls, np.zeros(len(networks)))
    return _calibration(networks, priced, lambda _: priced)


@dataclass(frozen=True)
class _Priced:
    """Profiled microseconds of the layers of every network, and their sums' standard deviations.

    ``each`` call of a layer comes ``times`` times in network ``net``.
    """

    each: NDArray[np.float64]
    net: NDArray[np.int64]
    times: NDArray[np.float64]
    deviation: NDArray[np.float64]

    def sums(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Of every network, of a value per call."""
        totals = np.bincount(self.net, values * self.times, len(self.deviation))
        return totals.astype(np.float64)


def _calibration(
    networks: tuple[Network, ...], whole: _Priced, without: Callable[[int], _Priced]
) -> Calibration:
    """``without``: every network's layer time as priced without one of them.

    A prediction is asked for relative to the dense network, so errors are relative to it too, and
    it weighs as much as :data:`DENSE_WEIGHT` others. Dense networks are in every fit: nothing is
    predicted beyond them. The fastest of a model is not left out either, and :data:`TINY` ones
    are not fitted to: there what a kernel costs beside its work weighs otherwise than in all
    others, which the line would have to bend for.
    """
    dense = _dense_of(networks)
    measured = np.array([net.end_to_end_us for net in networks])
    sizes = measured / measured[dense]
    usual = sizes >= TINY if np.sum(sizes >= TINY) >= 3 else np.ones(len(sizes), dtype=np.bool_)
    weights = np.where(dense == np.arange(len(networks)), DENSE_WEIGHT, 1.0)

    def fit(priced: _Priced, among: NDArray[np.bool_]) -> Calibration:
        return _fit(priced, among, measured, weights)

    fastest = {
        min((n for n in range(len(networks)) if dense[n] == whole_one), key=measured.__getitem__)
        for whole_one in {*dense.tolist()}
    }
    errors, scaled = [], []
    for left_out in range(1, len(networks)) if len(networks) >= 4 else ():
        if networks[left_out].kept >= 1 or left_out in fastest:
            continue
        priced = without(left_out)
        if not np.isfinite(priced.sums(priced.each)[left_out]):
            continue
        fitted = fit(priced, usual & (np.arange(len(networks)) != left_out))
        residuals = priced.sums(fitted.call_us(priced.each)) / measured
        errors.append(abs(residuals[left_out] / residuals[dense[left_out]] - 1))
        deviation = fitted.scale * priced.deviation[left_out] / measured[left_out]
        scaled.append(errors[-1] / deviation_of(deviation, sizes[left_out]))
    return fit(whole, usual).with_errors(errors, scaled)


def _dense_of(networks: Sequence[Network]) -> NDArray[np.int64]:
    """The number of the dense network of the same model, for every network: its slowest one."""
    slowest: dict[str, int] = {}
    for number, net in enumerate(networks):
        known = slowest.setdefault(_model_of(net), number)
        if net.end_to_end_us > networks[known].end_to_end_us:
            slowest[_model_of(net)] = number
    return np.array([slowest[_model_of(net)] for net in networks])


def _model_of(net: Network) -> str:
    """What all networks of one model at one input share; pooled sessions of one are one session."""
    return net.session or net.model


def deviation_of(of_layers: float, size: float) -> float:
    """Relative standard deviation of a whole network's latency."""
    return float(np.hypot(of_layers, RESIDUAL / np.sqrt(size)))


def _priced(entries: tuple[Entry, ...], fitted: dict[LayerShape, Surface], count: int) -> _Priced:
    """Every network's layer time as the surfaces price it; layers are taken to err together."""
    deviation = np.zeros(count)
    rows = []
    for entry in entries:
        surface = fitted.get(entry.shape)
        net, times, cin, cout = (
            np.array([getattr(s, name) for s in entry.samples])
            for name in ("net", "calls", "cin", "cout")
        )
        each = np.full(len(net), np.nan)
        if surface is not None:
            each = surface.us(cin, cout)
            deviation += np.bincount(net, each * times * surface.deviation(cin, cout), count)
        rows.append((each, net, times.astype(np.float64)))
    each, net, times = (np.concatenate(column) for column in zip(*rows, strict=True))
    return _Priced(each, net, times, deviation)


def _fit(
    priced: _Priced,
    among: NDArray[np.bool_],
    measured: NDArray[np.float64],
    weights: NDArray[np.float64],
) -> Calibration:
    """The best line, of the calls that it does not take below :data:`LEAST_SHARE`."""
    clipped = np.zeros(len(priced.each), dtype=np.bool_)
    for _ in range(TURNS):
        sums = priced.sums(np.where(clipped, LEAST_SHARE, 1.0) * priced.each)
        calls = priced.sums(np.where(clipped, 0.0, 1.0))
        scale, per_call = _fit_line(sums[among], calls[among], measured[among], weights[among])
        now = scale * priced.each + per_call < LEAST_SHARE * scale * priced.each
        if np.array_equal(now, clipped):
            break
        clipped = now
    return Calibration(scale, per_call)


def _fit_line(
    sums: NDArray[np.float64],
    calls: NDArray[np.float64],
    measured: NDArray[np.float64],
    weights: NDArray[np.float64],
) -> tuple[float, float]:
    """Scale and cost per call with the least relative error; the scale alone for a few nets."""
    if len(measured) >= 3:
        root = np.sqrt(weights)
        design = np.stack([sums / measured, calls / measured], axis=1) * root[:, None]
        (scale, per_call), *_ = np.linalg.lstsq(design, root, rcond=None)
        if scale > 0:
            return float(scale), float(per_call)
    return float(np.median(measured / sums)), 0.0
