"""The log of a run, read stage by stage."""

import json

from prunekit.report import read_log
from prunekit.report.schema import (
    EpochPart,
    UpdatePart,
)


def epoch_row(stage, epoch, **more):
    return {"stage": stage, "epoch": epoch, "step": 40 * epoch, "loss": 0.5} | more


def update_row(cycle, **more):
    row = {"stage": "update", "step": 10 * cycle, "cycle": cycle, "predicted_ratio": 0.9}
    return row | {"widths": {"a": 8}} | more


def write_log(path, *rows):
    path.write_text("".join(r if isinstance(r, str) else json.dumps(r) + "\n" for r in rows))
    return path


def test_a_log_is_read_stage_by_stage(tmp_path):
    path = write_log(
        tmp_path / "log.jsonl",
        epoch_row("dense training", 1, lr=0.1, accuracy=0.5, seconds=3.5),
        update_row(1),
        update_row(2, omega=0.3, iou=0.75, grown=4, survival=None, relative_flops=0.2),
        epoch_row("iee", 1),
        update_row(3, survival=0.5),
        epoch_row("iee", 2),
        epoch_row("fine tuning", 1),
    )
    epochs, updates = read_log(path)
    assert [(e.stage, e.epoch) for e in epochs] == [
        ("dense training", 1),
        ("iee", 1),
        ("iee", 2),
        ("fine tuning", 1),
    ]
    assert epochs[0] == EpochPart(
        stage="dense training", epoch=1, step=40, loss=0.5, lr=0.1, accuracy=0.5, seconds=3.5
    )
    assert epochs[1].accuracy is None
    assert [(u.stage, u.cycle, u.survival) for u in updates] == [
        ("iee", 1, None),
        ("iee", 2, None),
        ("iee", 3, 0.5),
    ]
    assert updates[1] == UpdatePart(
        **(update_row(2) | {"stage": "iee", "omega": 0.3, "iou": 0.75, "grown": 4}),
        relative_flops=0.2,
    )


def test_rows_written_again_after_a_resume_count_once(tmp_path):
    path = write_log(
        tmp_path / "log.jsonl",
        *(update_row(1), epoch_row("iee", 1), update_row(2), epoch_row("iee", 2)),
        epoch_row("iee", 3),
        *(update_row(2, predicted_ratio=0.7), epoch_row("iee", 2, loss=0.25)),
        epoch_row("fine tuning", 1),
    )
    epochs, updates = read_log(path)
    assert [(e.stage, e.epoch, e.loss) for e in epochs] == [
        ("iee", 1, 0.5),
        ("iee", 2, 0.25),
        ("iee", 3, 0.5),
        ("fine tuning", 1, 0.5),
    ]
    assert [(u.cycle, u.predicted_ratio) for u in updates] == [(1, 0.9), (2, 0.7)]


def test_a_line_cut_off_by_a_crash_costs_no_other(tmp_path):
    whole = json.dumps(epoch_row("iee", 2))
    path = write_log(
        tmp_path / "log.jsonl", epoch_row("iee", 1), update_row(1), whole[: len(whole) // 2]
    )
    epochs, updates = read_log(path)
    assert [e.epoch for e in epochs] == [1]
    assert [(u.stage, u.cycle) for u in updates] == [("iee", 1)]
    with path.open("a") as file:  # the resumed run goes on in the same line
        file.write(json.dumps(epoch_row("iee", 3)) + "\n" + json.dumps(epoch_row("iee", 4)) + "\n")
    assert [e.epoch for e in read_log(path)[0]] == [1, 3, 4]


def test_rows_that_are_neither_are_left_out(tmp_path):
    path = write_log(
        tmp_path / "log.jsonl",
        *({"stage": "landing"}, "[1, 2]\n", "3\n", "\n", {"epoch": 1}, {"stage": "update"}),
        epoch_row("iee", 1, loss=float("nan"), something_new=1),
        "[" * 100_000 + "\n",
    )
    epochs, updates = read_log(path)
    assert epochs == (EpochPart(stage="iee", epoch=1, step=40),)
    assert updates == ()


def test_no_log_is_no_training(tmp_path):
    assert read_log(tmp_path / "log.jsonl") == ((), ())
