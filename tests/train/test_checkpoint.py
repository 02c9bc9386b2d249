"""Checkpoints: damaged, of something else, on a full disk."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from prunekit import zoo
from prunekit.support.errors import FileError, UsageError
from prunekit.train import Data, fit
from prunekit.train.checkpoint import CHECKPOINT
from support.training import CONFIG, Mask, same, stripes, tiny, weights


@pytest.fixture(scope="module")
def data() -> Data:
    return Data(stripes(70, 0), stripes(30, 1), 3, (1, 8, 8), "stripes")


def test_a_checkpoint_of_something_else(data: Data, tmp_path: Path) -> None:
    fit(tiny(), data, replace(CONFIG, epochs=1), folder=tmp_path)

    def again(**changes: Any) -> str:
        config = replace(CONFIG, **{"epochs": 1, **changes.pop("config", {})})
        arguments = {"model": tiny(), "data": data, **changes}
        with pytest.raises(UsageError) as caught:
            fit(config=config, folder=tmp_path, resume=True, **arguments)
        assert str(tmp_path / CHECKPOINT) in str(caught.value)
        return str(caught.value)

    assert "was made with `lr` 0.05, now it is 0.1; use the same" in again(config={"lr": 0.1})
    assert "`epochs` 1, now it is 2" in again(config={"epochs": 2})
    assert "`data` 'stripes', now it is 'other'" in again(data=replace(data, name="other"))
    assert "`rule`" in again(rule=Mask())
    assert "fc.weight is [3, 4] there and [4, 4] here" in again(model=tiny(classes=4))
    assert "another model: they differ in" in again(model=zoo.resnet20(3, 1))
    assert (
        fit(
            tiny(), data, replace(CONFIG, epochs=1, device="auto"), folder=tmp_path, resume=True
        ).steps
        == 4
    )  # where it runs is free


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "text", "foreign", "folder"])
def test_a_damaged_checkpoint_is_named(data: Data, tmp_path: Path, damage: str) -> None:
    from safetensors.torch import save_file

    path = tmp_path / CHECKPOINT
    config = replace(CONFIG, epochs=1)
    fit(tiny(), data, config, folder=tmp_path)
    content = bytearray(path.read_bytes())
    path.unlink()
    if damage == "foreign":
        save_file({"x": torch.zeros(2)}, path)
    elif damage == "folder":
        path.mkdir()
    else:
        content[-5] ^= 16
        cut = {
            "cut": bytes(content[:-9]),
            "flipped": bytes(content),
            "empty": b"",
            "text": b"hello",
        }
        path.write_bytes(cut[damage])
    with pytest.raises(FileError) as caught:
        fit(tiny(), data, config, folder=tmp_path, resume=True)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_full_disk_leaves_the_last_checkpoint(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(entry: dict[str, Any]) -> None:
        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "write_bytes", full)

    with pytest.raises(FileError, match=r"cannot write .*checkpoint.*: No space left on device"):
        fit(tiny(), data, CONFIG, folder=tmp_path, log=fill)
    monkeypatch.undo()
    assert [file.name for file in tmp_path.iterdir()] == [CHECKPOINT]
    model, straight = tiny(5), tiny()
    fit(model, data, CONFIG, folder=tmp_path, resume=True)
    fit(straight, data, CONFIG)
    assert same(weights(model), weights(straight))
