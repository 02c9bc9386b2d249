import json
from html.parser import HTMLParser

import pytest

from prunekit.errors import FileError
from prunekit.report import REPORT_VERSION, Report, to_html, to_markdown
from prunekit.report.schema import (
    AccuracyPart,
    AllocationPart,
    AttemptPart,
    BudgetPart,
    LatencyPart,
    Pair,
    TablePart,
    TrainingPart,
)
from prunekit.target import Environment, Target

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


# --- report.json ----------------------------------------------------------------------------------


def test_saved_report_is_read_back_the_same(tmp_path):
    report = make_report(recipe={"model": "zoo:resnet20_w32", "lr": 0.1, "pretrained": False})
    report.save(tmp_path / "report.json")
    again = Report.load(tmp_path / "report.json")
    assert again == report
    assert to_html(again) == to_html(report)
    assert to_markdown(again) == to_markdown(report)


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
