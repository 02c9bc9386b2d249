"""Which trainings the comparison of sparse methods is made of: data, nothing carried out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

NAME = "sparse_training"


TRIALS = f"{NAME}_trials.jsonl"


LEVELS = ("80%", "90%", "95%", "98%")


METHODS = ("static", "set", "rigl", "gmp", "iee")


@dataclass(frozen=True)
class Case:
    """A network on a data set, and how it is trained."""

    model: str
    data: str = "glyphs64"
    epochs: int = 6
    batch_size: int = 128
    lr: float = 0.4
    size: int = 16
    dense: tuple[str, ...] = ("first",)
    seeds: int = 3
    precision: str = "no"
    """Mixed precision of the training."""


CASES = {
    # the first layer has half of the weights: it is made sparse like the others
    "mlp": Case("glyph_mlp", dense=(), seeds=5),
    "resnet20": Case("resnet20", epochs=3, batch_size=64),
    "wrn22": Case("wrn22_narrow", epochs=3, batch_size=64, precision="bf16"),
    "subset": Case("glyph_mlp", data="digits", epochs=4, batch_size=64, dense=(), seeds=1),
}


RATES = (0.05, 0.1, 0.2, 0.4)


AT_RATES = {
    f"{name} at {rate}": replace(case, lr=rate, precision="no")
    for name, case in CASES.items()
    if name != "subset"
    for rate in RATES
}
"""Every network at every learning rate."""


@dataclass(frozen=True)
class Run:
    """One training: everything that decides its result."""

    case: str
    method: str
    seed: int
    level: str = ""
    distribution: str = "erk"
    pattern: str = "unstructured"
    length: int = 1
    from_dense: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    note: str = ""

    @property
    def key(self) -> str:
        """A name for this run and the settings of its case."""
        settings = asdict(self.settings)
        if settings["precision"] == "no":  # most rows are older than this setting
            del settings["precision"]
        facts = {**asdict(self), "settings": settings}
        facts.pop("note")
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:10]
        parts = [self.case, self.method, self.level.rstrip("%") or self.pattern, str(self.seed)]
        return "-".join([*parts, digest])

    @property
    def settings(self) -> Case:
        """The network and how it is trained."""
        return (CASES | AT_RATES)[self.case]

    @property
    def network(self) -> str:
        """The case, whatever the learning rate."""
        return self.case.split(" at ")[0]

    @property
    def epochs(self) -> int:
        """In the case's epochs, dense ones included."""
        return self.length + (self.from_dense and self.method != "dense")


NO_STAGE_3, THIRD, HALF = {"improve": 0}, {"explore": "third"}, {"until": 0.5}
IOU, UNFROZEN = {"stop_iou": 0.9}, {"freeze": False}
CHEAPEST, BOTH = "a third of Q, exchanges until half", "no stage 3, updates stop at IoU 0.9"
"""The first is trained twice as long on the MLP; the second is IEE's default by now."""
TENTH = {"reactivate": 0.1, "sample": "gradient"}


PARTIAL = "a third of Q, a tenth reactivated, by gradient"
"""Costs little more than RigL."""


STAGES = "the paper's stages"
"""What all other forms change something of, and runs without a note are."""


CHEAPER: dict[str, dict[str, Any]] = {
    CHEAPEST: {**THIRD, **HALF},
    "no stage 3, a third of Q, exchanges until half": {**NO_STAGE_3, **THIRD, **HALF},
    BOTH: {**NO_STAGE_3, **IOU},
    PARTIAL: {**THIRD, **TENTH},
}
"""What costs less than IEE by default, the best of :data:`FORMS`."""


ABLATION: dict[str, dict[str, Any]] = {
    "no exploration (stage 4)": {"source": "mru", "explore": 0},
    "no freezing": UNFROZEN,
    "no stage 3": NO_STAGE_3,
    "grown at zero": {"grow": "zero"},
    "P from zero each time": {"source": "zero"},
    "P from MRU": {"source": "mru"},
    "grown at MRU": {"grow": "mru"},
    "exponential decay, grown at MRU (the paper's)": {"decay": "exponential", "grow": "mru"},
}


