"""``sparsify``: a network with most weights at zero, end to end, resumable like ``prune``."""

from __future__ import annotations

import copy
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunekit.core.artifact import Artifact
from prunekit.core.run_folder import DENSE, DENSE_WEIGHTS, LOG, ONNX, PAGE, RunFolder
from prunekit.core.sparsity import SparsityPlan
from prunekit.core.target import Target
from prunekit.criteria import WeightCriterion
from prunekit.exporting import export, live_artifact
from prunekit.exporting.sparse import export_sparse
from prunekit.measuring.bench import bench
from prunekit.networks.build import BuiltModel
from prunekit.networks.running import tensors
from prunekit.networks.saved import save, save_weights
from prunekit.networks.weight_layers import layer_macs
from prunekit.pipeline.accuracy import accuracy_part, file_scores
from prunekit.pipeline.examples import described, recipe_example
from prunekit.pipeline.job import (
    check_outputs,
    check_training,
    fine_tune_lr,
    note_untrained,
    open_dense,
    recipe_data,
    train_config,
)
from prunekit.pipeline.output_folder import open_folder
from prunekit.pipeline.recipes.sparsify import SparseRecipe
from prunekit.pipeline.report_parts import (
    digests,
    file_bytes,
    parameters,
    training_cost,
    versions,
)
from prunekit.pipeline.trainer import Trained, Trainer, open_trainer
from prunekit.report import SparsityReport, read_log, sparsity_html
from prunekit.report.schema import AccuracyPart, Pair
from prunekit.report.sparsity import SpeedPart
from prunekit.runtimes import runtime_for
from prunekit.sparsify import METHODS, Sparsifier, SparsitySchedule
from prunekit.support.errors import UsageError
from prunekit.support.files import write_text
from prunekit.support.processes import on_rank_zero
from prunekit.support.progress import quietly, say
from prunekit.support.registry import criteria
from prunekit.train import Data


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
        return len(self.data.train_batches(self.recipe.batch_size, self.recipe.seed))

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
    check_method(recipe)
    targets = recipe.targets()
    check_training(recipe)
    criterion = criteria.make(recipe.criterion)
    data = recipe_data(recipe)
    torch.manual_seed(recipe.seed)
    model = open_dense(recipe, data)
    job = SparseJob(recipe, model, recipe_example(recipe), data, criterion, targets)
    with quietly():  # what it has to say comes when the training begins
        job.sparsifier(copy.deepcopy(model.module))
    if data is not None:
        check_outputs(model.module, data)
        note_untrained(recipe)
    return job


def check_method(recipe: SparseRecipe) -> None:
    """Raise UsageError for settings that the recipe's method cannot work with."""
    method = recipe.method
    recipe.needs_data((f"--method {method}", method != "static"))
    if method != "static" and recipe.epochs < 1:
        raise UsageError(
            f"method {method} works while it trains; give --epochs 1 or more, or --method static"
        )
    if method == "static" and recipe.option:
        raise UsageError("method static exchanges nothing, so that --option has no meaning")
    reads = METHODS[method].reads
    known = {field.name for field in fields(SparsitySchedule)}
    if idle := [name for name in recipe.option if name in known and name not in reads]:
        raise UsageError(
            f"option {idle[0]!r} has no meaning for method {method}, which reads {', '.join(reads)}"
        )
    if method == "iee" and recipe.ema:
        raise UsageError(
            "--ema would average what method iee explores; leave it out, or use another method"
        )


def sparsify(
    job: SparseJob, output: Path, *, overwrite: bool = False, resume: bool = False
) -> SparsityReport:
    """Train ``job``'s network sparse and write the run folder; the report says what came.

    Everything finished is kept, so that the same call with ``resume`` goes on from there.
    """
    recipe = job.recipe
    with open_folder(output, recipe, overwrite=overwrite, resume=resume) as folder:
        if on_rank_zero(lambda: folder.finished):
            say(f"{output} is finished already")
            return SparsityReport.load(folder.report)
        with open_trainer(
            job.data, folder, resume=resume, tensorboard=recipe.tensorboard
        ) as trainer:
            sparse = _train(job, trainer)
        return on_rank_zero(lambda: _finish(job, folder, sparse))


