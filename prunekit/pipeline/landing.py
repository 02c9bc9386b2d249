"""The measured landing: plan, build, measure, correct, until the target is met as measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from prunekit.allocation import Allocation
from prunekit.core.estimate import DRIFT, of_interval, t_quantile
from prunekit.core.plan import ChannelPlan
from prunekit.core.ratio import PairedRatio
from prunekit.support.errors import InfeasibleError, OpenAnswerError, PrunekitError
from prunekit.support.files import load_json, save_json
from prunekit.support.progress import say

CONFIDENCE = 0.95
"""How sure a plan has to be within the target to count as landed."""
USUAL_NOISE = 0.005
"""Standard error of a measured ratio, before any was measured."""
FARTHEST_AIM = 0.85
"""A machine so noisy that one had to aim below this share of the target tells nothing."""
CLOSE_ENOUGH = 0.97
"""A plan at this share of the target or above uses the budget up; searching on gains little."""
BAND = 0.02
"""And in any case a plan as near to the target as this, as shares of the dense latency."""
APART = 3.0
"""Standard errors between the target and a plan that a larger one can be told apart from."""
MAX_ROUNDS = 4
MAX_AGAIN = 2
"""How often another landing follows, after the plan of one was measured for longer."""
STEP = 1.04
"""How far a request goes up or down where nothing is known on that side."""
NARROW = 0.004
"""A bracket of requests as narrow as this holds no other plan worth measuring."""

INTERVAL = 0.95
"""The confidence of the intervals of attempts."""

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

    @property
    def noise(self) -> float:
        """Standard error of the logarithm of the ratio."""
        return of_interval(self.ratio, self.low, self.high, INTERVAL).scale

    def probability_below(self, target: float) -> float:
        """How likely the plan takes at most ``target``."""
        return of_interval(self.ratio, self.low, self.high, INTERVAL).probability_below(target)


L = TypeVar("L", bound="Landing")


@dataclass(frozen=True)
class Landing:
    """The plan that landed and all attempts on the way."""

    allocation: Allocation
    attempts: tuple[Attempt, ...]

    @property
    def chosen(self) -> Attempt:
        """The attempt of the plan that landed: its latest measurement."""
        widths = self.allocation.widths
        return [attempt for attempt in self.attempts if attempt.widths == widths][-1]

    def save(self, path: str | Path) -> None:
        """Write it for a run that is resumed."""
        save_json(path, self, "landing", 1)

    @classmethod
    def load(cls: type[L], path: str | Path) -> L:
        """Read what :meth:`save` wrote."""
        return load_json(path, cls, "landing", 1)


LandFrom = Callable[[tuple[Attempt, ...]], Landing]
"""Another landing, which goes on from these attempts."""


def meets(measured: Attempt | PairedRatio, target: float, confidence: float = CONFIDENCE) -> bool:
    """Whether it is as sure as that that what was measured is within the target."""
    return measured.probability_below(target) >= confidence


def aim(noise: float, confidence: float = CONFIDENCE) -> float:
    """The share of the target to aim at, so that a measurement is sure to be within it.

    A plan there, measured with standard error ``noise``, turns out sure enough at least as often as
    the confidence says.
    """
    if not noise < 1:
        return FARTHEST_AIM
    return max(FARTHEST_AIM, math.exp(-2 * t_quantile(confidence, math.inf) * noise))


def used_up(target: float, noise: float) -> float:
    """The measured ratio from which on a plan uses the target up.

    Two points below it, or as near as a measurement can tell a larger plan apart.
    """
    return min(max(CLOSE_ENOUGH * target, target - BAND), target * math.exp(-APART * noise))


def land(
    solve: Solve,
    smallest: Smallest,
    measure: Measure,
    target: float,
    known: tuple[Attempt, ...] = (),
    confidence: float = CONFIDENCE,
) -> Landing:
    """The largest plan, by predicted cost, that is measured to be within ``target`` of dense.

    As sure as ``confidence`` says. Of one solve that is the most valuable one too.
    What was measured corrects what is predicted for the next request; when the target has been
    found to lie between two plans, the next request lies between theirs. ``known`` attempts, of a
    landing before with the same ``solve``, count among the rounds, of which there is one more in
    any case. Raises `InfeasibleError` with the smallest measured ratio when even the smallest plan
    misses.
    """
    search = _Search(target, confidence)
    for attempt in known:
        planned = _planned(solve, smallest, attempt.asked)
        search.add(planned if planned.widths == attempt.widths else None, attempt)
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
        raise _not_landed(search.attempts, target, confidence)
    return Landing(search.best, tuple(search.attempts))


def _planned(solve: Solve, smallest: Smallest, asked: float) -> Allocation:
    """The plan that an attempt which ``asked`` for this was of; zero asked for the smallest."""
    try:
        return solve(asked) if asked else smallest()
    except InfeasibleError:
        return smallest()


def _not_landed(attempts: list[Attempt], target: float, confidence: float) -> PrunekitError:
    """What to say where no plan was sure enough to be within the target."""
    least = min(attempts, key=lambda attempt: attempt.ratio)
    measures = f"measures {least.ratio:.1%} [{least.low:.1%}, {least.high:.1%}]"
    if least.probability_below(target) > 1 - confidence:
        return OpenAnswerError(
            f"the smallest plan that was tried {measures} of dense, which leaves it open whether "
            f"{target:.1%} is met: the machine is too noisy; close other programs, or measure "
            "longer (--measure-seconds)"
        )
    return InfeasibleError(
        f"a latency of {target:.1%} of dense is below what is reachable; the smallest plan "
        f"{measures}; ask for at least that"
    )


def confirm(
    landing: Landing,
    measure: Measure,
    land_from: LandFrom,
    target: float,
    confidence: float = CONFIDENCE,
    *,
    subject: str = "measured again it",
) -> Landing:
    """The largest plan that meets ``target`` in another measurement too, from ``landing`` on.

    A plan that misses is followed by a smaller one, one further below the target than the band by a
    larger one. Where none is found that meets it, the last is taken, and the report tells of a
    miss. ``subject`` is what is measured, in words.
    """
    best: tuple[float, Landing] | None = None
    tried = []
    for left in reversed(range(MAX_AGAIN + 1)):
        measured = measure(landing.allocation.plan)
        tried.append(landing.allocation.widths)
        if meets(measured, target, confidence):
            if best is None or measured.ratio > best[0]:
                best = measured.ratio, landing
            if measured.ratio >= used_up(target, measured.estimate.scale):
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
    confidence: float = CONFIDENCE
    attempts: list[Attempt] = field(default_factory=list)
    best: Allocation | None = None
    """The largest plan that meets the target."""
    tried_smallest: bool = False
    low: float = 0.0
    """The largest request known to meet the target, and below the smallest known to miss it."""
    high: float = float("inf")
    repeats: int = 0

    @property
    def best_ratio(self) -> float:
        """The largest measured ratio that meets the target."""
        return max((a.ratio for a in self.attempts if self._meets(a)), default=0.0)

    @property
    def noise(self) -> float:
        """Standard error of the measurements so far: the middle one's, never below the drift."""
        known = sorted(attempt.noise for attempt in self.attempts)
        return max(DRIFT, known[len(known) // 2]) if known else USUAL_NOISE

    def _meets(self, attempt: Attempt) -> bool:
        return meets(attempt, self.target, self.confidence)

    def next_request(self) -> float | None:
        """The predicted ratio to ask for, or None when searching on gains nothing."""
        if self.best_ratio >= used_up(self.target, self.noise) or self.repeats > 4:
            return None
        request = min(1.0, self._corrected(self.target * aim(self.noise, self.confidence)))
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

    def add(self, allocation: Allocation | None, attempt: Attempt) -> None:
        """Record a measurement; without the plan it only tells where to look."""
        self.attempts.append(attempt)
        self._narrow(attempt.asked, attempt)
        # not by value: shares of saliency tell plans apart within one solve alone
        if allocation is None or not self._meets(attempt):
            return
        if self.best is None or allocation.ratio > self.best.ratio:
            self.best = allocation

    def _narrow(self, asked: float, attempt: Attempt) -> None:
        if self._meets(attempt):
            self.low = max(self.low, asked)
        else:
            self.high = min(self.high, asked)
