"""How well latency tables predict networks that were not profiled.

    python benchmarks/prediction.py                      everything, resumed where it stopped
    python benchmarks/prediction.py --only resnet18 --batch 1 --threads 1
    python benchmarks/prediction.py --recompute          predictions of this code, nothing measured
    python benchmarks/prediction.py --summary            only the table and the plots

Every case (model, threads, batch) is profiled as a user would, then networks that the profile never
saw are timed end to end, interleaved with the dense one: uniformly random, stage-skewed and chosen
by the allocator from the table itself, all at the probed granularity, and random ones off it. What
is compared is the latency relative to the dense network's. For batch 1 on one thread, tables cut
off after ever more seconds show how the error falls, beside a grid of single operators, MACs and
padded MACs given the same seconds. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from common import RESULTS
from scipy.stats import spearmanr

import prunekit as pk
from prunekit.core.budget import Budget
from prunekit.latency import Entry, LatencyTable, Sample
from prunekit.latency.transfer import layers_us
from prunekit.profiling import HarvestPlan, ProfileRequest, grid, harvest, sample_plans
from prunekit.profiling.choosing import plan_by_shares, random_scores
from prunekit.profiling.collecting import Collection, collect
from prunekit.profiling.journal import Facts
from prunekit.profiling.rounds import end_to_end_us, speeds, typical_us
from prunekit.report.markdown import markdown_table

CACHE = Path(__file__).parent / ".cache" / "prediction"
MODELS = ("resnet18", "resnet50", "mobilenet_v2", "efficientnet_b0", "densenet121")
SIDE = 224
PROFILE_SECONDS = 100.0
HELD_OUT = HarvestPlan(rounds=8, turns=6, min_rounds=2, max_seconds=60.0, seed=99)
BATCHES_HELD_OUT = replace(HELD_OUT, turns=4, max_seconds=120.0, anew=1.0)
"""Where a run takes long: all are loaded anew in every round nevertheless."""
STEADY = 0.02
"""While two halves of that measurement are further apart, it is gone on with, up to three times as
long: what is unsure by more cannot tell of errors of one percent."""
OF_EACH = 8
OFF_THE_GRID = 6
FAMILIES = ("uniform", "skewed", "allocated")


@dataclass(frozen=True)
class Case:
    """What is profiled."""

    model: str
    threads: int
    batch: int
    target: str = "onnxruntime:cpu"

    @property
    def name(self) -> str:
        """For files."""
        return f"{self.model}-{self.target.replace(':', '_')}-{self.threads}t-b{self.batch}"


Predict = Callable[[pk.ChannelPlan], float]


def held_out(graph: pk.ChannelGraph, table: LatencyTable) -> Iterator[tuple[str, pk.ChannelPlan]]:
    """Family and plan of networks that no profile has seen."""
    rng = np.random.default_rng(2026)
    order = {g.id: n / max(1, len(graph.groups) - 1) for n, g in enumerate(graph.groups)}

    def at(share: Callable[[str], float]) -> pk.ChannelPlan:
        return plan_by_shares(graph, table.granularity, lambda group: share(group.id))

    for keep in np.linspace(0.4, 0.95, OF_EACH):
        yield "uniform", at(lambda _, keep=keep: keep * rng.uniform(0.7, 1.3))
    for number, keep in enumerate(np.linspace(0.4, 0.85, OF_EACH)):
        slope = (-1) ** number * rng.uniform(0.4, 0.9)
        yield (
            "skewed",
            at(lambda g, k=keep, s=slope: k + s * (order[g] - 0.5) + rng.uniform(-0.1, 0.1)),
        )
    for share in np.linspace(0.3, 0.85, OF_EACH):
        scores = random_scores(graph, rng)
        budget = Budget.share(float(share))
        yield "allocated", pk.allocate(graph, scores, table, budget, pk.Joint(gap=1e-3)).plan
    for number, keep in enumerate(np.linspace(0.4, 0.9, OFF_THE_GRID)):
        yield "off", pk.ChannelPlan.random(graph, float(keep), number, 1)


def plans_of(path: Path, graph: pk.ChannelGraph, table: LatencyTable) -> list[Any]:
    """Families and plans of what is timed end to end; kept, since some depend on the table.

    The dense network comes first, which all others are compared with.
    """
    if not path.is_file():
        named = [("dense", pk.ChannelPlan.dense(graph)), *held_out(graph, table)]
        path.write_text(json.dumps([(family, plan.widths) for family, plan in named]))
    found = json.loads(path.read_text())
    return [(family, pk.ChannelPlan.from_widths(graph, widths)) for family, widths in found]


def measure(case: Case, before: dict[str, Any] | None = None) -> dict[str, Any]:
    """Profile, measure held-out networks, compare; from the journals, as far as they are there.

    With the result ``before``, all of whose measurements are there, nothing is measured.
    """
    torch.manual_seed(0)
    torch.set_num_threads(1)
    started = time.monotonic()
    model = getattr(torchvision.models, case.model)(weights=None).eval()
    example = torch.zeros(case.batch, 3, SIDE, SIDE)
    target = pk.Target.parse(case.target, batch=case.batch, threads=case.threads)
    graph = pk.trace(model, example)
    CACHE.mkdir(parents=True, exist_ok=True)
    journal = CACHE / f"{case.name}.jsonl"
    plan = HarvestPlan(max_seconds=PROFILE_SECONDS)
    table = harvest(
        *(model, graph, example, target),
        plan=plan,
        journal=journal,
        resume=journal.is_file(),
        name=case.model,
    )
    taken = json.loads(journal.read_text().splitlines()[-1])["seconds"]
    lasted = max(taken, time.monotonic() - started)  # without setting up, where it was resumed
    profile_seconds = before["profile"]["seconds"] if before else lasted

    named = plans_of(CACHE / f"{case.name}.plans.json", graph, table)
    families, plans = [f for f, _ in named], [p for _, p in named]
    how = replace(HELD_OUT if case.batch == 1 else BATCHES_HELD_OUT, nets=len(plans))
    held = CACHE / f"{case.name}.held.jsonl"
    for limit in [0.0] if before else [how.max_seconds * times for times in (1, 2, 3)]:
        found = collect(
            ProfileRequest(
                *(model, graph, example, target, replace(how, max_seconds=limit)),
                journal=held,
                resume=held.is_file(),
            ),
            *(plans, table.granularity, Facts(nets=len(plans))),
            watched=False,
        )
        us, *halves = (typical(found, start, step) for start, step in ((0, 1), (0, 2), (1, 2)))
        halves = [part / part[0] for part in halves]
        if np.mean(np.abs(halves[0] / halves[1] - 1)) <= STEADY:
            break
    ratio = us / us[0]
    predicted = np.array([pk.predict(graph, p, table).ms for p in plans])
    half = np.array([table.half_width(graph, p.widths) for p in plans])
    result = {
        "case": asdict(case),
        "environment": asdict(table.environment),
        "profile": {
            "seconds": round(profile_seconds, 1),
            **asdict(table.protocol),
            "granularity": table.granularity,
            "calibration": asdict(table.calibration),
            "dense_ms": table.networks[0].end_to_end_us / 1e3,
        },
        "held_out": {
            "rounds": len(found.rounds),
            "runs": len(found.rounds[0].end_to_end_ms[0]),
            "seconds": found.rounds[-1].seconds,
        },
        "networks": [
            {
                "family": family,
                "ratio": round(float(r), 5),
                "predicted": round(float(p), 5),
                "half_width": round(float(h), 5),
                "halves": [round(float(part[n]), 5) for part in halves],
            }
            for n, (family, r, p, h) in enumerate(
                zip(families, ratio, predicted / predicted[0], half, strict=True)
            )
        ],
    }
    if case.threads == case.batch == 1:
        inside = [n for n, family in enumerate(families) if family in FAMILIES]
        kept, truth = [plans[n] for n in inside], ratio[inside]
        known = before["by_seconds"]["grid"] if before else None
        result["by_seconds"] = by_seconds(
            *(case, model, graph, example, target, table, journal), kept, truth, known
        )
    return result


def typical(found: Collection, start: int, step: int) -> np.ndarray:
    """Microseconds of every network, by every ``step``-th round from ``start`` on."""
    rounds, slow = found.rounds[start::step], speeds(found.rounds)[start::step]
    nets = range(len(found.plans))
    return np.array([typical_us(end_to_end_us(rounds, slow, net)) for net in nets])


def by_seconds(
    case: Case,
    model: torch.nn.Module,
    graph: pk.ChannelGraph,
    example: torch.Tensor,
    target: pk.Target,
    table: LatencyTable,
    journal: Path,
    plans: list[pk.ChannelPlan],
    truth: np.ndarray,
    known: list[list[float]] | None,
) -> dict[str, list[list[float]]]:
    """(seconds, MAPE in %) of every way to predict, given ever more seconds.

    ``known`` is the curve of the grid, where it was measured before.
    """

    def error(predict: Predict) -> float:
        dense = predict(pk.ChannelPlan.dense(graph))
        found = np.array([predict(plan) for plan in plans]) / dense
        return round(100 * float(np.mean(np.abs(found / truth - 1))), 3)

    curves: dict[str, list[list[float]]] = {
        "harvest": [],
        "grid": [],
        "MACs": [],
        "padded MACs": [],
    }
    lines = journal.read_text().splitlines()
    cut = journal.with_suffix(".cut.jsonl")
    for rounds in range(1, len(lines)):
        cut.write_text("\n".join(lines[: rounds + 1]) + "\n")
        plan = HarvestPlan(max_seconds=-1.0, min_rounds=0)
        part = harvest(
            *(model, graph, example, target), plan=plan, journal=cut, resume=True, name=case.model
        )
        seconds = json.loads(lines[rounds])["seconds"]
        curves["harvest"].append([seconds, error(lambda p, t=part: pk.predict(graph, p, t).ms)])
        for name, block in (("MACs", 1), ("padded MACs", table.granularity)):
            line = macs_line(graph, part, cut, block)
            curves[name].append([seconds, error(line)])
    if known is not None:
        return curves | {"grid": known}
    own = journal.with_suffix(".grid.jsonl")
    plan = HarvestPlan(max_seconds=max(curves["harvest"][-1][0], 30.0))
    request = ProfileRequest(model, graph, example, target, plan, case.model, journal=own)
    whole = grid(request)
    shapes = sorted({layer.shape for layer in graph.layers}, key=str)
    samples: dict[Any, list[Sample]] = {shape: [] for shape in shapes}
    nets = whole.networks
    calibration_seconds = plan.max_seconds / 4

    measured = sample_plans(graph, whole.granularity, len(nets), 0)
    batches = own.read_text().splitlines()[1:]
    step = max(1, len(batches) // 20)
    for count, left in enumerate(reversed(range(len(batches)))):
        row = json.loads(batches[count])
        for number, *values in row["operators"]:
            samples[shapes[number]].append(Sample(0, *values))
        if not all(samples.values()) or left % step:
            continue
        entries = tuple(Entry(shape, tuple(found)) for shape, found in samples.items())
        bare = replace(whole, entries=entries)
        priced = [
            replace(net, layers_us=layers_us(bare, graph, chosen.widths))
            for net, chosen in zip(nets, measured, strict=True)
        ]
        part = replace(bare, networks=tuple(priced)).calibrated()
        found = error(lambda p, t=part: pk.predict(graph, p, t).ms)
        curves["grid"].append([row["seconds"] + calibration_seconds, found])
    return curves


def macs_line(
    graph: pk.ChannelGraph, table: LatencyTable, journal: Path, block: int
) -> Callable[[pk.ChannelPlan], float]:
    """a + b MACs, fitted to the end-to-end times that a harvest has."""

    rows = [json.loads(line) for line in journal.read_text().splitlines()]
    first = len(rows[1]["nets"])
    widths = [p.widths for p in sample_plans(graph, table.granularity, first, 0)]
    widths += [added for row in rows[1:] for added in row["added"]]
    macs = np.array([padded_macs(graph, w, block) for w in widths])
    us = np.array([net.end_to_end_us for net in table.networks])
    design = np.stack([np.ones_like(macs), macs], axis=1) / us[:, None]
    (offset, slope), *_ = np.linalg.lstsq(design, np.ones(len(us)), rcond=None)
    return lambda plan: float(offset + slope * padded_macs(graph, plan.widths, block))


def padded_macs(graph: pk.ChannelGraph, widths: dict[str, int], block: int) -> float:
    """Multiply-adds with every width rounded up to whole blocks."""

    def up(width: int) -> int:
        return -(-width // block) * block if width > 3 else width

    return float(
        sum(x.macs(up(x.width("in", widths)), up(x.width("out", widths))) for x in graph.layers)
    )


# --- what it says -------------------------------------------------------------------------------


def row_of(result: dict[str, Any]) -> dict[str, Any]:
    """One line of the table."""
    nets = result["networks"]

    def errors(*families: str) -> np.ndarray:
        return np.array(
            [100 * abs(n["predicted"] / n["ratio"] - 1) for n in nets if n["family"] in families]
        )

    inside = [n for n in nets if n["family"] in FAMILIES]
    noise = [100 * abs(n["halves"][0] / n["halves"][1] - 1) for n in inside]
    covered = [abs(n["predicted"] / n["ratio"] - 1) <= n["half_width"] for n in inside]
    ranks = spearmanr([n["ratio"] for n in inside], [n["predicted"] for n in inside])
    found = errors(*FAMILIES)
    return {
        **result["case"],
        "seconds": result["profile"]["seconds"],
        "mape": round(float(found.mean()), 2),
        "worst": round(float(found.max()), 2),
        **{family: round(float(errors(family).mean()), 2) for family in FAMILIES},
        "off": round(float(errors("off").mean()), 2),
        "noise": round(float(np.mean(noise)), 2),
        "noise_worst": round(float(np.max(noise)), 2),
        "coverage": round(float(np.mean(covered)), 3),
        "half_width": round(100 * float(np.mean([n["half_width"] for n in inside])), 2),
        "spearman": round(float(ranks.statistic), 4),
        "drift": result["profile"]["drift"],
    }


def known() -> dict[str, dict[str, Any]]:
    """Results by the case's name: those of prediction.json, and what was measured here since."""
    path = RESULTS / "prediction.json"
    kept = json.loads(path.read_text())["cases"] if path.is_file() else []
    found = (p for p in sorted(CACHE.glob("*.json")) if not p.name.endswith(".plans.json"))
    every = [*kept, *(json.loads(p.read_text()) for p in found)]
    by_name = {Case(**result["case"]).name: result for result in every}
    return dict(sorted(by_name.items(), key=lambda item: item[0]))


