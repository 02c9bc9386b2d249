"""What all runs outside the command line share: networks, data, training, accuracy, ratios."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

import prunekit as pk
from benchmarks import glyphs
from benchmarks.iee_channels.plan import MEASURE_SECONDS
from prunekit.exporting import export
from prunekit.networks.saved import open_model
from prunekit.pipeline.examples import example_input
from prunekit.runtimes import runtime_for
from prunekit.train import Data, TrainConfig, evaluate, fit, load_data, loader


def target_of(case: Any) -> pk.Target:
    """Where latency is measured: on one thread, at the batch of the case's input."""
    return pk.Target.parse(case.target, batch=int(case.input.split("x")[0]), threads=1)


def network(case: Any, data: Data) -> Any:
    """The case's network, fresh from torch's generator."""
    classes, channels = data.num_classes, data.input_shape[0]
    return open_model(case.model, num_classes=classes, in_channels=channels, pretrained=False)


def data_of(case: Any) -> Data:
    """Training and validation images."""
    _, channels, height, width = (int(n) for n in case.input.split("x"))
    return load_data(case.data, (channels, height, width))


def train(model: nn.Module, data: Data, case: Any, lr: float, epochs: float = 1) -> dict[str, Any]:
    """One dense training run's epochs, or a multiple."""
    config = TrainConfig(
        epochs=round(epochs * case.epochs),
        batch_size=case.batch_size,
        lr=lr,
        mixed_precision=case.precision,
        seed=0,
    )
    found = fit(model, data, config)
    return {"val": found.accuracy, "seconds": found.seconds}


def scores(model: nn.Module, case: Any) -> dict[str, float]:
    """Accuracy on the test images."""
    return {"test": evaluate(model.eval(), test_set(case))}


@cache
def test_set(case: Any) -> Any:
    """Images that chose nothing; digits have no third part, so there it is the validation's."""
    if case.data == "digits":
        return data_of(case).val
    size = int(case.input.split("x")[-1])
    return glyphs.dataset("test", size, data_of(case).num_classes)


def test_accuracy(case: Any, path: Path) -> float:
    """Top-1 of an ONNX file."""
    target = pk.Target.parse("onnxruntime:cpu", threads=1)
    engine = runtime_for(target).load(pk.Artifact.of_file(path), target)
    right = seen = 0
    for images, labels in loader(test_set(case), 256):
        (logits, *_) = engine.run({"input": images.numpy()})
        right += int((np.asarray(logits).argmax(1) == labels.numpy()).sum())
        seen += len(labels)
    engine.close()
    return right / seen


def measured(model: nn.Module, small: nn.Module, case: Any, folder: Path) -> Any:
    """The ratio of ``small`` to ``model``, which ``folder`` keeps; both as ONNX, interleaved."""
    example = example_input(case.input)
    kept = folder / "dense.onnx"
    dense = pk.Artifact.of_file(kept) if kept.is_file() else export(model.eval(), example, kept)
    pair = [dense, export(small.eval(), example, folder / "small.onnx")]
    found = pk.bench(pair, target_of(case), max_seconds=MEASURE_SECONDS, precision_goal=0.005)
    return found.ratios[0]
