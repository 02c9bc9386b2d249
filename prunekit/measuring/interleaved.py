"""Artifacts that take turns: rounds of interleaved runs, with what disturbs them kept out."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from prunekit.core.artifact import Artifact
from prunekit.core.target import Target
from prunekit.core.timing import Measurement, PairedRatio, interleaved_order, paired_ratio
from prunekit.runtimes.base import Engine, Runtime, file_precision, runtime_for
from prunekit.support.errors import UsageError

WARM_UP_MS = 200.0
BLOCK_MS = 12.0
"""How long one artifact runs before it is another's turn."""
BLOCKS = 3
"""Turns of every artifact in a round."""


class Race:
    """Engines of several artifacts that take turns; ``seconds`` counts from the first round on.

    Engines are loaded anew from time to time, where loading is cheap: where buffers happen to lie
    in memory moves a session's latency by up to a percent for as long as it lives.
    """

    def __init__(
        self, artifacts: Sequence[Artifact | str | Path], target: Target | str, seed: int
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
            if artifact.format not in self.runtime.formats:
                raise UsageError(
                    f"{artifact.path}: target {self.target} takes artifacts of format "
                    f"{' or '.join(self.runtime.formats)}, not {artifact.format}"
                )
            # a target in fp32 may compare files in all precisions
            wanted = file_precision(self.runtime, self.target)
            if artifact.format == "onnx" and wanted != "fp32":
                from prunekit.runtimes.onnx_graph import check_precision, load_model

                check_precision(artifact.path, load_model(artifact.path), wanted)
        count = len(self.artifacts)
        self._rng = np.random.default_rng(seed)
        self._samples: list[list[float]] = [[] for _ in range(count)]
        self._values: list[list[float]] = [[] for _ in range(count)]
        self._dropped = [0] * count
        self._engines: list[Engine] = []
        self._runs, self._settle = [1] * count, 0
        self._switches = switch_counter(self.target.threads)
        self._started: float | None = None
        self._loaded_at = self._loading = 0.0

    def __enter__(self) -> Race:
        self._load()
        return self

    def __exit__(self, *_: object) -> None:
        for engine in self._engines:
            engine.close()
        self._engines = []

    def _load(self) -> None:
        """Load and warm up; the first time, also choose how many runs make a turn."""
        self.__exit__()
        began = time.perf_counter()
        # In any order, or the same place in memory would always be the same artifact's.
        loaded = {
            int(index): self.runtime.load(self.artifacts[index], self.target)
            for index in self._rng.permutation(len(self.artifacts))
        }
        self._engines = [loaded[index] for index in sorted(loaded)]
        self._loading = time.perf_counter() - began
        first = not self._values[0]
        warm_ms = WARM_UP_MS if first else WARM_UP_MS / 10
        typical = [_warm_up(engine, warm_ms) for engine in self._engines]
        if first:
            self._runs = [max(1, min(200, round(BLOCK_MS / ms))) for ms in typical]
            # The first run of a turn finds the caches full of another network; where runs are
            # long enough for that not to matter much, it is not thrown away.
            self._settle = 1 if max(typical) < 2 * BLOCK_MS else 0
            self._blocks = BLOCKS if max(typical) < 10 * BLOCK_MS else 1
        self._loaded_at = time.perf_counter()

    @property
    def rounds(self) -> int:
        """Rounds so far."""
        return len(self._values[0])

    @property
    def seconds(self) -> float:
        """Seconds since the first round began."""
        return 0.0 if self._started is None else time.perf_counter() - self._started

    def round(self) -> float:
        """One round: every artifact's turns in shuffled order; gives the seconds it took."""
        began = time.perf_counter()
        if self._started is None:
            self._started = began
        elif began - self._loaded_at > max(0.5, 10 * self._loading):
            self._load()
        taken: list[list[tuple[float, bool]]] = [[] for _ in self._engines]
        seed = int(self._rng.integers(2**31))
        for order in interleaved_order(len(self._engines), self._blocks, seed):
            for index in order:
                if self._settle:
                    self._engines[index].time(self._settle)
                taken[index] += self._turn(index)
        for index, samples in enumerate(taken):
            clean = [ms for ms, interrupted in samples if not interrupted]
            kept = clean if 2 * len(clean) >= len(samples) else [ms for ms, _ in samples]
            self._dropped[index] += len(samples) - len(kept)
            self._samples[index] += kept
            self._values[index].append(float(np.median(kept)))
        return time.perf_counter() - began

    def _turn(self, index: int) -> list[tuple[float, bool]]:
        engine, samples = self._engines[index], []
        before = self._switches()
        for _ in range(self._runs[index]):
            (ms,) = engine.time(1)
            after = self._switches()
            samples.append((ms, after != before))
            before = after
        return samples

    def ratio(self, index: int, confidence: float) -> PairedRatio:
        """Artifact ``index`` over the first."""
        return paired_ratio(self._values[0], self._values[index], confidence)

    def spread(self, confidence: float) -> float:
        """The widest half interval that matters, as a share."""
        if len(self._values) > 1:
            ratios = [self.ratio(index, confidence) for index in range(1, len(self._values))]
            return max(max(r.high / r.ratio, r.ratio / max(r.low, 1e-9)) - 1 for r in ratios)
        measured = Measurement(tuple(self._values[0]))
        low, high = measured.interval(confidence)
        return (high - low) / 2 / measured.median_ms

    def note(self) -> str:
        """What a progress bar says beside itself."""
        medians = ", ".join(f"{np.median(values):.3f} ms" for values in self._values if values)
        if len(self._values) != 2 or not self._values[0]:
            return medians
        return f"{medians}, ratio {np.median(self._values[1]) / np.median(self._values[0]):.3f}"

    def measurements(self) -> tuple[Measurement, ...]:
        """Everything kept, one measurement per artifact."""
        return tuple(
            Measurement(tuple(samples), dropped)
            for samples, dropped in zip(self._samples, self._dropped, strict=True)
        )


def _warm_up(engine: Engine, least_ms: float) -> float:
    """Run for ``least_ms``, at most 1000 times; gives the later half's median in milliseconds."""
    samples: list[float] = []
    total = 0.0
    while total < least_ms and len(samples) < 1000:
        samples += engine.time(1)
        total += samples[-1]
    return max(1e-6, float(np.median(samples[len(samples) // 2 :])))


def switch_counter(threads: int) -> Callable[[], int]:
    """How often the system took the processor away so far; always 0 where it does not tell."""
    if sys.platform == "win32":
        return lambda: 0
    import resource

    who = resource.RUSAGE_SELF
    if threads == 1:
        who = getattr(resource, "RUSAGE_THREAD", who)
    return lambda: resource.getrusage(who).ru_nivcsw
