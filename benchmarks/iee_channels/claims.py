"""What the runs of ``run.py`` say of each claim made for IEE, in numbers and words."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.common import compared, set_apart, worded
from benchmarks.iee_channels.plan import EQUAL_COST, SAME_DENSE

Row = dict[str, Any]
FIRST_MACHINE = "Intel(R) Xeon(R) Processor (family 6 model 167)"
FLOPS_CLAIMED, SECONDS_CLAIMED = 0.45, 0.6


class Runs:
    """Runs by what they are, each seed once."""

    def __init__(self, rows: list[Row]) -> None:
        self._found: dict[tuple[str, ...], dict[int, Row]] = defaultdict(dict)
        for row in rows:
            if row["method"] not in ("table", "dense"):
                key = tuple(row[k] for k in ("case", "target", "method", "criterion", "note"))
                self._found[key][row["seed"]] = row
        self.cases = list(dict.fromkeys(key[0] for key in self._found))
        self.targets = sorted({key[1] for key in self._found})
        self.notes = sorted({key[4] for key in self._found} - {"", SAME_DENSE, EQUAL_COST})
        """Of the ablation."""

    def of(self, case: str, target: str, method: str, criterion: str = "", note: str = "") -> Any:
        """Rows by seed."""
        return self._found.get((case, target, method, criterion, note), {})


def difference(one: dict[int, Row], other: dict[int, Row], paired: bool = True) -> str | None:
    """How much more accurate ``one`` is on the test images; None without any.

    Seed by seed where all seeds were run on one machine: on another, whose kernels round otherwise,
    a training of the same seed comes out like one of another seed. Else by Welch.
    """
    seeds = sorted(one.keys() & other.keys())
    if not seeds:
        return None
    mine, theirs = ([100 * rows[s]["test"] for s in seeds] for rows in (one, other))
    if paired and all(machine(one[s]) == machine(other[s]) for s in seeds):
        return worded(compared([a - b for a, b in zip(mine, theirs, strict=True)]))
    found = set_apart(mine, theirs)
    return worded({**found, "word": f"{found['word']}, unpaired"} if paired else found)


def machine(row: Row) -> str:
    """Where a row was run; the first rows of methods outside the command line did not tell."""
    return str(row.get("environment", {}).get("device_name", FIRST_MACHINE))


def claims(rows: list[Row], folder: Path) -> str:
    """Markdown; differences are points of test accuracy with 90 % intervals over paired seeds."""
    runs = Runs(rows)
    parts = [
        "# What the runs say of the claims",
        "",
        "Differences are points of accuracy on the test images with 90 % intervals (Student's t), "
        "seed by seed where both began alike; against uniform nets, and *unpaired* where seeds "
        "were run on other machines, Welch's. *level*: the interval holds zero; of so many "
        "comparisons about a tenth is told apart by chance. Digits have 359 images, one of them "
        "is 0.28 points.",
    ]
    for title, lines in (
        ("IEE against the same criterion without it", _against(runs)),
        ("What IEE from scratch costs", _costs(runs, folder)),
        ("At HALP's cost", _equal_cost(runs)),
        ("What widths alone are worth, trained from scratch", _widths(runs)),
        ("Ablation", _ablation(runs)),
        ("Against Torch-Pruning, fine-tuned as long", _against_torch_pruning(runs)),
    ):
        found = list(lines)
        if len(found) > 2:
            parts += ["", f"## {title}", "", *found]
    return "\n".join(parts) + "\n"


def _table(*columns: str) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield f"|{' --- |' * len(columns)}"


def _row(*cells: str | None) -> str:
    return f"| {' | '.join(cell or '-' for cell in cells)} |"


def _settings(runs: Runs) -> Iterator[tuple[str, str, str]]:
    for target in runs.targets:
        for case in runs.cases:
            for criterion in ("taylor", "magnitude"):
                yield case, target, criterion


def _against(runs: Runs) -> Iterator[str]:
    yield from _table(
        *("network", "latency", "criterion", "from scratch: - one-shot", "- HALP"),
        *("- uniform, as long", "from pretrained: - one-shot", "- HALP"),
        "measured latency (%) of IEE from scratch, from pretrained, one-shot, HALP, uniform",
    )
    for case, target, criterion in _settings(runs):
        scratch, trained, halp, oneshot = (
            runs.of(case, target, method, criterion)
            for method in ("iee", "iee-pretrained", "halp", "oneshot")
        )
        uniform = runs.of(case, target, "uniform")
        cells = [difference(scratch, other) for other in (oneshot, halp)]
        cells += [difference(scratch, uniform, paired=False)]
        cells += [difference(trained, other) for other in (oneshot, halp)]
        if any(cells):
            every = (scratch, trained, oneshot, halp, uniform)
            yield _row(case, target, criterion, *cells, ", ".join(map(_latency, every)))


def _costs(runs: Runs, folder: Path) -> Iterator[str]:
    timed = folder / "iee_channels_seconds.json"
    seconds = {}
    if timed.is_file():
        seconds = {r["case"]: r["relative_seconds"] for r in json.loads(timed.read_text())["rows"]}
    yield from _table(
        *("network", "latency", "criterion", f"FLOPs / dense (claim {FLOPS_CLAIMED})"),
        *(f"seconds / dense (claim {SECONDS_CLAIMED})", "HALP's FLOPs"),
    )
    for case, target, criterion in _settings(runs):
        own, halp = (runs.of(case, target, method, criterion) for method in ("iee", "halp"))
        if own and target == "30%":
            took = seconds.get(case) if criterion == "taylor" else None
            yield _row(
                *(case, target, criterion, _average(own)),
                "-" if took is None else f"{took:.2f}",
                _average(halp),
            )


def _average(rows: dict[int, Row]) -> str:
    return f"{mean(r['relative_flops'] for r in rows.values()):.2f}" if rows else "-"


def _latency(rows: dict[int, Row]) -> str:
    return f"{100 * mean(r['ratio'] for r in rows.values()):.1f}" if rows else "-"


def _equal_cost(runs: Runs) -> Iterator[str]:
    yield from _table(
        *("network", "IEE's FLOPs", "HALP's", "accuracy: IEE - HALP", "- uniform, as many epochs"),
        *("- IEE of one dense run's epochs", "measured latency (%) of IEE, HALP, uniform"),
    )
    for case in runs.cases:
        own = runs.of(case, "30%", "iee", "taylor", EQUAL_COST)
        halp = runs.of(case, "30%", "halp", "taylor")
        uniform = runs.of(case, "30%", "uniform", "", EQUAL_COST)
        if own:
            yield _row(
                *(case, _average(own), _average(halp), difference(own, halp)),
                difference(own, uniform, paired=False),
                difference(own, runs.of(case, "30%", "iee", "taylor")),
                ", ".join(map(_latency, (own, halp, uniform))),
            )


def _widths(runs: Runs) -> Iterator[str]:
    yield from _table("network", "HALP's widths - uniform ones", "IEE - HALP's widths")
    for case in runs.cases:
        own = runs.of(case, "30%", "halp-widths", "taylor")
        if own:
            uniform, iee = runs.of(case, "30%", "uniform"), runs.of(case, "30%", "iee", "taylor")
            yield _row(case, difference(own, uniform), difference(iee, own))


PARTS_OF = {"as published, no exploration": "as published: equal stages, MRU"}
"""What a form is compared with, where that is not the default."""


def _ablation(runs: Runs) -> Iterator[str]:
    yield from _table(
        *("network", "from", "changed", "accuracy: changed - full", "FLOPs / dense, full's"),
        *("survival of grown channels, full's", "measured latency (%), full's"),
    )
    for case in runs.cases:
        for method, start in (("iee", "scratch"), ("iee-pretrained", "pretrained")):
            again = runs.of(case, "30%", method, "taylor", SAME_DENSE)
            default = again or runs.of(case, "30%", method, "taylor")
            for note in runs.notes:
                own = runs.of(case, "30%", method, "taylor", note)
                whole = PARTS_OF.get(note)
                full = runs.of(case, "30%", method, "taylor", whole) if whole else default
                if own:
                    costs = f"{_average(own)}, {_average(full)}"
                    lived = f"{_survival(own)}, {_survival(full)}"
                    timed = f"{_latency(own)}, {_latency(full)}"
                    note += f" (less {whole})" if whole else ""
                    yield _row(case, start, note, difference(own, full), costs, lived, timed)


def _survival(rows: dict[int, Row]) -> str:
    """The share of grown channels that the next prune leaves, over all updates."""
    pairs = [
        (now["survival"] * before["grown"], before["grown"])
        for row in rows.values()
        for before, now in pairwise(row["updates"])
        if now["survival"] is not None
    ]
    return f"{sum(kept for kept, _ in pairs) / sum(n for _, n in pairs):.2f}" if pairs else "-"


def _against_torch_pruning(runs: Runs) -> Iterator[str]:
    yield from _table(
        *("network", "latency", "criterion", "HALP - Torch-Pruning", "IEE from pretrained - it"),
        "measured latency (%) of HALP, IEE, Torch-Pruning",
    )
    for case, target, criterion in _settings(runs):
        other = runs.of(case, target, "torch-pruning", criterion)
        halp, trained = (
            runs.of(case, target, method, criterion) for method in ("halp", "iee-pretrained")
        )
        if other:
            timed = ", ".join(map(_latency, (halp, trained, other)))
            cells = (difference(halp, other), difference(trained, other), timed)
            yield _row(case, target, criterion, *cells)
