"""Bad input: one clear line on stderr, the right exit status, and nothing left behind."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import ON_FAKE, SHAPE, Says
from PIL import Image

TABLE = ("--table", "table.json")
QUICK = (*ON_FAKE, *TABLE, "--epochs", 0, "--target-latency", "65%")
PRUNE = ("prune", "net.py:tiny", *QUICK)

Refuses = Callable[..., str]


def tree(root: Path) -> dict[str, bytes]:
    skipped = ("__pycache__", ".pytest_cache")
    return {
        str(p.relative_to(root)): p.read_bytes() if p.is_file() else b""
        for p in sorted(root.rglob("*"))
        if not any(part in skipped for part in p.parts)
    }


@pytest.fixture
def refuses(prunekit: Says, home: Path) -> Refuses:
    """Run a command that must be refused before any work: its one line, nothing changed."""

    def call(*arguments: object, status: int = 2, work: bool = False) -> str:
        before = tree(home)
        found, out, err = prunekit(*arguments)
        assert found == status, err
        assert out == ""
        *progress, line = err.splitlines()
        assert line.startswith("prunekit: ")
        assert "Traceback" not in err
        assert "unexpected" not in line
        assert work or not progress, err
        assert not any("prunekit: " in said for said in progress)
        assert tree(home) == before
        return line.removeprefix("prunekit: ")

    return call


# --- models


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("resnet50", "unknown model 'resnet50'; write torchvision:NAME, timm:NAME, zoo:NAME"),
        ("torchvision:resnet51", "torchvision has no model 'resnet51'; did you mean resnet50"),
        ("zoo:resnet21", "unknown zoo model 'resnet21'; known: mobilenet_v1, resnet20"),
        ("timm:resnet51", "timm has no model 'resnet51'; did you mean resnet5"),
        ("gone.py:tiny", "no file gone.py"),
        ("net.py:huge", "net.py has no callable 'huge'"),
        ("net.py:number", "net.py has no callable 'number'"),
        ("net.py:raises", "net.py:raises failed: ValueError: boom"),
        ("net.py:five", "net.py:five returned int, not a torch.nn.Module"),
        ("no.such.package:net", "cannot import 'no.such.package'"),
        ("broken.py:net", "broken.py fails on import: SyntaxError"),
        ("quits.py:net", "quits.py fails on import: SystemExit"),
        ("empty", "empty is a folder without plan.json, not a finished run"),
    ],
)
def test_models(refuses: Refuses, home: Path, model: str, message: str) -> None:
    if model.startswith("timm:"):
        pytest.importorskip("timm", reason="timm is an extra")
    (home / "broken.py").write_text("def net(:\n")
    (home / "quits.py").write_text("import sys\nsys.exit(0)\n")
    (home / "empty").mkdir()
    assert message in refuses("inspect", model, *SHAPE)
    assert message in refuses("prune", model, *ON_FAKE, "-o", "new")


def test_timm_is_missing(refuses: Refuses, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    line = refuses("inspect", "timm:resnet18", *SHAPE)
    assert line == "timm:resnet18: timm is not installed; pip install 'prunekit[timm]'"


@pytest.mark.parametrize("shape", ["abc", "1x3xx8", "3", "0x3x8x8", "1,3,8,8", ""])
def test_malformed_input(refuses: Refuses, shape: str) -> None:
    message = f"cannot read input shape {shape!r}; write for example 1x3x224x224"
    assert refuses("inspect", "net.py:tiny", "--input", shape) == message
    assert refuses("prune", "net.py:tiny", "--input", shape, "-o", "new") == message


def test_input_the_model_refuses(refuses: Refuses) -> None:
    line = refuses("inspect", "net.py:wide", "--input", "1x1x9x9")
    assert line.startswith("Sequential refuses input 1x1x9x9: RuntimeError: ")
    line = refuses("prune", "zoo:resnet20", "--input", "1x3", "--target", "fake", "-o", "new")
    assert "refuses input 1x3" in line
    line = refuses("export", "zoo:resnet20", "--input", "1x3x9", "-o", "new.onnx")
    assert "refuses input 1x3x9: RuntimeError" in line


def test_nothing_to_prune(refuses: Refuses, home: Path) -> None:
    (home / "flat.py").write_text("from torch import nn\ndef net(): return nn.Linear(8, 2)\n")
    line = refuses("profile", "flat.py:net", "--input", "1x8", "--target", "fake", "-o", "t.json")
    assert line.startswith("flat.py:net has no prunable channels: ")


# --- targets and budgets


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nothing", "unknown runtimes name 'nothing'; known: fake, onnxruntime, "),
        ("fake:moon", "unknown part 'moon' in target 'fake:moon'"),
        ("fake:cuda", "fake:cuda: runtime 'fake' runs on cpu, not cuda"),
        ("onnxruntime:cpu:fp16", "ONNX Runtime's CPU kernels compute fp16 networks in fp32"),
        ("onnxruntime:cuda", "onnxruntime:cuda is unavailable: this onnxruntime"),
        ("", "empty target ''"),
    ],
)
def test_targets(refuses: Refuses, target: str, message: str) -> None:
    if target == "onnxruntime:cuda":
        import onnxruntime

        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            pytest.skip("this onnxruntime has CUDA")
    for command in ("profile", "prune"):
        line = refuses(command, "net.py:tiny", *SHAPE, "--target", target, "-o", "new")
        assert message in line
    assert message in refuses("bench", "run/model.onnx", "--target", target)


def test_a_precision_that_no_file_is_written_in(refuses: Refuses) -> None:
    line = refuses("prune", "net.py:tiny", *SHAPE, "--target", "fake:bf16", "-o", "new")
    assert line == "target fake:cpu:bf16: ONNX files are written in fp32, fp16, int8, not bf16"


def test_int8_without_data(refuses: Refuses) -> None:
    line = refuses("prune", "net.py:tiny", *SHAPE, "--target", "fake:int8", "-o", "new")
    assert line == "target fake:cpu:int8: int8 needs data for its ranges; add --data"


def test_precision_without_gpu(refuses: Refuses) -> None:
    for command in ("profile", "prune"):
        line = refuses(command, "net.py:tiny", *SHAPE, "--precision", "fp16")
        assert line == "--precision goes with --gpu; a target has its own, such as torch:cuda:fp16"
        line = refuses(command, "net.py:tiny", *SHAPE, "--gpu", "--precision", "fp12")
        assert line.startswith("unknown --precision 'fp12'; known: fp32, tf32")


def test_gpu_without_a_gpu(refuses: Refuses) -> None:
    from prunekit.runtimes.nvidia.gpu import best_gpu
    from prunekit.support.errors import RuntimeUnavailableError

    try:
        best_gpu()
    except RuntimeUnavailableError:
        pass
    else:
        pytest.skip("there is a GPU runtime")
    for command in ("profile", "prune"):
        line = refuses(command, "net.py:tiny", *SHAPE, "--gpu")
        assert line.startswith("no GPU runtime here (tensorrt: ")
        assert "; torch: " in line
        assert "; onnxruntime: " in line
        assert line.endswith("--target onnxruntime:cpu works in place of --gpu")
        line = refuses(command, "net.py:tiny", *SHAPE, "--gpu", "--target", "fake")
        assert line == "--gpu and --target exclude each other; keep one"


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ("fast", "cannot read budget 'fast'; write 50%, 12.5ms, 2x"),
        ("0%", "budget '0%' must be above zero"),
        ("-5%", "cannot read budget '-5%'"),
        ("150%", "budget '150%' is above the dense cost"),
        ("100%", "`target_latency` in the flags: '100%' is the dense latency; nothing to prune"),
        ("0.5x", "budget '0.5x' is above the dense cost"),
        ("12", "budget '12' has no usable unit for latency; write 50%, 12.5ms or 2x"),
        ("macs=50%", "`target_latency` in the flags: 'macs=50%' is not a latency"),
    ],
)
def test_budgets(refuses: Refuses, budget: str, message: str) -> None:
    assert message in refuses(*PRUNE, "--target-latency", budget, "-o", "new")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--keep", "fc*"), "`keep` names 'fc*', which matches no layer; layers: 0, 3, 8, 1, 4"),
        (("--keep", "*"), "net.py:tiny has no prunable channels: it is the model's output; kept"),
        (("--min-width", "0.3"), "cannot read `min_width` '0.3'; write a percentage such as 1.5%"),
        (("--min-width", "100%"), "cannot read `min_width` '100%'; write a percentage"),
    ],
)
def test_constraints(refuses: Refuses, flags: tuple[str, str], message: str) -> None:
    for command in ("prune", "sweep"):
        line = refuses(command, "net.py:tiny", *ON_FAKE, *flags, "-o", "new")
        assert line.startswith(message)


def test_below_what_is_reachable(refuses: Refuses) -> None:
    line = refuses(*PRUNE, "--target-latency", "30%", "-o", "new", status=1, work=True)
    said = re.fullmatch(
        r"30% is below what is reachable: the smallest network measures ([\d.]+)% "
        r"\[([\d.]+)%, ([\d.]+)%\] of the dense one, .* ms; ask for (\d+)% or more",
        line,
    )
    assert said is not None, line
    ratio, low, high, least = map(float, said.groups())
    assert 53 < low <= ratio <= high < 57  # timed: how many rounds depends on the machine
    assert high - 0.05 <= least <= high + 1.05
    line = refuses(*PRUNE, "--target-latency", "1us", "-o", "new", status=1, work=True)
    assert line.startswith("1us is below what is reachable")
    training = ("--data", "digits", "--from-scratch", "--epochs", 2)
    line = refuses(*PRUNE, *training, "--target-latency", "30%", "-o", "a/b", status=1, work=True)
    assert line.startswith("30% is below what is reachable")


def test_above_dense(refuses: Refuses) -> None:
    line = refuses(*PRUNE, "--target-latency", "5ms", "-o", "new", work=True)
    assert line.startswith("5ms is met already: the dense network takes 0.03")


# --- tables


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_table_of_something_else(refuses: Refuses, home: Path) -> None:
    other = "the latency table is for fake:cpu fp32, batch 1, 1 thread, not "
    base = ("prune", "net.py:tiny", *TABLE, "--epochs", 0, "-o", "new")
    line = refuses(*base, *SHAPE, "--target", "onnxruntime:cpu")
    assert line.startswith(f"{other}onnxruntime:cpu fp32, batch 1, 1 thread; run `prunekit prof")
    line = refuses(*base, *SHAPE, "--target", "fake", "--threads", 2)
    assert line.startswith(f"{other}fake:cpu fp32, batch 1, 2 threads; ")
    line = refuses(*base, "--input", "4x1x8x8", "--target", "fake")
    assert line.startswith(f"{other}fake:cpu fp32, batch 4, 1 thread; ")
    line = refuses("prune", "net.py:wide", *ON_FAKE, *TABLE, "--epochs", 0, "-o", "new")
    assert line.startswith("no timing for layer '0' (conv 5x5 8x8->4x4")
    assert line.endswith("run `prunekit profile` for this model and input")


def test_table_of_another_device(
    refuses: Refuses, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prunekit.core.target import Environment
    from prunekit.runtimes.fake import Fake

    there = Environment(device_name="another device", runtime_version="1")
    monkeypatch.setattr(Fake, "environment", lambda self, target: there)
    line = refuses(*PRUNE, "-o", "new")
    assert line.startswith("the latency table was measured elsewhere: device name 'fake device'")
    assert line.endswith(
        "against 'another device' here; run `prunekit profile` on this device, with --transfer "
        "TABLE if it is of the same kind"
    )


def test_damaged_table(refuses: Refuses, home: Path) -> None:
    table = home / "table.json"
    whole = table.read_text()
    commands = (("table", "show", "table.json"), (*PRUNE, "-o", "new"))
    for text, message in (
        (whole[:500], "table.json is truncated or not JSON"),
        ("", "table.json is truncated or not JSON"),
        (whole.replace('"us": ', '"us": 1', 1), "table.json was edited or damaged: its checksum"),
        (whole.replace("latency table", "plan", 1), "table.json is not a prunekit latency table"),
        (whole.replace('"version": 1', '"version": 99', 1), "table.json has latency table version"),
        ("[]", "table.json is not a prunekit latency table file"),
    ):
        table.write_text(text)
        for command in commands:
            assert message in refuses(*command)
    table.unlink()
    for command in commands:
        assert "cannot read latency table table.json: No such file" in refuses(*command)


# --- run folders


def test_damaged_plan(refuses: Refuses, home: Path) -> None:
    plan = home / "run" / "plan.json"
    whole = plan.read_text()
    commands = (
        ("export", "run", "--model", "net.py:tiny", "-o", "new.onnx"),
        ("inspect", "run", *SHAPE),
    )
    for text, message in (
        (whole[:300], "run/plan.json is truncated or not JSON"),
        (whole.replace("net.py:tiny", "zoo:resnet20"), "run/plan.json was edited or damaged"),
    ):
        plan.write_text(text)
        for command in commands:
            assert message in refuses(*command)
    plan.unlink()
    assert "run is a folder without plan.json" in refuses("inspect", "run", *SHAPE)


def test_damaged_weights(refuses: Refuses, home: Path) -> None:
    weights = home / "run" / "model.safetensors"
    whole = weights.read_bytes()
    export = ("export", "run", "--model", "net.py:tiny", "-o", "new.onnx")
    for data in (whole[:-100], whole[:-1] + bytes([whole[-1] ^ 1]), b""):
        weights.write_bytes(data)
        line = refuses(*export)
        assert line.startswith("run/model.safetensors was edited or damaged: its checksum does not")
    weights.unlink()
    assert "no model.safetensors in run" in refuses(*export)


def test_dense_weights_that_do_not_fit(refuses: Refuses, home: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    (home / "cut.safetensors").write_bytes((home / "run" / "model.safetensors").read_bytes()[:99])
    line = refuses(*PRUNE, "--weights", "cut.safetensors", "-o", "new")
    assert line.startswith("cut.safetensors is truncated or not a safetensors file")
    line = refuses(*PRUNE, "--weights", "run/model.safetensors", "-o", "new")
    assert line.startswith("run/model.safetensors does not fit Sequential: 0.weight is (")
    state = load_file(home / "run" / "model.safetensors")
    save_file({**state, "more": torch.zeros(1)}, home / "more.safetensors")
    line = refuses(*PRUNE, "--weights", "more.safetensors", "-o", "new")
    assert line == "more.safetensors does not fit Sequential: it has more, which the model lacks"
    assert refuses(*PRUNE, "--weights", "gone.safetensors", "-o", "new") == (
        "no file gone.safetensors"
    )


def test_damaged_report(refuses: Refuses, home: Path) -> None:
    report = home / "run" / "report.json"
    whole = report.read_text()
    for text, message in (
        (whole[:300], "run/report.json is truncated or not JSON"),
        (whole.replace('"met": true', '"met": false'), "run/report.json was edited or damaged"),
    ):
        report.write_text(text)
        assert message in refuses("report", "run")
        assert message in refuses("check", "--baseline", "run/report.json")
    report.unlink()
    assert refuses("report", "run") == "run has no report.json; is the run finished?"
    assert "nowhere" in refuses("report", "nowhere")


def test_damaged_onnx(refuses: Refuses, home: Path) -> None:
    path = home / "run" / "model.onnx"
    whole = path.read_bytes()
    for data in (whole[: len(whole) // 2], b"", b"no model"):
        path.write_bytes(data)
        for target in ("fake", "onnxruntime:cpu"):
            line = refuses("bench", "run/dense.onnx", "run", "--target", target)
            assert "run/model.onnx" in line
        assert "run/model.onnx" in refuses("check", "--baseline", "run/report.json")
    path.unlink()
    assert refuses("bench", "run", "--target", "fake") == "no artifact at run/model.onnx"


def test_a_plan_may_not_start_code(refuses: Refuses, home: Path) -> None:
    import prunekit as pk
    from prunekit.support.errors import UsageError

    (home / "net.py").write_text("raise SystemExit('code has run')\n")
    with pytest.raises(UsageError, match="pass `model`"):
        pk.load("run")
    for command in (
        ("inspect", "run", *SHAPE),
        ("export", "run", "-o", "new.onnx"),
        ("bench", "run", "--target", "torch:cpu"),
    ):
        line = refuses(*command)
        assert line.startswith("run was made from 'net.py:tiny', which is code")


def test_a_base_is_for_runs(refuses: Refuses) -> None:
    line = refuses("prune", "net.py:tiny", "--base", "net.py:tiny", *ON_FAKE, "-o", "new")
    assert line == "`base` is for a MODEL that is a run folder, and net.py:tiny is none"
    line = refuses("inspect", "run", "--base", "net.py:huge", *SHAPE)
    assert "net.py has no callable 'huge'" in line
    line = refuses("check", "--baseline", "run/report.json", "--base", "net.py:tiny")
    assert line == "--base does not go with a report, whose files say all; leave it out"


# --- output


def test_output_exists(refuses: Refuses, home: Path) -> None:
    assert refuses(*PRUNE, "-o", "run") == (
        "output folder run exists; use --overwrite, --resume or another -o"
    )
    profile = ("profile", "net.py:tiny", *ON_FAKE)
    line = refuses(*profile, "-o", "table.json")
    assert line == "output table.json exists; use --overwrite or another -o"
    assert refuses(*profile, "-o", "run", "--overwrite") == "output run is a folder; give a file"
    export = ("export", "run", "--model", "net.py:tiny")
    assert refuses(*export) == "output run/model.onnx exists; use --overwrite or another -o"


def test_overwrite_removes_nothing_but_runs(refuses: Refuses, home: Path) -> None:
    (home / "mine").mkdir()
    (home / "mine" / "thesis.tex").write_text("years")
    line = refuses(*PRUNE, "-o", "mine", "--overwrite")
    assert line == "mine is not a prunekit run (config.toml is missing); give another -o"
    (home / "mine" / "config.toml").write_text('title = "my site"\n')
    assert "(thesis.tex)" in refuses(*PRUNE, "-o", "mine", "--overwrite")
    line = refuses(*PRUNE, "-o", "mine", "--resume")
    assert line.startswith("no model given in mine/config.toml or the flags; ")
    (home / "mine" / "config.toml").write_bytes((home / "run" / "config.toml").read_bytes())
    line = refuses(*PRUNE, "-o", "mine", "--overwrite")
    assert line == (
        "mine holds more than a prunekit run (thesis.tex), which --overwrite would remove; "
        "give another -o"
    )


def test_what_cannot_work_is_refused_before_a_run_is_overwritten(
    refuses: Refuses, home: Path
) -> None:
    (home / "own.py").write_text(
        "from torch import nn\n"
        "def frozen(num_classes=10, in_channels=1):\n"
        "    net = nn.Sequential(nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(),\n"
        "        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes))\n"
        "    net[1].requires_grad_(False)\n"
        "    return net\n"
        "def alone(num_classes=10, in_channels=1):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))\n"
    )
    over = (*ON_FAKE, "--data", "digits", "--from-scratch", "-o", "run", "--overwrite")
    line = refuses("prune", "net.py:tiny", *over, "--method", "iee", "--iee", "omega=2")
    assert line == "`omega` must be from 0 to 1, not 2.0"
    line = refuses("prune", "own.py:frozen", *over, "--method", "halp")
    assert line.startswith("no gradient for 1.weight, which Taylor scores need: it is not trained")
    assert "has no prunable channels: it is the model's output" in refuses(
        "prune", "own.py:alone", *over
    )
    assert "`lr`" in refuses("prune", "net.py:tiny", *over, "--fine-tune-lr", "inf")
    idle = ("--method", "oneshot", "--pruning-steps", 30)
    line = refuses("prune", "net.py:tiny", *over, *idle)
    assert line.startswith("--pruning-steps is for method halp, and this is oneshot; leave it out")
    idle = ("--optimizer", "adamw", "--momentum", 0.8)
    line = refuses("prune", "net.py:tiny", *over, *idle)
    assert line == "--momentum is for sgd, and the optimizer is adamw"
    line = refuses("prune", "net.py:tiny", *over, "--method", "iee", "--fine-tune-lr", 0.1)
    assert line.startswith("--fine-tune-lr is for a network that was trained before")
    line = refuses("prune", "net.py:tiny", *over, *TABLE, "--profile-nets", 8)
    assert line.startswith("--profile-nets is for a profile, and --table needs none")


def test_overwrite_of_what_is_needed(refuses: Refuses, home: Path) -> None:
    (home / "run" / "table.json").write_bytes((home / "table.json").read_bytes())
    again = ("prune", "net.py:tiny", *ON_FAKE, "--epochs", 0, "-o", "run", "--overwrite")
    line = refuses(*again, "--table", "run/table.json")
    assert line == "`table` run/table.json lies in run, which --overwrite removes; give another -o"


def test_output_is_a_file(refuses: Refuses, home: Path) -> None:
    (home / "file").write_text("")
    assert refuses(*PRUNE, "-o", "file") == "output file is a file; give a folder"
    line = refuses(*PRUNE, "-o", "file/run")
    assert line.startswith("cannot make folder file/run: ")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_output_is_not_writable(refuses: Refuses, home: Path) -> None:
    (home / "locked").mkdir(mode=0o500)
    assert refuses(*PRUNE, "-o", "locked/run").startswith("cannot make folder locked/run: ")


@pytest.mark.parametrize(
    ("threshold", "message"),
    [
        ("5", "--threshold '5' is 500 %, which is too much; for 5 % write 5%"),
        ("100%", "--threshold '100%' is 100 %, which is too much"),
        ("inf", "--threshold 'inf' is inf %, which is too much"),
        ("nan", "cannot read --threshold 'nan'; write 5% or 0.05, at least 0.1%"),
        ("0", "cannot read --threshold '0'; write 5% or 0.05, at least 0.1%"),
        ("much", "cannot read --threshold 'much'; write 5% or 0.05, at least 0.1%"),
    ],
)
def test_thresholds(refuses: Refuses, threshold: str, message: str) -> None:
    check = ("check", "run/model.onnx", "--baseline", "run/dense.onnx", "--target", "fake")
    assert refuses(*check, "--threshold", threshold) == message


def test_resume_with_other_settings(refuses: Refuses, home: Path) -> None:
    run = json.loads((home / "run" / "report.json").read_text())["recipe"]
    flags = [
        part
        for key, value in run.items()
        if value not in (True, False, {}, [])
        for part in ("--" + key.replace("_", "-"), value)
        if key != "model"
    ]
    base = ("prune", "net.py:tiny", *flags, "-o", "run", "--resume")
    assert refuses(*base, "--seed", 5) == (
        "cannot resume run: `seed` is 5 now and was 0; use the same settings"
    )
    assert "`lr` is 0.5 now and was None" in refuses(*base, "--lr", 0.5)
    line = refuses(*base, "--overwrite")
    assert line == "--overwrite and --resume exclude each other; keep one"


def test_resume_of_a_finished_run_changes_nothing(prunekit: Says, home: Path) -> None:
    before = tree(home)
    status, out, err = prunekit("prune", "--config", "run/config.toml", "-o", "run", "--resume")
    assert status == 0
    assert "run is finished already" in err
    assert "target 65% met" in out
    assert tree(home) == before


# --- data


def images(root: Path, classes: tuple[str, ...] = ("cat", "dog"), count: int = 4) -> Path:
    rng = np.random.default_rng(0)
    for name in classes:
        (root / name).mkdir(parents=True)
        for index in range(count):
            pixels = rng.integers(0, 255, (8, 8)).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    return root


def test_data(refuses: Refuses, home: Path) -> None:
    def line(data: str) -> str:
        return refuses(*PRUNE, "--data", data, "-q", "-o", "new")

    assert "gone" in line("imagefolder:gone")
    images(home / "one", ("cat",))
    assert line("imagefolder:one") == ("only one class folder in one: cat; at least two are needed")
    images(home / "none")
    for path in (home / "none" / "dog").iterdir():
        path.unlink()
    assert line("imagefolder:none").startswith("no images in class folder none/dog")
    (home / "bare").mkdir()
    assert line("imagefolder:bare").startswith("no class folders in bare")
    broken = images(home / "broken") / "dog" / "2.png"
    broken.write_bytes(broken.read_bytes()[:60])
    assert line("imagefolder:broken").startswith("cannot read image broken/dog/2.png")
    assert line("imagefolder:").startswith("data 'imagefolder:' lacks its folder")
    assert line("pictures").startswith("unknown data 'pictures'; known: digits, imagefolder:PATH")
    assert line("net.py:raises").startswith("net.py:raises failed: ValueError: boom")
    assert "cifar10" in line("cifar10:bare").lower()


def test_a_data_factory_that_quits(refuses: Refuses, home: Path) -> None:
    (home / "early.py").write_text("import sys\nsys.exit(0)\n")
    (home / "late.py").write_text("import sys\ndef make(): sys.exit('no disk')\n")
    for data, message in (
        ("early.py:make", "early.py fails on import: SystemExit: 0"),
        ("late.py:make", "late.py:make failed: SystemExit: no disk"),
    ):
        assert refuses(*PRUNE, "--data", data, "-o", "new") == message


def test_nan_loss(refuses: Refuses) -> None:
    training = ("--data", "digits", "--epochs", 2, "--lr", 1e9, "--warmup-epochs", 0)
    line = refuses(*PRUNE, *training, "--from-scratch", "-o", "new", work=True)
    assert line.startswith("the loss became ")
    assert "in epoch 1 at step" in line
    assert line.endswith("lower `lr`, lengthen `warmup_epochs` or set `clip_norm`")


def test_nan_weights(refuses: Refuses, home: Path) -> None:
    (home / "nan.py").write_text(
        "import net, torch\n"
        "def tiny(): m = net.tiny(); torch.nn.init.constant_(m[3].weight, float('nan')); return m\n"
    )
    sys.path.insert(0, str(home))
    try:
        line = refuses("prune", "nan.py:tiny", *QUICK, "-o", "new", work=True)
    finally:
        sys.path.remove(str(home))
        del sys.modules["net"]
    assert "nan" in line.lower()


# --- a disk without room


def test_disk_without_room(home: Path) -> None:
    code = (
        "import json, resource, sys\n"
        "from prunekit.cli.main import run\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "print([run(command) for command in json.loads(sys.argv[1])])"
    )
    commands: list[tuple[object, ...]] = [
        (*PRUNE, "-q", "-o", "new"),
        ("export", "net.py:tiny", *SHAPE, "-q", "-o", "new.onnx"),
        ("profile", "net.py:tiny", *ON_FAKE, "--nets", 4, "-q", "-o", "new.json"),
    ]
    before = tree(home)
    text = json.dumps([[str(part) for part in command] for command in commands])
    done = subprocess.run(
        [sys.executable, "-c", code, text], capture_output=True, text=True, cwd=home, timeout=120
    )
    assert done.stdout == "[2, 2, 2]\n", done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == len(commands)
    for line in lines:
        assert line.startswith("prunekit: cannot write ")
        assert line.endswith("File too large")
    assert tree(home) == before


def test_room_ends_while_training(
    prunekit: Says, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    from prunekit.train import checkpoint

    calls = []
    write = checkpoint.write_bytes

    def full(path: Path, data: bytes) -> None:
        calls.append(path)
        if len(calls) == 2:
            from prunekit.support.files import replacing

            with replacing(path):
                raise OSError(errno.ENOSPC, "No space left on device")
        write(path, data)

    monkeypatch.setattr(checkpoint, "write_bytes", full)
    training = ("--data", "digits", "--epochs", 0, "--from-scratch", "--dense-epochs", 2)
    status, _, err = prunekit(*PRUNE, *training, "-o", "new")
    assert status == 2
    assert err.splitlines()[-1] == (
        "prunekit: cannot write new/work/dense-training/checkpoint.safetensors: No space left on "
        "device; finished epochs are in new: same command with --resume"
    )
    assert not list(home.rglob(".checkpoint*"))
    status, _, err = prunekit(*PRUNE, *training, "-o", "new", "--resume")
    assert status == 0
    assert len(calls) == 3  # the first epoch was not trained again


# --- flags


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--criterion", "beauty"), "unknown criteria name 'beauty'; known: bn_scale, fpgm, lamp,"),
        (("--solver", "magic"), "unknown allocators name 'magic'; known: greedy, joint"),
        (("--method", "magic"), "`method` in the flags: Input should be 'oneshot', 'halp' or"),
        (("--method", "halp"), "--method halp needs data; add --data"),
        (("--method", "iee"), "--method iee needs data; add --data"),
        (("--criterion", "taylor"), "--criterion taylor needs data; add --data"),
        (("--from-scratch",), "--from-scratch needs data; add --data"),
        (("--distill", "0.5"), "--distill needs data; add --data"),
        (
            ("--dense-epochs", "3"),
            "--dense-epochs is for --from-scratch, --pretrained or --weights",
        ),
        (("--dense-epochs", "3", "--weights", "w"), "--dense-epochs needs data; add --data"),
        (("--from-scratch", "--pretrained"), "--from-scratch and --pretrained exclude each other"),
        (("--pretrained", "--weights", "w"), "--pretrained and --weights exclude each other"),
        (("--pretrained",), "`--pretrained` is for torchvision and timm models"),
        (("--data", "digits", "--method", "halp", "--epochs", "1"), "give --epochs 2 or more"),
        (("--epochs", "-1"), "`epochs` in the flags: Input should be greater than or equal to 0"),
        (("--epochs", "many"), "Invalid value for '--epochs'"),
        (("--batch-size", "1"), "`batch_size` in the flags: Input should be greater than"),
        (("--momentum", "2"), "`momentum` must be a number at least 0 and below 1, not 2.0"),
        (("--lr", "inf"), "`lr` must be a number above 0, not inf"),
        (("--mixed-precision", "fp16", "--device", "cpu"), "`mixed_precision` fp16 needs a GPU"),
        (("--threads", "0"), "`threads` in the flags: Input should be greater than or equal to 1"),
        (("--profile-nets", "2"), "`profile_nets` in the flags: Input should be greater than or"),
        (("--color", "red"), "No such option: --color"),
        (("--overwrite", "--resume"), "--overwrite and --resume exclude each other; keep one"),
        (("--config", "gone.toml"), "cannot read gone.toml: No such file or directory"),
        (("--config", "net.py"), "net.py is not valid TOML"),
        (("--config", "odd.toml"), "`colour` in odd.toml or the flags: Extra inputs are not"),
    ],
)
def test_flags(refuses: Refuses, home: Path, flags: tuple[str, ...], message: str) -> None:
    (home / "odd.toml").write_text('colour = "red"\n')
    assert message in refuses(*PRUNE, *flags, "-o", "new")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--iee", "nonsense=1"), "unknown IEE option 'nonsense'; known: warmup, cycles, estimate"),
        (("--iee", "steps=7"), "unknown IEE option 'steps'; known: warmup, "),
        (("--iee", "omega"), "cannot read --iee 'omega'; write KEY=VALUE, such as omega=0.3"),
        (("--iee", "=1"), "cannot read --iee '=1'; write KEY=VALUE, such as omega=0.3"),
        (("--iee", "omega=2"), "`omega` must be from 0 to 1, not 2.0"),
        (("--iee", "explore=2.5"), "IEE option `explore`: Input should be a valid integer"),
        (("--iee", "grow=best"), "IEE option `grow`: Input should be 'explored', 'mru' or 'zero'"),
        (("--iee", "seed=-1"), "`seed` must be a whole number of at least 0, not -1"),
        (("--iee", "estimate=9999"), "further steps, the training has 66; train longer or shorten"),
        (("--iee", "omega=0.1", "--method", "oneshot"), "--iee has the options of method iee; add"),
        (("--epochs", "1"), "method iee prunes while it trains; give --epochs 2 or more, or "),
        (("--ema", "0.9"), "--ema averages one network, and method iee trains several in turn"),
        (("--distill", "0.5"), "--distill needs a trained dense network, which --from-scratch"),
    ],
)
def test_options_of_iee(refuses: Refuses, flags: tuple[str, ...], message: str) -> None:
    training = ("--data", "digits", "--from-scratch", "--epochs", 3, "--method", "iee")
    line = refuses(*PRUNE, *training, *flags, "-o", "new")
    assert message in line


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("fly", "No such command 'fly'; see prunekit --help"),
        ("prune -o new", "no model given; name one, such as zoo:resnet20_w32"),
        ("inspect", "Missing argument 'MODEL'; see prunekit inspect --help"),
        ("profile net.py:tiny --nets 2", "Invalid value for '--nets': "),
        ("table show", "Missing argument 'TABLE'; see prunekit table show --help"),
        ("export run --format gguf", "unknown format 'gguf'; this version exports onnx"),
        ("export net.py:tiny", "the input shape is not known; give --input"),
        ("bench", "Missing argument 'A [B ...]'"),
        ("bench gone.onnx", "no artifact at gone.onnx"),
        ("bench net.py", "net.py: unknown artifact type; known: .onnx"),
        ("bench .", ". is a folder without plan.json, not a finished run"),
        ("check", "check needs --baseline FILE, an artifact or a report.json"),
        ("check --baseline run/model.onnx", "check against an artifact needs the ARTIFACT"),
        ("check --baseline gone.json", "cannot read report gone.json: No such file"),
        ("check --baseline run/report.json --threads 2", "--threads does not go with a report"),
        ("check x.onnx --baseline run/model.onnx", "no artifact at x.onnx"),
    ],
)
def test_commands(refuses: Refuses, command: str, message: str) -> None:
    assert message in refuses(*command.split())


def test_errors_as_json(prunekit: Says, home: Path) -> None:
    status, out, err = prunekit("inspect", "zoo:nothing", *SHAPE, "--json")
    assert status == 2
    failure = json.loads(out)
    assert failure["exit_code"] == 2
    assert err == f"prunekit: {failure['error']}\n"


@pytest.mark.parametrize(
    ("code", "status"), [(0, 2), (None, 2), (7, 7), ("no disk", 2), (False, 2)]
)
def test_an_exit_is_no_success(
    prunekit: Says, home: Path, monkeypatch: pytest.MonkeyPatch, code: object, status: int
) -> None:
    from prunekit.latency import LatencyTable

    def quits(path: Path) -> None:
        sys.exit(code)  # type: ignore[arg-type]

    monkeypatch.setattr(LatencyTable, "load", quits)
    found, _, err = prunekit("table", "show", "table.json")
    assert (found, err) == (status, f"prunekit: some code that ran has called sys.exit({code!r})\n")


def test_a_bug_is_no_answer(prunekit: Says, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prunekit.latency import LatencyTable

    def broken(path: Path) -> None:
        raise KeyError("lost")

    monkeypatch.setattr(LatencyTable, "load", broken)
    status, _, err = prunekit("table", "show", "table.json")
    assert status == 2
    assert err.startswith("prunekit: unexpected KeyError at test_cli_bad_input.py:")
    assert err.count("\n") == 1


def test_overwriting_keeps_what_is_there_until_the_new_run_comes_to_something(
    refuses: Refuses, prunekit: Says, home: Path
) -> None:
    before = tree(home / "run")
    again = ("prune", "net.py:tiny", *ON_FAKE, *TABLE, "--epochs", 0, "-o", "run", "--overwrite")
    assert "is met already" in refuses(*again, "--target-latency", "100ms", work=True)
    assert tree(home / "run") == before
    assert prunekit(*again, "--target-latency", "1%")[0] == 1
    assert tree(home / "run") == before
    assert prunekit(*again, "--target-latency", "70%")[0] == 0
    assert not (home / "run" / ".replaced").exists()
    assert (home / "run" / "plan.json").is_file()


def test_a_run_is_not_pruned_into_the_run_it_was_made_from(
    refuses: Refuses, prunekit: Says, home: Path
) -> None:
    base = ("--base", "net.py:tiny", "--epochs", 0, "--profile-nets", 4)
    target = ("--target-latency", "95%")
    assert prunekit("prune", "run", *ON_FAKE, *base, *target, "-o", "second")[0] == 0
    line = refuses("prune", "second", *ON_FAKE, *base, *target, "-o", "run", "--overwrite")
    assert line == "second was made from run, which --overwrite removes; give another -o"


def test_data_that_a_run_names_is_run_only_when_trusted(refuses: Refuses, home: Path) -> None:
    (home / "data.py").write_text("open('ran', 'w')\n")
    report = json.loads((home / "run" / "report.json").read_text())
    report["recipe"]["data"] = "data.py:data"
    (home / "run" / "report.json").write_text(json.dumps(report))
    line = refuses("export", "run", "--model", "net.py:tiny", "--precision", "fp16")
    assert line.startswith("run took its data from data.py:data, which is code that a file may not")
    assert "add --data data.py:data" in line
    assert not (home / "ran").exists()


def test_from_scratch_of_a_run(refuses: Refuses, home: Path) -> None:
    base = ("--base", "net.py:tiny", "--data", "digits", "--from-scratch")
    line = refuses("prune", "run", *ON_FAKE, *base, "--target-latency", "90%", "-o", "new")
    assert line.startswith("--from-scratch begins with random weights, and run is a run")


def test_sparse_networks_are_timed_in_fp32(refuses: Refuses, home: Path) -> None:
    sparse = ("sparsify", "net.py:tiny", *SHAPE, "--sparsity", "50%", "--method", "static")
    line = refuses(*sparse, "--target", "onnxruntime:cpu:int8", "-o", "new")
    assert line.startswith("sparse networks are written and timed in fp32")


def test_more_classes_than_outputs(refuses: Refuses, home: Path) -> None:
    (home / "many.py").write_text(
        "import torch\n"
        "from torch.utils.data import TensorDataset\n"
        "def data(input_shape, seed):\n"
        "    found = TensorDataset(torch.rand(24, *input_shape), torch.arange(24) % 12)\n"
        "    return found, found\n"
    )
    export = ("export", "run", "--model", "net.py:tiny", "--precision", "fp16", "-o", "a.onnx")
    line = refuses(*export, "--data", "many.py:data")
    assert line.startswith("the model has 10 outputs but the data has 12 classes")
