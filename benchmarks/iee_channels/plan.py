"""Which runs the comparison of channel methods is made of: data, nothing carried out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

SEEDS = (0, 1, 2)


EXCHANGE_SEEDS = (0, 1)


TARGETS = ("30%", "50%")


TIMES = 4
"""With so many times the epochs IEE from scratch costs about what HALP costs from scratch."""


EQUAL_COST = f"{TIMES} times the epochs"


SAME_DENSE = "zero growth, the default"
"""The default method again, on the same machine and dense networks as what it is compared with."""


MEASURE_SECONDS = 1.5
"""Of each network that is timed on the way to a latency."""


@dataclass(frozen=True)
class Case:
    """A network on a data set, and how it is trained; ``epochs`` is one dense training run."""

    model: str
    data: str = "benchmarks/glyphs.py:glyphs"
    input: str = "1x3x16x16"
    epochs: int = 8
    batch_size: int = 128
    lr: float = 0.3
    fine_tune_lr: float = 0.2
    precision: str = "no"
    target: str = "onnxruntime:cpu"


DIGITS = Case(
    "zoo:resnet20_w32", "digits", "1x1x16x16", epochs=15, batch_size=64, lr=0.1, fine_tune_lr=0.05
)


CASES = {
    "resnet20_w32": Case(
        "zoo:resnet20_w32", batch_size=64, lr=0.2, fine_tune_lr=0.1, precision="bf16"
    ),
    "mobilenet_v1": Case(
        "benchmarks/nets.py:mobilenet_v1_half",
        *("benchmarks/glyphs.py:glyphs64", "8x3x16x16"),
        batch_size=64,
        lr=0.2,
        fine_tune_lr=0.1,
    ),
    "vgg11_bn": Case(
        "benchmarks/nets.py:vgg11_bn_half",
        *("benchmarks/glyphs.py:glyphs64", "8x3x16x16"),
        batch_size=64,
        lr=0.1,
        fine_tune_lr=0.05,
    ),
    "digits": DIGITS,
    # On the fake target every latency is the same on all machines, and costs no time.
    "subset": replace(DIGITS, model="benchmarks/nets.py:vgg11_bn_half", epochs=3, target="fake"),
}


@dataclass(frozen=True)
class Run:
    """One training: everything that decides its result."""

    case: str
    method: str
    seed: int
    target: str = ""
    criterion: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    note: str = ""

    @property
    def key(self) -> str:
        """A name for this run and the settings of its case."""
        settings = asdict(CASES[self.case])
        if settings["target"] == Case.target:  # keys of the time before there was a choice
            del settings["target"]
        facts = {**asdict(self), "settings": settings}
        facts.pop("note")
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:10]
        parts = [self.case, self.method, self.criterion, self.target.rstrip("%"), str(self.seed)]
        return "-".join([*filter(None, parts), digest])


METHODS = ("iee", "halp", "oneshot", "iee-pretrained", "torch-pruning")


def matrix(cases: list[str]) -> Iterator[Run]:
    """All methods, criteria, targets and seeds; digits, where all come near 99 %, at 30 % alone."""
    for target in TARGETS:
        for seed in SEEDS:
            for case in cases:
                if case == "digits" and target != "30%":
                    continue
                for criterion in ("taylor", "magnitude"):
                    for method in METHODS:
                        yield Run(case, method, seed, target, criterion)
                yield Run(case, "oneshot", seed, target, "random")
                yield Run(case, "uniform", seed, target)
                if target == "30%":
                    yield Run(case, "uniform-long", seed, target)


PUBLISHED = {"estimate": 20, "improve": 20, "explore": 20, "grow": "mru", "source": "mru"}
"""Equal stages, and most recently used values."""


ABLATION: dict[str, dict[str, Any]] = {
    SAME_DENSE: {"grow": "zero"},
    "as published: equal stages, MRU": PUBLISHED,
    "as published, no exploration": {**PUBLISHED, "exploring": False},
    "no exploration (stage 4)": {"exploring": False},
    "no freezing": {"freeze": False},
    "no improvement (stage 3)": {"improve": 0},
    "explored growth": {"grow": "explored"},
    "MRU growth": {"grow": "mru"},
    "H, J, Q a third": {"cycles": 60},
    "H, J, Q three times": {"cycles": 7},
    "half of the rest reactivated": {"reactivate": 0.5},
    "a fifth of the rest reactivated": {"reactivate": 0.2},
    "updates stop at IoU 0.95": {"stop_iou": 0.95},
    "adaptive H and J": {"adaptive": True},
}


def ablation() -> Iterator[Run]:
    """What each part of IEE is worth, on one network."""
    for seed in SEEDS:
        for note, options in ABLATION.items():
            yield Run("resnet20_w32", "iee", seed, "30%", "taylor", options, note)


def equal_cost(cases: list[str]) -> Iterator[Run]:
    """What a training as dear as HALP's makes of IEE and of the uniform net beside it, one seed."""
    options = {"times": TIMES}
    for case in cases:
        yield Run(case, "iee", SEEDS[0], "30%", "taylor", options, EQUAL_COST)
        yield Run(case, "uniform", SEEDS[0], "30%", "", options, EQUAL_COST)


EXCHANGES: dict[str, dict[str, Any]] = {
    SAME_DENSE: {"grow": "zero"},
    "explored growth": {"grow": "explored"},
    "MRU growth": {"grow": "mru"},
    "MRU growth, explored from MRU": {"grow": "mru", "source": "mru"},
    "no exploration (stage 4)": {"exploring": False},
}
"""Of a trained network: whether channels change hands, and what that brings."""


def why(cases: list[str]) -> Iterator[Run]:
    """How well the widths do that HALP found, from random weights: what any search is worth there.

    And whether a trained network gains by what is exchanged.
    """
    for seed in SEEDS:
        for case in cases:
            yield Run(case, "halp-widths", seed, "30%", "taylor")
    for seed in EXCHANGE_SEEDS:
        for note, options in EXCHANGES.items():
            yield Run("mobilenet_v1", "iee-pretrained", seed, "30%", "taylor", options, note)


def importance(run: Run) -> tuple[Any, ...]:
    """The order of runs, so that what is there at any time can be compared."""
    after = run.note or run.method == "halp-widths"  # which reads what HALP found
    return "times" in run.options, TARGETS.index(run.target), bool(after), run.seed


def needs(runs: list[Run]) -> list[Run]:
    """The tables and dense networks that ``runs`` start from, first."""
    cases = list(dict.fromkeys(run.case for run in runs))
    tables = [Run(case, "table", 0) for case in cases]
    dense = [Run(case, "dense", seed) for case in cases for seed in SEEDS]
    return [*tables, *(d for d in dense if any(r.seed == d.seed for r in runs))]
