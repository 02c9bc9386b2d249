"""A report as a page: its parts, charts, links; inert and small."""

import pytest

from prunekit.report import to_html
from prunekit.report.schema import (
    AttemptPart,
    BudgetPart,
    TrainingPart,
)
from support.reports import Page, make_report, positions


def many_groups(count):
    """Widths of a deep network, some cut hard and some not at all."""
    widths = {}
    for i in range(count):
        before = 64 * 2 ** (4 * i // count)
        name = f"features.denseblock{1 + 4 * i // count}.denselayer{i + 1}.conv1"
        widths[name] = (before, before * ((3 + 5 * i) % 8 + 1) // 8)
    return widths


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