OPTIONS: dict[str, dict[str, Any]] = {
    "P keeps its momentum": {"momentum": "kept"},
    "global ranking": {"ranking": "global"},
    "Taylor": {"criterion": "taylor"},
}
"""Not told apart in small trials: at one level only."""


LONGER: dict[str, dict[str, tuple[int, ...]]] = {
    "mlp": {"80%": (2,), "90%": (2, 4), "95%": (2, 6), "98%": (3, 12), "uniform": (2, 4)},
    "resnet20": {"80%": (2,), "90%": (3,), "95%": (4,), "98%": (2, 7), "uniform": (3,)},
    "wrn22": {"80%": (2,), "90%": (3,), "95%": (4,), "98%": (6,), "uniform": (3,)},
}
"""Lengths of RigL, so that its curve of accuracy over FLOPs reaches what IEE costs."""


IOU_ALONE = "updates stop at IoU 0.9"


UNFROZEN_TOO = "no stage 3, no freezing, updates stop at IoU 0.9"


THRICE = {"every": "three times"}


FORMS: dict[str, dict[str, Any]] = {
    **CHEAPER,
    **ABLATION,
    "P keeps its momentum": OPTIONS["P keeps its momentum"],
    "a third of Q": THIRD,
    "a quarter reactivated": {"reactivate": 0.25},
    "a tenth reactivated, by gradient": TENTH,
    "a tenth reactivated, by gradient, grown at zero": {**TENTH, "grow": "zero"},
    IOU_ALONE: IOU,
    "exchanges until half": HALF,
    "a tenth exchanged": {"fraction": 0.1},
    "H three times, J and Q as they were": THRICE,
    "H and Q three times": {**THRICE, "explore": "three times"},
    "no stage 3, a third of Q": {**NO_STAGE_3, **THIRD},
    "no freezing, updates stop at IoU 0.9": {**UNFROZEN, **IOU},
    "no stage 3, no freezing": {**NO_STAGE_3, **UNFROZEN},
    UNFROZEN_TOO: {**NO_STAGE_3, **UNFROZEN, **IOU},
    "no stage 3, no freezing, a third of Q, exchanges until half": {
        **NO_STAGE_3,
        **UNFROZEN,
        **THIRD,
        **HALF,
    },
    "no stage 3, exchanges until half": {**NO_STAGE_3, **HALF},
    "no stage 3, Q of one step": {**NO_STAGE_3, "explore": 1},
    "no stage 3, Q of one step, P keeps its momentum": {
        **NO_STAGE_3,
        "explore": 1,
        "momentum": "kept",
    },
    "no stage 3, a third of Q, a tenth reactivated, by gradient": {**NO_STAGE_3, **THIRD, **TENTH},
}
"""What was tried before the comparisons, with one seed at 95 %."""


LASTING = {
    "mlp": (
        3,
        (
            *(("rigl", ""), ("iee", ""), ("iee", "no freezing"), ("iee", IOU_ALONE)),
            *(("iee", BOTH), ("iee", UNFROZEN_TOO)),
        ),
    ),
    "resnet20": (1, (*((method, "") for method in METHODS), ("iee", BOTH), ("iee", UNFROZEN_TOO))),
}
"""Seeds, and what is tried in longer trainings too."""


KINDS = ("rates", "forms", "lengths")


def trials(kind: str, cases: list[str]) -> list[Run]:
    """What is chosen by the validation images: learning rates, or forms of IEE.

    ``lengths`` asks whether the forms that are best here are so in a longer training too.
    """
    if kind == "lengths":
        return [
            Run(case, method, seed, "95%", length=length, options=FORMS.get(note, {}), note=note)
            for case, (seeds, tried) in LASTING.items()
            if case in cases
            for length in (1, 4)
            for seed in range(seeds)
            for method, note in tried
        ]
    if kind == "rates":
        return [
            Run(f"{case} at {rate}", method, 0, "" if method == "dense" else "95%")
            for case in cases
            for rate in RATES
            for method in ("dense", "rigl", "iee")
        ]
    forms = {"": {}, **FORMS}
    return [
        *(Run(case, "rigl", 0, "95%") for case in cases),
        *(
            Run(case, "iee", 0, "95%", options=options, note=note)
            for case in cases
            for note, options in forms.items()
        ),
    ]


