"""Settings of a training, checked by name, and learning rates."""

from dataclasses import replace
from typing import Any

import pytest

from prunekit.support.errors import UsageError
from prunekit.train import TrainConfig
from support.training import CONFIG


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("epochs", -1, "`epochs` must be a whole number of at least 0, not -1"),
        ("epochs", 1.5, "`epochs` must be a whole number of at least 0, not 1.5"),
        ("epochs", True, "`epochs` must be a whole number of at least 0, not True"),
        ("batch_size", 1, "`batch_size` must be a whole number of at least 2, not 1"),
        ("optimizer", "adam", "`optimizer` must be one of sgd, adamw, not 'adam'"),
        ("lr", 0, "`lr` must be a number above 0, not 0"),
        ("lr", float("nan"), "`lr` must be a number above 0, not nan"),
        ("lr", "big", "`lr` must be a number above 0, not 'big'"),
        ("momentum", 1, "`momentum` must be a number at least 0 and below 1, not 1"),
        ("weight_decay", -0.1, "`weight_decay` must be a number at least 0, not -0.1"),
        ("schedule", "step", "`schedule` must be one of cosine, constant, not 'step'"),
        ("warmup_epochs", -1, "`warmup_epochs` must be a number at least 0, not -1"),
        ("ema", 1.0, "`ema` must be a number at least 0 and below 1, not 1.0"),
        ("mixed_precision", "fp8", "`mixed_precision` must be one of no, fp16, bf16, not 'fp8'"),
        ("distill", 2, "`distill` must be a number at least 0 and at most 1, not 2"),
        ("distill_temperature", 0, "`distill_temperature` must be a number above 0, not 0"),
        ("workers", -1, "`workers` must be a whole number of at least 0, not -1"),
        ("device", "tpu", "`device` must be one of auto, cpu, cuda, not 'tpu'"),
        ("seed", -1, "`seed` must be a whole number of at least 0, not -1"),
    ],
)
def test_a_setting_is_checked_by_name(field: str, value: Any, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        replace(CONFIG, **{field: value})
    assert str(caught.value) == message


def test_learning_rates() -> None:
    config = TrainConfig(epochs=10, lr=1.0, warmup_epochs=2)
    rates = [config.lr_at(step, 5) for step in range(50)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert rates[30] == pytest.approx(0.5)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 0.01
    assert replace(config, schedule="constant").lr_at(49, 5) == 1.0
    assert replace(config, epochs=2).lr_at(5, 5) == 1.0  # half of the training at most
    assert replace(config, epochs=1).lr_at(0, 1) == 1.0
    assert TrainConfig(batch_size=128).base_lr == 0.1
    assert TrainConfig(optimizer="adamw").base_lr == 1e-3
