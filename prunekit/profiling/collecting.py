"""Carrying a profile out: which network is due in which round, the journal, and when to stop."""

from __future__ import annotations

import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from prunekit.core.artifact import Artifact
from prunekit.core.graph import ChannelGraph
from prunekit.core.plan import ChannelPlan
from prunekit.core.target import Target
from prunekit.exporting.candidate import CandidateBuilder
from prunekit.profiling.journal import Journal
from prunekit.profiling.measuring import HarvestPlan, Rounds, Row, calm_rounds, speeds
from prunekit.runtimes import Runtime, runtime_for
from prunekit.support.progress import bar, say, track

ROW: dict[str, type | tuple[type, ...]] = {
    "nets": list,
    "added": list,
    "seconds": (int, float),
    "disturbed": (int, float),
    "end_to_end_ms": list,
    "layers_us": list,
}
"""What a row of the journal has."""
PATIENCE = 3
"""A network is in so many times the rounds asked for, at most, in wait for calm ones."""


@dataclass
class Collection:
    """Networks, what every round found of them, and why there are no more rounds."""

    plans: list[ChannelPlan]
    rows: list[Row] = field(default_factory=list)
    stopped: str = ""

    @property
    def measured(self) -> Counter[int]:
        """In how many rounds each network was."""
        return Counter(net for row in self.rows for net in row["nets"])

    @property
    def calmly(self) -> Counter[int]:
        """In how many rounds each network was while the device was about as fast as ever."""
        calm = calm_rounds(self.rows, speeds(self.rows))
        return Counter(net for row in calm for net in row["nets"])


More = Callable[[Collection], list[ChannelPlan]]
Error = Callable[[Collection], float]


def collect(
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
    dense: Artifact | None = None,
    watched: bool = True,
    more: More = lambda _: [],
    error: Error = lambda _: math.inf,
) -> Collection:
    """Rounds over the networks of ``plans`` and those that ``more`` adds after every round.

    Every network takes part in ``wanted.rounds`` rounds, the first (the dense one) in all. The
    rounds in the journal come first. ``facts`` are what else a journal must have been started with
    to be gone on with; ``error`` is what ``wanted.target_error`` is held against.
    """
    started = time.monotonic()
    runtime = runtime_for(target)
    found = Collection(list(plans))
    log = journal_of(journal, graph, target, runtime, wanted, granularity, facts)
    if log is not None:
        found.rows = log.resume(ROW) if resume else []
        for row in found.rows:
            found.plans += [ChannelPlan.from_widths(graph, widths) for widths in row["added"]]
        if found.rows:
            say(f"profile: {len(found.rows)} rounds taken from {journal}")
        else:
            log.start()
    started -= found.rows[-1]["seconds"] if found.rows else 0.0
    rounds = Rounds(runtime, target, wanted, watched)
    try:
        with tempfile.TemporaryDirectory(prefix="prunekit-") as folder:
            builder = CandidateBuilder(model, example, target, runtime, dense)
            nets = _Networks(builder, Path(folder))
            added = _next(found, wanted, time.monotonic() - started, more, error)
            due = _due(found, wanted) if not found.stopped else []
            for net in track(due, "loading networks", len(due)):
                rounds.add(net, nets.get(net, found.plans[net]))
            with bar("profiling", _expected(found, wanted)) as shown:
                shown.advance(len(found.rows))
                while not found.stopped:
                    row = _one_round(found, rounds, nets, wanted)
                    row["added"] = [dict(plan.widths) for plan in added]
                    row["seconds"] = round(time.monotonic() - started, 3)
                    found.rows.append(row)
                    if log is not None:
                        log.append(row)
                    typical = float(np.median(row["end_to_end_ms"][0]))
                    shown.advance(note=f"dense {typical:.3g} ms")
                    added = _next(found, wanted, time.monotonic() - started, more, error)
    finally:
        rounds.close()
    return found


def journal_of(
    path: Path | None,
    graph: ChannelGraph,
    target: Target,
    runtime: Runtime,
    wanted: HarvestPlan,
    granularity: int,
    facts: dict[str, Any],
) -> Journal | None:
    """The journal at ``path``, whose head line says what is being measured."""
    if path is None:
        return None
    environment = runtime.environment(target)
    head = {
        "target": target.describe(),
        "device": environment.device_name,
        "runtime": environment.runtime_version,
        "model": graph.fingerprint,
        "inputs": [list(shape) for shape in graph.input_shapes],
        "granularity": granularity,
        "rounds": wanted.rounds,
        "turns": wanted.turns,
        "seed": wanted.seed,
        **facts,
    }
    return Journal(path, head)


def _expected(found: Collection, wanted: HarvestPlan) -> int:
    """About how many rounds it takes, networks being added two at a time."""
    return wanted.rounds + math.ceil(max(0, wanted.nets - len(found.plans)) / 2)


def _due(found: Collection, wanted: HarvestPlan) -> list[int]:
    """The dense network, and those that were not yet in enough rounds.

    Rounds in a slow spell of the machine do not count, as long as there are not too many of them.
    """
    calmly, measured = found.calmly, found.measured
    waiting = [
        net
        for net in range(len(found.plans))
        if calmly[net] < wanted.rounds and measured[net] < PATIENCE * wanted.rounds
    ]
    return sorted({0, *waiting}) if waiting else []


def _next(
    found: Collection, wanted: HarvestPlan, seconds: float, more: More, error: Error
) -> list[ChannelPlan]:
    """What the next round adds; or sets why there is none."""
    if found.rows and len(found.rows) >= wanted.min_rounds:
        if wanted.target_error and error(found) <= wanted.target_error:
            found.stopped = f"error at most {100 * wanted.target_error:g} %"
        elif seconds + _expected_seconds(found, wanted) > wanted.max_seconds:
            found.stopped = f"{wanted.max_seconds:g} s"
        if found.stopped:
            return []
    added = more(found) if found.rows else []
    found.plans += added
    if not _due(found, wanted):
        found.stopped = "all rounds"
    return added


def _expected_seconds(found: Collection, wanted: HarvestPlan) -> float:
    """What the next round will take, by what the last one took."""
    *before, last = found.rows
    took = last["seconds"] - (before[-1]["seconds"] if before else 0.0)
    return float(took) * len(_due(found, wanted)) / len(last["nets"])


def _one_round(found: Collection, rounds: Rounds, nets: _Networks, wanted: HarvestPlan) -> Row:
    due = _due(found, wanted)
    for net in due:
        rounds.add(net, nets.get(net, found.plans[net]))
    row = rounds.run(len(found.rows), due)
    measured = found.measured
    for net in due[1:]:
        if measured[net] + 1 >= wanted.rounds:  # loaded again if it has to be
            rounds.drop(net)
    return row


class _Networks:
    """Artifacts of plans in the form the runtime takes, each made once; the first is dense."""

    def __init__(self, builder: CandidateBuilder, folder: Path) -> None:
        self._builder, self._folder = builder, folder
        self._built: dict[int, Artifact] = {}

    def get(self, number: int, plan: ChannelPlan) -> Artifact:
        """The artifact of network ``number``."""
        if number not in self._built:
            build = self._builder.build if number else self._builder.build_dense
            self._built[number] = build(plan, self._folder / f"net{number}.onnx")
        return self._built[number]
