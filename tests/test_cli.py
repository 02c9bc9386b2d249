"""The command line end to end, on the fake target and once on a real one."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ON_FAKE, SHAPE, Says

COMMANDS = ("targets", "inspect", "profile", "prune", "export", "bench", "check", "report", "table")
TABLE = ("--table", "table.json")


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.strip()


# --- the surface


@pytest.mark.parametrize("command", ["", *COMMANDS, "table show"])
def test_help(prunekit: Says, command: str) -> None:
    status, out, err = prunekit(*command.split(), "--help")
    assert (status, err) == (0, "")
    assert out.startswith(f"Usage: prunekit {command}".rstrip())
    assert "--help" in out


@pytest.mark.parametrize("command", ["prune", "sparsify"])
def test_help_of_many_flags_has_sections(prunekit: Says, command: str) -> None:
    from prunekit.pipeline.recipes.prune import Recipe
    from prunekit.pipeline.recipes.sparsify import SparseRecipe

    _, out, _ = prunekit(command, "--help")
    sections = re.findall(r"^(\w.*):$", out, re.M)
    assert sections[:2] == ["Arguments", "Options"]
    assert sections[-3:] == ["Dense network", "Training", "Output"]
    settings = {"prune": Recipe, "sparsify": SparseRecipe}[command].model_fields
    flags = re.findall(r"^  (?:-\w, )?(--[\w-]+)", out, re.M)
    assert len(flags) == len(set(flags))
    missing = {f"--{name.replace('_', '-')}" for name in settings} - {*flags, "--model"}
    assert missing <= {"--options"}  # which is --option, one by one


def test_help_lists_every_command_and_exit_status(prunekit: Says) -> None:
    _, out, _ = prunekit("--help")
    for word in (*COMMANDS, "0 done", "1 it ran", "2 usage", "3 inconclusive", "130 interrupted"):
        assert word in out


def test_version(prunekit: Says) -> None:
    from importlib.metadata import version

    assert prunekit("--version") == (0, f"prunekit {version('prunekit')}\n", "")


def test_no_command_shows_help(prunekit: Says) -> None:
    status, out, err = prunekit()
    assert status == 2
    assert "Usage: prunekit" in out + err


@pytest.mark.parametrize(
    "code",
    [
        "import prunekit; dir(prunekit)",
        "from prunekit.cli.main import run; run(['--help'])",
        "from prunekit.cli.main import run; run(['prune', '--help'])",
    ],
)
def test_torch_is_not_imported(code: str) -> None:
    heavy = "{'torch', 'torchvision', 'onnx', 'onnxruntime', 'scipy', 'accelerate'}"
    assert python(f"{code}\nimport sys; print(sorted({heavy} & {{*sys.modules}}))").endswith("[]")


def test_public_names() -> None:
    package = importlib.import_module("prunekit")
    assert set(package.__all__) == set(package._WHERE)
    for name in package.__all__:
        assert getattr(package, name).__doc__, name
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = package.nothing


# --- looking


def test_targets(prunekit: Says) -> None:
    status, out, _ = prunekit("targets", "--json")
    rows = {row["target"]: row for row in json.loads(out)["targets"]}
    assert status == 0
    assert {"fake:cpu", "onnxruntime:cpu", "torch:cpu"} <= set(rows)
    for row in rows.values():
        assert bool(row["reason"]) != row["available"]
        assert (row["environment"] is not None) == row["available"]
    _, out, _ = prunekit("targets")
    for name in rows:
        assert name in out


def test_inspect(prunekit: Says, home: Path) -> None:
    status, out, err = prunekit("inspect", "net.py:tiny", *SHAPE, "--json")
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert [(g["size"], g["prunable"]) for g in found["groups"]] == [
        (32, True),
        (32, True),
        (10, False),
    ]
    assert found["groups"][-1]["reason"] == "it is the model's output"
    assert len(found["layers"]) == 3
    assert found["macs"] == sum(layer["macs"] for layer in found["layers"])
    status, out, _ = prunekit("inspect", "net.py:tiny", *SHAPE, "-v")
    assert status == 0
    assert "MMACs in 3 layers" in out


def test_a_run_is_looked_at_with_its_own_input(prunekit: Says, home: Path) -> None:
    import prunekit as pk
    from prunekit import zoo

    model, shape = zoo.build("resnet8"), (1, 3, 16, 16)
    plan = pk.ChannelPlan.random(pk.trace(model, torch.randn(shape)), 0.5, seed=1)
    pk.save("half", pk.slim(model, plan), plan, "zoo:resnet8", input_shapes=(shape,))
    status, out, _ = prunekit("inspect", "half", "--json")
    assert (status, json.loads(out)["input"]) == (0, "1x3x16x16")
    assert "at 1x3x16x16: " in prunekit("inspect", "half")[1]
    assert (
        json.loads(prunekit("inspect", "half", "--input", "1x3x8x8", "--json")[1])["macs"]
        < (json.loads(out)["macs"])
    )
    status, out, _ = prunekit("profile", "half", "--target", "fake", "--nets", 4, "-o", "t.json")
    assert status == 0
    status, _, err = prunekit("export", "half", "--input", "1x3x8x8")
    assert status == 2
    assert "half was made for inputs of 1x3x16x16, and its files are for those; for a file " in err
    assert prunekit("export", "half", "--input", "4x3x16x16")[0] == 0
    assert prunekit("export", "half", "--input", "1x3x8x8", "-o", "small.onnx")[0] == 0


def test_inspect_a_run(prunekit: Says, home: Path) -> None:
    status, out, _ = prunekit("inspect", "zoo:resnet8", "--input", "1x3x8x8", "--json")
    assert status == 0
    assert json.loads(out)["prunable_macs_share"] > 0.9


# --- profile, table, prune


def test_profile_then_show_then_prune(prunekit: Says, home: Path) -> None:
    nets = ("--nets", "4", "--rounds", "3")
    status, out, err = prunekit(
        "profile", "net.py:tiny", *ON_FAKE, *nets, "-o", "new.json", "--json"
    )
    assert status == 0
    found = json.loads(out)
    assert (found["table"], found["networks"], found["rounds"]) == ("new.json", 4, 3)
    assert "profiling: done" in err
    assert sorted(p.name for p in home.glob("new*")) == ["new.json"]

    status, out, _ = prunekit("table", "show", "new.json", "--json")
    assert status == 0
    shown = json.loads(out)
    assert shown["target"]["runtime"] == "fake"
    assert len(shown["entries"]) == found["entries"]
    status, out, _ = prunekit("table", "show", "new.json")
    assert status == 0
    assert "fake device" in out

    before = (home / "new.json").read_bytes()
    status, _, err = prunekit(
        *("prune", "net.py:tiny", *ON_FAKE, "--table", "new.json"),
        *("--target-latency", "65%", "--epochs", 0, "-o", "again"),
    )
    assert status == 0
    assert "profiling" not in err
    assert (home / "new.json").read_bytes() == before
    assert not (home / "again" / "table.json").exists()


def test_profile_names_its_table(prunekit: Says, home: Path) -> None:
    nets = ("--nets", "4", "--rounds", "1")
    status, out, err = prunekit("profile", "net.py:tiny", *ON_FAKE, *nets, "-q")
    assert (status, err) == (0, "")
    assert out == "latency table: tiny-fake_cpu-1x1x8x8-1t.json\n"
    assert (home / "tiny-fake_cpu-1x1x8x8-1t.json").is_file()


def test_report_json_has_the_contract(made: Path, prunekit: Says) -> None:
    status, out, err = prunekit("report", made / "run", "--json")
    assert (status, err) == (0, "")
    report = json.loads(out)
    assert report == {
        key: value
        for key, value in json.loads((made / "run" / "report.json").read_text()).items()
        if key not in ("prunekit", "version", "sha256")
    }
    contract = {
        "model": None,
        "target": {"runtime", "device", "precision", "batch", "threads"},
        "environment": {"device_name", "runtime_version"},
        "budget": {"kind", "requested", "limit_ms"},
        "latency": {"dense_ms", "pruned_ms", "ratio", "ratio_ci", "predicted_ms", "met"},
        "accuracy": {"dense", "pruned", "metric"},
        "macs": {"dense", "pruned"},
        "params": {"dense", "pruned"},
        "training_cost": {"relative_flops", "seconds", "dense_seconds"},
        "allocation": {"solver", "gap"},
        "artifacts": {"onnx", "dense", "weights", "plan"},
        "seed": None,
    }
    for key, parts in contract.items():
        assert key in report
        assert parts is None or parts <= set(report[key]), key
    latency = report["latency"]
    assert latency["met"]
    assert latency["ratio"] == pytest.approx(latency["pruned_ms"] / latency["dense_ms"], rel=0.02)
    assert report["budget"]["limit_ms"] == pytest.approx(0.65 * latency["dense_ms"])


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


def test_a_real_run(prunekit: Says, home: Path) -> None:
    status, out, _ = prunekit(
        *("prune", "net.py:medium", *SHAPE, "--data", "digits", "--from-scratch"),
        *("--dense-epochs", 1, "--epochs", 1, "--target-latency", "90%", "--profile-seconds", 1),
        *("--measure-seconds", 0.3),
        *("--profile-nets", 4, "--target", "onnxruntime:cpu", "--json", "-o", "real"),
    )
    report = json.loads(out)
    assert status == (0 if report["latency"]["met"] else 1)
    target = report["target"]
    assert (target["runtime"], target["device"], target["threads"]) == ("onnxruntime", "cpu", 1)
    assert report["macs"]["pruned"] < report["macs"]["dense"]
    assert 0 <= report["accuracy"]["pruned"] <= 1


@pytest.mark.parametrize(
    ("model", "unless", "source"),
    [
        ("net.py:tiny", " (unless net.py:tiny loads weights)", {}),
        ("zoo:resnet8", "", {}),
        ("net.py:tiny", None, {"from_scratch": True}),
        ("net.py:tiny", None, {"weights": "dense.safetensors"}),
        ("again", None, {}),
    ],
)
def test_an_untrained_network_is_noted(
    home: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    unless: str | None,
    source: dict[str, object],
) -> None:
    import torch

    import prunekit as pk
    from prunekit.networks.build import build
    from prunekit.networks.saved import save_weights
    from prunekit.pipeline.job import set_up
    from prunekit.pipeline.recipes.prune import make_recipe
    from prunekit.support.progress import verbosity

    monkeypatch.setattr(verbosity, "level", 0)
    dense = build("zoo:resnet8", in_channels=1).module
    plan = pk.ChannelPlan.dense(pk.trace(dense, torch.zeros(1, 1, 8, 8)))
    pk.save("again", dense, plan, "zoo:resnet8", {"num_classes": 10, "in_channels": 1})
    save_weights(build("net.py:tiny").module, home / "dense.safetensors")
    settings = {"model": model, "input": "1x1x8x8", "target": "fake", "data": "digits"}
    capsys.readouterr()
    set_up(make_recipe(settings | source))
    notes = [row for row in capsys.readouterr().err.splitlines() if "untrained" in row]
    expected = (
        f"note: the dense network is untrained{unless}; "
        "add --from-scratch, --weights or --pretrained"
    )
    assert notes == ([] if unless is None else [expected])
    set_up(make_recipe(settings | {"data": None}))
    assert "untrained" not in capsys.readouterr().err


# --- what a run is good for


def onnx_outputs(path: Path, images: np.ndarray) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (name,) = (item.name for item in session.get_inputs())
    return np.asarray(session.run(None, {name: images})[0])


def test_run_onnx_and_report_agree(made: Path) -> None:
    import torch

    import prunekit as pk
    from prunekit.train import load_data

    run = made / "run"
    data = load_data("digits", (1, 8, 8), 0)
    pairs = [data.val[i] for i in range(len(data.val))]  # type: ignore[arg-type]
    images = torch.stack([image for image, _ in pairs])
    labels = np.array([label for _, label in pairs])
    small = pk.load(run, f"{made / 'net.py'}:tiny")
    assert not small.training
    with torch.no_grad():
        expected = small(images).numpy()
    found = onnx_outputs(run / "model.onnx", images.numpy())
    assert np.abs(found - expected).max() <= 1e-4
    report = pk.Report.load(run / "report.json")
    assert report.accuracy.pruned == pytest.approx((found.argmax(1) == labels).mean())
    dense = onnx_outputs(run / "dense.onnx", images.numpy())
    assert report.accuracy.dense == pytest.approx((dense.argmax(1) == labels).mean())
    assert sum(p.numel() for p in small.parameters()) == report.params.pruned


def test_export(prunekit: Says, home: Path) -> None:
    status, out, err = prunekit(
        *("export", "run", "--model", "net.py:tiny", "-o", "new.onnx", "--json")
    )
    assert (status, err) == (0, "")
    assert json.loads(out)["path"] == "new.onnx"
    images = np.random.default_rng(0).standard_normal((3, 1, 8, 8), dtype=np.float32)
    new, old = (onnx_outputs(home / p, images) for p in ("new.onnx", "run/model.onnx"))
    assert np.abs(new - old).max() <= 1e-5
    status, out, _ = prunekit("export", "net.py:tiny", *SHAPE, "-o", "dense.onnx")
    assert status == 0
    assert out.startswith("dense.onnx (")
    grey = ("export", "zoo:resnet8", "--input", "1x1x16x16", "-o", "grey.onnx")  # 3 by default
    assert prunekit(*grey)[0] == 0
    status, out, err = prunekit(*grey, "--base", "net.py:tiny", "--overwrite")
    assert (status, out) == (2, "")
    assert "`base` is for a MODEL that is a run folder, and zoo:resnet8 is none" in err


def test_prune_a_run_again(prunekit: Says, home: Path) -> None:
    import torch

    import prunekit as pk
    from prunekit.networks.build import build

    dense = build("zoo:resnet8").module
    graph = pk.trace(dense, torch.zeros(1, 3, 8, 8))
    plan = pk.ChannelPlan.from_widths(graph, {graph.groups[0].id: 8})
    pk.save("one", pk.slim(dense, plan), plan, base="zoo:resnet8")
    settings = ("--epochs", 0, "--profile-nets", 4, "--target-latency", "80%", "-o", "two")
    model = ("--input", "1x3x8x8", "--target", "fake")
    assert prunekit("prune", "one", *model, *settings)[0] == 0
    sizes = [sum(p.numel() for p in pk.load(run).parameters()) for run in ("one", "two")]
    assert sizes[1] < sizes[0]


def test_runs_of_the_users_own_code_go_on_with_it(prunekit: Says, home: Path) -> None:
    import torch

    import prunekit as pk
    from prunekit.networks.build import build

    dense = build("net.py:medium", in_channels=1).module
    graph = pk.trace(dense, torch.zeros(1, 1, 8, 8))
    plan = pk.ChannelPlan.from_widths(graph, {graph.groups[0].id: 48})
    one = pk.slim(dense, plan)
    shape = (1, 1, 8, 8)
    pk.save("one", one, plan, "net.py:medium", {"in_channels": 1}, (shape,))

    base = ("--base", "net.py:medium")
    settings = ("--epochs", 0, "--profile-nets", 4, "--target-latency", "80%", "-o", "two")
    assert prunekit("prune", "one", *base, *ON_FAKE, *settings)[0] == 0
    assert prunekit("prune", "one", *base, *ON_FAKE, *settings, "--resume")[0] == 0
    two = sum(p.numel() for p in pk.load("two", "net.py:medium").parameters())
    assert two < sum(p.numel() for p in one.parameters())
    assert prunekit("export", "two", *base, "-o", "two.onnx")[0] == 0
    assert prunekit("export", "one", *base, "-o", "one.onnx")[0] == 0  # of `save`, with no report
    status, out, _ = prunekit("inspect", "two", *base, *SHAPE, "--json")
    assert status == 0
    assert json.loads(out)["params"] == two
    table = ("--table", "two/table.json", "--points", 3)
    assert prunekit("sweep", "one", *base, *ON_FAKE, *table)[0] == 0
    nets = ("--nets", 4, "--rounds", 2, "-o", "t.json")
    assert prunekit("profile", "two", *base, *ON_FAKE, *nets)[0] == 0
    half = ("--sparsity", "50%", "--method", "static", "-o", "sparse")
    assert prunekit("sparsify", "one", *base, *ON_FAKE, *half)[0] == 0
    live = ("--target", "torch:cpu", "--max-seconds", 0.2)
    status, out, _ = prunekit("bench", "one", "two", *base, *live, "--json")
    assert status == 0
    assert [a["path"] for a in json.loads(out)["artifacts"]] == ["one", "two"]
    assert prunekit("check", "one", "--baseline", "one", *base, *live)[0] in (0, 3)


def test_bench(prunekit: Says, home: Path) -> None:
    status, out, _ = prunekit(
        *("bench", "run/dense.onnx", "run/model.onnx", "run", "--target", "fake", "--json")
    )
    assert status == 0
    first, second, third = json.loads(out)["artifacts"]
    assert first["ratio"] is None
    assert second["ratio_ci"][0] <= second["ratio"] <= second["ratio_ci"][1] < 1
    assert third["path"] == "run"
    assert third["ratio"] == pytest.approx(second["ratio"], abs=0.02)
    status, out, _ = prunekit("bench", "run/model.onnx", "--target", "fake")
    assert status == 0
    assert "median" in out


def test_check(prunekit: Says, home: Path) -> None:
    fake = ("--target", "fake")
    dense, model = "run/dense.onnx", "run/model.onnx"
    assert prunekit("check", model, "--baseline", model, *fake)[0] == 0
    status, out, _ = prunekit("check", model, "--baseline", dense, *fake)
    assert status == 0
    assert out.startswith("pass: ")
    status, out, _ = prunekit("check", dense, "--baseline", model, *fake, "--json")
    assert status == 1
    verdict = json.loads(out)
    assert verdict["outcome"] == "fail"
    status, out, _ = prunekit("check", dense, "--baseline", model, *fake, "--threshold", "99%")
    assert status == 0
    assert "below 1.99" in out
    exact = verdict["ratio"] - 1
    limits = ("--threshold", exact, "--confidence", 0.9999, "--max-seconds", 0.2)
    status, out, _ = prunekit("check", dense, "--baseline", model, *fake, *limits)
    assert status == 3
    assert out.startswith("inconclusive: ")


def test_files_are_timed_and_reports_shown_without_torch(home: Path) -> None:
    dense, model, fake = "run/dense.onnx", "run/model.onnx", ("--target", "fake")
    check = ["check", model, "--baseline", dense, *fake]
    commands = [["report", "run"], ["bench", dense, model, *fake], check]
    code = f"""