def matrix(case: str) -> Iterator[Run]:
    """Everything about one network, the comparisons of most interest first."""
    seeds, small = range(CASES[case].seeds), case != "mlp"
    for seed in seeds:
        yield Run(case, "dense", seed)
        for level in LEVELS:
            for method in METHODS:
                yield Run(case, method, seed, level)
        for method in METHODS:
            yield Run(case, method, seed, "90%", "uniform")
    for seed in seeds:
        for level, distribution in (*((level, "erk") for level in LEVELS), ("90%", "uniform")):
            yield Run(case, "iee", seed, level, distribution, options=CHEAPER[BOTH], note=BOTH)
    # IEE is not above RigL there even at equal steps
    compared = (0,) if case == "wrn22" else seeds
    for seed in compared:
        for level, lengths in LONGER[case].items():
            which = ("90%", "uniform") if level == "uniform" else (level, "erk")
            for length in lengths:
                yield Run(case, "rigl", seed, *which, length=length)
                if length > 2 and not small:  # long trainings may want a lower rate
                    yield Run(f"{case} at 0.2", "rigl", seed, *which, length=length)
    for seed in {"mlp": seeds, "resnet20": (0,), "wrn22": ()}[case]:
        for level in ("90%", "98%") if small else ("90%", "95%", "98%"):
            for note, options in CHEAPER.items():
                yield Run(case, "iee", seed, level, options=options, note=note)
                if note == CHEAPEST and not small:
                    yield Run(case, "iee", seed, level, length=2, options=options, note=note)
    for seed in compared if small else ():  # the form that comes nearest to RigL
        yield Run(case, "iee", seed, "98%", options=CHEAPER[PARTIAL], note=PARTIAL)
    for seed in seeds if not small else ():
        yield from two_of_four(case, seed)
        yield Run(case, "static", seed, pattern="2:4", length=2, from_dense=True)
        yield Run(case, "iee", seed, pattern="2:4", from_dense=True)
    for seed in seeds if not small else ():
        for level in ("90%", "98%"):
            for note, options in (ABLATION | (OPTIONS if level == "98%" else {})).items():
                yield Run(case, "iee", seed, level, options=options, note=note)


def two_of_four(case: str, seed: int) -> Iterator[Run]:
    """IEE's 2:4 weights and those of the largest magnitudes."""
    yield Run(case, "static", seed, pattern="2:4", from_dense=True)
    own = {"options": CHEAPER[BOTH], "note": BOTH}
    yield Run(case, "iee", seed, pattern="2:4", from_dense=True, **own)


def beyond(case: str) -> Iterator[Run]:
    """What more steps bring a convolutional network, and its 2:4 weights."""
    if case != "resnet20":
        return
    for seed in range(CASES[case].seeds):
        for method in ("static", "set", "rigl"):
            yield Run(case, method, seed, "95%", length=4)
        yield Run(case, "iee", seed, "95%", length=4, options=CHEAPER[BOTH], note=BOTH)
        yield from two_of_four(case, seed)
    for method in ("gmp", "iee"):
        yield Run(case, method, 0, "95%", length=4)


def form(run: Run) -> str:
    """What a run is told by: nothing for a method's defaults, :data:`STAGES` for the paper's."""
    if run.method != "iee":
        return run.note
    return "" if run.note == BOTH else run.note or STAGES


SUBSET = (
    Run("subset", "dense", 0),
    *(Run("subset", method, 0, "95%") for method in METHODS),
    Run("subset", "rigl", 0, "95%", length=8),
    Run("subset", "iee", 0, "95%", options=CHEAPER[CHEAPEST], note=CHEAPEST),
    Run("subset", "iee", 0, "95%", options={"freeze": False}, note="no freezing"),
    Run("subset", "static", 0, pattern="2:4", from_dense=True),
    Run("subset", "iee", 0, pattern="2:4", from_dense=True),
)
"""Every kind of run once, on digits."""