@dataclass(frozen=True)
class _Sparse:
    """The networks before and after, and how the one became the other."""

    dense: nn.Module
    module: nn.Module
    rule: Sparsifier
    trained: Trained


def _train(job: SparseJob, trainer: Trainer) -> _Sparse:
    """Dense training if asked for, then the sparse one."""
    recipe, module = job.recipe, job.module
    dense_training = sparse_training = None
    if recipe.dense_epochs:
        config = train_config(recipe, recipe.dense_epochs, recipe.lr, distill=0.0)
        dense_training = trainer.fit(module, "dense-training", config)
    dense = copy.deepcopy(module)
    rule = job.sparsifier(module)
    work = 0.0
    if recipe.trains:
        lr = fine_tune_lr(recipe) if recipe.dense_is_trained else recipe.lr
        config = train_config(recipe, recipe.epochs, lr)
        teacher = dense if recipe.distill else None
        sparse_training = trainer.fit(module, "sparse-training", config, rule=rule, teacher=teacher)
        work = rule.work / job.per_epoch
    return _Sparse(dense, module, rule, Trained(dense_training, sparse_training, work=work))


def _finish(job: SparseJob, folder: RunFolder, sparse: _Sparse) -> SparsityReport:
    """Save, export, measure what was exported, and report."""
    module, plan = sparse.module.eval(), sparse.rule.plan
    if sparse.trained.dense is not None:
        save_weights(sparse.dense, folder / DENSE_WEIGHTS)
    shapes = tuple(tuple(t.shape) for t in tensors(job.example))
    spec, arguments = job.model.spec, job.model.arguments
    save(folder.path, module, plan, spec, arguments, shapes, described(job.example))
    files = (
        export(sparse.dense, job.example, folder / DENSE),
        export_sparse(module, job.example, folder / ONNX, plan),
    )
    speed = tuple(_speed(job, target, files, (sparse.dense, module)) for target in job.targets)
    report = _make_report(job, folder, sparse, speed)
    write_text(folder / PAGE, sparsity_html(report))
    report.save(folder.report)  # last: it is what says that the run is finished
    folder.clear_work()
    return report


def _make_report(
    job: SparseJob, folder: RunFolder, sparse: _Sparse, speed: tuple[SpeedPart, ...]
) -> SparsityReport:
    """Put the parts together."""
    recipe, plan = job.recipe, sparse.rule.plan
    artifacts = folder.artifacts()
    epochs, updates = read_log(folder / LOG)
    return SparsityReport(
        model=recipe.model,
        asked=recipe.share,
        plan=plan,
        ranking=recipe.ranking,
        accuracy=_accuracy_part(job, folder),
        params=_parameters(sparse.module, plan),
        macs=_macs(sparse.dense, job.example, plan),
        file_bytes=file_bytes(folder),
        training_cost=training_cost(recipe, sparse.trained),
        survival=sparse.rule.survival(),
        speed=speed,
        artifacts=artifacts,
        digests=digests(artifacts),
        seed=recipe.seed,
        recipe=recipe.model_dump(exclude_none=True),
        versions=versions(),
        epochs=epochs,
        updates=updates,
    )


def _accuracy_part(job: SparseJob, folder: RunFolder) -> AccuracyPart:
    """Of both files; random weights have no accuracy worth telling."""
    data, workers, dense = job.data, job.recipe.workers, None
    if job.recipe.dense_is_trained:
        dense = file_scores(folder / DENSE, data, workers)
    return accuracy_part(data, dense, file_scores(folder / ONNX, data, workers))


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
    count = parameters(module)
    zeros = sum(layer.size - layer.kept for layer in plan.layers)
    return Pair(dense=count, pruned=count - zeros)


def _macs(module: nn.Module, example: Any, plan: SparsityPlan) -> Pair:
    """Of linear and convolutional layers at batch 1; those with a zero weight left out."""
    macs = layer_macs(module, example[:1])
    kept = {layer.name: layer.density for layer in plan.layers}
    left = sum(count * kept.get(name, 1.0) for name, count in macs.items())
    return Pair(dense=sum(macs.values()), pruned=round(left))
