"""One profile at a time writes a table."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from prunekit.profiling.locking import locked
from prunekit.support.errors import UsageError


def test_one_holds_the_lock_at_a_time_though_its_file_comes_and_goes(tmp_path: Path):
    lock, inside, most, turns = tmp_path / "t.lock", [], [], []

    def work():
        while len(turns) < 300:
            with suppress(UsageError), locked(lock, Path("t.json")):
                inside.append(1)
                most.append(len(inside))
                turns.append(1)
                time.sleep(1e-4)
                inside.pop()
            time.sleep(1e-4)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
    assert not lock.exists()


def test_a_lock_leaves_no_folders_behind(tmp_path: Path):
    with (
        pytest.raises(ZeroDivisionError),
        locked(tmp_path / "a" / "b" / "t.lock", Path("t.json")),
    ):
        raise ZeroDivisionError
    assert not [*tmp_path.iterdir()]
    with locked(tmp_path / "a" / "b" / "t.lock", Path("t.json")):
        (tmp_path / "a" / "kept").touch()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["kept"]


def test_a_file_system_without_locks_is_noted(tmp_path: Path, monkeypatch, capsys):
    import errno
    import fcntl

    def unsupported(*_):
        raise OSError(errno.ENOSYS, "no locks")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with locked(tmp_path / "t.lock", Path("t.json")):
        pass
    assert "let no other profile write t.json" in capsys.readouterr().err
