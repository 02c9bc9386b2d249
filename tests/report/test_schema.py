"""Reports on disk: the same when read back, older ones, damaged ones."""

import hashlib
import json

import pytest

from prunekit.report import REPORT_VERSION, Report, to_html, to_markdown
from prunekit.support.errors import FileError
from prunekit.support.files import dump_json
from support.reports import Page, make_report, section, trained


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
