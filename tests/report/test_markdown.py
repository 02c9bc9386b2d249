"""A report as text: the verdict, the table, the training."""

import pytest

from prunekit.report import to_markdown
from prunekit.report.markdown import chance, seconds_rows, verdict, why_open
from prunekit.report.schema import TrainingPart
from support.reports import make_report, trained


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


def test_markdown_has_first_middle_and_last():
    text = to_markdown(make_report(**trained()))
    assert "| dense training | 1 | 2 | 0.1 | 80.00% | 30.0 s |" in text
    assert "| fine tuning | 5 | 0.4 | 0.1 | 88.00% | 2 min 30 s |" in text
    table = text.split("first, middle and last)\n\n")[2].split("\n\n")[0].splitlines()
    assert table[0].startswith("| cycle | step | predicted latency | omega | IoU | grown |")
    assert [row.split("|")[1].strip() for row in table[2:]] == ["0", "2", "5"]
    assert "## Training" not in to_markdown(make_report())


def latency(met, **changes):
    return make_report(met=met).latency.model_copy(update=changes)


@pytest.mark.parametrize(
    ("met", "probability", "outcome", "words"),
    [
        (True, 0.9996, "met", "target 50% met (probability over 99.9 %)"),
        (True, 0.974, "met", "target 50% met (probability 97.4 %)"),
        (False, 0.6, "open", "target 50% OPEN (probability 60.0 %)"),
        (False, 0.0002, "missed", "target 50% NOT met (probability under 0.1 %)"),
        (False, None, "missed", "target 50% NOT met: measured"),
    ],
)
def test_the_verdict_tells_how_sure_it_is(met, probability, outcome, words):
    part = latency(met, probability=probability)
    assert part.outcome == outcome
    assert verdict(make_report(met=met, latency=part)).startswith(words)
    assert bool(why_open(part)) == (outcome == "open")


def test_an_open_answer_says_what_it_saw_and_what_would_help():
    busy = latency(False, probability=0.6, lost=0.43)
    assert "Other processes took 43% of the processor's time" in why_open(busy)
    assert "--measure-seconds" in why_open(latency(False, probability=0.6))


def test_chances_are_never_rounded_to_certainty():
    assert [chance(p) for p in (1.0, 0.9991, 0.95, 0.001, 0.0)] == [
        "over 99.9 %",
        "over 99.9 %",
        "95.0 %",
        "0.1 %",
        "under 0.1 %",
    ]


def test_seconds_by_stage_have_their_share():
    report = make_report(seconds={"profiling": 30.0, "landing": 10.0})
    assert seconds_rows(report) == [("profiling", "30.0", "75%"), ("landing", "10.0", "25%")]
    assert "| profiling | 30.0 | 75% |" in to_markdown(report)
    assert "## Seconds" not in to_markdown(make_report())
