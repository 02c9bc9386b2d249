"""Interrupted and taken up again: at most a round or an epoch is lost, and nothing half-written."""

import json
import shutil
from pathlib import Path

import pytest

from prunekit.cli.main import run
from support.commands import ON_FAKE, Says
from support.interrupting import (
    ROUNDS,
    SLOW_EPOCHS,
    digest,
    half_written,
    interrupted,
    interrupted_here,
    lines,
)

PROFILE = (
    *("profile", "net.py:tiny", *ON_FAKE, "--nets", 4, "--rounds", 8, "--granularity", 8),
    *("-o", "new.json"),
)
TRAIN = (
    *("prune", "net.py:tiny", *ON_FAKE, "--table", "table.json", "--target-latency", "65%"),
    *("--data", "digits", "--batch-size", 256, "--seed", 1, "--method", "oneshot"),
    *("--from-scratch", "--dense-epochs", 6, "--epochs", 2),
)


@pytest.fixture(scope="module")
def uninterrupted(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of ``TRAIN``, never interrupted."""
    home = tmp_path_factory.mktemp("uninterrupted")
    shutil.copytree(made, home, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert run([*map(str, TRAIN), "-o", "whole", "-q"]) == 0
    return home / "whole"


def test_profile(prunekit: Says, home: Path) -> None:
    journal = home / "new.json.journal.jsonl"
    err = interrupted(home, ROUNDS, PROFILE, lambda: len(lines(journal)) >= 4)
    assert err.splitlines()[-1] == (
        "prunekit: interrupted; the finished rounds are in new.json.journal.jsonl: same command "
        "with --resume"
    )
    kept = lines(journal)
    assert not (home / "new.json").exists()
    assert not half_written(home)

    status, _, err = prunekit(*PROFILE, "--resume", "--seed", 4)
    assert status == 2
    assert "is of another profile: `seed` was 0 and is 4 now; " in err
    assert lines(journal) == kept

    with journal.open("a") as file:  # as a kill in the middle of a write leaves it
        file.write(kept[-1][:50])
    status, out, err = prunekit(*PROFILE, "--resume", "--json")
    assert status == 0
    assert f"profile: {len(kept) - 1} rounds taken from new.json.journal.jsonl" in err
    assert json.loads(out)["rounds"] == 8
    assert not journal.exists()
    table = (home / "new.json").read_bytes()
    assert prunekit(*PROFILE, "--resume")[0] == 0  # finished: nothing to do
    assert (home / "new.json").read_bytes() == table
    assert not half_written(home)


def test_a_finished_profile_is_not_of_other_settings(prunekit: Says, home: Path) -> None:
    profile = ("profile", "net.py:tiny", *ON_FAKE, "--nets", 4, "--rounds", 3, "-o", "table.json")
    table = (home / "table.json").read_bytes()
    (home / "other.json").write_bytes(table)
    for more, said in (
        (("--seed", 9), "`seed` was 0 and is 9 now"),
        (("--nets", 6), "`nets` was 4 and is 6 now"),
        (("--rounds", 2), "`rounds` was 3 and is 2 now"),
        (("--granularity", 4), "`granularity` was 8 and is 4 now"),
        (("--source", "grid"), "`source` was harvest and is grid now"),
        (("--transfer", "other.json"), "`transfer` was None and is fake device, 1, "),
    ):
        rest = [a for a in profile if "grid" not in more or a not in ("--nets", 4, "--rounds", 3)]
        status, out, err = prunekit(*rest, "--resume", *more)
        assert (status, out) == (2, "")
        assert f"prunekit: latency table table.json is of another profile: {said}" in err
        assert err.endswith("; remove it or profile without --resume\n")
    assert prunekit(*profile, "--resume")[0] == 0
    assert prunekit(*profile, "--resume", "--source", "harvest", "--granularity", 8)[0] == 0
    assert (home / "table.json").read_bytes() == table


def test_profile_of_prune(prunekit: Says, home: Path) -> None:
    command = (
        *(
            "prune",
            "net.py:tiny",
            *ON_FAKE,
            "--epochs",
            0,
            "--profile-nets",
            4,
            "--profile-error",
            "0%",
            "--granularity",
            8,
        ),
        *("--target-latency", "65%", "-o", "new"),
    )
    journal = home / "new" / "work" / "profile.jsonl"
    err = interrupted_here(prunekit, ROUNDS, command, lambda: len(lines(journal)) >= 3)
    assert err.splitlines()[-1] == (
        "prunekit: interrupted; finished rounds and epochs are in new: same command with --resume"
    )
    kept = len(lines(journal)) - 1
    status, _, err = prunekit(*command)
    assert status == 2
    assert "output folder new exists" in err
    status, _, err = prunekit(*command, "--resume")
    assert status == 0
    assert f"{kept} rounds taken from" in err
    assert not half_written(home)


def test_before_anything_is_finished(prunekit: Says, home: Path) -> None:
    before = sorted(home.rglob("*"))
    for first, command, made in (
        (ROUNDS, (*PROFILE,), home / "new.json.journal.jsonl"),
        (SLOW_EPOCHS, (*TRAIN, "-o", "new"), home / "new" / "config.toml"),
    ):
        err = interrupted_here(prunekit, first, command, made.exists)
        assert err.splitlines()[-1].endswith("nothing is kept")
        assert sorted(p for p in home.rglob("*") if "__pycache__" not in p.parts) == [
            p for p in before if "__pycache__" not in p.parts
        ]


@pytest.mark.parametrize("stage", ["dense-training", "fine-tuning"])
def test_training_ends_in_the_same_weights(
    prunekit: Says, home: Path, uninterrupted: Path, stage: str
) -> None:
    checkpoint = home / "new" / "work" / stage / "checkpoint.safetensors"
    command = (*TRAIN, "-o", "new")
    if stage == "fine-tuning":
        err = interrupted_here(prunekit, SLOW_EPOCHS, command, checkpoint.is_file)
    else:
        err = interrupted(home, SLOW_EPOCHS, command, checkpoint.is_file)
    assert err.splitlines()[-1].startswith("prunekit: interrupted; finished rounds and epochs are")
    assert not (home / "new" / "report.json").exists()
    assert not half_written(home)
    before = [json.loads(line) for line in lines(home / "new" / "log.jsonl")]
    assert 0 < len(before) < 8
    name = stage.replace("-", " ")
    done = sum(row["stage"] == name for row in before)

    status, _, err = prunekit(*TRAIN, "-o", "new", "--resume", "--seed", 2)
    assert status == 2
    assert "cannot resume new: `seed` is 2 now and was 1" in err

    status, _, err = prunekit(*TRAIN, "-o", "new", "--resume")
    assert status == 0, err
    rows = [json.loads(line) for line in lines(home / "new" / "log.jsonl")]
    assert rows[: len(before)] == before
    # an epoch may be in the checkpoint and not yet in the log when the signal comes
    epochs = [row["epoch"] for row in rows if row["stage"] == name]
    assert set(range(1, done + 1)) <= set(epochs)
    assert len(epochs) == len(set(epochs))
    assert not (home / "new" / "work").exists()
    assert not half_written(home)

    for weights in ("dense.safetensors", "model.safetensors"):
        assert digest(home / "new" / weights) == digest(uninterrupted / weights)


def test_resume_of_nothing_starts(prunekit: Says, home: Path) -> None:
    command = ("prune", "net.py:tiny", *ON_FAKE, "--table", "table.json", "--epochs", 0)
    assert prunekit(*command, "--target-latency", "65%", "-o", "new", "--resume")[0] == 0


def test_damaged_checkpoint(prunekit: Says, home: Path) -> None:
    checkpoint = home / "new" / "work" / "dense-training" / "checkpoint.safetensors"
    interrupted_here(prunekit, SLOW_EPOCHS, (*TRAIN, "-o", "new"), checkpoint.is_file)
    data = checkpoint.read_bytes()
    for damaged in (data[:-50], data[:-1] + bytes([data[-1] ^ 1])):
        checkpoint.write_bytes(damaged)
        status, _, err = prunekit(*TRAIN, "-o", "new", "--resume")
        assert status == 2
        last = err.splitlines()[-1]
        assert last.startswith(f"prunekit: checkpoint {checkpoint.relative_to(home)} is damaged")
        assert "remove it to start from the beginning" in last
        assert checkpoint.read_bytes() == damaged


def test_files_of_a_killed_process_are_swept(prunekit: Says, home: Path) -> None:
    command = ("prune", "net.py:tiny", *ON_FAKE, "--table", "table.json", "--epochs", 0)
    target = ("--target-latency", "65%", "-o", "run")
    folder = home / "run"
    (folder / "report.json").unlink()
    assert prunekit(*command, *target, "--overwrite")[0] == 0
    (folder / "report.json").unlink()
    (folder / ".model.onnx.ab12_xyz").write_bytes(b"half")
    assert prunekit(*command, *target, "--resume")[0] == 0
    assert not half_written(folder)
