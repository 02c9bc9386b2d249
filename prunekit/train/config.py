"""How a training runs: every setting, checked at the door."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal, get_args, get_type_hints

from prunekit.support.errors import UsageError

if TYPE_CHECKING:  # recipes read the defaults, and need no torch for that
    from prunekit.train.rule import Facts

__all__ = ["DeviceChoice", "MixedPrecision", "Optimizer", "TrainConfig"]

Optimizer = Literal["sgd", "adamw"]
MixedPrecision = Literal["no", "fp16", "bf16"]
DeviceChoice = Literal["auto", "cpu", "cuda"]

# What may differ between an interrupted training and its resumption: where it runs, not what it is.
_PLACE = ("device", "workers")


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one training; a value that cannot be used raises UsageError naming the field.

    ``batch_size`` counts the images of one step over all processes together. ``lr`` None means
    0.1 per 128 images (sgd) or 0.001 (adamw). ``warmup_epochs`` of linear warm-up come first,
    never more than half of the training. ``ema`` is the decay of a running average of the weights,
    ``clip_norm`` the largest norm of the gradient, ``distill`` the share of the teacher's term in
    the loss (0 to 1); these and ``label_smoothing`` are off at 0.
    """

    epochs: int = 15
    batch_size: int = 64
    optimizer: Optimizer = "sgd"
    lr: float | None = None
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_epochs: float = 1.0
    label_smoothing: float = 0.0
    ema: float = 0.0
    mixed_precision: MixedPrecision = "no"
    clip_norm: float = 0.0
    distill: float = 0.0
    distill_temperature: float = 4.0
    workers: int = 0
    device: DeviceChoice = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for name in ("optimizer", "schedule", "mixed_precision", "device"):
            _check_choice(name, getattr(self, name), get_args(hints[name]))
        # Two, because batch normalisation has nothing to normalise in a batch of one.
        for name, low in (("epochs", 0), ("batch_size", 2), ("workers", 0), ("seed", 0)):
            _check_int(name, getattr(self, name), low)
        if self.lr is not None:
            _check_float("lr", self.lr, above=0.0)
        _check_float("distill_temperature", self.distill_temperature, above=0.0)
        for name in ("weight_decay", "warmup_epochs", "clip_norm"):
            _check_float(name, getattr(self, name), low=0.0)
        for name in ("momentum", "label_smoothing", "ema"):
            _check_float(name, getattr(self, name), low=0.0, below=1.0)
        _check_float("distill", self.distill, low=0.0, high=1.0)

    @property
    def base_lr(self) -> float:
        """The learning rate after warm-up."""
        if self.lr is not None:
            return float(self.lr)
        return 0.1 * self.batch_size / 128 if self.optimizer == "sgd" else 1e-3

    def lr_at(self, step: int, per_epoch: int) -> float:
        """The learning rate of ``step`` (from 0) when an epoch has ``per_epoch`` steps."""
        total = self.epochs * per_epoch
        warm = min(round(self.warmup_epochs * per_epoch), total // 2)
        if step < warm:
            return self.base_lr * (step + 1) / warm
        if self.schedule == "constant":
            return self.base_lr
        return self.base_lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / (total - warm)))

    def essence(self) -> Facts:
        """The settings that decide what is trained; a resumed training must have the same."""
        return {key: value for key, value in asdict(self).items() if key not in _PLACE}


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UsageError(f"`{name}` must be one of {', '.join(choices)}, not {value!r}")


def _check_int(name: str, value: object, low: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise UsageError(f"`{name}` must be a whole number of at least {low}, not {value!r}")


def _check_float(
    name: str,
    value: object,
    low: float = -math.inf,
    high: float = math.inf,
    above: float = -math.inf,
    below: float = math.inf,
) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if (
        number
        and math.isfinite(value)  # type: ignore[arg-type]
        and low <= value <= high  # type: ignore[operator]
        and above < value < below  # type: ignore[operator]
    ):
        return
    limits = [
        text
        for limit, text in (
            (low, f"at least {low:g}"),
            (above, f"above {above:g}"),
            (high, f"at most {high:g}"),
            (below, f"below {below:g}"),
        )
        if math.isfinite(limit)
    ]
    raise UsageError(f"`{name}` must be a number {' and '.join(limits)}, not {value!r}")
