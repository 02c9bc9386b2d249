"""From a recipe to live objects, with every bad input refused before anything is written."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.data import Dataset

from prunekit.core.graph import ChannelGraph
from prunekit.core.run_folder import is_run
from prunekit.core.target import Target
from prunekit.exporting.inputs import named_inputs
from prunekit.networks.build import BuiltModel, is_library
from prunekit.networks.folding import folded_blocks, reparameterize
from prunekit.networks.running import evaluating, refusing, tensors
from prunekit.networks.saved import open_model
from prunekit.networks.weights import check_fit, read_weights, take_state
from prunekit.pipeline.examples import first_shape, in_channels, recipe_example
from prunekit.pipeline.recipes.base import IMAGES, TrainingRecipe
from prunekit.pipeline.recipes.prune import Recipe
from prunekit.runtimes import Runtime, file_precision, runtime_for
from prunekit.runtimes.base import Arrays
from prunekit.support.errors import DataError, UsageError
from prunekit.support.processes import on_rank_zero
from prunekit.support.progress import bar, quietly, say
from prunekit.support.stopwatch import stages
from prunekit.tasks.base import run
from prunekit.tasks.choosing import TaskChoice
from prunekit.tracing import trace
from prunekit.train import Data, TrainConfig, load_data
from prunekit.train.batches import size
from prunekit.train.data import is_code
from prunekit.train.evaluating import resolve_device
from prunekit.train.folder import open_unlabelled

CALIBRATION_BATCHES, CALIBRATION_ROWS = 8, 32


@dataclass(frozen=True)
class Job:
    """What every stage works on."""

    recipe: Recipe
    target: Target
    runtime: Runtime
    model: BuiltModel
    graph: ChannelGraph
    example: Any
    data: Data | None
    images: Dataset[Any] | None = None
    """Without labels, where there is no data."""

    @property
    def module(self) -> nn.Module:
        """The dense network."""
        return self.model.module

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one epoch."""
        if self.data is None:
            raise UsageError("training needs data; add --data")
        return len(self.data.train_batches(self.recipe.batch_size, self.recipe.seed))

    @property
    def file_precision(self) -> str:
        """The precision that the run's ONNX files are in."""
        return file_precision(self.runtime, self.target)

    @cached_property
    def batches(self) -> list[Arrays]:
        """Inputs that the ranges of files in 16 and 8 bits are taken from."""
        if self.file_precision == "fp32" or self.data is None:
            return []
        return calibration(self.data, self.recipe.seed)


def set_up(recipe: Recipe) -> Job:
    """Target, data, model and channel graph of ``recipe``."""
    stages.restart()
    target = recipe.resolved_target()
    runtime = runtime_for(target)
    check_training(recipe)
    data, images = recipe_data(recipe), recipe_images(recipe)
    torch.manual_seed(recipe.seed)
    model = open_dense(recipe, data)
    if data is not None:
        check_outputs(model.module, data)
        note_untrained(recipe)
    example = recipe_example(recipe)
    with bar("tracing", 1) if sys.stderr.isatty() else nullcontext():
        whole = on_rank_zero(lambda: _traced(model.module, example, recipe.heads))
    graph = whole.constrained(recipe.keep, recipe.min_width)
    late = sum("within" in group.reason for group in graph.groups)
    if late:
        say(f"note: {late} channel groups stay whole, not proved in time; see prunekit inspect")
    for note in graph.notes:
        say(f"note: {note}", 1)
    return Job(recipe, target, runtime, model, graph, example, data, images)


def _traced(module: nn.Module, example: Any, heads: Literal["whole", "width"]) -> ChannelGraph:
    with stages.stage("tracing"):
        return trace(module, example, heads=heads)


def calibration(data: Data, seed: int) -> list[Arrays]:
    """A few batches of training inputs, as the network's."""
    batches = data.train_batches(CALIBRATION_ROWS, seed)
    return [file_inputs(inputs) for inputs, _ in islice(batches, CALIBRATION_BATCHES)]


def file_inputs(inputs: Any) -> Arrays:
    """A batch by the names that a file of the network has for its inputs."""
    return {name: value.numpy() for name, value in named_inputs(inputs).items()}


def train_config(
    recipe: TrainingRecipe, epochs: int, lr: float | None, **changes: Any
) -> TrainConfig:
    """The training settings of ``recipe``; a value that cannot be used is named."""
    names = set(TrainConfig.__dataclass_fields__) & set(TrainingRecipe.model_fields)
    settings = {name: getattr(recipe, name) for name in names}
    return TrainConfig(**{**settings, "epochs": epochs, "lr": lr, **changes})


def check_training(recipe: TrainingRecipe) -> None:
    """Refuse settings that no training here could use."""
    config = train_config(recipe, recipe.epochs, recipe.lr)
    train_config(recipe, recipe.epochs, recipe.fine_tune_lr)
    if resolve_device(config.device).type == "cpu" and config.mixed_precision == "fp16":
        raise UsageError("`mixed_precision` fp16 needs a GPU; use bf16 or no")


