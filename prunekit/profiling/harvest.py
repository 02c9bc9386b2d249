"""Harvest: layer latencies taken from whole networks, the dense one and narrow ones.

Caches, fusions and layout changes are then the real ones. Rounds run networks in shuffled order,
profiled runs beside plain end-to-end runs, so that the machine's moods hit all alike. The first
networks are random; the others are those whose latency the table so far is least sure of.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
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
from prunekit.profiling.choosing import choose, sample_plans
from prunekit.profiling.collecting import Collection, collect
from prunekit.profiling.measuring import (
    LONG_MS,
    HarvestPlan,
    end_to_end_us,
    layers_us,
    speeds,
    typical_us,
)
from prunekit.profiling.probing import probe, started_with
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
    wanted = plan or HarvestPlan()
    target = Target.of(target)
    runtime = runtime_for(target)
    whole = wanted.shard == (1, 1)
    # shards have to agree on the granularity, so that none of them finds its own
    probed = probe(target, journal, resume) if whole and not granularity else None
    block = granularity or (probed.granularity if probed else runtime.granularity(target))
    environment = runtime.environment(target)
    active = wanted.active and whole and wanted.nets > LEAST_RANDOM
    first = max(LEAST_RANDOM, (wanted.nets + 1) // 2) if active else wanted.nets
    plans = share_of(sample_plans(graph, block, first, wanted.seed), wanted.shard)

    latest: tuple[int, LatencyTable] | None = None

    def table_of(found: Collection) -> LatencyTable:
        """The table of all rounds so far, fitted once a round."""
        nonlocal latest
        if latest is None or latest[0] != len(found.rows):
            bare = _table(graph, found, target, environment, block, wanted, name)
            latest = len(found.rows), replace(bare, probe=probed).calibrated()
        stopped = replace(latest[1].protocol, stopped=found.stopped)
        return replace(latest[1], protocol=stopped)

    def more(found: Collection) -> list[ChannelPlan]:
        count = min(CHOSEN_AT_ONCE, wanted.nets - len(found.plans)) if active else 0
        return choose(graph, table_of(found), found.plans, count, wanted.seed) if count > 0 else []

    def error(found: Collection) -> float:
        calibration = table_of(found).calibration
        return calibration.mape if calibration.nets else np.inf

    facts = {"nets": wanted.nets, "active": active} | ({} if whole else {"shard": [*wanted.shard]})
    found = collect(
        *(model, graph, example, target, plans, wanted, block, facts | started_with(probed)),
        journal=journal,
        resume=resume,
        dense=dense,
        more=more,
        error=error,
    )
    table = replace(table_of(found), environment=_watched(environment, runtime, target))
    _tell(table, wanted)
    return table


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
    graph: ChannelGraph,
    found: Collection,
    target: Target,
    environment: Environment,
    block: int,
    wanted: HarvestPlan,
    name: str,
) -> LatencyTable:
    samples: dict[Any, list[Sample]] = defaultdict(list)
    sums = []
    slow = speeds(found.rows)
    for number, plan in enumerate(found.plans):
        times = layers_us(found.rows, slow, number)
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
                    net=number,
                    cin=layer.width("in", plan.widths),
                    cout=layer.width("out", plan.widths),
                    us=round(us / layer.calls, 3),
                    spread_us=round(quartile_range(every) / layer.calls, 3),
                    runs=len(every),
                    calls=layer.calls,
                )
            )
        sums.append(summed)
    return LatencyTable(
        target=target,
        environment=environment,
        protocol=protocol("harvest", found, wanted, slow, profile_text(name, graph, wanted, block)),
        granularity=block,
        models=(graph.fingerprint,),
        entries=entries_of(samples),
        networks=networks_of(name, graph, found, slow, sums),
    )


def entries_of(samples: Mapping[LayerShape, Sequence[Sample]]) -> tuple[Entry, ...]:
    """The samples of every layer shape, in the order of their texts."""
    ordered = sorted(samples.items(), key=lambda item: str(item[0]))
    return tuple(Entry(shape, tuple(found)) for shape, found in ordered)


def protocol(
    source: str,
    found: Collection,
    wanted: HarvestPlan,
    slow: NDArray[np.float64],
    profile: str = "",
) -> Protocol:
    """How it was measured, and how steady the device was; ``profile`` is what shards share."""
    disturbed = [row["disturbed"] for row in found.rows]
    return Protocol(
        source=source,
        nets=len(found.plans),
        rounds=len(found.rows),
        turns=round(float(np.mean([row.get("turns", wanted.turns) for row in found.rows]))),
        seed=wanted.seed,
        stopped=found.stopped,
        drift=round(float(slow.max() / slow.min() - 1), 4),
        disturbed=round(float(np.mean(disturbed)), 4),
        shards=() if wanted.shard == (1, 1) else ("{}/{} of {}".format(*wanted.shard, profile),),
        asked=(wanted.nets, wanted.rounds),
    )


def networks_of(
    name: str,
    graph: ChannelGraph,
    found: Collection,
    slow: NDArray[np.float64],
    layers: Sequence[float],
) -> tuple[Network, ...]:
    """What all rounds say of every network; ``layers`` are the microseconds of its layers."""
    return tuple(
        _network(name, graph, plan, end_to_end_us(found.rows, slow, number), layers[number])
        for number, plan in enumerate(found.plans)
    )


def _network(
    name: str,
    graph: ChannelGraph,
    plan: ChannelPlan,
    rounds: list[NDArray[np.float64]],
    layers: float,
) -> Network:
    every = np.concatenate(rounds)
    return Network(
        model=name or graph.fingerprint,
        kept=round(sum(plan.widths.values()) / sum(plan.sizes.values()), 4),
        calls=sum(layer.calls for layer in graph.layers),
        layers_us=round(layers, 2),
        end_to_end_us=round(typical_us(rounds), 2),
        spread_us=round(quartile_range(every), 2),
        runs=len(every),
    )


def quartile_range(values: Sequence[float] | NDArray[np.float64]) -> float:
    """From the lower to the upper quartile."""
    return float(np.subtract(*np.percentile(values, [75, 25])))


def _tell(table: LatencyTable, wanted: HarvestPlan) -> None:
    """Say what a user should know of how it went."""
    protocol = table.protocol
    if wanted.target_error and not protocol.stopped.startswith("error"):
        say(
            f"note: {table.calibration}; {wanted.target_error:.1%} was asked for and not reached "
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
