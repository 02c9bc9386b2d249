"""Files are whole or not there; damaged, edited and foreign ones are named."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunekit.support.errors import FileError
from prunekit.support.files import (
    dump_json,
    load_json,
    read_object,
    replacing,
    save_json,
    sha256_file,
    write_bytes,
    write_text,
)


@dataclass(frozen=True)
class Thing:
    name: str
    values: tuple[float, ...] = ()
    nested: dict[str, tuple[int, ...]] = field(default_factory=dict)


def listing(folder):
    return sorted(p.name for p in folder.iterdir())


@settings(derandomize=True)
@given(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.lists(st.floats(allow_nan=False, allow_infinity=False)),
    st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.lists(st.integers())),
)
def test_what_is_written_is_read(name, values, nested):
    import tempfile

    thing = Thing(name, tuple(values), {k: tuple(v) for k, v in nested.items()})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "thing.json"
        save_json(path, thing, "thing", 1)
        assert load_json(path, Thing, "thing", 1) == thing


def test_lists_of_numbers_stay_on_one_line():
    text = dump_json(Thing("a", (1.0, 2.5), {"k": (1, 2)}), "thing", 3)
    assert ' "values": [1.0, 2.5],\n' in text
    assert text.endswith("}\n")
    assert list(json.loads(text))[:3] == ["prunekit", "version", "sha256"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_none_are_not_written(tmp_path, value):
    path = tmp_path / "thing.json"
    save_json(path, Thing("old"), "thing", 1)
    with pytest.raises(FileError, match="cannot write a thing that holds NaN or infinity"):
        save_json(path, Thing("new", (1.0, value)), "thing", 1)
    assert load_json(path, Thing, "thing", 1) == Thing("old")
    assert listing(tmp_path) == ["thing.json"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError("no"), SystemExit(3)])
def test_an_interrupted_write_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "file.txt"
    write_text(path, "old")

    def write():
        with replacing(path) as temporary:
            temporary.write_text("half of the n")
            assert temporary.parent == tmp_path
            raise error

    with pytest.raises((KeyboardInterrupt, ValueError, SystemExit)):
        write()
    assert path.read_text() == "old"
    assert listing(tmp_path) == ["file.txt"]


@pytest.mark.parametrize("step", ["write_bytes", "replace", "chmod"])
def test_a_full_disk_is_an_error_with_the_files_name(tmp_path, monkeypatch, step):
    path = tmp_path / "file.txt"
    write_text(path, "old")

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, step, full)
    with pytest.raises(FileError, match=r"cannot write .*file\.txt: No space left on device"):
        write_bytes(path, b"new")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert listing(tmp_path) == ["file.txt"]


def test_a_write_that_the_system_cuts_short(tmp_path):
    """For real: the process may write a thousand bytes and no more."""
    code = """
import resource, signal, sys
from prunekit.support.errors import FileError
from prunekit.support.files import write_bytes
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_bytes(sys.argv[1], b"x" * 100_000)
except FileError as error:
    print(error)
"""
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    out = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == f"cannot write {path}: File too large"
    assert path.read_bytes() == b"old"
    assert listing(tmp_path) == ["file.bin"]


def test_places_that_cannot_be_written_are_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match=r"cannot write .*file/inner\.txt: "):
        write_text(tmp_path / "file" / "inner.txt", "x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileError, match=r"cannot write .*folder: Is a directory"):
        write_text(tmp_path / "folder", "x")
    assert listing(tmp_path) == ["file", "folder"]


def test_folders_are_made_and_permissions_follow_the_umask(tmp_path):
    path = tmp_path / "a" / "b" / "file.txt"
    before = os.umask(0o027)
    try:
        write_text(path, "x")
    finally:
        assert os.umask(before) == 0o027
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def damaged(path, change):
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))


def test_damaged_edited_and_foreign_files_are_named(tmp_path):
    path = tmp_path / "thing.json"

    def refused(match):
        with pytest.raises(FileError, match=rf"thing\.json.*{match}"):
            load_json(path, Thing, "thing", 1)

    refused("No such file or directory")
    save_json(path, Thing("a", (1.0, 2.0)), "thing", 1)
    text = path.read_text()
    for cut in range(0, len(text) - 2, 7):
        path.write_text(text[:cut])
        refused("is truncated or not JSON")
    path.write_bytes(b"\xff\xfe\x00garbage")
    refused("is truncated or not JSON")
    path.write_text("[" * 200_000)
    refused("is truncated or not JSON")
    path.write_text('{"values": [NaN]}')
    refused("NaN is no JSON number")
    path.write_text("[1, 2]")
    refused("is not a prunekit thing file")
    path.write_text("{}")
    refused("is not a prunekit thing file")

    save_json(path, Thing("a", (1.0, 2.0)), "thing", 1)
    damaged(path, lambda raw: raw["values"].append(3.0))
    refused("was edited or damaged: its checksum does not match")
    save_json(path, Thing("a"), "other", 1)
    refused("is not a prunekit thing file")
    save_json(path, Thing("a"), "thing", 2)
    refused("has thing version 2, this prunekit reads version 1; make it anew")


def test_a_valid_checksum_on_invalid_content_is_still_refused(tmp_path):
    @dataclass(frozen=True)
    class Other:
        name: int

    save_json(tmp_path / "x.json", Other(3), "thing", 1)
    with pytest.raises(FileError, match=r"x\.json is not a valid thing: name: "):
        load_json(tmp_path / "x.json", Thing, "thing", 1)


def test_checksums_of_files(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256_file(tmp_path / "x").startswith("ba7816bf8f01cfea")
    with pytest.raises(FileError, match=r"cannot read .*missing: No such file"):
        sha256_file(tmp_path / "missing")
    assert read_object(write_and_return(tmp_path / "o.json", '{"a": 1}'), "object") == {"a": 1}


def write_and_return(path, text):
    write_text(path, text)
    return path