def summarise() -> None:
    """Write prediction.json, prediction.md and the plots."""
    results = list(known().values())
    if not results:
        raise SystemExit("nothing measured yet")
    rows = [row_of(result) for result in results]
    covered = [
        abs(n["predicted"] / n["ratio"] - 1) <= n["half_width"]
        for result in results
        for n in result["networks"]
        if n["family"] in FAMILIES
    ]
    overall = {"coverage": round(float(np.mean(covered)), 3), "networks": len(covered)}
    RESULTS.mkdir(exist_ok=True)
    content = {"overall": overall, "rows": rows, "cases": results}
    (RESULTS / "prediction.json").write_text(json.dumps(content) + "\n")
    columns = [
        *("model", "target", "threads", "batch", "seconds", "mape", "worst", *FAMILIES, "off"),
        *("noise", "coverage", "half_width", "spearman"),
    ]
    lines = markdown_table(columns, [[str(row[column]) for column in columns] for row in rows])
    device = results[0]["environment"]
    (RESULTS / "prediction.md").write_text(
        "# Prediction error on networks that were not profiled\n\n"
        f"Written by `python benchmarks/prediction.py` on {device['device_name']}, "
        f"{device['runtime_version']}. Errors in % of the latency relative to the dense network; "
        "`seconds` is the whole profile; `noise` is how far two halves of the measurement of the "
        "same networks are apart; `coverage` is the share of networks inside the stated 90 % "
        f"interval, over all cases {overall['coverage']:.1%} of {overall['networks']}.\n\n"
        + "".join(f"{line}\n" for line in lines)
    )
    plot(results)
    print((RESULTS / "prediction.md").read_text())


