"""A disk without room."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from support.commands import ON_FAKE, SHAPE, Says
from support.refusals import PRUNE, tree


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
