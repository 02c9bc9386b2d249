"""Several sessions of the same artifacts: what they say together of ratios and latencies."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from prunekit.core.artifact import Artifact
from prunekit.core.estimate import estimate
from prunekit.core.ratio import PairedRatio
from prunekit.core.target import Target
from prunekit.core.timing import Measurement
from prunekit.measuring.apart import can_run_apart, session_apart
from prunekit.measuring.interleaved import Session, time_session
from prunekit.runtimes.base import Runtime, file_precision, runtime_for
from prunekit.support.errors import UsageError

FEWEST = 4
"""Sessions of a measurement at least: the spread of fewer is hardly known."""
SHORTEST, LONGEST = 0.3, 0.5
"""Seconds of a session whose engines load at once."""
_PARTS = 8
"""A measurement of the longest time allowed has about so many sessions."""


class Sessions:
    """Artifacts timed against each other in one session after the other.

    ``seconds`` counts from the first one's rounds on. Sessions are processes of their own where the
    runtime can be started quickly, else loadings of the engines in this process.
    """

    def __init__(
        self,
        artifacts: Sequence[Artifact | str | Path],
        target: Target | str,
        seed: int,
        max_seconds: float,
    ) -> None:
        if isinstance(artifacts, (str, Path, Artifact)) or not artifacts:
            raise UsageError("`artifacts` must be a list of at least one artifact or path")
        if seed < 0:
            raise UsageError(f"`seed` is {seed}; the least is 0")
        self.target = Target.of(target)
        self.runtime: Runtime = runtime_for(self.target)
        self.artifacts = tuple(
            item if isinstance(item, Artifact) else Artifact.of_file(item) for item in artifacts
        )
        for artifact in self.artifacts:
            _check(artifact, self.runtime, self.target)
        self.finished: list[Session] = []
        self.seconds = 0.0
        self._max_seconds = max_seconds
        self._rng = np.random.default_rng(seed)

    def add(self) -> float:
        """One more session; gives the seconds it took."""
        began = time.perf_counter()
        seed, seconds = int(self._rng.integers(2**31)), self._session_seconds()
        if can_run_apart(self.runtime, self.target):
            session = session_apart(self.artifacts, self.target, seed, seconds)
        else:
            session = time_session(self.artifacts, self.target, self.runtime, seed, seconds)
        taken = time.perf_counter() - began
        if not self.finished:  # loading for the first time may build an engine
            taken -= session.load_seconds
        self.finished.append(session)
        self.seconds += taken
        return taken

    def _session_seconds(self) -> float:
        """At least twice what loading takes, as long as that leaves time for enough sessions."""
        seconds = min(LONGEST, max(SHORTEST, self._max_seconds / _PARTS))
        if self.finished:
            seconds = max(seconds, 2 * self.finished[-1].load_seconds)
        return min(seconds, max(SHORTEST, self._max_seconds / FEWEST))

    @property
    def count(self) -> int:
        """Sessions so far."""
        return len(self.finished)

    @property
    def rounds(self) -> int:
        """Rounds so far, of all sessions."""
        return sum(session.rounds for session in self.finished)

    @property
    def lost(self) -> float:
        """The share of the time that other processes took, on average."""
        return float(np.mean([session.lost for session in self.finished]))

    def ratio(self, index: int, confidence: float) -> PairedRatio:
        """Artifact ``index`` over the first."""
        known = estimate([s.ratio(index) for s in self.finished], lost=self.lost)
        return PairedRatio.of(known, confidence, self.rounds, self.count)

    def settled(self, goal: float, confidence: float) -> bool:
        """Whether no interval reaches further than ``goal`` to either side, a share.

        Or further than other processes, or the drift of the machine, would let it in any case.
        """
        if len(self.artifacts) > 1:
            known = [self.ratio(i, confidence).estimate for i in range(1, len(self.artifacts))]
        else:
            known = [self.measurement(0).estimate(self.lost)]
        return all(one.reach(confidence) <= goal or one.scale < 1.05 * one.floor for one in known)

    def measurement(self, index: int) -> Measurement:
        """Everything kept of one artifact."""
        timings = [session.timings[index] for session in self.finished]
        return Measurement(
            tuple(ms for one in timings for ms in one.samples_ms),
            sum(one.dropped for one in timings),
            tuple(one.median_ms for one in timings),
        )

    def measurements(self) -> tuple[Measurement, ...]:
        """Of all artifacts."""
        return tuple(self.measurement(index) for index in range(len(self.artifacts)))

    def note(self) -> str:
        """What a progress bar says beside itself."""
        medians = [float(np.median(m.session_medians_ms)) for m in self.measurements()]
        text = ", ".join(f"{median:.3f} ms" for median in medians)
        return text if len(medians) != 2 else f"{text}, ratio {self.ratio(1, 0.95).ratio:.3f}"


def _check(artifact: Artifact, runtime: Runtime, target: Target) -> None:
    """Refuse a file of another format or precision than ``target`` takes."""
    if artifact.format not in runtime.formats:
        raise UsageError(
            f"{artifact.path}: target {target} takes artifacts of format "
            f"{' or '.join(runtime.formats)}, not {artifact.format}"
        )
    # a target in fp32 may compare files in all precisions
    wanted = file_precision(runtime, target)
    if artifact.format == "onnx" and wanted != "fp32":
        from prunekit.runtimes.onnx_graph import check_precision, load_model

        check_precision(artifact.path, load_model(artifact.path), wanted)
