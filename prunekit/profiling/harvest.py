"""Harvest: layer latencies taken from whole networks, the dense one and random narrow ones.

Caches, fusions and layout changes are then the real ones. Rounds run all networks in shuffled
order, profiled runs beside plain end-to-end runs, so that the machine's moods hit all alike.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from prunekit.artifact import Artifact
from prunekit.errors import TableError
from prunekit.exporting import export, live_artifact, narrow_onnx
from prunekit.graph import ChannelGraph
from prunekit.latency import Entry, LatencyTable, Network, Protocol, Sample
from prunekit.plan import ChannelPlan
from prunekit.profiling.journal import Journal
from prunekit.profiling.measuring import HarvestPlan, measure_rounds
from prunekit.profiling.sharding import share_of
from prunekit.progress import bar, say
from prunekit.runtimes import Runtime, runtime_for
from prunekit.surgery import slim
from prunekit.target import Target
from prunekit.timing import interquartile_mean


def sample_plans(graph: ChannelGraph, granularity: int, nets: int, seed: int) -> list[ChannelPlan]:
    """The dense plan, the smallest one, and random ones from narrow to wide, stages skewed."""
    smallest = {g.id: g.widths(granularity)[0] for g in graph.groups if g.prunable}
    plans = [ChannelPlan.dense(graph), ChannelPlan.from_widths(graph, smallest)]
    rng = np.random.default_rng(seed)
    order = {group.id: i / max(1, len(graph.groups) - 1) for i, group in enumerate(graph.groups)}
    for keep in np.linspace(0.2, 0.85, max(0, nets - 2)):
        slope = rng.uniform(-0.3, 0.3)
        widths = {}
        for group in graph.groups:
            if not group.prunable:
                continue
            share = keep + slope * (order[group.id] - 0.5) + rng.uniform(-0.3, 0.3)
            allowed = np.array(group.widths(granularity))
            wanted = group.size * min(1.0, max(0.0, share))
            widths[group.id] = int(allowed[np.argmin(np.abs(allowed - wanted))])
        plans.append(ChannelPlan.from_widths(graph, widths))
    return plans[: max(nets, 2)]


def harvest(
    model: nn.Module,
    graph: ChannelGraph,
    example: Any,
    target: Target,
    *,
    plan: HarvestPlan | None = None,
    name: str = "",
    granularity: int | None = None,
    journal: Path | None = None,
    resume: bool = False,
) -> LatencyTable:
    """Measure ``model`` on ``target`` and return its table.

    Every finished round goes to ``journal`` at once; with ``resume`` its rounds are kept and only
    the missing ones measured. Stops after ``plan.rounds`` rounds or ``plan.max_seconds``. A
    ``plan.shard`` takes the dense network and its share of the others;
    :func:`prunekit.latency.merge` joins the tables of all shards.
    """
    wanted = plan or HarvestPlan()
    runtime = runtime_for(target)
    block = granularity or runtime.granularity(target)
    plans = share_of(sample_plans(graph, block, wanted.nets, wanted.seed), wanted.shard)
    environment = runtime.environment(target)
    facts = {} if wanted.shard == (1, 1) else {"shard": list(wanted.shard)}
    done, stopped = measure_plans(
        *(model, graph, example, target, plans, wanted, block, facts),
        journal=journal,
        resume=resume,
    )
    table = _table(graph, plans, done, target, environment, block, wanted, stopped, name)
    return table.calibrated()


def measure_plans(
    model: nn.Module,
    graph: ChannelGraph,
    example: Any,
    target: Target,
    plans: list[ChannelPlan],
    wanted: HarvestPlan,
    granularity: int,
    facts: dict[str, Any],
    *,
    journal: Path | None,
    resume: bool,
    watched: bool = True,
) -> tuple[list[dict[str, Any]], str]:
    """All rounds over the networks of ``plans``, those in the journal first; why it ended.

    ``facts`` are what else a journal must have been started with to be gone on with.
    """
    runtime = runtime_for(target)
    environment = runtime.environment(target)
    log, done = None, []
    if journal is not None:
        head = {
            "target": target.describe(),
            "device": environment.device_name,
            "runtime": environment.runtime_version,
            "model": graph.fingerprint,
            "inputs": [list(shape) for shape in graph.input_shapes],
            "granularity": granularity,
            "nets": len(plans),
            "turns": wanted.turns,
            "seed": wanted.seed,
            **facts,
        }
        log = Journal(journal, head)
        done = log.resume() if resume else []
        if done:
            say(f"profile: {len(done)} of {wanted.rounds} rounds taken from {journal}")
        else:
            log.start()
    stopped = "all rounds"
    if len(done) < wanted.rounds:
        with tempfile.TemporaryDirectory(prefix="prunekit-") as folder:
            artifacts = _artifacts(model, plans, example, runtime, Path(folder))
            stopped = measure_rounds(artifacts, runtime, target, wanted, done, log, watched)
    return done, stopped


def _artifacts(
    model: nn.Module, plans: list[ChannelPlan], example: Any, runtime: Runtime, folder: Path
) -> list[Artifact]:
    """One artifact per plan, in the form the runtime takes."""
    found = []
    with bar("building networks", len(plans)) as shown:
        for number, plan in enumerate(plans):
            if runtime.artifact_format == "module":
                found.append(live_artifact(slim(model, plan), example))
            else:
                path = folder / f"net{number}.onnx"
                narrow = narrow_onnx(found[0], plan, path) if found else None
                found.append(narrow or export(slim(model, plan), example, path))
            shown.advance()
    return found


def _table(
    graph: ChannelGraph,
    plans: list[ChannelPlan],
    rounds: list[dict[str, Any]],
    target: Target,
    environment: Any,
    block: int,
    wanted: HarvestPlan,
    stopped: str,
    name: str,
) -> LatencyTable:
    by_name = {layer.name: layer for layer in graph.layers}
    samples: dict[Any, list[Sample]] = defaultdict(list)
    networks = []
    for number, plan in enumerate(plans):
        summed = 0.0
        for layer_name, layer in by_name.items():
            times = [us for row in rounds for us in row["layers_us"][number].get(layer_name, ())]
            if not times:
                raise TableError(
                    f"{target} reported no time for layer {layer_name!r}; "
                    "this model cannot be profiled on this runtime"
                )
            # ticks are whole microseconds, outliers are other processes
            us, spread = interquartile_mean(times), _quartile_range(times)
            summed += us
            samples[layer.shape].append(
                Sample(
                    net=number,
                    cin=layer.width("in", plan.widths),
                    cout=layer.width("out", plan.widths),
                    us=round(us / layer.calls, 3),
                    spread_us=round(spread / layer.calls, 3),
                    runs=len(times),
                    calls=layer.calls,
                )
            )
        networks.append(network(name, graph, plan, number, rounds, summed))
    entries = [
        Entry(shape, tuple(rows))
        for shape, rows in sorted(samples.items(), key=lambda i: str(i[0]))
    ]
    protocol = Protocol("harvest", len(plans), len(rounds), wanted.turns, wanted.seed, stopped)
    return LatencyTable(
        target, environment, protocol, block, (graph.fingerprint,), tuple(entries), tuple(networks)
    )


def network(
    name: str,
    graph: ChannelGraph,
    plan: ChannelPlan,
    number: int,
    rounds: list[dict[str, Any]],
    layers_us: float,
) -> Network:
    """What all rounds say of network ``number``, whose layers take ``layers_us`` in all."""
    whole = [1e3 * ms for row in rounds for ms in row["end_to_end_ms"][number]]
    return Network(
        model=name or graph.fingerprint,
        kept=round(sum(plan.widths.values()) / sum(plan.sizes.values()), 4),
        calls=sum(layer.calls for layer in graph.layers),
        layers_us=round(layers_us, 2),
        end_to_end_us=round(float(np.median(whole)), 2),
        spread_us=round(_quartile_range(whole), 2),
        runs=len(whole),
    )


def _quartile_range(values: list[float]) -> float:
    return float(np.subtract(*np.percentile(values, [75, 25])))
