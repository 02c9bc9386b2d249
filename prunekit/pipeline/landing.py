"""The measured landing: plan, build, measure, correct, until the target is met as measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from prunekit.allocation import Allocation
from prunekit.core.plan import ChannelPlan
from prunekit.core.timing import PairedRatio
from prunekit.support.errors import InfeasibleError
from prunekit.support.files import load_json, save_json
from prunekit.support.progress import say

AIM = 0.985
"""The measured ratio aimed at, as a share of the one asked for: room for the noise of timing."""
SURE = 0.985
"""At this share of the target a plan counts as landed even if its interval reaches over it."""
CLOSE_ENOUGH = 0.97
"""A plan at this share of the target or above uses the budget up; searching on gains little."""
BAND = 0.02
"""And in any case a plan as near to the target as this, as shares of the dense latency."""
MAX_ROUNDS = 4
MAX_AGAIN = 2
"""How often another landing follows, after the plan of one was measured for longer."""
STEP = 1.04
"""How far a request goes up or down where nothing is known on that side."""
NARROW = 0.004
"""A bracket of requests as narrow as this holds no other plan worth measuring."""

Solve = Callable[[float], Allocation]
"""A predicted-latency ratio not to exceed -> allocation, or `InfeasibleError`."""
Smallest = Callable[[], Allocation]
"""The narrowest plan there is."""
Measure = Callable[[ChannelPlan], PairedRatio]


@dataclass(frozen=True)
class Attempt:
    """One plan that was built and measured against the dense network."""

    asked: float
    predicted: float
    ratio: float
    low: float
    high: float
    widths: dict[str, int]

    @property
    def request(self) -> float:
        """What was asked for, or what the plan is predicted to take where that is more."""
        return max(self.asked, self.predicted)


L = TypeVar("L", bound="Landing")


@dataclass(frozen=True)
class Landing:
    """The plan that landed and all attempts on the way."""

    allocation: Allocation
    attempts: tuple[Attempt, ...]

    def save(self, path: str | Path) -> None:
        """Write it for a run that is resumed."""
        save_json(path, self, "landing", 1)

    @classmethod
    def load(cls: type[L], path: str | Path) -> L:
        """Read what :meth:`save` wrote."""
        return load_json(path, cls, "landing", 1)


LandFrom = Callable[[tuple[Attempt, ...]], Landing]
"""Another landing, which goes on from these attempts."""


def meets(measured: Attempt | PairedRatio, target: float) -> bool:
    """Whether what was measured meets the target: its whole interval does, or it is well below."""
    return measured.high <= target or measured.ratio <= SURE * target


def land(
    solve: Solve,
    smallest: Smallest,
    measure: Measure,
    target: float,
    known: tuple[Attempt, ...] = (),
) -> Landing:
    """The largest plan, by predicted cost, whose measured ratio to dense is at most ``target``.

    Of one solve that is the most valuable one too.
    What was measured corrects what is predicted for the next request; when the target has been
    found to lie between two plans, the next request lies between theirs. ``known`` attempts, of a
    landing before with the same ``solve``, count among the rounds, of which there is one more in
    any case. Raises `InfeasibleError` with the smallest measured ratio when even the smallest plan
    misses.
    """
    search = _Search(target)
    for attempt in known:
        search.add(_planned(solve, smallest, attempt.asked), attempt)
    while len(search.attempts) < max(MAX_ROUNDS, len(known) + 1):
        asked = search.next_request()
        if asked is None:
            break
        try:
            allocation = solve(asked)
        except InfeasibleError:
            if search.tried_smallest:
                break
            search.tried_smallest = True
            allocation = smallest()
        if not search.is_new(allocation):
            search.note_repeat(asked, allocation)
            continue
        measured = measure(allocation.plan)
        search.add(allocation, _attempt(asked, allocation, measured))
        say(
            f"landing {len(search.attempts)}: predicted {allocation.ratio:.1%}, "
            f"measured {measured.ratio:.1%} [{measured.low:.1%}, {measured.high:.1%}], "
            f"asked {target:.1%}"
        )
    if search.best is None and not search.tried_smallest:
        # never reached within the rounds: the smallest plan tells whether it can be at all
        allocation = smallest()
        if search.is_new(allocation):
            search.add(allocation, _attempt(0.0, allocation, measure(allocation.plan)))
    if search.best is None:
        raise _out_of_reach(search.attempts, target)
    return Landing(search.best, tuple(search.attempts))


def _planned(solve: Solve, smallest: Smallest, asked: float) -> Allocation:
    """The plan that an attempt which ``asked`` for this was of; zero asked for the smallest."""
    try:
        return solve(asked) if asked else smallest()
    except InfeasibleError:
        return smallest()


def _out_of_reach(attempts: list[Attempt], target: float) -> InfeasibleError:
    least = min(attempts, key=lambda attempt: attempt.ratio)
    return InfeasibleError(
        f"a latency of {target:.1%} of dense is below what is reachable; the smallest plan "
        f"measures {least.ratio:.1%} [{least.low:.1%}, {least.high:.1%}]; ask for at least that"
    )


def confirm(
    landing: Landing,
    measure: Measure,
    land_from: LandFrom,
    target: float,
    *,
    meets: Callable[[PairedRatio, float], bool] = meets,
    subject: str = "measured for longer it",
) -> Landing:
    """The largest plan that meets ``target`` in a longer measurement too, from ``landing`` on.

    A plan that misses is followed by a smaller one, one further below the target than the band by a
    larger one. Where none is found that meets it, the last is taken, and the report tells of a
    miss. ``subject`` is what is measured, in words.
    """
    best: tuple[float, Landing] | None = None
    tried = []
    for left in reversed(range(MAX_AGAIN + 1)):
        measured = measure(landing.allocation.plan)
        tried.append(landing.allocation.widths)
        if meets(measured, target):
            if best is None or measured.ratio > best[0]:
                best = measured.ratio, landing
            if measured.ratio >= target - BAND:
                break
        elif best is not None:  # the larger one was too large
            break
        if not left:
            break
        way = "lower" if best is None else "higher"
        say(f"{subject} takes {measured.ratio / target:.1%} of the limit; landing {way}")
        try:
            other = _land_again(landing, measured.ratio, land_from)
        except InfeasibleError:
            break
        if other.allocation.widths in tried:
            break
        landing = other
    return landing if best is None else replace(best[1], attempts=landing.attempts)


def _land_again(landing: Landing, ratio: float, land_from: LandFrom) -> Landing:
    """Another landing, now that the plan of ``landing`` turned out to take ``ratio``.

    What that is off by is taken for all its attempts, which are kept as they were measured.
    """
    widths = landing.allocation.widths
    (before,) = (attempt.ratio for attempt in landing.attempts if attempt.widths == widths)
    off = ratio / before
    known = tuple(
        replace(a, ratio=off * a.ratio, low=off * a.low, high=off * a.high)
        for a in landing.attempts
    )
    other = land_from(known)
    return replace(other, attempts=(*landing.attempts, *other.attempts[len(known) :]))


def _attempt(asked: float, allocation: Allocation, measured: PairedRatio) -> Attempt:
    widths = allocation.widths
    return Attempt(asked, allocation.ratio, measured.ratio, measured.low, measured.high, widths)


@dataclass
class _Search:
    """Which request to try next: corrected by what was measured, bracketed by all of it."""

    target: float
    attempts: list[Attempt] = field(default_factory=list)
    best: Allocation | None = None
    """The largest plan that meets the target."""
    tried_smallest: bool = False
    low: float = 0.0
    """The largest request known to meet the target, and below the smallest known to miss it."""
    high: float = float("inf")
    caution: float = 1.0
    """How much lower to aim, for intervals that reached over the target."""
    repeats: int = 0

    @property
    def best_ratio(self) -> float:
        """The largest measured ratio that meets the target."""
        return max((a.ratio for a in self.attempts if meets(a, self.target)), default=0.0)

    def next_request(self) -> float | None:
        """The predicted ratio to ask for, or None when searching on gains nothing."""
        enough = max(CLOSE_ENOUGH * self.target, self.target - BAND)
        if self.best_ratio >= enough or self.repeats > 4:
            return None
        request = min(1.0, self._corrected(self.target * AIM * self.caution))
        if self.low < request < self.high:
            return request
        if self.high == float("inf"):  # the last plan left budget over: the widths are coarse
            request = STEP * self.low
            return request if request < 1.0 else None
        if self.low == 0:
            return self.high / STEP
        if self.high - self.low < NARROW:
            return None
        return (self.low + self.high) / 2

    def _corrected(self, wanted: float) -> float:
        """The request at which ``wanted`` should be measured.

        A straight line in logarithms through the nearest attempts on both sides of ``wanted``;
        with attempts on one side only, the same factor between the two as in the nearest.
        """
        if not self.attempts:
            return wanted
        below = [a for a in self.attempts if a.ratio <= wanted]
        above = [a for a in self.attempts if a.ratio > wanted]
        if below and above:
            under = max(below, key=lambda a: a.ratio)
            over = min(above, key=lambda a: a.ratio)
            if over.request > under.request:
                share = math.log(wanted / under.ratio) / math.log(over.ratio / under.ratio)
                return float(under.request * (over.request / under.request) ** share)
        nearest = min(self.attempts, key=lambda a: abs(math.log(a.ratio / wanted)))
        return wanted * nearest.request / nearest.ratio

    def is_new(self, allocation: Allocation) -> bool:
        return all(attempt.widths != allocation.widths for attempt in self.attempts)

    def note_repeat(self, asked: float, allocation: Allocation) -> None:
        """Widths jump: ``asked`` gives a plan already measured, so look on its other side."""
        self.repeats += 1
        known = next(a for a in self.attempts if a.widths == allocation.widths)
        self._narrow(asked, known)

    def add(self, allocation: Allocation, attempt: Attempt) -> None:
        """Record a measurement."""
        self.attempts.append(attempt)
        self._narrow(attempt.asked, attempt)
        if meets(attempt, self.target):
            # not by value: shares of saliency tell plans apart within one solve alone
            if self.best is None or allocation.ratio > self.best.ratio:
                self.best = allocation
        elif attempt.ratio <= self.target:  # only its interval is over the target
            self.caution *= max(attempt.ratio / attempt.high, 0.97)

    def _narrow(self, asked: float, attempt: Attempt) -> None:
        if meets(attempt, self.target):
            self.low = max(self.low, asked)
        else:
            self.high = min(self.high, asked)
