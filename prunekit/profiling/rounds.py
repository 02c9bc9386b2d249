"""What the rounds of a profile say: how slow the device was, and what each network takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prunekit.core.timing import lower_mean

CALM = 1.08
"""A round so much slower than the fastest was in a slow spell of the machine."""


@dataclass(frozen=True, kw_only=True)
class Round:
    """One round, as a line of the journal: ``nets``, their numbers, and what they took.

    ``end_to_end_ms`` has the kept samples of every network, ``layers_us`` those of its layers
    (nothing where networks were not watched). ``disturbed`` is the share of runs that another
    process interrupted; ``added`` the widths of the networks that are new in this round;
    ``seconds`` when it ended.
    """

    round: int = 0
    nets: list[int]
    turns: int | None = None
    disturbed: float
    end_to_end_ms: list[list[float]]
    layers_us: list[dict[str, list[float]]]
    added: list[dict[str, int]]
    seconds: float


def speeds(rounds: Sequence[Round]) -> NDArray[np.float64]:
    """How slow the device was in each round, relative to the median round; shape (rounds,).

    A network's time is taken for its own level times the round's, fitted by medians (Tukey's
    median polish of the logarithms), so that networks need not be in the same rounds. Those in one
    round only say nothing of it.
    """
    often = Counter(net for one in rounds for net in one.nets)
    times = [
        (net, number, float(np.log(max(lower_mean(samples), 1e-9))))
        for number, one in enumerate(rounds)
        for net, samples in zip(one.nets, one.end_to_end_ms, strict=True)
        if often[net] > 1
    ]
    effect = np.zeros(len(rounds))
    for _ in range(50 if rounds else 0):
        levels = _medians((net, t - effect[number]) for net, number, t in times)
        medians = _medians((number, t - levels[net]) for net, number, t in times)
        before = effect
        effect = np.array([medians.get(number, 0.0) for number in range(len(rounds))])
        effect -= np.median(effect)
        if np.array_equal(before, effect):  # and so it would stay
            break
    return np.exp(effect)


def _medians(pairs: Iterable[tuple[int, float]]) -> Mapping[int, float]:
    gathered: dict[int, list[float]] = {}
    for key, value in pairs:
        gathered.setdefault(key, []).append(value)
    return {key: float(np.median(values)) for key, values in gathered.items()}


def calm_rounds(rounds: Sequence[Round], slow: NDArray[np.float64]) -> list[Round]:
    """The rounds in which the device was about as fast as it ever was."""
    least = slow.min(initial=np.inf)
    return [one for one, factor in zip(rounds, slow, strict=True) if factor <= CALM * least]


def typical_us(rounds: Sequence[NDArray[np.float64]]) -> float:
    """What a thing takes, of its times round by round: the median of the lower halves' means.

    Loaded anew it lies elsewhere in memory and is one or two percent faster or slower. The lower
    half of all times would be that of the fastest places, the faster the more rounds there are.
    """
    return float(np.median([lower_mean(times) for times in rounds]))


def end_to_end_us(
    rounds: Sequence[Round], slow: NDArray[np.float64], net: int
) -> list[NDArray[np.float64]]:
    """End-to-end times of a network at the median round's speed, by its fastest rounds."""
    return [
        1e3 * np.asarray(one.end_to_end_ms[place]) / factor
        for one, place, factor in _fastest(rounds, slow, net)
    ]


def layers_us(
    rounds: Sequence[Round], slow: NDArray[np.float64], net: int
) -> dict[str, list[NDArray[np.float64]]]:
    """Times of every layer of a network at the median round's speed, by its fastest rounds."""
    by_layer: dict[str, list[NDArray[np.float64]]] = {}
    for one, place, factor in _fastest(rounds, slow, net):
        for name, times in one.layers_us[place].items():
            if times:
                by_layer.setdefault(name, []).append(np.asarray(times) / factor)
    return by_layer


def _fastest(
    rounds: Sequence[Round], slow: NDArray[np.float64], net: int
) -> list[tuple[Round, int, float]]:
    """The network's rounds, its place in them and their factor.

    Only those not much slower than its fastest: a slow spell slows networks by different amounts,
    and so a factor cannot make up for it.
    """
    own = [
        (one, one.nets.index(net), float(factor))
        for one, factor in zip(rounds, slow, strict=True)
        if net in one.nets
    ]
    least = min((factor for *_, factor in own), default=1.0)
    return [entry for entry in own if entry[2] <= CALM * least]
