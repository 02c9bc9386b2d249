"""``sparsify``: a network with most weights at zero, end to end, resumable like ``prune``."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunekit.core.artifact import Artifact
from prunekit.core.run_folder import BOARD, DENSE, DENSE_WEIGHTS, LOG, ONNX, PAGE, RunFolder
from prunekit.core.sparsity import SparsityPlan
from prunekit.core.target import Target
from prunekit.criteria import WeightCriterion
from prunekit.exporting import export, live_artifact
from prunekit.exporting.sparse import export_sparse
from prunekit.measuring.bench import bench
from prunekit.networks.build import BuiltModel
from prunekit.networks.saved import save, save_weights
from prunekit.networks.weight_layers import layer_macs
from prunekit.pipeline.job import (
    check_training,
    example_input,
    fine_tune_lr,
    note_untrained,
    open_dense,
    recipe_data,
    train_config,
)
from prunekit.pipeline.output_folder import open_folder
from prunekit.pipeline.recipes.sparsify import SparseRecipe
from prunekit.pipeline.report_parts import file_accuracy, versions
from prunekit.pipeline.tensorboard import Board
from prunekit.pipeline.trainer import Trainer
from prunekit.report import SparsityReport, read_log, sparsity_html
from prunekit.report.schema import AccuracyPart, Pair, TrainingPart
from prunekit.report.sparsity import SpeedPart
from prunekit.runtimes import runtime_for
from prunekit.sparsify import METHODS, Sparsifier, SparsitySchedule
from prunekit.support.files import sha256_file, write_text
from prunekit.support.processes import on_rank_zero, rank
from prunekit.support.progress import quietly, say
from prunekit.support.registry import criteria
from prunekit.train import Data, FitResult, loader


@dataclass(frozen=True)
class SparseJob:
    """What every stage works on."""

    recipe: SparseRecipe
    model: BuiltModel
    example: Any
    data: Data | None
    criterion: WeightCriterion
    targets: list[Target]

    @property
    def module(self) -> nn.Module:
        """The network, made sparse in place."""
        return self.model.module

    @property
    def per_epoch(self) -> int:
        """Optimizer steps of one epoch."""
        if self.data is None:
            return 1
        return len(loader(self.data.train, self.recipe.batch_size, self.recipe.seed))

    def sparsifier(self, module: nn.Module) -> Sparsifier:
        """The recipe's method on ``module``, whose weights become sparse."""
        recipe = self.recipe
        steps = max(1, recipe.epochs) * self.per_epoch
        return METHODS[recipe.method](
            module,
            recipe.share,
            SparsitySchedule.parse(steps, {"seed": recipe.seed, **recipe.option}),
            distribution=recipe.distribution,
            pattern=recipe.pattern,
            criterion=self.criterion,
            ranking=recipe.ranking,
            dense=recipe.dense_layers,
            start="scores" if recipe.dense_is_trained else "random",
            example=self.example,
        )


def set_up_sparse(recipe: SparseRecipe) -> SparseJob:
    """Data, model and method of ``recipe``; all that cannot work is refused here."""
    targets = recipe.targets()
    check_training(recipe)
    criterion = criteria.make(recipe.criterion)
    data = recipe_data(recipe)
    torch.manual_seed(recipe.seed)
    model = open_dense(recipe, data)
    job = SparseJob(recipe, model, example_input(recipe.input), data, criterion, targets)
    with quietly():  # what it has to say comes when the training begins
        job.sparsifier(copy.deepcopy(model.module))
    if data is not None:
        note_untrained(recipe)
    return job


def sparsify(
    job: SparseJob, output: Path, *, overwrite: bool = False, resume: bool = False
) -> SparsityReport:
    """Train ``job``'s network sparse and write the run folder; the report says what came.

    Everything finished is kept, so that the same call with ``resume`` goes on from there.
    """
    opened = (
        open_folder(output, job.recipe, overwrite=overwrite, resume=resume)
        if rank() == 0
        else nullcontext(RunFolder(output))
    )
    with opened as folder:
        if on_rank_zero(lambda: folder.finished):
            say(f"{output} is finished already")
            return SparsityReport.load(folder.report)
        on_rank_zero(lambda: folder.work.mkdir(exist_ok=True))
        wanted = job.recipe.tensorboard and rank() == 0
        board = Board(folder / BOARD) if wanted else None
        try:
            return _run(job, folder, Trainer(job.data, folder, resume, board))
        finally:
            if board is not None:
                board.close()


def _run(job: SparseJob, folder: RunFolder, trainer: Trainer) -> SparsityReport:
    """Dense training if asked for, the sparse one, then all that is written by rank 0."""
    recipe, module = job.recipe, job.module
    dense = None
    if recipe.dense_epochs:
        config = train_config(recipe, recipe.dense_epochs, recipe.lr, distill=0.0)
        dense = trainer.fit(module, "dense-training", config)
    whole = copy.deepcopy(module)
    rule = job.sparsifier(module)
    found = None
    if recipe.trains:
        lr = fine_tune_lr(recipe) if recipe.dense_is_trained else recipe.lr
        config = train_config(recipe, recipe.epochs, lr)
        teacher = whole if recipe.distill else None
        found = trainer.fit(module, "sparse-training", config, rule=rule, teacher=teacher)
    return on_rank_zero(lambda: _finish(job, folder, rule, whole, dense, found))