def fine_tune_lr(recipe: TrainingRecipe) -> float:
    """A fifth of the training's learning rate unless given: the weights are good already."""
    return recipe.fine_tune_lr or 0.2 * train_config(recipe, 1, recipe.lr).base_lr


def recipe_data(recipe: TrainingRecipe) -> Data | None:
    """The data that the recipe names, at its input's shape."""
    if not recipe.labelled or recipe.data is None:
        for name in ("task", "loss", "metric", "class_weights"):
            flag = f"--{name.replace('_', '-')}"
            recipe.needs_data((flag, getattr(recipe, name) is not None))
        return None
    choice = TaskChoice(recipe.task, recipe.loss, recipe.metric, recipe.class_weights)
    example = recipe_example(recipe)
    floating = tensors(example)[0].is_floating_point()
    shape = first_shape(recipe)
    return open_data(recipe.data, shape, recipe.seed, choice, floating=floating)


def recipe_images(recipe: TrainingRecipe) -> Dataset[Any] | None:
    """Images without labels, where the recipe names a folder of such."""
    if recipe.data is None or recipe.labelled:
        return None
    shape = first_shape(recipe)
    if recipe.data == IMAGES:
        raise DataError(f"data {IMAGES!r} lacks its folder; write {IMAGES}PATH")
    if len(shape) != 4:
        sizes = "x".join(map(str, shape))
        raise DataError(f"{recipe.data} needs image inputs such as 1x3x32x32, not {sizes}")
    return open_unlabelled(Path(recipe.data.removeprefix(IMAGES)).expanduser(), shape[1:])


def open_data(
    source: str,
    shape: tuple[int, ...],
    seed: int = 0,
    choice: TaskChoice | None = None,
    *,
    floating: bool = True,
) -> Data:
    """The data called ``source`` at the size of the network's input."""
    if len(shape) != 4 and not is_code(source):
        sizes = "x".join(map(str, shape))
        raise DataError(f"data needs image inputs such as 1x3x32x32, not {sizes}")
    return load_data(source, shape[1:], seed, choice, floating=floating)


def check_outputs(module: nn.Module, data: Data) -> None:
    """Raise ModelError where what the network gives does not fit the data's task."""
    count = min(2, size(data.val))
    with torch.random.fork_rng(devices=[]), evaluating(module), torch.no_grad():
        inputs, targets = data.task.collate([data.val[index] for index in range(count)])
        with refusing(module, inputs):
            outputs = run(module, inputs)
        data.task.check_outputs(outputs, targets)


def open_dense(recipe: TrainingRecipe, data: Data | None = None) -> BuiltModel:
    """The dense model with its weights, in evaluation mode.

    Blocks with branches are folded once the weights are loaded, unless the recipe says not to, also
    where training comes later. The weights may be those of the folded network too.
    """
    if recipe.from_scratch and is_run(recipe.model):
        raise UsageError(
            f"--from-scratch begins with random weights, and {recipe.model} is a run with trained "
            "ones; leave it out"
        )
    channels = in_channels(recipe)
    model = open_model(
        recipe.model,
        recipe.base,
        num_classes=(data.num_classes or None) if data is not None else None,
        in_channels=channels,
        pretrained=recipe.pretrained,
    )
    module = model.module.eval()
    if recipe.weights is not None:
        module = _with_weights(module, recipe)
    if recipe.reparameterize:
        module = reparameterize(module, recipe_example(recipe))
    say_folded(model.module, module)
    return replace(model, module=module)


def _with_weights(module: nn.Module, recipe: TrainingRecipe) -> nn.Module:
    """``module`` with the weights of the recipe's file, folded where those are."""
    path = Path(str(recipe.weights))
    state = read_weights(path, module, recipe.weights_entry)
    folded = reparameterize(module) if recipe.reparameterize else module
    if folded is not module and state.keys() != module.state_dict().keys():
        with quietly():
            of_folded = read_weights(path, folded, recipe.weights_entry)
        if of_folded.keys() == folded.state_dict().keys():
            module, state = folded, of_folded
    check_fit(module, state, path)
    take_state(module, state)
    return module


def say_folded(before: nn.Module, module: nn.Module) -> None:
    """Say which blocks of ``before`` are folded in ``module``, if any."""
    blocks = [name or "the model itself" for name in folded_blocks(module)]
    if module is before or not blocks:
        return
    many = f"{len(blocks)} {'block' if len(blocks) == 1 else 'blocks'} with branches"
    say(f"note: folded {many} for deployment, first of all; --no-reparameterize keeps them")
    say(f"note: folded: {', '.join(blocks)}", 1)


def note_untrained(recipe: TrainingRecipe) -> None:
    """Say that the dense network has random weights, unless something trains or loads it."""
    trained = recipe.from_scratch or recipe.pretrained or recipe.weights is not None
    if not trained and not is_run(recipe.model):
        unless = "" if is_library(recipe.model) else f" (unless {recipe.model} loads weights)"
        say(
            f"note: the dense network is untrained{unless}; "
            "add --from-scratch, --weights or --pretrained"
        )
