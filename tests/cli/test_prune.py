"""What `prunekit prune` writes, says, and takes from flags and files."""

import json
from pathlib import Path

import pytest

from support.commands import ON_FAKE, TABLE, Says


def test_prune_leaves_the_files_it_reports(made: Path) -> None:
    run = made / "run"
    report = json.loads((run / "report.json").read_text())
    for path in report["artifacts"].values():
        assert (made / path).is_file()
    assert {p.name for p in run.iterdir()} >= {
        *("model.safetensors", "plan.json", "config.toml", "report.json", "model.onnx"),
        *("dense.onnx", "log.jsonl"),
    }
    assert not (run / "work").exists()
    assert not list(run.rglob(".*"))
    stages = [json.loads(line)["stage"] for line in (run / "log.jsonl").read_text().splitlines()]
    assert stages[-2:] == ["pruning", "fine tuning"]
    assert set(stages[:-2]) == {"update"}


def test_table_on_stdout_and_progress_on_stderr(prunekit: Says, home: Path) -> None:
    status, out, err = prunekit(
        *("prune", "net.py:tiny", *ON_FAKE, *TABLE, "--target-latency", "65%"),
        *("--epochs", 0, "-o", "again"),
    )
    assert status == 0
    for text in ("target 65% met", "latency (ms)", "parameters", "again/model.onnx"):
        assert text in out
    assert "landing 1: predicted" in err
    assert "landing" not in out


@pytest.mark.parametrize(
    ("method", "criterion", "solver"),
    [
        ("oneshot", "magnitude", "joint"),
        ("oneshot", "taylor", "knapsack"),
        ("halp", "magnitude", "knapsack"),
        ("halp", "taylor", "joint"),
    ],
)
def test_methods_criteria_solvers(
    prunekit: Says, home: Path, method: str, criterion: str, solver: str
) -> None:
    own = ("--score-batches", 2) if method == "oneshot" else ("--pruning-steps", 4)
    status, out, _ = prunekit(
        *("prune", "net.py:tiny", *ON_FAKE, *TABLE, "--data", "digits", "--target-latency", "65%"),
        *("--method", method, "--criterion", criterion, "--solver", solver, "--from-scratch"),
        *("--dense-epochs", 1, "--epochs", 2, *own, "--json", "-o", "again"),
    )
    assert status == 0
    report = json.loads(out)
    assert report["latency"]["met"]
    made = report["allocation"]
    assert (made["method"], made["criterion"], made["solver"]) == (method, criterion, solver)
    assert report["training_cost"]["dense_seconds"] > 0
    assert {"dense_weights", "log"} <= set(report["artifacts"])


def test_absolute_budget(prunekit: Says, home: Path) -> None:
    dense = json.loads(prunekit("table", "show", "table.json", "--json")[1])["networks"][0]
    ms = 0.65e-3 * dense["end_to_end_us"]
    status, out, _ = prunekit(
        *("prune", "net.py:tiny", *ON_FAKE, *TABLE, "--target-latency", f"{ms:.12f}ms"),
        *("--epochs", 0, "--json", "-o", "again"),
    )
    assert status == 0
    report = json.loads(out)
    assert report["latency"]["pruned_ms"] <= report["budget"]["limit_ms"] == pytest.approx(ms)


def test_config_and_flags(prunekit: Says, home: Path) -> None:
    from prunekit.pipeline.recipes.base import read_toml
    from prunekit.pipeline.recipes.prune import Recipe

    (home / "recipe.toml").write_text(
        'model = "net.py:tiny"\ninput = "1x1x8x8"\ntarget = "fake"\ntable = "table.json"\n'
        'target_latency = "70%"\nepochs = 0\nseed = 3\n'
    )
    flags = ("--target-latency", "65%")
    status, out, _ = prunekit("prune", "--config", "recipe.toml", *flags, "-o", "a", "--json")
    assert status == 0
    report = json.loads(out)
    assert (report["budget"]["requested"], report["seed"]) == ("65%", 3)
    saved = read_toml(home / "a" / "config.toml")
    assert (saved["target_latency"], saved["seed"], saved["solver"]) == ("65%", 3, "joint")
    defaults = {k for k, f in Recipe.model_fields.items() if f.default is not None}
    assert defaults <= {*saved}
    status, out, _ = prunekit("prune", "--config", "a/config.toml", "-o", "b", "--json")
    assert status == 0
    assert json.loads(out)["recipe"] == report["recipe"]
    assert (home / "a/config.toml").read_text() == (home / "b/config.toml").read_text()
    from prunekit import ChannelPlan

    plans = [ChannelPlan.load(home / run / "plan.json") for run in ("a", "b")]
    assert plans[0].keep == plans[1].keep


def test_overwrite_replaces_a_run(prunekit: Says, home: Path) -> None:
    (home / "run" / "report.html").write_text("old")
    command = ("prune", "net.py:tiny", *ON_FAKE, *TABLE, "--epochs", 0, "--target-latency", "70%")
    status, out, _ = prunekit(*command, "-o", "run", "--overwrite", "--json")
    assert status == 0
    assert json.loads(out)["budget"]["requested"] == "70%"
    assert not (home / "run" / "log.jsonl").exists()
