"""What recipes of all commands share: settings of a training, read from flags and a TOML file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal, TypeVar

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prunekit.networks.saved import saved_input
from prunekit.support.errors import FileError, UsageError
from prunekit.support.files import write_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


R = TypeVar("R", bound="TrainingRecipe")


class TrainingRecipe(BaseModel):
    """What recipes of all commands that train have in common; see `prunekit.train.TrainConfig`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    base: str | None = None
    """The dense model of a run folder given as ``model``, where that is the user's own code."""
    input: str = "1x3x224x224"
    data: str | None = None
    threads: int = Field(1, ge=1)
    measure_seconds: float = Field(8.0, gt=0)
    """Time limit of one measurement; the last one of ``prune`` takes 2.5 times as long."""

    from_scratch: bool = False
    pretrained: bool = False
    weights: str | None = None
    reparameterize: bool = True
    """Fold blocks that train with branches before anything else; see `prunekit.reparameterize`."""

    dense_epochs: int | None = Field(None, ge=1)
    """Dense training before anything goes: from scratch, or fine-tuning."""

    epochs: int = Field(15, ge=0)
    batch_size: int = Field(64, ge=2)
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float | None = Field(None, gt=0)
    fine_tune_lr: float | None = Field(None, gt=0)
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup_epochs: float = 1.0
    label_smoothing: float = 0.0
    ema: float = 0.0
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    clip_norm: float = 0.0
    distill: float = 0.0
    distill_temperature: float = 4.0
    workers: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = Field(0, ge=0)
    tensorboard: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """The input's shape, batch first."""
        return parse_shape(self.input)

    @property
    def dense_training(self) -> bool:
        """Whether the dense network is trained first."""
        return self.dense_epochs is not None

    @property
    def dense_is_trained(self) -> bool:
        """Whether what is made smaller begins as a trained network."""
        return self.dense_training or not self.from_scratch

    def check(self) -> None:
        """Raise UsageError for combinations that cannot work."""
        _ = self.shape
        sources = [
            flag
            for flag, on in (
                ("--from-scratch", self.from_scratch),
                ("--pretrained", self.pretrained),
                ("--weights", self.weights is not None),
            )
            if on
        ]
        if len(sources) > 1:
            raise UsageError(f"{' and '.join(sources)} exclude each other; keep one")
        if self.optimizer != "sgd" and self.changed("momentum"):
            raise UsageError(f"--momentum is for sgd, and the optimizer is {self.optimizer}")
        if self.dense_epochs is not None and not sources:
            raise UsageError(
                "--dense-epochs is for --from-scratch, --pretrained or --weights; give one of them"
            )
        if self.fine_tune_lr is not None and not self.dense_is_trained:
            raise UsageError(
                "--fine-tune-lr is for a network that was trained before, and --from-scratch "
                "begins with none; use --lr"
            )

    def changed(self, name: str) -> bool:
        """Whether a setting is not what it is by default."""
        return bool(getattr(self, name) != type(self).model_fields[name].default)

    def needs_data(self, *flags: tuple[str, bool]) -> None:
        """Raise UsageError for the first of ``flags`` that is on, where there is no data."""
        for flag, wrong in flags if self.data is None else ():
            if wrong:
                raise UsageError(f"{flag} needs data; add --data (digits, imagefolder:PATH, ...)")

    def save(self, path: Path) -> None:
        """Write the complete recipe as TOML."""
        write_text(path, tomli_w.dumps(self.model_dump(exclude_none=True)))

    def first_difference(self, other: TrainingRecipe) -> str | None:
        """The first setting that differs, in words, or None."""
        for name in type(self).model_fields:
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                return f"`{name}` is {mine!r} now and was {theirs!r}"
        return None


def read_recipe(kind: type[R], flags: dict[str, Any], config: Path | None = None) -> R:
    """:func:`make_recipe` for any command's recipe."""
    settings = read_toml(config) if config is not None else {}
    settings |= {name: value for name, value in flags.items() if value is not None}
    where = f"{config} or the flags" if config is not None else "the flags"
    if "model" not in settings:
        there = "" if config is None else f" in {config} or the flags"
        raise UsageError(f"no model given{there}; name one, such as zoo:resnet20_w32")
    if "input" not in settings and (own := saved_input(str(settings["model"]))) is not None:
        settings["input"] = own
    try:
        recipe = kind(**settings)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        cause = first["msg"].removeprefix("Value error, ")
        raise UsageError(f"`{name}` in {where}: {cause}") from error
    recipe.check()
    return recipe


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file; a missing or malformed one is named in the error."""
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FileError(f"{path} is not valid TOML: {error}") from error


def parse_shape(text: str) -> tuple[int, ...]:
    """``1x3x224x224`` as integers."""
    try:
        shape = tuple(int(part) for part in text.lower().split("x"))
    except ValueError:
        shape = ()
    if len(shape) < 2 or min(shape) < 1:
        raise UsageError(f"cannot read input shape {text!r}; write for example 1x3x224x224")
    return shape


def pairs(given: list[str], flag: str, example: str = "omega=0.3") -> dict[str, str]:
    """``["omega=0.3", ...]`` as a dictionary."""
    found = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not (key and equals and value):
            raise UsageError(f"cannot read {flag} {text!r}; write KEY=VALUE, such as {example}")
        found[key.strip().replace("-", "_")] = value.strip()
    return found
