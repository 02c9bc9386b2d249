import hashlib
import json
import re
from html.parser import HTMLParser

import pytest

from prunekit.core.target import Environment, Target
from prunekit.report import REPORT_VERSION, Report, read_log, to_html, to_markdown
from prunekit.report.schema import (
    AccuracyPart,
    AllocationPart,
    AttemptPart,
    BudgetPart,
    EpochPart,
    LatencyPart,
    Pair,
    TablePart,
    TrainingPart,
    UpdatePart,
)
from prunekit.support.errors import FileError
from prunekit.support.files import dump_json

SMALL = {
    "layer1.0.conv1": (64, 32),
    "layer1.1.conv1": (64, 24),
    "layer2.0.conv1": (128, 72),
    "layer2.1.conv1": (128, 128),
    "layer3.0.conv1": (256, 96),
    "layer3.1.conv1": (256, 8),
    "layer4.0.conv1": (512, 136),
}


def many_groups(count):
    """Widths of a deep network, some cut hard and some not at all."""
    widths = {}
    for i in range(count):
        before = 64 * 2 ** (4 * i // count)
        name = f"features.denseblock{1 + 4 * i // count}.denselayer{i + 1}.conv1"
        widths[name] = (before, before * ((3 + 5 * i) % 8 + 1) // 8)
    return widths


def make_report(
    *, met=True, accuracy=(0.9312, 0.9287), widths=None, model="zoo:resnet20_w32", **changes
):
    """A finished run as it comes out of the pipeline."""
    ratio, ends = (0.4912, (0.4871, 0.4955)) if met else (0.5377, (0.5301, 0.5460))
    parts = {
        "model": model,
        "target": Target("onnxruntime", "cpu", "fp32", 1, 2),
        "environment": Environment(
            device_name="Example CPU @ 2.40GHz (family 6 model 143)",
            runtime_version="onnxruntime 1.23.2",
            machine="x86_64",
            cores=2,
            isa=("avx2", "avx512f", "avx512_vnni"),
            os="Linux 6.8",
            python="3.12.4",
            packages={"numpy": "2.2.1"},
            created="2025-11-03T09:30:00Z",
        ),
        "budget": BudgetPart(kind="latency", requested="50%", limit_ms=4.1075),
        "latency": LatencyPart(
            dense_ms=8.215,
            pruned_ms=8.215 * ratio,
            dense_ci_ms=(8.19, 8.242),
            pruned_ci_ms=(8.19 * ratio, 8.242 * ratio),
            ratio=ratio,
            ratio_ci=ends,
            confidence=0.95,
            rounds=120,
            predicted_ms=4.211,
            limit_ratio=0.5,
            met=met,
        ),
        "accuracy": AccuracyPart(dense=accuracy[0], pruned=accuracy[1]),
        "macs": Pair(dense=40_592_640, pruned=18_971_904),
        "params": Pair(dense=1_084_586, pruned=426_466),
        "file_bytes": Pair(dense=4_411_973, pruned=1_781_783),
        "training_cost": TrainingPart(relative_flops=1.37, seconds=1452.4, dense_seconds=803.0),
        "allocation": AllocationPart(
            solver="joint",
            gap=1.75e-5,
            status="optimal",
            value=0.9205,
            method="halp",
            criterion="taylor",
            granularity=8,
        ),
        "landing": (
            AttemptPart(
                asked=0.495, predicted=0.4877, ratio=0.5421, ratio_ci=(0.533, 0.5502), chosen=False
            ),
            AttemptPart(
                asked=0.452, predicted=0.4503, ratio=0.4705, ratio_ci=(0.4622, 0.4776), chosen=False
            ),
            AttemptPart(
                asked=0.474, predicted=0.4718, ratio=0.4899, ratio_ci=(0.484, 0.4968), chosen=True
            ),
        ),
        "table": TablePart(source="harvest", nets=10, rounds=6, mape=0.0299, worst=0.0812),
        "widths": SMALL if widths is None else widths,
        "frozen": {
            "conv1": "its width is tied to a residual sum",
            "fc": "it is the model's output",
        },
        "digests": {"dense": "0" * 64, "onnx": "1" * 64},
        "artifacts": {
            "dense": "out/run/dense.onnx",
            "onnx": "out/run/model.onnx",
            "plan": "out/run/plan.json",
            "weights": "out/run/model.safetensors",
            "recipe": "out/run/config.toml",
            "engine": "out/run/export/model fp16.engine",
            "table": "tables/here.json",
        },
        "seed": 3,
        "recipe": {
            "model": model,
            "input": "1x3x32x32",
            "target": "onnxruntime:cpu",
            "target_latency": "50%",
            "epochs": 15,
            "lr": 0.1,
            "from_scratch": True,
            "table": None,
        },
        "versions": {"prunekit": "0.1.0", "torch": "2.9.0", "onnx": "1.19.0"},
    }
    return Report(**(parts | changes))


class Page(HTMLParser):
    """Fails on badly nested tags; collects tags, attributes and the text between them."""

    VOID = frozenset({"meta", "br", "col", "link", "img", "wbr"})

    def __init__(self, text):
        super().__init__()
        self.stack, self.tags, self.text = [], [], []
        self.feed(text)
        self.close()
        assert not self.stack

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.text.append("" if tag == "wbr" else " ")
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        self.text.append(" ")
        assert self.stack.pop() == tag, (tag, self.getpos())

    def handle_data(self, data):
        if self.stack[-1:] != ["style"]:
            self.text.append(data)

    @property
    def words(self):
        return " ".join("".join(self.text).split())

    def all(self, tag, **attributes):
        return [a for t, a in self.tags if t == tag and attributes.items() <= a.items()]


def positions(page, tag, key, **attributes):
    return [float(a[key].rstrip("%")) for a in page.all(tag, **attributes)]


# --- Markdown -------------------------------------------------------------------------------------


def test_markdown_states_the_verdict_and_the_table():
    lines = to_markdown(make_report()).splitlines()
    assert lines[:10] == [
        "# zoo:resnet20_w32",
        "",
        "**target 50% met: measured 49.1% of dense [48.7%, 49.5%] on onnxruntime:cpu**",
        "",
        "|  | dense | pruned | pruned / dense |",
        "| --- | --- | --- | --- |",
        "| latency (ms) | 8.215 [8.190, 8.242] | 4.035 [4.023, 4.048] | 49.1% [48.7%, 49.5%] |",
        "| accuracy (top-1) | 93.12% | 92.87% | -0.25 points |",
        "| MACs | 40.59 M | 18.97 M | 46.7% |",
        "| parameters | 1.08 M | 0.43 M | 39.3% |",
    ]
    assert "| layer3.1.conv1 | 256 | 8 |" in lines
    assert "| 49.5% | 48.8% | 54.2% [53.3%, 55.0%] |  |" in lines
    assert "| conv1 | its width is tied to a residual sum |" in lines


def test_markdown_says_not_met_and_leaves_out_what_was_not_measured():
    cost = TrainingPart(relative_flops=None, seconds=0, dense_seconds=0)
    text = to_markdown(make_report(met=False, accuracy=(None, None), training_cost=cost))
    assert "**target 50% NOT met: measured 53.8% of dense [53.0%, 54.6%]" in text
    assert "accuracy" not in text
    assert "- training: none, 0 s" in text


# --- HTML -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("met", [True, False])
def test_page_states_the_verdict(met):
    page = Page(to_html(make_report(met=met)))
    word, limits = ("met", "49.1% 48.7% 49.5%") if met else ("NOT met", "53.8% 53.0% 54.6%")
    assert f"Target {word} target 50% {word}: measured {limits.split()[0]} of dense" in page.words
    _, low, high = limits.split()
    assert f"95% interval {low} to {high}" in page.words
    assert bool(page.all("section", **{"class": "verdict met"})) is met
    assert "limit 50.0%" in page.words


@pytest.mark.parametrize(
    ("met", "ends", "words"),
    [
        (True, (0.48, 0.505), "may be missed"),
        (False, (0.495, 0.55), "may be met"),
        (True, (0.48, 0.499), None),
        (False, (0.53, 0.55), None),
    ],
)
def test_page_says_when_the_interval_doubts_the_verdict(met, ends, words):
    report = make_report(met=met)
    latency = report.latency.model_copy(update={"ratio_ci": ends})
    text = Page(to_html(report.model_copy(update={"latency": latency}))).words
    assert ("The interval reaches" in text) is (words is not None)
    assert words is None or words in text


def test_page_holds_every_part_of_the_report():
    text = Page(to_html(make_report())).words
    for words in (
        "latency (ms) 8.215 [8.190, 8.242] 4.035 [4.023, 4.048] 49.1% [48.7%, 49.5%]",
        "accuracy (top-1) 93.12% 92.87% -0.25 points",
        "speed-up 2.04x 8.215 → 4.035 ms top-1 accuracy \u22120.25 points 93.12% → 92.87%",
        "plan 1 49.5% 48.8% 54.2% [53.3%, 55.0%]",
        "final \u2013 \u2013 49.1% [48.7%, 49.5%]",
        "1408 → 496 channels in 7 prunable groups, 1 of them untouched",
        "layer1.0.conv1 64 → 32 50%",
        "fc it is the model's output",
        "device Example CPU @ 2.40GHz (family 6 model 143)",
        "onnxruntime:cpu fp32, batch 1, 2 threads",
        "error on networks left out 3.0% (worst 8.1%)",
        "predicted 4.211 ms, 4.4% above the measured",
        "compute 1.37x the FLOPs of one dense training run time 24 min 12 s",
        "measured 2025-11-03 09:30:00 UTC",
        'target_latency = "50%" epochs = 15 lr = 0.1 from_scratch = true',
        "prunekit 0.1.0 torch 2.9.0",
    ):
        assert words in text


def test_page_without_data_or_training_says_so():
    cost = TrainingPart(relative_flops=None, seconds=0, dense_seconds=0)
    report = make_report(
        accuracy=(None, None), training_cost=cost, frozen={}, landing=(), artifacts={}, widths={}
    )
    text = Page(to_html(report)).words
    assert "accuracy not measured: no data was given" in text
    assert "training none" in text
    assert "Not prunable" not in text
    assert "None" not in text


def test_page_loads_nothing():
    text = to_html(make_report())
    page = Page(text)
    assert "http" not in text.replace("http-equiv", "")
    assert "url(" not in text
    assert "@import" not in text
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert not [a for _, a in page.tags if "src" in a or any(name.startswith("on") for name in a)]
    policy = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert policy[0]["content"] == "default-src 'none'; style-src 'unsafe-inline'"


def test_names_and_texts_are_inert():
    evil = "<script>alert(1)</script>\"'&{{ 7*7 }}"
    report = make_report(
        model=evil,
        widths={evil: (8, 4)},
        frozen={evil: evil},
        artifacts={evil: f"out/{evil}", "onnx": "out/javascript:alert(1)"},
        versions={evil: evil},
        budget=BudgetPart(kind="latency", requested=evil, limit_ms=1),
    )
    text = to_html(report)
    page = Page(text)
    assert "<script" not in text
    assert not page.all("script")
    assert page.words.count("<script>alert(1)</script>\"'&{{ 7*7 }}") >= 8
    assert [a["href"] for a in page.all("a")] == [
        "%3Cscript%3Ealert%281%29%3C/script%3E%22%27%26%7B%7B%207%2A7%20%7D%7D",
        "javascript%3Aalert%281%29",
    ]


def test_files_in_the_run_folder_are_relative_links_and_others_are_not():
    page = Page(to_html(make_report()))
    links = [a["href"] for a in page.all("a")]
    assert "model.onnx" in links
    assert "export/model%20fp16.engine" in links
    assert not [link for link in links if "run" in link or "tables" in link]
    assert "table tables/here.json" in page.words


def test_charts_have_titles_and_tables_have_headers():
    page = Page(to_html(make_report(widths=many_groups(30))))
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    images = [a for tag, a in page.tags if tag == "svg" and "aria-hidden" not in a]
    assert len([a for a in images if a.get("role") == "img"]) == 3
    for image in images:
        if image.get("role") == "img":
            assert set(image["aria-labelledby"].split()) <= set(ids)
    assert all(a.get("scope") in ("col", "row") for a in page.all("th"))


def test_marks_of_the_landing_chart_lie_where_their_numbers_are():
    page = Page(to_html(make_report()))
    limit = positions(page, "line", "x1", **{"class": "limit dashed"})[0]
    measured = positions(page, "circle", "cx", r="4")
    assert len(measured) == 4
    assert [x > limit for x in measured] == [True, False, False, False]
    predicted = positions(page, "circle", "cx", **{"class": "predicted", "r": "4.5"})[1:]
    per_point = (measured[0] - measured[1]) / (0.5421 - 0.4705)
    assert predicted[0] - measured[0] == pytest.approx((0.4877 - 0.5421) * per_point, abs=0.01)


def test_a_request_for_the_smallest_plan_does_not_stretch_the_axis():
    smallest = AttemptPart(
        asked=0.0, predicted=0.52, ratio=0.54, ratio_ci=(0.53, 0.55), chosen=False
    )
    page = Page(to_html(make_report(met=False, landing=(smallest,))))
    assert "plan 1 smallest 52.0% 54.0%" in page.words
    assert " 10% " not in page.words


@pytest.mark.parametrize("count", [1, 23, 24, 150])
def test_every_group_has_a_bar_of_its_share(count):
    widths = many_groups(count)
    page = Page(to_html(make_report(widths=widths)))
    bars = positions(page, "rect", "width", **{"class": "fill", "height": "10"})
    shares = [100 * after / before for before, after in widths.values()]
    assert bars == pytest.approx(shares, abs=0.01)
    assert len(page.all("table", **{"class": "bars"})) == (1 if count < 24 else 2)


def test_page_stays_small():
    assert len(to_html(make_report(widths=many_groups(150))).encode()) < 200_000


# --- training: the page ---------------------------------------------------------------------------


def trained(*, iee=True, updates=6, stages=(("dense training", 3), ("iee", 4), ("fine tuning", 5))):
    """Epochs of all stages and updates of the structure, as a finished run has logged them."""
    epochs = [
        EpochPart(
            stage=stage,
            epoch=n + 1,
            step=40 * (n + 1),
            loss=2.0 / (n + 1),
            lr=0.1,
            accuracy=0.9 - 0.1 / (n + 1),
            seconds=30.0 * (n + 1),
        )
        for stage, count in stages
        for n in range(count)
    ]
    names = list(SMALL)
    found = [
        UpdatePart(
            stage="iee",
            step=20 * (c + 1),
            cycle=c,
            predicted_ratio=0.9 - 0.07 * c,
            widths={name: SMALL[name][0] - 8 * min(c, i) for i, name in enumerate(names)},
            **(
                {
                    "omega": 0.3,
                    "iou": 0.5 + 0.08 * c,
                    "grown": 10 * c,
                    "survival": 0.25 if c else None,
                    "relative_flops": 0.1 * c,
                }
                if iee
                else {}
            ),
        )
        for c in range(updates)
    ]
    return {"epochs": tuple(epochs), "updates": tuple(found)}


def section(report):
    """The part of the page about training, or nothing."""
    text = to_html(report)
    if 'aria-labelledby="training"' not in text:
        return None
    start = text.index('<section aria-labelledby="training">')
    return text[start : text.index("</section>", start) + len("</section>")]


def panel(report, name):
    """One chart of the training section, by its id."""
    found = section(report)
    start = found.find(f'<svg class="panel" role="img" aria-labelledby="{name}-title')
    if start < 0:
        return None
    return Page(found[start : found.index("</figure>", start)])


def lines(page):
    """The points of every curve."""
    return [
        [tuple(map(float, point.split(","))) for point in a["points"].split()]
        for a in page.all("polyline", **{"class": "curve"})
    ]


def dots(page):
    marks = page.all("circle", **{"class": "dot"})
    return [(float(a["cx"].rstrip("%")), float(a["cy"].rstrip("%"))) for a in marks]


@pytest.mark.parametrize("name", ["loss", "accuracy"])
def test_a_curve_over_epochs_has_a_point_per_epoch_and_breaks_between_stages(name):
    page = panel(make_report(**trained()), name)
    assert [len(line) for line in lines(page)] == [3, 4, 5]
    assert [pair for line in lines(page) for pair in line] == [
        pytest.approx(dot, abs=0.01) for dot in dots(page)
    ]
    middles = [100 * (i + 0.5) / 12 for i in range(12)]
    assert [x for x, _ in dots(page)] == pytest.approx(middles, abs=0.01)
    borders = positions(page, "line", "x1", **{"class": "border"})
    assert borders == pytest.approx([25, 100 * 7 / 12], abs=0.01)


def test_points_lie_where_their_numbers_are():
    page = panel(make_report(**trained()), "loss")
    (top, half, third, *_) = [y for _, y in dots(page)]
    assert top < half < third  # 2, 1, 2/3: the higher the loss, the nearer the top
    assert (third - half) / (half - top) == pytest.approx((1 - 2 / 3) / (2 - 1), abs=1e-3)
    assert "dense training, epoch 1: loss 2 " in page.words
    assert "fine tuning, epoch 5: loss 0.4" in page.words
    accuracy = panel(make_report(**trained()), "accuracy")
    assert "iee, epoch 2: accuracy 85.00%" in accuracy.words


def test_the_predicted_latency_has_a_point_per_update_and_the_target():
    page = panel(make_report(**trained()), "predicted")
    assert [len(line) for line in lines(page)] == [6]
    assert [x for x, _ in dots(page)] == pytest.approx(
        [100 * 20 * (c + 1) / 120 for c in range(6)], abs=0.01
    )
    (limit,) = positions(page, "line", "y1", **{"class": "limit dashed"})
    ratios = [0.9 - 0.07 * c for c in range(6)]
    per_share = (dots(page)[5][1] - dots(page)[0][1]) / (ratios[0] - ratios[5])
    assert limit == pytest.approx(dots(page)[0][1] + (ratios[0] - 0.5) * per_share, abs=0.01)
    assert "target 50.0%" in page.words
    assert "step 120: 55.0%" in page.words


def test_iou_and_survival_share_an_axis_from_zero_to_one():
    page = panel(make_report(**trained()), "structure")
    assert [len(line) for line in lines(page)] == [6, 5]  # nothing has grown before the first
    heights = [y for _, y in dots(page)]
    assert heights[:6] == pytest.approx([100 - 100 * (0.5 + 0.08 * c) for c in range(6)], abs=0.01)
    assert heights[6:] == pytest.approx([75.0] * 5)
    assert "cycle 3: IoU 0.740" in page.words
    assert "cycle 1: survival 0.250" in page.words


def test_a_missing_value_breaks_the_curve():
    parts = trained()
    holes = [
        u.model_copy(update={"iou": None}) if u.cycle == 2 else u for u in parts.pop("updates")
    ]
    page = panel(make_report(**parts, updates=tuple(holes)), "structure")
    assert [len(line) for line in lines(page)] == [2, 3, 5]


def heat_rows(report):
    """(x, width, opacity) of every cell, row by row."""
    rows = section(report).split('<table class="bars heat">')[1].split("</table>")[0]
    return [
        [
            (int(a["x"]), int(a["width"]), float(a["fill-opacity"]))
            for a in Page(row.split("<td>")[1].split("</td>")[0]).all("rect")
        ]
        for row in rows.split("<tbody>")[1].split("</tr>")
        if "<svg" in row
    ]


def as_last_updated(parts):
    """The parts, and the widths of their last update as those of the network."""
    last = parts["updates"][-1].widths
    return parts | {"widths": {name: (SMALL[name][0], width) for name, width in last.items()}}


def test_the_heat_map_has_a_row_per_group_and_a_column_per_update():
    report = make_report(**as_last_updated(trained()))
    rows = heat_rows(report)
    assert len(rows) == len(SMALL)
    for number, (row, (full, _)) in enumerate(zip(rows, SMALL.values(), strict=True)):
        spread = [tone for _, width, tone in row for _ in range(width)]
        shares = [(full - 8 * min(c, number)) / full for c in range(6)]
        assert spread == pytest.approx([0.06 + 0.94 * share for share in shares], abs=0.006)
        assert [x for x, *_ in row] == [sum(w for _, w, _ in row[:i]) for i in range(len(row))]
    assert [len(row) for row in rows] == [1, 2, 3, 4, 5, 6, 6]  # equal neighbours are one cell
    titles = [a["title"] for a in Page(section(report)).all("tr") if "title" in a]
    assert titles[2] == "layer2.0.conv1: 128, 120, 112, 112, 112, 112 of 128 channels"
    words = Page(section(report)).words
    assert "layer4.0.conv1 512 → 472 of 512" in words
    assert "0% 25% 50% 75% 100%" in words


def test_a_plan_chosen_after_the_last_update_is_the_last_column():
    report = make_report(**trained())
    titles = [a["title"] for a in Page(section(report)).all("tr") if "title" in a]
    assert titles[2] == "layer2.0.conv1: 128, 120, 112, 112, 112, 112, 72 of 128 channels"
    words = Page(section(report)).words
    assert "6 updates from left to right, and the plan that was chosen by measuring." in words
    assert "layer2.0.conv1 128 → 72 of 128" in words
    assert all(sum(width for _, width, _ in row) == 7 for row in heat_rows(report))


def test_a_long_history_is_drawn_in_part_and_says_so():
    report = make_report(**as_last_updated(trained(updates=200)))
    assert all(sum(width for _, width, _ in row) == 60 for row in heat_rows(report))
    text = Page(section(report)).words
    assert "200 updates from left to right, of which 60 are drawn" in text
    assert "cycle 0, step 20 cycle 199, step 4000" in text
    assert len(dots(panel(report, "predicted"))) == 200


def test_the_numbers_can_be_read_without_the_charts():
    text = Page(section(make_report(**trained()))).words
    assert "12 epochs in 3 stages, the last ending at 88.00% validation accuracy." in text
    assert "6 updates of the structure, the last predicted at 55.0% of the dense latency." in text
    assert "dense training : epochs 1 to 3, iee : epochs 4 to 7, fine tuning : epochs 8" in text
    assert "stage epoch loss learning rate accuracy time dense training 1 2 0.1 80.00%" in text
    assert "fine tuning 5 0.4 0.1 88.00% 2 min 30 s" in text
    head = "cycle step predicted latency omega IoU grown survival FLOPs so far"
    assert f"{head} 0 20 90.0% 0.3 0.500 0 \u2013 0.00x 1 40 83.0% 0.3 0.580 10 25.0% 0.10x" in text


def test_what_is_not_there_is_left_out():
    assert section(make_report()) is None
    only_epochs = make_report(epochs=trained()["epochs"])
    assert panel(only_epochs, "loss") is not None
    assert panel(only_epochs, "predicted") is None
    assert "Widths over time" not in section(only_epochs)
    halp = make_report(**trained(iee=False))
    assert len(dots(panel(halp, "predicted"))) == 6
    assert panel(halp, "structure") is None
    text = Page(section(halp)).words
    assert "IoU" not in text
    assert "cycle step predicted latency 0 20 90.0% 1 40 83.0%" in text
    only_updates = section(make_report(updates=trained()["updates"]))
    assert "epoch" not in Page(only_updates).words


@pytest.mark.parametrize("count", [1, 2, 300])
def test_any_number_of_epochs_can_be_drawn(count):
    report = make_report(**trained(stages=(("iee", count),), updates=1))
    page = panel(report, "loss")
    assert len(dots(page)) == count
    assert [len(line) for line in lines(page)] == ([count] if count > 1 else [])
    assert not page.all("line", **{"class": "border"})
    first_chart = section(report).split("</figure>")[0]
    ticks = [int(text) for text in re.findall(r'dy="18"[^>]*>([^<]*)<', first_chart)]
    assert ticks
    assert all(1 <= tick <= count for tick in ticks)
    assert len(dots(panel(report, "structure"))) == 1


def test_the_training_section_is_accessible_and_inert():
    evil = "<script>alert(1)</script>"
    parts = trained(stages=((evil, 2), ("fine tuning", 2)))
    report = make_report(**parts, widths={evil: (8, 4)})
    page = Page(to_html(report))
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    images = page.all("svg", role="img")
    assert len(images) == 3 + 4
    assert all(set(image["aria-labelledby"].split()) <= set(ids) for image in images)
    assert all(a.get("scope") in ("col", "row") for a in page.all("th"))
    assert not page.all("script")
    assert f"{evil}, epoch 2: loss 1" in page.words


def test_markdown_has_first_middle_and_last():
    text = to_markdown(make_report(**trained()))
    assert "| dense training | 1 | 2 | 0.1 | 80.00% | 30.0 s |" in text
    assert "| fine tuning | 5 | 0.4 | 0.1 | 88.00% | 2 min 30 s |" in text
    table = text.split("first, middle and last)\n\n")[2].split("\n\n")[0].splitlines()
    assert table[0].startswith("| cycle | step | predicted latency | omega | IoU | grown |")
    assert [row.split("|")[1].strip() for row in table[2:]] == ["0", "2", "5"]
    assert "## Training" not in to_markdown(make_report())


# --- training: the log ----------------------------------------------------------------------------


def epoch_row(stage, epoch, **more):
    return {"stage": stage, "epoch": epoch, "step": 40 * epoch, "loss": 0.5} | more


def update_row(cycle, **more):
    row = {"stage": "update", "step": 10 * cycle, "cycle": cycle, "predicted_ratio": 0.9}
    return row | {"widths": {"a": 8}} | more


def write_log(path, *rows):
    path.write_text("".join(r if isinstance(r, str) else json.dumps(r) + "\n" for r in rows))
    return path


def test_a_log_is_read_stage_by_stage(tmp_path):
    path = write_log(
        tmp_path / "log.jsonl",
        epoch_row("dense training", 1, lr=0.1, accuracy=0.5, seconds=3.5),
        update_row(1),
        update_row(2, omega=0.3, iou=0.75, grown=4, survival=None, relative_flops=0.2),
        epoch_row("iee", 1),
        update_row(3, survival=0.5),
        epoch_row("iee", 2),
        epoch_row("fine tuning", 1),
    )
    epochs, updates = read_log(path)
    assert [(e.stage, e.epoch) for e in epochs] == [
        ("dense training", 1),
        ("iee", 1),
        ("iee", 2),
        ("fine tuning", 1),
    ]
    assert epochs[0] == EpochPart(
        stage="dense training", epoch=1, step=40, loss=0.5, lr=0.1, accuracy=0.5, seconds=3.5
    )
    assert epochs[1].accuracy is None
    assert [(u.stage, u.cycle, u.survival) for u in updates] == [
        ("iee", 1, None),
        ("iee", 2, None),
        ("iee", 3, 0.5),
    ]
    assert updates[1] == UpdatePart(
        **(update_row(2) | {"stage": "iee", "omega": 0.3, "iou": 0.75, "grown": 4}),
        relative_flops=0.2,
    )


def test_rows_written_again_after_a_resume_count_once(tmp_path):
    path = write_log(
        tmp_path / "log.jsonl",
        *(update_row(1), epoch_row("iee", 1), update_row(2), epoch_row("iee", 2)),
        epoch_row("iee", 3),
        *(update_row(2, predicted_ratio=0.7), epoch_row("iee", 2, loss=0.25)),
        epoch_row("fine tuning", 1),
    )
    epochs, updates = read_log(path)
    assert [(e.stage, e.epoch, e.loss) for e in epochs] == [
        ("iee", 1, 0.5),
        ("iee", 2, 0.25),
        ("iee", 3, 0.5),
        ("fine tuning", 1, 0.5),
    ]
    assert [(u.cycle, u.predicted_ratio) for u in updates] == [(1, 0.9), (2, 0.7)]


def test_a_line_cut_off_by_a_crash_costs_no_other(tmp_path):
    whole = json.dumps(epoch_row("iee", 2))
    path = write_log(
        tmp_path / "log.jsonl", epoch_row("iee", 1), update_row(1), whole[: len(whole) // 2]
    )
    epochs, updates = read_log(path)
    assert [e.epoch for e in epochs] == [1]
    assert [(u.stage, u.cycle) for u in updates] == [("iee", 1)]
    with path.open("a") as file:  # the resumed run goes on in the same line
        file.write(json.dumps(epoch_row("iee", 3)) + "\n" + json.dumps(epoch_row("iee", 4)) + "\n")
    assert [e.epoch for e in read_log(path)[0]] == [1, 3, 4]


def test_rows_that_are_neither_are_left_out(tmp_path):
    path = write_log(
        tmp_path / "log.jsonl",
        *({"stage": "landing"}, "[1, 2]\n", "3\n", "\n", {"epoch": 1}, {"stage": "update"}),
        epoch_row("iee", 1, loss=float("nan"), something_new=1),
        "[" * 100_000 + "\n",
    )
    epochs, updates = read_log(path)
    assert epochs == (EpochPart(stage="iee", epoch=1, step=40),)
    assert updates == ()


def test_no_log_is_no_training(tmp_path):
    assert read_log(tmp_path / "log.jsonl") == ((), ())


# --- report.json ----------------------------------------------------------------------------------


def test_saved_report_is_read_back_the_same(tmp_path):
    report = make_report(recipe={"model": "zoo:resnet20_w32", "lr": 0.1, "pretrained": False})
    report.save(tmp_path / "report.json")
    again = Report.load(tmp_path / "report.json")
    assert again == report
    assert to_html(again) == to_html(report)
    assert to_markdown(again) == to_markdown(report)


def test_a_report_with_its_training_is_read_back_the_same(tmp_path):
    report = make_report(**trained())
    report.save(tmp_path / "report.json")
    again = Report.load(tmp_path / "report.json")
    assert again == report
    assert (len(again.epochs), len(again.updates)) == (12, 6)
    assert to_html(again) == to_html(report)


def test_a_report_from_before_training_was_kept_is_read(tmp_path):
    raw = json.loads(dump_json(make_report(), "report", REPORT_VERSION))
    old = {key: value for key, value in raw.items() if key not in ("epochs", "updates", "sha256")}
    assert len(old) == len(raw) - 3
    content = {key: value for key, value in old.items() if key not in ("prunekit", "version")}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    old["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (tmp_path / "report.json").write_text(json.dumps(old))
    again = Report.load(tmp_path / "report.json")
    assert again == make_report()
    assert section(again) is None


def test_report_json_keeps_the_fields_that_other_tools_read(tmp_path):
    make_report().save(tmp_path / "report.json")
    raw = json.loads((tmp_path / "report.json").read_text())
    assert (raw["prunekit"], raw["version"]) == ("report", REPORT_VERSION)
    for part, names in {
        "budget": "kind requested limit_ms",
        "latency": "dense_ms pruned_ms ratio ratio_ci predicted_ms met",
        "accuracy": "dense pruned metric",
        "macs": "dense pruned",
        "params": "dense pruned",
        "training_cost": "relative_flops seconds dense_seconds",
        "allocation": "solver gap",
    }.items():
        assert set(names.split()) <= set(raw[part])
    assert {"model", "target", "environment", "artifacts", "seed"} <= set(raw)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda text: text.replace("0.4912", "0.3912"), "was edited or damaged"),
        (lambda text: text[: len(text) // 2], "is truncated or not JSON"),
        (lambda text: "", "is truncated or not JSON"),
        (lambda text: text.replace('"version": 1', '"version": 99'), "has report version 99"),
        (lambda text: text.replace('"report"', '"plan"', 1), "is not a prunekit report"),
        (lambda text: "[1, 2]", "is not a prunekit report"),
    ],
)
def test_damaged_report_is_named(tmp_path, damage, words):
    path = tmp_path / "report.json"
    make_report().save(path)
    path.write_text(damage(path.read_text()))
    with pytest.raises(FileError, match=words) as caught:
        Report.load(path)
    assert str(path) in str(caught.value)


def test_missing_report_is_named(tmp_path):
    with pytest.raises(FileError, match=r"cannot read report .*report\.json"):
        Report.load(tmp_path / "report.json")


def test_a_dense_network_that_was_never_trained_has_no_accuracy():
    report = make_report(accuracy=(None, 0.91))
    page, text = Page(to_html(report)).words, to_markdown(report)
    for told in (page, text):
        assert "91.00%" in told
        assert "not trained" in told
        assert "points" not in told
        assert "None" not in told
    assert "no data" not in page
