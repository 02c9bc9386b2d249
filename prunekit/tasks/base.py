"""What a network is trained for: its batches, its loss, how it is judged and how a file of it is.

A task knows neither the training loop nor a runtime: the loop asks it for losses, and whoever
evaluates hands it outputs, of a module or of a deployed file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import default_collate

from prunekit.core.metric import Metric
from prunekit.support.errors import DataError, ModelError, UsageError

Forward: TypeAlias = Callable[..., Any]
"""A network, or what runs one: inputs in, outputs out."""


class Scorer(Protocol):
    """Judges a network over a data set, batch by batch."""

    def update(self, outputs: Any, targets: Any) -> None:
        """Count one batch: what the network gave, and what would have been right."""

    def compute(self) -> dict[str, float]:
        """Every metric by its key; of all processes' batches where they share the set."""


class Task(ABC):
    """What a network is trained for. A task of one's own derives from it.

    Needed are :attr:`metrics` (the first is what decides), :meth:`criterion` and :meth:`scorer`.
    ``num_outputs`` is what the network's head is built with; None leaves it as it is.
    """

    name: ClassVar[str] = "own task"
    metrics: Sequence[Metric]
    num_outputs: int | None = None

    @property
    def primary(self) -> Metric:
        """The metric that networks are compared by."""
        return self.metrics[0]

    @abstractmethod
    def criterion(self, outputs: Any, targets: Any) -> Tensor:
        """The loss of a batch, a scalar, from what the network gave."""

    @abstractmethod
    def scorer(self, *, brief: bool = False, shared: bool = False) -> Scorer:
        """A new scorer; a ``brief`` one need only know the primary metric.

        With ``shared``, all processes have batches of one set, and all compute together.
        """

    def collate(self, samples: Sequence[Any]) -> tuple[Any, Any]:
        """A batch of (input, target) pairs: inputs and targets, each stacked."""
        try:
            inputs, targets = default_collate(list(samples))
        except RuntimeError as error:
            raise DataError(_uneven(samples)) from error
        return inputs, targets

    def check_target(self, target: Any, where: str) -> None:
        """Raise DataError for a target of ``where`` that cannot be one of this task."""
        del target, where  # any may be right

    def loss(self, forward: Forward, inputs: Any, targets: Any) -> tuple[Tensor, Any]:
        """The loss of a training step and the outputs that :meth:`distance` compares.

        A task whose network makes its own losses overrides it.
        """
        outputs = run(forward, inputs)
        return self.criterion(outputs, targets), outputs

    def loss_of(self, model: Forward, batch: Any) -> Tensor:
        """The loss of ``model`` on (inputs, targets), as criteria take it."""
        return self.loss(model, *batch)[0]

    def distance(self, outputs: Any, taught: Any, temperature: float) -> Tensor:
        """How far a student's outputs are from its teacher's: the mean square, over all tensors."""
        del temperature  # of soft answers
        pairs = list(zip(tensors_in(outputs), tensors_in(taught), strict=True))
        if not pairs:
            raise ModelError("the model's outputs hold no tensors that a teacher could be met by")
        for mine, theirs in pairs:
            if mine.shape != theirs.shape:
                raise ModelError(
                    f"the teacher's output is {shape_text(theirs)} and the model's "
                    f"{shape_text(mine)}; they must agree"
                )
        return torch.stack([F.mse_loss(a.float(), b.float()) for a, b in pairs]).mean()

    def smoothed(self, share: float) -> Task:
        """The same with ``share`` of label smoothing, where it has labels to smooth."""
        if share:
            raise UsageError(f"`label_smoothing` is for classification, not for {self.name}")
        return self

    def outputs_of(self, arrays: Sequence[NDArray[Any]]) -> Any:
        """What :meth:`scorer` takes, from the outputs of a deployed file: the first of them."""
        return torch.as_tensor(np.asarray(arrays[0], np.float32))

    def check_outputs(self, outputs: Any, targets: Any) -> None:
        """Raise one line where a network's outputs do not fit the targets.

        The loss itself is tried, which is what would fail later.
        """
        try:
            loss = self.criterion(outputs, targets)
        except (ModelError, DataError):
            raise
        except Exception as error:
            raise ModelError(
                f"the model's outputs do not fit the task {self.name}: "
                f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            ) from error
        if not isinstance(loss, Tensor) or loss.ndim:
            raise ModelError(
                f"the loss of the task {self.name} must be a single number in a tensor"
            )

    def facts(self) -> Mapping[str, object]:
        """What a resumed training must have in common with the one that it goes on from."""
        return {"task": self.name}


def run(forward: Forward, inputs: Any) -> Any:
    """``forward`` on a batch: one tensor, several in order (a tuple), or several by name."""
    if isinstance(inputs, Mapping):
        return forward(**inputs)
    if isinstance(inputs, (tuple, list)):
        return forward(*inputs)
    return forward(inputs)


def tensors_in(outputs: Any) -> list[Tensor]:
    """The floating-point tensors of a network's outputs, in order."""
    if isinstance(outputs, Tensor):
        return [outputs] if outputs.is_floating_point() else []
    values = outputs.values() if isinstance(outputs, Mapping) else outputs
    if not isinstance(outputs, (Mapping, tuple, list)):
        return []
    return [tensor for value in values for tensor in tensors_in(value)]


def shape_text(value: Any) -> str:
    """A tensor's shape as ``8x3x32x32``; of anything else its type."""
    return "x".join(map(str, value.shape)) if isinstance(value, Tensor) else type(value).__name__


def _uneven(samples: Sequence[Any]) -> str:
    for part, kind in enumerate(("inputs", "targets")):
        shapes = sorted({shape_text(sample[part]) for sample in samples})
        if len(shapes) > 1:
            return (
                f"{kind} of one batch have different shapes: {', '.join(shapes)}; "
                "resize them alike in the data set"
            )
    return "samples of one batch cannot be stacked; give tensors of one shape"
