"""What all tests share: one thread, and a tiny network with a finished run on the fake target."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import gc
import shutil
import sys
import textwrap
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

FACTORY = textwrap.dedent(
    """
    import torch
    from torch import nn

    def tiny(num_classes=10, in_channels=1):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(in_channels, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, num_classes),
        )

    def wide(num_classes=10):
        return nn.Sequential(nn.Conv2d(1, 64, 5), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 10))

    def medium(num_classes=10, in_channels=1):
        return nn.Sequential(
            nn.Conv2d(in_channels, 64, 3, padding=1), nn.ReLU(),
            nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, num_classes),
        )

    def raises():
        raise ValueError("boom")

    def five():
        return 5

    number = 3
    """
)
SHAPE = ("--input", "1x1x8x8")
ON_FAKE = (*SHAPE, "--target", "fake")
MADE = {"net.py", "table.json", "run", "__pycache__"}


def pytest_collection_finish() -> None:
    """Modules stay: the garbage collector, a quarter of an export's time, need not look at them."""
    gc.set_threshold(100_000, 20, 20)
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    if "prunekit.runtimes.fake" in sys.modules:
        # the fake target's noise counts the loads of a file: no test depends on those before it
        sys.modules["prunekit.runtimes.fake"]._loads.clear()
    if "prunekit.support.progress" in sys.modules:  # a test may have made it quiet
        sys.modules["prunekit.support.progress"].verbosity.level = 0


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with net.py, table.json, and run/: a finished run of it with data."""
    from prunekit.cli.main import run

    home = tmp_path_factory.mktemp("made")
    (home / "net.py").write_text(FACTORY)
    before = Path.cwd()
    os.chdir(home)
    try:
        nets = ("--nets", "4", "--rounds", "3")
        assert run(["profile", "net.py:tiny", *ON_FAKE, *nets, "-o", "table.json", "-q"]) == 0
        data = ("--data", "digits", "--epochs", "2", "--table", "table.json")
        target = ("--target-latency", "65%", "-o", "run", "-q")
        assert run(["prune", "net.py:tiny", *ON_FAKE, *data, *target]) == 0
    finally:
        os.chdir(before)
    return home


@pytest.fixture
def home(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `made` to work in and to damage; also the working directory."""
    left = {path.name for path in made.iterdir()} - MADE
    assert not left, f"a test before this one left {left} in the folder that all copy"
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets what the fake device is like; without noise unless asked."""
    from prunekit.runtimes.fake import Fake
    from prunekit.support.registry import runtimes

    def be(kind: type[Fake] = Fake, slower: float = 1.0, **settings: float) -> None:
        usual = Fake()
        speed = {
            name: slower * getattr(usual, name) for name in ("layer_us", "block_us", "overhead_us")
        }
        made = partial(kind, **{"noise": 0.0, **speed, **settings})
        monkeypatch.setitem(runtimes._loaded, "fake", made)

    be()
    return be


Says = Callable[..., tuple[int, str, str]]


@pytest.fixture
def prunekit(capsys: pytest.CaptureFixture[str]) -> Says:
    """Run a command in this process: exit status, stdout, stderr."""
    from prunekit.cli.main import run

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = run([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        if status:  # what a failing test shows
            sys.__stderr__.write(err)
        return status, out, err

    return call
