"""Real numbers for each input: squared, absolute or Huber loss, and mean absolute error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from prunekit.core.metric import Metric
from prunekit.support.errors import DataError, ModelError, UsageError
from prunekit.tasks.base import Scorer, Task, shape_text, tensors_in
from prunekit.tasks.scorers import Library, chosen_first, library

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "squared": F.mse_loss,
    "absolute": F.l1_loss,
    "huber": F.smooth_l1_loss,
}


class Regression(Task):
    """``num_values`` real numbers as targets and as outputs.

    Metrics: mean absolute error, in ``unit``; the share of the variance explained (R2), the mean
    over values. ``loss`` is squared, absolute or huber.
    """

    name: ClassVar[str] = "regression"

    def __init__(
        self,
        num_values: int = 1,
        *,
        loss: str | None = None,
        metric: str | None = None,
        unit: str = "",
    ) -> None:
        if loss is not None and loss not in LOSSES:
            raise UsageError(f"`loss` must be one of {', '.join(LOSSES)}, not {loss!r}")
        self.num_values = self.num_outputs = num_values
        self.loss_name = loss or "squared"
        known = (
            Metric("mae", "mean absolute error", unit, higher_is_better=False),
            Metric("r2", "R2", ""),
        )
        self.metrics = chosen_first(known, metric, self.name)

    def check_target(self, target: Any, where: str) -> None:
        """Finite numbers, as many as the task has."""
        values = torch.as_tensor(target).reshape(-1)
        if len(values) != self.num_values:
            raise DataError(
                f"{where} gives {len(values)} values; the task regression has {self.num_values}"
            )
        if not bool(values.isfinite().all()):
            raise DataError(f"{where} gives the value {float(values[~values.isfinite()][0])}")

    def criterion(self, outputs: Any, targets: Tensor) -> Tensor:
        """The loss between outputs and targets, value by value."""
        values = self._values(outputs)
        return LOSSES[self.loss_name](values, targets.reshape(values.shape).float())

    def scorer(self, *, brief: bool = False, shared: bool = False) -> Scorer:
        """Of torchmetrics, over all batches."""
        metrics = library("regression")
        makers = {
            "mae": lambda: metrics.MeanAbsoluteError(sync_on_compute=shared),
            "r2": lambda: metrics.R2Score(sync_on_compute=shared),
        }
        wanted = self.metrics[:1] if brief else self.metrics
        return _Scorer(Library({m.key: makers[m.key]() for m in wanted}), self._values)

    def facts(self) -> Mapping[str, object]:
        """Its name and loss."""
        return {"task": self.name, "loss": self.loss_name}

    def _values(self, outputs: Any) -> Tensor:
        """Outputs as (N, values)."""
        maps = tensors_in(outputs)
        values = maps[0] if maps else None
        if values is None or values.ndim < 1 or values[0].numel() != self.num_values:
            raise ModelError(
                f"the model's output is {shape_text(values)}; {self.num_values} numbers for each "
                "input are needed"
            )
        return values.reshape(len(values), self.num_values).float()


class _Scorer:
    """The library's metrics take numbers in one row per input."""

    def __init__(self, metrics: Library, values: Callable[[Any], Tensor]) -> None:
        self.metrics = metrics
        self.values = values

    def update(self, outputs: Any, targets: Tensor) -> None:
        """Count one batch."""
        values = self.values(outputs)
        expected = targets.reshape(values.shape).float().to(values.device)
        if values.shape[1] == 1:
            values, expected = values[:, 0].contiguous(), expected[:, 0].contiguous()
        self.metrics.update(values, expected)

    def compute(self) -> dict[str, float]:
        """All of them."""
        return self.metrics.compute()
