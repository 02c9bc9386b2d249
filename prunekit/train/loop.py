"""The training loop: one function, resumable at every epoch, on one device or several."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypedDict

import torch
from accelerate.utils import broadcast, send_to_device, set_seed
from torch import Tensor, nn

from prunekit.networks.running import evaluating, tensors
from prunekit.support.errors import ModelError, TrainingError, UsageError, first_line
from prunekit.support.processes import average_
from prunekit.support.progress import Bar, bar
from prunekit.tasks.base import run as run_on
from prunekit.train.batches import loader, mixed
from prunekit.train.checkpoint import CHECKPOINT
from prunekit.train.config import TrainConfig
from prunekit.train.data import Data
from prunekit.train.ema import put
from prunekit.train.engine import Position, Run, prepare
from prunekit.train.evaluating import accepted_layout, placed, score_all
from prunekit.train.resuming import restore, save
from prunekit.train.rule import Row, Rule

__all__ = ["FitResult", "fit"]

Log: TypeAlias = Callable[[Row], None]
"""Takes one row; the row is its own to change."""


class EpochRow(TypedDict):
    """What the log is told at the end of every epoch, beside the primary metric by its key."""

    stage: str
    epoch: int
    step: int
    loss: float
    lr: float
    seconds: float


# Reading a loss makes the host wait for a GPU, so there it is done for this many steps at once.
_READ_EVERY_ON_GPU = 16


@dataclass(frozen=True)
class FitResult:
    """How a training ended; scores are the task's primary metric on the validation set.

    ``score`` is the last epoch's, of the averaged weights where averaging is on; ``best`` is the
    best of any epoch. ``seconds`` is spent in training steps, data loading included, over all
    resumed parts.
    """

    score: float
    best: float
    epochs: int
    steps: int
    seconds: float

    @property
    def accuracy(self) -> float:
        """The score, of a classification: top-1, 0 to 1."""
        return self.score


def fit(
    model: nn.Module,
    data: Data,
    config: TrainConfig,
    *,
    folder: Path | None = None,
    resume: bool = False,
    teacher: nn.Module | None = None,
    rule: Rule | None = None,
    log: Log | None = None,
    title: str = "training",
) -> FitResult:
    """Train ``model`` in place; it ends on the CPU in evaluation mode, averaged if ``ema`` is on.

    Every epoch ends with a checkpoint in ``folder``, then with one call of ``log``; ``resume`` goes
    on from the checkpoint, to weights equal bit by bit (on a CPU) to those of an uninterrupted
    training. ``teacher`` is used when ``config.distill`` is above 0. Python's, NumPy's and torch's
    global generators are reseeded at every epoch. Raises TrainingError for a loss that is not a
    number, UsageError for a checkpoint of other settings, FileError for a damaged one.
    """
    if resume and folder is None:
        raise UsageError("`resume` needs a `folder` with the checkpoint")
    if config.distill and teacher is None:
        raise UsageError("`distill` is above 0 but there is no `teacher`; give one or set it to 0")
    run = prepare(model, data, config, teacher if config.distill else None, rule)
    position = Position()
    path = None if folder is None else folder / CHECKPOINT
    if resume and path is not None and path.exists():
        position = restore(run, path)
    unfinished = position.epoch < config.epochs
    with nullcontext() if run.teacher is None else _lent(run.teacher, run.device):
        if unfinished:
            total = config.epochs * run.per_epoch
            with bar(title, total) if run.rank == 0 else nullcontext(Bar()) as progress:
                progress.advance(position.step)
                _train(run, position, progress, path, log, title)
        elif not config.epochs:
            position.score = position.best = _validate(run)
    if run.ema is not None:
        put(model, run.ema.values)
    for network in {run.result, model}:
        network.to("cpu").eval()
    return FitResult(position.score, position.best, position.epoch, position.step, position.seconds)


def _train(
    run: Run,
    position: Position,
    progress: Bar,
    path: Path | None,
    log: Log | None,
    title: str,
) -> None:
    """Epoch after epoch from ``position`` on, which is kept up to date."""
    while position.epoch < run.config.epochs:
        began = time.perf_counter()
        loss, lr = _epoch(run, position, progress)
        position.epoch += 1
        position.seconds += time.perf_counter() - began
        progress.advance(0, f"epoch {position.epoch}, validating")
        _agree(run)
        position.score = _validate(run)
        first = position.epoch == 1
        position.best = (
            position.score if first else run.task.primary.better(position.best, position.score)
        )
        progress.advance(0, _note(run, position, loss))
        if run.rank == 0:
            with _undisturbed():
                if path is not None:
                    save(run, position, path)
                if log is not None:
                    epoch: EpochRow = {
                        "stage": title,
                        "epoch": position.epoch,
                        "step": position.step,
                        "loss": loss,
                        "lr": lr,
                        "seconds": position.seconds,
                    }
                    for row in (*run.rule.rows(), {**epoch, **_scored(run, position)}):
                        log(dict(row))
        run.accelerator.wait_for_everyone()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Ctrl-C waits for the end of the block, so that a checkpoint and the log tell the same."""
    if threading.current_thread() is not threading.main_thread():  # it never gets there
        yield
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)
    if came:
        signal.raise_signal(signal.SIGINT)


def _scored(run: Run, position: Position) -> Row:
    """The primary metric as the log has it: accuracies by that name, others with their own."""
    metric = run.task.primary
    if metric.key == "accuracy":
        return {"accuracy": position.score}
    return {"metric": metric.key, "unit": metric.unit, "score": position.score}


