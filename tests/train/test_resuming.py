"""A resumed training equals an uninterrupted one."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from prunekit.support.errors import UsageError
from prunekit.train import Data, fit, load_data
from prunekit.train.checkpoint import CHECKPOINT
from support.training import CONFIG, Mask, same, stripes, tiny, weights


@pytest.fixture(scope="module")
def data() -> Data:
    return Data(stripes(70, 0), stripes(30, 1), 3, (1, 8, 8), "stripes")


def stop_after(epoch: int) -> Any:
    def log(entry: dict[str, Any]) -> None:
        if entry["epoch"] == epoch:
            raise KeyboardInterrupt

    return log


@pytest.mark.parametrize(
    "extra", [{"ema": 0.9, "clip_norm": 0.5}, {"optimizer": "adamw", "lr": 0.01}]
)
def test_a_resumed_training_equals_an_uninterrupted_one(
    data: Data, tmp_path: Path, extra: dict[str, Any]
) -> None:
    config = replace(CONFIG, **extra)
    rule = None if "optimizer" in extra else Mask
    straight, stopped = tiny(), tiny()
    whole = fit(straight, data, config, rule=rule and rule())
    with pytest.raises(KeyboardInterrupt):
        fit(stopped, data, config, folder=tmp_path, rule=rule and rule(), log=stop_after(1))
    assert [file.name for file in tmp_path.iterdir()] == [CHECKPOINT]
    resumed, later = tiny(seed=9), rule and rule()
    part = fit(resumed, data, config, folder=tmp_path, resume=True, rule=later)
    assert same(weights(straight), weights(resumed))
    assert (part.accuracy, part.best, part.epochs) == (whole.accuracy, whole.best, 3)
    assert part.steps == whole.steps == 12
    if later:
        assert later.steps == list(range(4, 12))
        assert (resumed.conv.weight[later.turns % 4] == 0).all()  # the average keeps the mask

    # Finished: nothing is trained again, whatever the model given.
    finished = tiny(seed=8)
    told: list[Any] = []
    last = fit(
        finished, data, config, folder=tmp_path, resume=True, rule=rule and rule(), log=told.append
    )
    assert last == part
    assert told == []
    assert same(weights(straight), weights(finished))
    assert not finished.training


def test_augmentation_is_repeated_too(tmp_path: Path) -> None:
    digits = load_data("digits", (1, 8, 8))
    digits = replace(digits, train=torch.utils.data.Subset(digits.train, range(200)))
    config = replace(CONFIG, epochs=2)
    straight, stopped, resumed = tiny(classes=10), tiny(classes=10), tiny(classes=10)
    fit(straight, digits, config)
    with pytest.raises(KeyboardInterrupt):
        fit(stopped, digits, config, folder=tmp_path, log=stop_after(1))
    fit(resumed, digits, config, folder=tmp_path, resume=True)
    assert same(weights(straight), weights(resumed))


def test_resume_without_a_checkpoint_starts_at_the_beginning(data: Data, tmp_path: Path) -> None:
    first, again = tiny(), tiny()
    fit(first, data, CONFIG)
    fit(again, data, CONFIG, folder=tmp_path / "new", resume=True)
    assert same(weights(first), weights(again))
    with pytest.raises(UsageError, match="`resume` needs a `folder`"):
        fit(tiny(), data, CONFIG, resume=True)
