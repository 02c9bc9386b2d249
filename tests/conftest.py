"""What all tests share: one thread, and a tiny network with a finished run on the fake target."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import gc
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from support.commands import FACTORY, MADE, ON_FAKE, Says
from support.refusals import Refuses, tree


def pytest_collection_finish() -> None:
    """Modules stay: the garbage collector, a quarter of an export's time, need not look at them."""
    gc.set_threshold(100_000, 20, 20)
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest test first, so that no worker waits for it at the end."""
    items.sort(key=lambda item: "golden/test_traces" not in item.nodeid)


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
    gc.freeze()  # what the first export has imported
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
def interruptible() -> Iterator[None]:
    """Interrupts arrive: in a background job they are ignored from the start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


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


@pytest.fixture(scope="session")
def small_net():
    import torch

    from support.tables import Small

    torch.manual_seed(0)
    return Small().eval()


@pytest.fixture(scope="session")
def small_graph(small_net):
    import prunekit as pk
    from support.tables import EXAMPLE

    return pk.trace(small_net, EXAMPLE)


@pytest.fixture(scope="session")
def exported_once(tmp_path_factory):
    """Exports every dense network once; what is measured are real files nonetheless."""
    import prunekit as pk

    folder, known = tmp_path_factory.mktemp("exported"), {}

    def export(module, example, path):
        key = str([(name, value.shape) for name, value in module.state_dict().items()])
        if key not in known:
            known[key] = pk.export(module, example, folder / f"{len(known)}.onnx")
        shutil.copy(known[key].path, path)
        return replace(known[key], path=str(path))

    return export
