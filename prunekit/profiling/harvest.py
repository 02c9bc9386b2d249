"""Harvest: layer latencies taken from whole networks, the dense one and narrow ones.

Caches, fusions and layout changes are then the real ones. Rounds run networks in shuffled order,
profiled runs beside plain end-to-end runs, so that the machine's moods hit all alike. The first
networks are random; the others are those whose latency the table so far is least sure of.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from prunekit.core.artifact import Artifact
from prunekit.core.graph import ChannelGraph, LayerShape
from prunekit.core.plan import ChannelPlan
from prunekit.core.target import Environment, Target
from prunekit.latency import Entry, LatencyTable, Network, Protocol, Sample
from prunekit.latency.probe import Probe
from prunekit.profiling.choosing import choose, sample_plans
from prunekit.profiling.collecting import Collection, Strategy, collect
from prunekit.profiling.journal import Facts
from prunekit.profiling.measuring import LONG_MS
from prunekit.profiling.probing import probe
from prunekit.profiling.request import HarvestPlan, ProfileRequest
from prunekit.profiling.rounds import end_to_end_us, layers_us, speeds, typical_us
from prunekit.profiling.sharding import profile_text, share_of
from prunekit.runtimes import Runtime, runtime_for
from prunekit.support.errors import NoLayerTimesError
from prunekit.support.progress import say

CHOSEN_AT_ONCE = 2
LEAST_RANDOM = 5
MUCH_DRIFT = 0.08
"""The device's speed changed so much between rounds that the user should know."""
MUCH_DISTURBED = 0.3


def harvest(
    model: nn.Module,
    graph: ChannelGraph,
    example: Any,
    target: Target | str,
    *,
    plan: HarvestPlan | None = None,
    name: str = "",
    granularity: int | None = None,
    journal: Path | None = None,
    resume: bool = False,
    dense: Artifact | None = None,
) -> LatencyTable:
    """Measure ``model`` on ``target`` and return its table.

    Every finished round goes to ``journal`` at once; with ``resume`` its rounds are kept and only
    the missing ones measured. When it ends is in ``plan`` (:class:`HarvestPlan`). A
    ``plan.shard`` takes the dense network and its share of the others, all of them random;
    :func:`prunekit.latency.merge` joins the tables of all shards. ``dense`` is ``model``'s ONNX
    file in fp32 if there is one; else it is exported.
    """
    return harvest_request(
        ProfileRequest(
            *(model, graph, example, Target.of(target), plan or HarvestPlan()),
            name=name,
            granularity=granularity,
            journal=journal,
            resume=resume,
            dense=dense,
        )
    )


