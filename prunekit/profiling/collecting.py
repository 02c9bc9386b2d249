"""Carrying a profile out: which network is due in which round, the journal, and when to stop."""

from __future__ import annotations

import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from prunekit.core.artifact import Artifact
from prunekit.core.plan import ChannelPlan
from prunekit.exporting.candidate import CandidateBuilder
from prunekit.profiling.journal import Facts, journal_of
from prunekit.profiling.measuring import Rounds
from prunekit.profiling.request import HarvestPlan, ProfileRequest
from prunekit.profiling.rounds import Round, calm_rounds, speeds
from prunekit.runtimes import runtime_for
from prunekit.support.progress import bar, say, track

PATIENCE = 3
"""A network is in so many times the rounds asked for, at most, in wait for calm ones."""


@dataclass
class Collection:
    """Networks, what every round found of them, and why there are no more rounds."""

    plans: list[ChannelPlan]
    rounds: list[Round] = field(default_factory=list)
    stopped: str = ""

    @property
    def measured(self) -> Counter[int]:
        """In how many rounds each network was."""
        return Counter(net for one in self.rounds for net in one.nets)

    @property
    def calmly(self) -> Counter[int]:
        """In how many rounds each network was while the device was about as fast as ever."""
        calm = calm_rounds(self.rounds, speeds(self.rounds))
        return Counter(net for one in calm for net in one.nets)


@dataclass(frozen=True)
class Strategy:
    """What decides, after every round, whether there is another one and what it measures."""

    more: Callable[[Collection], list[ChannelPlan]] = lambda _: []
    """Networks that the next round adds."""
    error: Callable[[Collection], float] = lambda _: math.inf
    """What the plan's ``target_error`` is held against."""


def collect(
    request: ProfileRequest,
    plans: list[ChannelPlan],
    granularity: int,
    facts: Facts,
    *,
    watched: bool = True,
    strategy: Strategy | None = None,
) -> Collection:
    """Rounds over the networks of ``plans`` and those that ``strategy`` adds after every round.

    Every network takes part in ``request.plan.rounds`` rounds, the first (the dense one) in all.
    The rounds in the journal come first. ``facts`` are what else a journal must have been started
    with to be gone on with.
    """
    started = time.monotonic()
    runtime, wanted = runtime_for(request.target), request.plan
    collection, strategy = Collection(list(plans)), strategy or Strategy()
    journal = journal_of(request, runtime, granularity, facts, Round)
    if journal is not None:
        collection.rounds = journal.resume() if request.resume else []
        for one in collection.rounds:
            collection.plans += [ChannelPlan.from_widths(request.graph, w) for w in one.added]
        if collection.rounds:
            say(f"profile: {len(collection.rounds)} rounds taken from {journal.path}")
        else:
            journal.start()
    started -= collection.rounds[-1].seconds if collection.rounds else 0.0
    rounds = Rounds(runtime, request.target, wanted, watched)
    try:
        with tempfile.TemporaryDirectory(prefix="prunekit-") as folder:
            builder = CandidateBuilder(
                *(request.model, request.example, request.target, runtime), request.dense
            )
            nets = _Networks(builder, Path(folder))
            added = _next(collection, wanted, time.monotonic() - started, strategy)
            due = _due(collection, wanted) if not collection.stopped else []
            for net in track(due, "loading networks", len(due)):
                rounds.add(net, nets.get(net, collection.plans[net]))
            with bar("profiling", _expected(collection, wanted)) as shown:
                shown.advance(len(collection.rounds))
                while not collection.stopped:
                    one = replace(
                        _one_round(collection, rounds, nets, wanted),
                        added=[dict(plan.widths) for plan in added],
                        seconds=round(time.monotonic() - started, 3),
                    )
                    collection.rounds.append(one)
                    if journal is not None:
                        journal.append(one)
                    typical = float(np.median(one.end_to_end_ms[0]))
                    shown.advance(note=f"dense {typical:.3g} ms")
                    added = _next(collection, wanted, time.monotonic() - started, strategy)
    finally:
        rounds.close()
    return collection


def _expected(collection: Collection, wanted: HarvestPlan) -> int:
    """About how many rounds it takes, networks being added two at a time."""
    return wanted.rounds + math.ceil(max(0, wanted.nets - len(collection.plans)) / 2)


def _due(collection: Collection, wanted: HarvestPlan) -> list[int]:
    """The dense network, and those that were not yet in enough rounds.

    Rounds in a slow spell of the machine do not count, as long as there are not too many of them.
    """
    calmly, measured = collection.calmly, collection.measured
    waiting = [
        net
        for net in range(len(collection.plans))
        if calmly[net] < wanted.rounds and measured[net] < PATIENCE * wanted.rounds
    ]
    return sorted({0, *waiting}) if waiting else []


def _next(
    collection: Collection, wanted: HarvestPlan, seconds: float, strategy: Strategy
) -> list[ChannelPlan]:
    """What the next round adds; or sets why there is none."""
    if collection.rounds and len(collection.rounds) >= wanted.min_rounds:
        if wanted.target_error and strategy.error(collection) <= wanted.target_error:
            collection.stopped = f"error at most {100 * wanted.target_error:g} %"
        elif seconds + _expected_seconds(collection, wanted) > wanted.max_seconds:
            collection.stopped = f"{wanted.max_seconds:g} s"
        if collection.stopped:
            return []
    added = strategy.more(collection) if collection.rounds else []
    collection.plans += added
    if not _due(collection, wanted):
        collection.stopped = "all rounds"
    return added


def _expected_seconds(collection: Collection, wanted: HarvestPlan) -> float:
    """What the next round will take, by what the last one took."""
    *before, last = collection.rounds
    took = last.seconds - (before[-1].seconds if before else 0.0)
    return float(took) * len(_due(collection, wanted)) / len(last.nets)


def _one_round(
    collection: Collection, rounds: Rounds, nets: _Networks, wanted: HarvestPlan
) -> Round:
    due = _due(collection, wanted)
    for net in due:
        rounds.add(net, nets.get(net, collection.plans[net]))
    one = rounds.run(len(collection.rounds), due)
    measured = collection.measured
    for net in due[1:]:
        if measured[net] + 1 >= wanted.rounds:  # loaded again if it has to be
            rounds.drop(net)
    return one


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
