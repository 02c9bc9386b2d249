"""Rows of the log as TensorBoard's events."""

import subprocess
import sys

import pytest

from prunekit.pipeline.tensorboard import Board
from prunekit.support.errors import FileError, UsageError

EPOCHS = [
    {
        "stage": stage,
        "epoch": n,
        "step": 40 * n,
        "loss": loss / n,
        "lr": 0.1 / n,
        "accuracy": 0.2 * n,
    }
    for stage, loss in (("dense training", 2.0), ("iee", 1.0))
    for n in (1, 2, 3)
]
UPDATES = [
    {
        "stage": "update",
        "step": 15 * c,
        "cycle": c,
        "omega": 0.3,
        "predicted_ratio": 1 - 0.1 * c,
        "iou": 0.25 * c,
        "grown": c,
        "survival": 0.5 if c > 1 else None,
        "relative_flops": 0.125 * c,
        "widths": {"layer1.0.conv1": 64 - 8 * c, "layer2.0.conv1": 128},
    }
    for c in (1, 2)
]


@pytest.fixture
def events():
    """Read a folder's scalars back: by tag, the (step, value) of every event."""
    reading = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="needs the tensorboard package",
    )

    def read(folder):
        found = reading.EventAccumulator(str(folder), {reading.SCALARS: 0})
        found.Reload()
        return {
            tag: [
                (event.step, pytest.approx(event.value, rel=1e-6)) for event in found.Scalars(tag)
            ]
            for tag in found.Tags()["scalars"]
        }

    return read


def write(path, *rows):
    board = Board(path)
    for row in rows:
        board.log(row)
    board.close()


def test_epochs_are_scalars_by_stage(tmp_path, events):
    write(tmp_path, *EPOCHS)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dense-training", "iee"]
    dense = events(tmp_path / "dense-training")
    assert dense == {
        "train/loss": [(40, 2.0), (80, 1.0), (120, 2 / 3)],
        "train/lr": [(40, 0.1), (80, 0.05), (120, 0.1 / 3)],
        "val/accuracy": [(40, 0.2), (80, 0.4), (120, 0.6)],
    }
    assert events(tmp_path / "iee")["train/loss"] == [(40, 1.0), (80, 0.5), (120, 1 / 3)]


def test_updates_are_scalars_and_widths_per_group(tmp_path, events):
    write(tmp_path, *UPDATES)
    assert events(tmp_path) == {
        "structure/predicted_ratio": [(15, 0.9), (30, 0.8)],
        "structure/iou": [(15, 0.25), (30, 0.5)],
        "structure/survival": [(30, 0.5)],
        "structure/relative_flops": [(15, 0.125), (30, 0.25)],
        "widths/layer1.0.conv1": [(15, 56), (30, 48)],
        "widths/layer2.0.conv1": [(15, 128), (30, 128)],
    }


def test_an_update_of_halp_has_no_overlap(tmp_path, events):
    row = {"stage": "update", "step": 5, "cycle": 0, "predicted_ratio": 0.5, "widths": {"a": 8}}
    write(tmp_path, row)
    assert events(tmp_path) == {"structure/predicted_ratio": [(5, 0.5)], "widths/a": [(5, 8)]}


def test_zero_is_a_value(tmp_path, events):
    write(tmp_path, EPOCHS[0] | {"accuracy": 0.0})
    assert events(tmp_path / "dense-training")["val/accuracy"] == [(40, 0.0)]


def test_a_resumed_run_adds_to_what_is_there_and_the_last_wins(tmp_path, events):
    write(tmp_path, EPOCHS[0], EPOCHS[1])
    write(tmp_path, EPOCHS[1] | {"loss": 0.75}, EPOCHS[2])
    told = events(tmp_path / "dense-training")["train/loss"]
    assert dict(told) == {40: 2.0, 80: 0.75, 120: 2 / 3}


def test_rows_can_be_read_while_the_run_goes_on(tmp_path, events):
    board = Board(tmp_path)
    board.log(EPOCHS[0])
    assert events(tmp_path / "dense-training")["train/loss"] == [(40, 2.0)]
    board.close()


def test_a_board_without_rows_leaves_no_files(tmp_path, events):
    write(tmp_path / "tensorboard")
    assert not (tmp_path / "tensorboard").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path, events):
    (tmp_path / "file").write_text("")
    board = Board(tmp_path / "file")
    with pytest.raises(FileError, match=r"cannot write .*file"):
        board.log(EPOCHS[0])


def test_without_the_package_one_line_names_the_remedy(tmp_path, monkeypatch):
    for name in [
        n for n in sys.modules if n.startswith(("tensorboard", "torch.utils.tensorboard"))
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UsageError, match=r"pip install prunekit\[tensorboard\]$") as caught:
        Board(tmp_path)
    assert "\n" not in str(caught.value)


def test_the_package_is_imported_only_for_a_board():
    code = "import sys, prunekit.pipeline.prune, prunekit.pipeline.tensorboard\n"
    code += "print([name for name in sys.modules if name.split('.')[0] == 'tensorboard'])"
    told = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    )
    assert told.stdout.strip() == "[]"
