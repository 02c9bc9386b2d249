"""Flags made from the recipes' fields: defaults told once, values that are shown and completed."""

import importlib
import os
import resource
import subprocess
import sys
from dataclasses import fields
from typing import Any

import pytest
import typer
from typer._completion_classes import BashComplete

from prunekit.cli.flags import Given
from prunekit.cli.main import app, main
from prunekit.pipeline.recipes.base import TrainingRecipe
from prunekit.pipeline.recipes.flag import Flag
from prunekit.pipeline.recipes.prune import Recipe
from prunekit.pipeline.recipes.sparsify import SparseRecipe
from prunekit.support.registry import criteria, runtimes
from prunekit.train.config import TrainConfig
from support.commands import SHAPE, Says

RECIPES = {"prune": Recipe, "sparsify": SparseRecipe}


def parameters(command: str) -> dict[str, Any]:
    return {p.name: p for p in typer.main.get_command(app).commands[command].params}


def offered(*words: str) -> list[str]:
    """What a shell is offered for the last of the words."""
    shell = BashComplete(typer.main.get_command(app), {}, "prunekit", "_PRUNEKIT_COMPLETE")
    return [item.value for item in shell.get_completions([*words[:-1]], words[-1])]


@pytest.mark.parametrize("command", RECIPES)
def test_every_setting_is_a_flag_with_its_default(command: str) -> None:
    flags = parameters(command)
    for name, field in RECIPES[command].model_fields.items():
        assert name in flags
        assert any(isinstance(part, Flag) for part in field.metadata)
        if flags[name].default is not None:
            assert flags[name].default == field.default


def test_the_defaults_of_a_training_are_those_of_its_settings() -> None:
    shared = {field.name: field.default for field in fields(TrainConfig)}
    assert shared.pop("schedule") == "cosine"  # which is no flag
    assert shared == {name: TrainingRecipe.model_fields[name].default for name in shared}


def test_flags_win_over_the_file_even_with_the_default(prunekit: Says, home: Any) -> None:
    (home / "some.toml").write_text('model = "net.py:tiny"\nepochs = 0\nthreads = 3\nlr = -1.0\n')
    given = ("--config", "some.toml", *SHAPE, "--target", "fake", "-o", "new")
    _, _, err = prunekit("prune", *given)
    assert "`lr` in some.toml or the flags" in err
    (home / "some.toml").write_text('model = "net.py:tiny"\nepochs = 0\nthreads = 0\n')
    assert "`threads` in some.toml" in prunekit("prune", *given)[2]
    seen = []
    build = Given.recipe

    def spy(self: Given[Any], *arguments: Any, **more: Any) -> Any:
        seen.append(dict(self.settings))
        return build(self, *arguments, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Given, "recipe", spy)
        prunekit("prune", *given, "--threads", 1, "--table", "gone.json")
    assert seen == [{"input": "1x1x8x8", "target": "fake", "threads": 1, "table": "gone.json"}]


@pytest.mark.parametrize(
    ("words", "values"),
    [
        (("prune", "--method", ""), ["oneshot", "halp", "iee"]),
        (("sparsify", "--method", "r"), ["rigl"]),
        (("prune", "--solver", ""), ["greedy", "joint", "knapsack", "milp", "uniform"]),
        (("sweep", "--solver", "m"), ["milp"]),
        (("prune", "--criterion", "t"), ["taylor", "taylor_weight"]),
        (("sparsify", "--criterion", "m"), ["magnitude", "magnitude_l1"]),
        (("prune", "--device", ""), ["auto", "cpu", "cuda"]),
        (("prune", "--optimizer", ""), ["sgd", "adamw"]),
        (("prune", "--mixed-precision", ""), ["no", "fp16", "bf16"]),
        (("inspect", "--heads", ""), ["whole", "width"]),
        (("prune", "--precision", "f"), ["fp32", "fp16"]),
        (("sparsify", "--distribution", ""), ["erk", "uniform"]),
        (("sparsify", "--ranking", ""), ["layer", "global"]),
        (("export", "--format", ""), ["onnx", "openvino", "tensorrt", "aotinductor"]),
        (("export", "--for", "t"), ["tensorrt"]),
        (("export", "--device", ""), ["cpu", "cuda"]),
        (("profile", "--source", ""), ["auto", "harvest", "grid", "differences"]),
        (("bench", "--target", "onnxruntime_"), ["onnxruntime_tensorrt"]),
        (("prune", "--target", "op"), ["openvino"]),
        (("prune", "--score"), ["--score-batches"]),
        (("spars",), ["sparsify"]),
        (("table", ""), ["list", "merge", "diff", "show"]),
    ],
)
def test_a_shell_completes_values(words: tuple[str, ...], values: list[str]) -> None:
    assert offered(*words) == values


def test_plugins_of_third_parties_are_known(
    prunekit: Says, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(criteria._loaded, "mine", object)
    monkeypatch.setitem(runtimes._loaded, "our_board", object)
    for command in ("prune", "sparsify", "sweep"):
        assert offered(command, "--criterion", "mi") == ["mine"]
        assert "mine" in " ".join(prunekit(command, "--help")[1].split())
        assert offered(command, "--target", "our") == ["our_board"]


def test_the_shell_is_answered(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["prunekit"])
    for name, value in (
        ("_PRUNEKIT_COMPLETE", "complete_bash"),
        ("COMP_WORDS", "prunekit prune --optimizer a"),
        ("COMP_CWORD", "3"),
    ):
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    assert capsys.readouterr().out.strip() == "adamw"


@pytest.mark.parametrize(
    ("where", "known"),
    [
        ("prunekit.cli.export:FORMATS", "prunekit.pipeline.export:SUFFIXES"),
        ("prunekit.cli.profile_:KNOWN_SOURCES", "prunekit.pipeline.table:SOURCES"),
    ],
)
def test_values_are_those_that_work(where: str, known: str) -> None:
    shown, works = (
        getattr(importlib.import_module(module), name)
        for module, _, name in (text.partition(":") for text in (where, known))
    )
    assert [name for name in shown if name != "auto"] == [*works]


def test_help_takes_less_than_half_a_second_of_cpu() -> None:
    best = 9.0
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, "-m", "prunekit", "--help"],
            env=os.environ,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert best < 0.5


def test_help_of_all_commands_reads_no_recipe() -> None:
    code = (
        "import sys; from prunekit.cli.main import run; run(['--help']); "
        "sys.exit([name for name in ('pydantic', 'torch', 'numpy', 'rich') if name in sys.modules]"
        " or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