def _note(run: Run, position: Position, loss: float) -> str:
    metric = run.task.primary
    score = f", {metric.key} {metric.text(position.score)}" if position.epoch else ""
    return f"loss {loss:.3f}{score}"


def _epoch(run: Run, position: Position, progress: Bar) -> tuple[float, float]:
    """One pass over the training set: mean loss over all processes, and the last learning rate."""
    config, device = run.config, run.device
    set_seed(mixed(config.seed, position.epoch, run.rank, 1))
    batches = loader(
        run.data.train,
        config.batch_size,
        config.seed,
        epoch=position.epoch,
        rank=run.rank,
        world=run.world,
        workers=config.workers,
        pin=device.type == "cuda",
        collate=run.task.collate,
    )
    run.model.train()
    every = 1 if device.type == "cpu" else _READ_EVERY_ON_GPU
    unread: list[Tensor] = []
    total = lr = 0.0
    for inputs, targets in batches:
        lr = config.lr_at(position.step, run.per_epoch)
        for group in run.optimizer.param_groups:
            group["lr"] = lr
        if run.layout is None:
            run.layout = accepted_layout(run.network, send_to_device(inputs, device))
        inputs = placed(inputs, device, run.layout)
        targets = send_to_device(targets, device, non_blocking=True)
        network = run.network
        with _explained(run, inputs, first=position.step == 0):
            run.stepper.zero_grad()
            loss = _objective(run, network, inputs, targets)
            unread.append(loss.detach())
            if len(unread) >= every:
                total += _read(run, unread, position.step)
                progress.advance(0, _note(run, position, float(loss.detach())))
            run.accelerator.backward(loss)
            if network is not run.model:  # which its wrapper does for the model itself
                average_(p.grad for p in network.parameters() if p.grad is not None)
            run.accelerator.unscale_gradients()
            run.rule.after_backward(network, position.step)
            if config.clip_norm:
                torch.nn.utils.clip_grad_norm_(network.parameters(), config.clip_norm)
            run.stepper.step()
        run.rule.after_step(network, run.optimizer, position.step)
        if run.ema is not None:
            run.ema.update(run.model, position.step)
        position.step += 1
        progress.advance(1)
    total += _read(run, unread, position.step - 1)
    mean = torch.tensor(total / run.per_epoch, device=device)
    return float(run.accelerator.reduce(mean, "mean")), lr


def _objective(run: Run, network: nn.Module, inputs: Any, targets: Any) -> Tensor:
    """The task's loss, mixed with its distance to the teacher."""
    config = run.config

    def forward(*args: Any, **named: Any) -> Any:
        if network is run.model:
            return run.shell(*args, **named)
        with run.accelerator.autocast():
            return network(*args, **named)

    loss, outputs = run.task.loss(forward, inputs, targets)
    if run.teacher is None:
        return loss
    with torch.no_grad(), run.accelerator.autocast():
        taught = run_on(run.teacher, inputs)
    distance = run.task.distance(outputs, taught, config.distill_temperature)
    return (1 - config.distill) * loss + config.distill * distance


def _read(run: Run, unread: list[Tensor], last: int) -> float:
    """The sum of the losses up to step ``last``, all of which must be numbers; empties the list."""
    if not unread:
        return 0.0
    values = torch.stack(unread).tolist()
    first = last - len(values) + 1
    unread.clear()
    for offset, value in enumerate(values):
        if not math.isfinite(value):
            step = first + offset
            lr = run.config.lr_at(step, run.per_epoch)
            raise TrainingError(
                f"the loss became {value} in epoch {step // run.per_epoch + 1} at step {step} "
                f"with lr {lr:.3g}; lower `lr`, lengthen `warmup_epochs` or set `clip_norm`"
            )
    return float(sum(values))


@contextmanager
def _explained(run: Run, inputs: Any, first: bool) -> Iterator[None]:
    """What torch says about memory and shapes, as one line with a remedy."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"out of memory on {run.device} with `batch_size` {run.config.batch_size}; "
            "use a smaller one or `mixed_precision`"
        ) from error
    except RuntimeError as error:
        if not first:
            raise
        shape = ", ".join("x".join(map(str, tensor.shape)) for tensor in tensors(inputs))
        raise ModelError(
            f"the model cannot be trained on a batch of {shape}: {first_line(error)}"
        ) from error


def _agree(run: Run) -> None:
    """Settle the average, and give every process rank 0's buffers: each has seen other batches."""
    if run.ema is not None:
        run.ema.settle(run.model)
    if run.world > 1:
        averages = [] if run.ema is None else [*run.ema.values.values()]
        # of what is trained next too, whose values on rank 0 are those of a checkpoint
        networks = dict.fromkeys((run.result, run.network))
        buffers = [b for network in networks for b in network.buffers()]
        broadcast([*buffers, *averages], from_process=0)


def _validate(run: Run) -> float:
    """The primary metric over the validation set, of the averaged weights where there are any."""
    batches = loader(
        run.data.val,
        max(256, run.config.batch_size),
        rank=run.rank,
        world=run.world,
        workers=run.config.workers,
        pin=run.device.type == "cuda",
        collate=run.task.collate,
    )
    scorer = run.task.scorer(brief=True, shared=run.world > 1)
    with nullcontext() if run.ema is None else run.ema.swapped(run.model):
        return score_all(run.result, batches, run.device, scorer)[run.task.primary.key]


@contextmanager
def _lent(model: nn.Module, device: torch.device) -> Iterator[None]:
    """``model`` on ``device`` and in evaluation mode inside the block, as it was after it."""
    home = next((parameter.device for parameter in model.parameters()), device)
    with evaluating(model):
        model.to(device)
        try:
            yield
        finally:
            model.to(home)
