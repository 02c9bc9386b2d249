"""Flags of the commands that train; a flag not given leaves the recipe's default."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunekit.cli.common import option

MaybeModel = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help=(
            "torchvision:NAME, timm:NAME, zoo:NAME, path/file.py:factory, "
            "package.module:factory or a run folder"
        ),
    ),
]
Output = Annotated[Path, option("The run folder to make.", "-o", "--output")]
Config = Annotated[
    Path | None, option("A recipe (TOML) with the same settings; flags win.", "--config")
]
DataText = Annotated[
    str | None,
    option("digits, imagefolder:PATH, cifar10:PATH, ..., package.module:factory; none: untrained."),
]
MaybeInput = Annotated[str | None, option("Input shape, batch first.", "--input")]
MaybeThreads = Annotated[int | None, option("Threads of the target (1).")]
Pretrained = Annotated[bool | None, option("torchvision's or timm's weights.", "--pretrained")]
Weights = Annotated[str | None, option("Dense weights, a .safetensors file.")]
MaybeReparameterize = Annotated[
    bool | None,
    option(
        "Fold blocks that train with branches, as they are deployed (yes).",
        "--reparameterize/--no-reparameterize",
    ),
]
BatchSize = Annotated[int | None, option("Training batch over all processes (64).")]
Optimizer = Annotated[str | None, option("sgd or adamw (sgd).")]
FineTuneLr = Annotated[float | None, option("Learning rate after it (a fifth).")]
Lr = Annotated[float | None, option("Learning rate of dense training.")]
Momentum = Annotated[float | None, option("SGD momentum (0.9).")]
WeightDecay = Annotated[float | None, option("Weight decay (0.0005).")]
WarmupEpochs = Annotated[float | None, option("Linear warm-up (1).")]
LabelSmoothing = Annotated[float | None, option("Label smoothing (0).")]
Ema = Annotated[float | None, option("Decay of averaged weights; 0 is off (0).")]
MixedPrecision = Annotated[str | None, option("no, fp16 or bf16 (no).")]
ClipNorm = Annotated[float | None, option("Gradient norm limit; 0 is off (0).")]
Distill = Annotated[
    float | None, option("Share of the dense teacher's term in the loss, 0 to 1 (0).")
]
DistillTemperature = Annotated[float | None, option("Its temperature (4).")]
Workers = Annotated[int | None, option("Data-loading processes (0).")]
Device = Annotated[str | None, option("Training device: auto, cpu or cuda (auto).")]
MaybeSeed = Annotated[int | None, option("Seed of everything random (0).")]
Tensorboard = Annotated[bool | None, option("Also log to OUTPUT/tensorboard.", "--tensorboard")]
