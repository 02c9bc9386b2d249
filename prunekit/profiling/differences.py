"""Layer times from whole networks alone, for runtimes that tell none: by regression.

Networks whose groups are narrowed by different amounts differ in latency by what those layers
save. A layer's time is taken for a cost per call plus a rate times its multiply-adds, one pair per
layer shape; all pairs are fitted at once to the end-to-end times, held to the rate and the cost
that explain all layers alike as far as the networks do not say otherwise (ridge regression).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from prunekit.core.graph import ChannelGraph, LayerShape
from prunekit.core.plan import ChannelPlan
from prunekit.latency import Entry, LatencyTable, Sample
from prunekit.latency.calibration import Calibration, deviation_of
from prunekit.profiling.choosing import sample_plans
from prunekit.profiling.collecting import collect
from prunekit.profiling.harvest import entries_of, networks_of, protocol
from prunekit.profiling.journal import Facts
from prunekit.profiling.request import ProfileRequest
from prunekit.profiling.rounds import end_to_end_us, speeds, typical_us
from prunekit.runtimes import runtime_for

Array = NDArray[np.float64]
LEAST_NETS = 24
"""More than a harvest needs: a network says one number here, not one per layer."""
NOISE = 0.01
"""Relative error of one network's time."""
BELIEF = 1.0
"""Relative deviation of one shape's rate and cost per call from those of all layers."""


def differences(request: ProfileRequest) -> LatencyTable:
    """A table whose layers were never timed.

    At least :data:`LEAST_NETS` networks are measured. The error is that of networks left out of
    the regression.
    """
    nets = max(request.plan.nets, LEAST_NETS)
    request = replace(request, plan=replace(request.plan, nets=nets, active=False))
    graph, target, plan = request.graph, request.target, request.plan
    runtime = runtime_for(target)
    block = request.granularity or runtime.granularity(target)
    plans = sample_plans(graph, block, plan.nets, plan.seed)
    facts = Facts(source="differences", nets=plan.nets)
    collection = collect(request, plans, block, facts, watched=False)
    rounds, slow = collection.rounds, speeds(collection.rounds)
    times = np.array([typical_us(end_to_end_us(rounds, slow, net)) for net in range(len(plans))])
    work = _Work.of(graph, plans)
    priced = work.us(_fit(work, times))
    networks = networks_of(request, collection, slow, priced.sum(1).tolist())
    return LatencyTable(
        target=target,
        environment=runtime.environment(target),
        protocol=protocol("differences", collection, plan, slow),
        granularity=block,
        models=(graph.fingerprint,),
        entries=_entries(graph, plans, priced, [net.runs for net in networks]),
        networks=networks,
        calibration=_left_out(work, times),
    )


@dataclass(frozen=True)
class _Work:
    """What networks consist of: calls and multiply-adds by layer, shape (networks, layers)."""

    calls: Array
    macs: Array
    shape: NDArray[np.int64]
    """Shape (layers,): which layer shape each layer has."""

    @classmethod
    def of(cls, graph: ChannelGraph, plans: list[ChannelPlan]) -> _Work:
        numbers = {s: n for n, s in enumerate(dict.fromkeys(x.shape for x in graph.layers))}
        macs = [
            [x.macs(x.width("in", p.widths), x.width("out", p.widths)) for x in graph.layers]
            for p in plans
        ]
        return cls(
            np.array([[x.calls for x in graph.layers]] * len(plans), dtype=np.float64),
            np.array(macs, dtype=np.float64),
            np.array([numbers[x.shape] for x in graph.layers]),
        )

    def only(self, networks: NDArray[np.bool_]) -> _Work:
        return replace(self, calls=self.calls[networks], macs=self.macs[networks])

    def us(self, pairs: Array) -> Array:
        """Shape (networks, layers), at (cost per call, rate) of every shape."""
        return np.asarray(self.calls * pairs[0, self.shape] + self.macs * pairs[1, self.shape])


def _fit(work: _Work, us: Array) -> Array:
    """Cost per call and rate of every shape, shape (2, shapes); none is negative."""
    shapes = int(work.shape.max()) + 1
    sums = np.zeros((2, len(us), shapes))
    for layer, shape in enumerate(work.shape):
        sums[0, :, shape] += work.calls[:, layer]
        sums[1, :, shape] += work.macs[:, layer]
    alike = np.stack([sums[0].sum(1), sums[1].sum(1)], axis=1) / us[:, None]
    (cost, rate), _ = nnls(alike, np.ones(len(us)))
    usual = np.repeat([max(cost, 1e-3 * us.min() / sums[0].sum(1).max()), rate], shapes)
    seen = np.concatenate([sums[0], sums[1]], axis=1) * usual / us[:, None] / NOISE
    prior = np.eye(2 * shapes) / BELIEF
    rows = np.concatenate([seen, prior])
    right = np.concatenate([np.full(len(us), 1 / NOISE), np.full(2 * shapes, 1 / BELIEF)])
    factors, _ = nnls(rows, right)
    return np.asarray((factors * usual).reshape(2, shapes))


def _left_out(work: _Work, us: Array) -> Calibration:
    """The error, every network but the slowest and the fastest predicted without itself."""
    errors, scaled = [], []
    for number in range(len(us)):
        if number in (int(np.argmax(us)), int(np.argmin(us))):
            continue
        others = np.arange(len(us)) != number
        predicted = work.only(~others).us(_fit(work.only(others), us[others])).sum()
        errors.append(abs(float(predicted) / us[number] - 1))
        scaled.append(errors[-1] / deviation_of(0.0, us[number] / us.max()))
    return Calibration().with_errors(errors, scaled)


def _entries(
    graph: ChannelGraph, plans: list[ChannelPlan], priced: Array, runs: list[int]
) -> tuple[Entry, ...]:
    samples: dict[LayerShape, list[Sample]] = defaultdict(list)
    for number, chosen in enumerate(plans):
        for place, layer in enumerate(graph.layers):
            samples[layer.shape].append(
                Sample(
                    net=number,
                    cin=layer.width("in", chosen.widths),
                    cout=layer.width("out", chosen.widths),
                    us=round(float(priced[number, place]) / layer.calls, 3),
                    spread_us=0.0,
                    runs=runs[number],
                    calls=layer.calls,
                )
            )
    return entries_of(samples)