import sys
sys.modules["torch"] = None
from prunekit.cli.main import run
print([run(command) for command in {commands}])
"""
    assert python(code).endswith("[0, 0, 0]")


def test_a_live_network_goes_by_its_run(home: Path) -> None:
    from prunekit.core.target import Target
    from prunekit.pipeline.check import open_artifact

    assert open_artifact("run", Target("torch"), "net.py:tiny").path == "run"


def test_check_against_a_report(prunekit: Says, home: Path) -> None:
    status, out, _ = prunekit("check", "--baseline", "run/report.json")
    assert status == 0
    assert "recorded ratio" in out
    assert prunekit("check", "run/dense.onnx", "--baseline", "run/report.json")[0] == 1
    larger = ("export", "run", "--base", "net.py:tiny", "--input", "1x1x12x12", "-o", "large.onnx")
    assert prunekit(*larger)[0] == 0
    status, _, err = prunekit("check", "large.onnx", "--baseline", "run/report.json")
    assert status == 2
    assert "large.onnx takes inputs of 1x12x12, and run/dense.onnx of 1x8x8; export both" in err
    status, _, err = prunekit("check", "large.onnx", "--baseline", "run/dense.onnx")
    assert status == 2
    assert "large.onnx takes inputs of 1x12x12, and run/dense.onnx of 1x8x8" in err
    status, _, err = prunekit("bench", "run/dense.onnx", "large.onnx", "--max-seconds", "0.5")
    assert status == 0
    assert "of 1x8x8; their ratio is of different work" in err


def test_report(prunekit: Says, home: Path) -> None:
    status, out, err = prunekit("report", "run")
    assert (status, err) == (0, "")
    assert out.startswith("# net.py:tiny")
    assert "| latency (ms) |" in out
    html = (home / "run" / "report.html").read_text()
    assert not re.search(r"(src|href)=\"https?://", html)


# --- recipes


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


def test_halp_masks_an_embedding_behind_a_layer_norm_step_after_step(
    prunekit: Says, home: Path
) -> None:
    (home / "own.py").write_text(
        "from torch import nn\n"
        "class Mixer(nn.Module):\n"
        "    def __init__(self, num_classes=10, in_channels=1):\n"
        "        super().__init__()\n"
        "        self.embed = nn.Linear(64, 128)\n"
        "        self.norm, self.last = nn.LayerNorm(128), nn.LayerNorm(128)\n"
        "        self.up, self.down = nn.Linear(128, 512), nn.Linear(512, 128)\n"
        "        self.head = nn.Linear(128, num_classes)\n"
        "    def forward(self, x):\n"
        "        x = self.embed(x.flatten(1))\n"
        "        x = x + self.down(self.up(self.norm(x)).relu())\n"
        "        return self.head(self.last(x))\n"
    )
    command = ("prune", "own.py:Mixer", *ON_FAKE, "--data", "digits", "--from-scratch")
    settings = ("--method", "halp", "--epochs", 3, "--dense-epochs", 1, "--profile-nets", 4)
    target = ("--target-latency", "70%", "--granularity", 8, "-o", "mixer", "--json")
    status, out, _ = prunekit(*command, *settings, *target)
    assert status == 0
    embed = json.loads(out)["groups"]["embed"]
    assert embed["after"] < embed["before"] == 128


# --- progress


def test_long_work_says_where_it_is_on_a_pipe(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from prunekit.support import progress

    monkeypatch.setattr(progress.verbosity, "level", 0)
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    with progress.bar("walking", 2) as shown:
        shown.advance(1, "half way")
    assert capsys.readouterr().err == "walking: 1/2 (half way)\nwalking: done (half way)\n"
    monkeypatch.setattr(progress, "LINE_SECONDS", 10.0)
    assert list(progress.track(range(3), "counting", 3)) == [0, 1, 2]
    assert capsys.readouterr().err == "counting: done\n"
    monkeypatch.setattr(progress.verbosity, "level", -1)
    with progress.bar("quiet", 1):
        pass
    assert capsys.readouterr().err == ""


def test_a_closed_pipe_is_quiet_and_no_success(made: Path) -> None:
    code = "from prunekit.cli.main import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", code, "table", "show", str(made / "table.json")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_streams_that_are_closed_do_not_change_the_answer(home: Path) -> None:
    program = f"{sys.executable} -m prunekit"
    slower = "check run/dense.onnx --baseline run/model.onnx --target fake"
    for command, status in (
        (f"{program} {slower} 2>&-", 1),
        (f"{program} {slower} --json | true; exit ${{PIPESTATUS[0]}}", 141),
        (f"{program} report run --json > /dev/full", 2),
    ):
        done = subprocess.run(
            ["bash", "-c", command], cwd=home, capture_output=True, text=True, check=False
        )
        assert done.returncode == status, (command, done.stderr)
        assert "Traceback" not in done.stderr


def test_ctrl_c_says_so(prunekit: Says, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("prunekit.tracing.trace", interrupt)
    status, out, err = prunekit("inspect", "net.py:tiny", *SHAPE, "--json")
    assert status == 130
    assert err.splitlines()[-1] == "prunekit: interrupted"
    assert json.loads(out) == {"error": "interrupted", "exit_code": 130}