def plot(results: list[dict[str, Any]]) -> None:
    """Error against seconds, and predicted against measured."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "prunekit"
    import matplotlib.pyplot as plt

    timed = [r for r in results if "by_seconds" in r]
    if timed:
        figure, axes = plt.subplots(1, len(timed), figsize=(3.4 * len(timed), 3.2), squeeze=False)
        for axis, result in zip(axes[0], timed, strict=True):
            for name, curve in result["by_seconds"].items():
                axis.plot(*np.array(curve).T, marker=".", label=name)
            axis.set(title=result["case"]["model"], xlabel="seconds of measuring", yscale="log")
            axis.grid(alpha=0.3)
        axes[0][0].set_ylabel("error on unseen networks (%)")
        axes[0][0].legend()
        figure.tight_layout()
        figure.savefig(RESULTS / "prediction_seconds.svg", metadata={"Date": None})
    figure, axis = plt.subplots(figsize=(5, 5))
    for result in results:
        inside = [n for n in result["networks"] if n["family"] in FAMILIES]
        case = result["case"]
        threads = f"{case['threads']} thread{'s' if case['threads'] > 1 else ''}"
        axis.plot(
            [n["ratio"] for n in inside],
            [n["predicted"] for n in inside],
            {(1, 1): ".", (1, 8): "x", (2, 1): "+", (2, 8): "1"}.get(
                (case["threads"], case["batch"]), "."
            ),
            color=f"C{MODELS.index(case['model'])}",
            markersize=4,
            label=f"{case['model']}, {threads}, batch {case['batch']}",
        )
    axis.plot([0, 1], [0, 1], "k", linewidth=0.5)
    axis.set(xlabel="measured latency / dense", ylabel="predicted latency / dense")
    axis.legend(fontsize=5)
    figure.tight_layout()
    figure.savefig(RESULTS / "prediction.svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=MODELS, choices=MODELS)
    parser.add_argument("--batch", nargs="*", type=int, default=[1, 8])
    parser.add_argument("--threads", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--target", default="onnxruntime:cpu")
    parser.add_argument("--again", action="store_true", help="measure cases that are there anew")
    parser.add_argument("--recompute", action="store_true", help="from the journals alone")
    parser.add_argument("--summary", action="store_true", help="only sum up what is there")
    arguments = parser.parse_args()
    done = known()
    for batch in [] if arguments.summary else arguments.batch:
        for threads in arguments.threads:
            for model in arguments.only:
                case = Case(model, threads, batch, arguments.target)
                path = CACHE / f"{case.name}.json"
                before = json.loads(path.read_text()) if path.is_file() else None
                there = bool(before) if arguments.recompute else case.name in done
                if arguments.recompute != there and not arguments.again:
                    continue
                if arguments.again:
                    before = None
                    for old in CACHE.glob(f"{case.name}.*"):
                        old.unlink()
                result = measure(case, before)
                path.write_text(json.dumps(result))
                print(json.dumps(row_of(result)), flush=True)
    summarise()


if __name__ == "__main__":
    main()