def _finish(
    job: SparseJob,
    folder: RunFolder,
    rule: Sparsifier,
    whole: nn.Module,
    dense: FitResult | None,
    found: FitResult | None,
) -> SparsityReport:
    """Save, export, measure what was exported, and report."""
    run, recipe, module, plan = folder.path, job.recipe, job.module.eval(), rule.plan
    if dense is not None:
        save_weights(whole, run / DENSE_WEIGHTS)
    save(run, module, plan, job.model.spec, job.model.arguments, (recipe.shape,))
    pair = (
        export(whole, job.example, run / DENSE),
        export_sparse(module, job.example, run / ONNX, plan),
    )
    speed = tuple(_speed(job, target, pair, (whole, module)) for target in job.targets)
    accuracy = AccuracyPart(
        # random weights have no accuracy worth telling
        dense=_accuracy(job, pair[0]) if recipe.dense_is_trained else None,
        pruned=_accuracy(job, pair[1]),
    )
    files = folder.artifacts()
    epochs, updates = read_log(run / LOG)
    report = SparsityReport(
        model=recipe.model,
        asked=recipe.share,
        plan=plan,
        ranking=recipe.ranking,
        accuracy=accuracy,
        params=_parameters(module, plan),
        macs=_macs(whole, job.example, plan),
        file_bytes=Pair(
            dense=Path(pair[0].path).stat().st_size, pruned=Path(pair[1].path).stat().st_size
        ),
        training_cost=_training_cost(job, rule, dense, found),
        survival=rule.survival(),
        speed=speed,
        artifacts=files,
        digests={what: sha256_file(files[what]) for what in ("dense", "onnx")},
        seed=recipe.seed,
        recipe=recipe.model_dump(exclude_none=True),
        versions=versions(),
        epochs=epochs,
        updates=updates,
    )
    write_text(run / PAGE, sparsity_html(report))
    report.save(folder.report)  # last: it is what says that the run is finished
    folder.clear_work()
    return report


def _accuracy(job: SparseJob, onnx: Artifact) -> float | None:
    return file_accuracy(Path(onnx.path), job.data, job.recipe.workers)


def _speed(
    job: SparseJob,
    target: Target,
    onnx: tuple[Artifact, Artifact],
    modules: tuple[nn.Module, nn.Module],
) -> SpeedPart:
    """Dense and sparse, timed interleaved."""
    live = runtime_for(target).artifact_format == "module"
    pair = [live_artifact(module, job.example) for module in modules] if live else [*onnx]
    timed = bench(pair, target, max_seconds=job.recipe.measure_seconds)
    (ratio,), (dense, sparse) = timed.ratios, timed.measurements
    return SpeedPart(
        target=target,
        environment=timed.environment,
        dense_ms=dense.median_ms,
        sparse_ms=sparse.median_ms,
        ratio=ratio.ratio,
        ratio_ci=(ratio.low, ratio.high),
        rounds=ratio.rounds,
        confidence=ratio.confidence,
    )


def _parameters(module: nn.Module, plan: SparsityPlan) -> Pair:
    whole = sum(parameter.numel() for parameter in module.parameters())
    return Pair(dense=whole, pruned=whole - sum(la.size - la.kept for la in plan.layers))


def _macs(module: nn.Module, example: Any, plan: SparsityPlan) -> Pair:
    """Of linear and convolutional layers at batch 1; those with a zero weight left out."""
    macs = layer_macs(module, example[:1])
    kept = {layer.name: layer.density for layer in plan.layers}
    left = sum(count * kept.get(name, 1.0) for name, count in macs.items())
    return Pair(dense=sum(macs.values()), pruned=round(left))


def _training_cost(
    job: SparseJob, rule: Sparsifier, dense: FitResult | None, found: FitResult | None
) -> TrainingPart:
    """FLOPs relative to a dense run of ``dense_epochs`` (else ``epochs``), and seconds.

    Forward and backward of the weights that are there count three forwards, a teacher's one.
    """
    recipe = job.recipe
    dense_epochs = recipe.dense_epochs or 0
    relative = None
    if found is not None:
        spent = rule.work / job.per_epoch + (recipe.epochs / 3 if recipe.distill else 0)
        relative = (spent + dense_epochs) / (dense_epochs or recipe.epochs)
    elif dense is not None:
        relative = 1.0
    dense_seconds = 0.0 if dense is None else dense.seconds
    return TrainingPart(
        relative_flops=relative,
        seconds=dense_seconds + (0.0 if found is None else found.seconds),
        dense_seconds=dense_seconds,
    )
