"""What recipes of all commands share: settings of a training, read from flags and a TOML file."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prunekit.core.inputs import parse_inputs
from prunekit.pipeline.recipes.flag import Flag
from prunekit.support.errors import FileError, UsageError
from prunekit.support.files import write_text
from prunekit.train.config import DeviceChoice, MixedPrecision, Optimizer, TrainConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


R = TypeVar("R", bound="TrainingRecipe")

IMAGES = "images:"
"""What data without labels begins with."""
_DENSE, _TRAINING, _TASK = "Dense network", "Training", "Task"


class TrainingRecipe(BaseModel):
    """What recipes of all commands that train have in common; see `prunekit.train.TrainConfig`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Annotated[
        str,
        Flag(
            "torchvision:NAME, timm:NAME, zoo:NAME, path/file.py:factory, package.module:factory "
            "or a run folder",
            metavar="MODEL",
        ),
    ]
    base: Annotated[
        str | None,
        Flag("The dense model of a run folder, where that is your own code.", metavar="MODEL"),
    ] = None
    input: Annotated[
        str,
        Flag(
            "Input shape, batch first, or several, as in ids=1x16:int64<100,mask=1x16:int64=1; a "
            "run folder has its own."
        ),
    ] = "1x3x224x224"
    example: Annotated[
        str | None,
        Flag("Your function that makes an input, in place of --input.", metavar="FILE.py:function"),
    ] = None
    data: Annotated[
        str | None,
        Flag(
            "What is trained and scored on: digits, imagefolder:PATH, cifar10:PATH, coco:PATH, "
            "segmentation:PATH, ... or package.module:factory; images:PATH has no labels; none: "
            "neither."
        ),
    ] = None
    task: Annotated[
        str | None,
        Flag(
            "What is trained for, such as classification, or your own, path/file.py:factory; "
            "default: what the data's targets say.",
            _TASK,
            metavar="NAME",
            plugins="tasks",
        ),
    ] = None
    loss: Annotated[
        str | None, Flag("The loss, where the task has several.", _TASK, metavar="NAME")
    ] = None
    metric: Annotated[
        str | None,
        Flag("The metric that decides, where the task has several.", _TASK, metavar="NAME"),
    ] = None
    class_weights: Annotated[
        str | None,
        Flag(
            "Weights of the classes in the loss, such as 1,2.5,1, or balanced.",
            _TASK,
            metavar="WEIGHTS",
        ),
    ] = None
    threads: Annotated[int, Flag("Threads of the target.", "Target")] = Field(1, ge=1)
    measure_seconds: Annotated[
        float,
        Flag(
            "Usual time limit of one measurement; three times as long while the answer is open.",
            "Measurements",
        ),
    ] = Field(8.0, gt=0)

    from_scratch: Annotated[
        bool,
        Flag(
            "Begin with random weights.",
            _DENSE,
        ),
    ] = False
    pretrained: Annotated[bool, Flag("torchvision's or timm's weights.", _DENSE)] = False
    weights: Annotated[
        str | None,
        Flag("Dense weights: a .safetensors, or a .pth or .pt file of tensors.", _DENSE),
    ] = None
    weights_entry: Annotated[
        str | None,
        Flag(
            "Which weights of the file, where it has several, such as model_ema.",
            _DENSE,
            metavar="NAME",
        ),
    ] = None
    reparameterize: Annotated[
        bool, Flag("Fold blocks that train with branches, as they are deployed.", _DENSE)
    ] = True

    dense_epochs: Annotated[
        int | None,
        Flag(
            "Epochs of dense training first; default: as --epochs where --from-scratch needs it.",
            _DENSE,
        ),
    ] = Field(None, ge=1)

    # What a training is set to by default is told where it is used.
    epochs: Annotated[
        int, Flag("Epochs of pruning and fine-tuning, or of sparse training.", _TRAINING)
    ] = Field(TrainConfig.epochs, ge=0)
    batch_size: Annotated[int, Flag("Training batch over all processes.", _TRAINING)] = Field(
        TrainConfig.batch_size, ge=2
    )
    optimizer: Annotated[Optimizer, Flag("Optimizer.", _TRAINING)] = TrainConfig.optimizer
    lr: Annotated[
        float | None,
        Flag(
            "Learning rate of training from random weights; default: 0.1 per 128 images (sgd), "
            "0.001 (adamw).",
            _TRAINING,
        ),
    ] = Field(TrainConfig.lr, gt=0)
    fine_tune_lr: Annotated[
        float | None,
        Flag("Learning rate of training from trained weights; default: a fifth.", _TRAINING),
    ] = Field(None, gt=0)
    momentum: Annotated[float, Flag("SGD momentum.", _TRAINING)] = TrainConfig.momentum
    weight_decay: Annotated[float, Flag("Weight decay.", _TRAINING)] = TrainConfig.weight_decay
    warmup_epochs: Annotated[float, Flag("Epochs of linear warm-up.", _TRAINING)] = (
        TrainConfig.warmup_epochs
    )
    label_smoothing: Annotated[float, Flag("Label smoothing.", _TRAINING)] = (
        TrainConfig.label_smoothing
    )
    ema: Annotated[float, Flag("Decay of averaged weights; 0 is off.", _TRAINING)] = TrainConfig.ema
    mixed_precision: Annotated[
        MixedPrecision, Flag("Number format of the training's arithmetic.", _TRAINING)
    ] = TrainConfig.mixed_precision
    clip_norm: Annotated[float, Flag("Gradient norm limit; 0 is off.", _TRAINING)] = (
        TrainConfig.clip_norm
    )
    distill: Annotated[
        float, Flag("Share of the dense teacher's term in the loss, 0 to 1.", _TRAINING)
    ] = TrainConfig.distill
    distill_temperature: Annotated[float, Flag("Its temperature.", _TRAINING)] = (
        TrainConfig.distill_temperature
    )
    workers: Annotated[int, Flag("Data-loading processes.", _TRAINING)] = TrainConfig.workers
    device: Annotated[DeviceChoice, Flag("Training device.", _TRAINING)] = TrainConfig.device
    seed: Annotated[int, Flag("Seed of everything random.", _TRAINING)] = Field(
        TrainConfig.seed, ge=0
    )
    tensorboard: Annotated[bool, Flag("Also log to OUTPUT/tensorboard.", _TRAINING)] = False

    @property
    def shape(self) -> tuple[int, ...]:
        """The first input's shape, batch first."""
        return parse_inputs(self.input)[0].shape

    @property
    def labelled(self) -> bool:
        """Whether there is data to train and to score on."""
        return self.data is not None and not self.data.startswith(IMAGES)

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
        if self.example is not None and self.changed("input"):
            raise UsageError("--example and --input exclude each other; keep one")
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
        if self.weights_entry is not None and self.weights is None:
            raise UsageError("--weights-entry is one of a file's; add --weights FILE")
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
        for flag, wrong in flags if not self.labelled else ():
            if wrong and self.data is not None:
                raise UsageError(
                    f"{flag} needs labels, and {self.data} has none; give labelled --data, or "
                    "leave it out"
                )
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


def read_recipe(kind: type[R], flags: Mapping[str, object], config: Path | None = None) -> R:
    """``flags`` over the ``config`` file over the defaults; a wrong setting is named."""
    from prunekit.networks.saved import saved_input  # a command's help needs no torch

    settings = read_toml(config) if config is not None else {}
    settings |= {name: value for name, value in flags.items() if value is not None}
    where = f"{config} or the flags" if config is not None else "the flags"
    if "model" not in settings:
        source = "" if config is None else f" in {config} or the flags"
        raise UsageError(f"no model given{source}; name one, such as zoo:resnet20_w32")
    if (
        not {"input", "example"} & settings.keys()
        and (own := saved_input(str(settings["model"]))) is not None
    ):
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


def pairs(given: list[str], flag: str, example: str = "omega=0.3") -> dict[str, str]:
    """``["omega=0.3", ...]`` as a dictionary."""
    settings = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not (key and equals and value):
            raise UsageError(f"cannot read {flag} {text!r}; write KEY=VALUE, such as {example}")
        settings[key.strip().replace("-", "_")] = value.strip()
    return settings