def harvest_request(request: ProfileRequest) -> LatencyTable:
    """:func:`harvest` of what is asked for."""
    target, plan = request.target, request.plan
    runtime = runtime_for(target)
    # shards have to agree on the granularity, so that none of them finds its own
    own = plan.whole and not request.granularity
    probed = probe(target, request.journal, request.resume) if own else None
    block = request.granularity or (probed.granularity if probed else runtime.granularity(target))
    environment = runtime.environment(target)
    active = plan.active and plan.whole and plan.nets > LEAST_RANDOM
    first = max(LEAST_RANDOM, (plan.nets + 1) // 2) if active else plan.nets
    plans = share_of(sample_plans(request.graph, block, first, plan.seed), plan.shard)
    fit = _Fit(request, environment, block, probed, active)
    facts = Facts(
        nets=plan.nets, active=active, shard=None if plan.whole else plan.shard, probe=probed
    )
    collection = collect(request, plans, block, facts, strategy=Strategy(fit.more, fit.error))
    watched = _watched(environment, runtime, target)
    table = replace(fit.table(collection), environment=watched)
    _tell(table, plan)
    return table


@dataclass
class _Fit:
    """The table of all rounds so far, fitted once a round, and what it decides."""

    request: ProfileRequest
    environment: Environment
    block: int
    probed: Probe | None
    active: bool
    latest: tuple[int, LatencyTable] | None = None
    """After how many rounds, and the table then."""

    def table(self, collection: Collection) -> LatencyTable:
        rounds = len(collection.rounds)
        if self.latest is None or self.latest[0] != rounds:
            bare = _table(self.request, collection, self.environment, self.block)
            self.latest = rounds, replace(bare, probe=self.probed).calibrated()
        table = self.latest[1]
        return replace(table, protocol=replace(table.protocol, stopped=collection.stopped))

    def more(self, collection: Collection) -> list[ChannelPlan]:
        """The networks that it is least sure of."""
        graph, plan, plans = self.request.graph, self.request.plan, collection.plans
        count = min(CHOSEN_AT_ONCE, plan.nets - len(plans)) if self.active else 0
        return choose(graph, self.table(collection), plans, count, plan.seed) if count > 0 else []

    def error(self, collection: Collection) -> float:
        """Of networks left out, infinite where there are too few to say."""
        calibration = self.table(collection).calibration
        return calibration.mape if calibration.nets else np.inf


def _watched(before: Environment, runtime: Runtime, target: Target) -> Environment:
    """The environment that the profile began in, with what held a GPU back since."""
    throttled = runtime.environment(target).throttled
    if throttled:
        say(
            f"note: the GPU held its clocks back meanwhile ({', '.join(throttled)}); "
            "profile again when it is cool, or lock its clocks"
        )
    return replace(before, throttled=throttled)


def _table(
    request: ProfileRequest, collection: Collection, environment: Environment, block: int
) -> LatencyTable:
    graph, target, plan = request.graph, request.target, request.plan
    samples: dict[LayerShape, list[Sample]] = defaultdict(list)
    sums = []
    slow = speeds(collection.rounds)
    for net, chosen in enumerate(collection.plans):
        times = layers_us(collection.rounds, slow, net)
        summed = 0.0
        for layer in graph.layers:
            taken = times.get(layer.name)
            if not taken:
                raise NoLayerTimesError(
                    f"{target} tells no time of layer {layer.name!r}; "
                    "profile with --source differences"
                )
            us, every = typical_us(taken), np.concatenate(taken)
            summed += us
            samples[layer.shape].append(
                Sample(
                    net=net,
                    cin=layer.width("in", chosen.widths),
                    cout=layer.width("out", chosen.widths),
                    us=round(us / layer.calls, 3),
                    spread_us=round(quartile_range(every) / layer.calls, 3),
                    runs=len(every),
                    calls=layer.calls,
                )
            )
        sums.append(summed)
    profile = profile_text(request.name, graph, plan, block)
    return LatencyTable(
        target=target,
        environment=environment,
        protocol=protocol("harvest", collection, plan, slow, profile),
        granularity=block,
        models=(graph.fingerprint,),
        entries=entries_of(samples),
        networks=networks_of(request, collection, slow, sums),
    )


def entries_of(samples: Mapping[LayerShape, Sequence[Sample]]) -> tuple[Entry, ...]:
    """The samples of every layer shape, in the order of their texts."""
    ordered = sorted(samples.items(), key=lambda item: str(item[0]))
    return tuple(Entry(shape, tuple(taken)) for shape, taken in ordered)


def protocol(
    source: str,
    collection: Collection,
    plan: HarvestPlan,
    slow: NDArray[np.float64],
    profile: str = "",
) -> Protocol:
    """How it was measured, and how steady the device was; ``profile`` is what shards share."""
    rounds = collection.rounds
    turns = [plan.turns if one.turns is None else one.turns for one in rounds]
    return Protocol(
        source=source,
        nets=len(collection.plans),
        rounds=len(rounds),
        turns=round(float(np.mean(turns))),
        seed=plan.seed,
        stopped=collection.stopped,
        drift=round(float(slow.max() / slow.min() - 1), 4),
        disturbed=round(float(np.mean([one.disturbed for one in rounds])), 4),
        shards=() if plan.whole else ("{}/{} of {}".format(*plan.shard, profile),),
        asked=(plan.nets, plan.rounds),
    )


def networks_of(
    request: ProfileRequest,
    collection: Collection,
    slow: NDArray[np.float64],
    layer_sums_us: Sequence[float],
) -> tuple[Network, ...]:
    """What all rounds say of every network; ``layer_sums_us`` is what its layers take."""
    return tuple(
        _network(request, plan, end_to_end_us(collection.rounds, slow, net), layer_sums_us[net])
        for net, plan in enumerate(collection.plans)
    )


def _network(
    request: ProfileRequest,
    plan: ChannelPlan,
    rounds: list[NDArray[np.float64]],
    layer_sum_us: float,
) -> Network:
    every = np.concatenate(rounds)
    return Network(
        model=request.name or request.graph.fingerprint,
        kept=round(sum(plan.widths.values()) / sum(plan.sizes.values()), 4),
        calls=sum(layer.calls for layer in request.graph.layers),
        layers_us=round(layer_sum_us, 2),
        end_to_end_us=round(typical_us(rounds), 2),
        spread_us=round(quartile_range(every), 2),
        runs=len(every),
    )


def quartile_range(values: Sequence[float] | NDArray[np.float64]) -> float:
    """From the lower to the upper quartile."""
    return float(np.subtract(*np.percentile(values, [75, 25])))


def _tell(table: LatencyTable, plan: HarvestPlan) -> None:
    """Say what a user should know of how it went."""
    protocol = table.protocol
    if plan.target_error and not protocol.stopped.startswith("error"):
        say(
            f"note: {table.calibration}; {plan.target_error:.1%} was asked for and not reached "
            f"after {protocol.stopped}; more --nets, --rounds or --max-seconds may lower it"
        )
    if protocol.drift > MUCH_DRIFT:
        say(
            f"note: the device's speed changed by {protocol.drift:.0%} from round to round "
            "(throttling, or other work on it); the slow rounds are left out, and the error of "
            "every prediction is widened. Profile again on an idle device"
        )
    short = table.networks[0].end_to_end_us <= 1e3 * LONG_MS
    if protocol.disturbed > MUCH_DISTURBED and short:  # hardly any long run is left alone
        say(
            f"note: other processes interrupted {protocol.disturbed:.0%} of the runs; "
            "profile again on an idle device"
        )
