"""Whether a deployed file says what its model says: numbers, whole numbers, and rankings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from prunekit.core.artifact import Artifact
from prunekit.core.target import Target
from prunekit.runtimes import runtime_for
from prunekit.runtimes.base import Arrays
from prunekit.support.errors import ModelError

TOLERANCES = {"fp32": 1e-4, "tf32": 1e-2, "fp16": 2e-2, "bf16": 6e-2, "int8": 0.3}
"""How far outputs may be apart: the largest difference relative to the largest output, of int8 the
root mean square of both. Of whole numbers and yes-or-no outputs: the share that differs."""
LARGEST_RANKING = 2000
"""Entries of a ranking up to which its rows are matched with each other."""
_NAMES = {
    "onnx": "ONNX",
    "openvino": "OpenVINO IR",
    "tensorrt": "TensorRT engine",
    "aotinductor": "AOTInductor package",
}
_RANKING = ("topk", "sort", "argsort", "nms")
Outputs = list[NDArray[Any]]


def compare(
    model: nn.Module,
    artifact: Artifact,
    feeds: Sequence[Arrays],
    target: Target,
    *,
    is_dict: bool,
    tolerance: float | None = None,
) -> float:
    """How far ``artifact``'s outputs are from ``model``'s on ``feeds``; `ModelError` if too far.

    Outputs of a model that sorts or takes the best few are compared as rankings where their order
    differs: near-equal scores may change places, and nothing else may change.
    """
    name = _NAMES[artifact.format]
    allowed = TOLERANCES[artifact.precision] if tolerance is None else tolerance
    engine = runtime_for(target).load(artifact, target)
    furthest = 0.0
    try:
        for feed in feeds:
            expected, outputs = _run(model, feed, is_dict=is_dict), engine.run(feed)
            batch = len(next(iter(feed.values())))
            _check_shapes(model, name, expected, outputs, batch)
            pairs = zip(expected, outputs, strict=True)
            apart = [_apart(left, right, artifact.precision) for left, right in pairs if left.size]
            worst = next((d for d in apart if not d <= allowed), max(apart, default=0.0))
            if not worst <= allowed and _ranks(model, feed, is_dict=is_dict):
                worst = min(worst, ranked_apart(expected, outputs, allowed))
            if not worst <= allowed:  # also when it is not a number
                raise ModelError(
                    f"the exported {name} differs from {type(model).__name__} by "
                    f"{worst:.1e} of the output at batch {batch} "
                    f"(allowed: {allowed:.0e})"
                )
            furthest = max(furthest, worst)
    finally:
        engine.close()
    return furthest


def _run(model: nn.Module, feed: Arrays, *, is_dict: bool) -> Outputs:
    given = {key: torch.from_numpy(np.asarray(value)) for key, value in feed.items()}
    with torch.no_grad():
        out = model(**given) if is_dict else model(*given.values())
    return [t.numpy() for t in tree_leaves(out) if isinstance(t, Tensor)]


def _check_shapes(
    model: nn.Module, name: str, expected: Outputs, outputs: Outputs, batch: int
) -> None:
    if len(outputs) != len(expected):
        raise ModelError(
            f"the exported {name} has {len(outputs)} outputs, {type(model).__name__} "
            f"has {len(expected)}"
        )
    for left, right in zip(expected, outputs, strict=True):
        if left.shape != right.shape:
            raise ModelError(
                f"the exported {name} gives an output of shape {right.shape} at batch "
                f"{batch}, {type(model).__name__} one of {left.shape}"
            )


def _apart(expected: NDArray[Any], actual: NDArray[Any], precision: str) -> float:
    if expected.dtype.kind in "iub":
        return float(np.mean(expected != actual))
    left, right = expected.astype(np.float64), actual.astype(np.float64)
    if precision == "int8":
        return float(np.linalg.norm(left - right) / max(float(np.linalg.norm(left)), 1e-6))
    return float(np.abs(left - right).max() / max(np.abs(left).max(), 1e-6))


class _Watching(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notices operators that put things into an order."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ranks: bool = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # the signature that PyTorch calls
        self.ranks |= func._schema.name.partition("::")[2] in _RANKING
        return func(*args, **(kwargs or {}))


def _ranks(model: nn.Module, feed: Arrays, *, is_dict: bool) -> bool:
    """Whether the model sorts, or takes the best few of many."""
    with _Watching() as watching:
        _run(model, feed, is_dict=is_dict)
    return bool(watching.ranks)


def ranked_apart(expected: Outputs, actual: Outputs, allowed: float) -> float:
    """How far two rankings are apart, whatever the order of near-equal scores; infinity if none.

    Outputs that share their first axis (or two, of which the first is the batch) are one list of
    rows. One column of them falls along it: the scores. Rows are matched one to one; only at the
    end of the list may near-equal ones have been left out on either side.
    """
    for axes in (1, 2):
        shapes = {output.shape[:axes] for output in expected}
        if len(shapes) == 1 and all(output.ndim >= axes for output in expected):
            (shape,) = shapes
            if len(shape) < axes or not 1 < shape[-1] <= LARGEST_RANKING:
                continue
            scales = [_scale(output) for output in expected]
            sides = [
                [_rows(o, axes) / scale for o, scale in zip(side, scales, strict=True)]
                for side in (expected, actual)
            ]
            lists = zip(*(np.concatenate(side, axis=-1) for side in sides), strict=True)
            worst = max((_list_apart(left, right, allowed) for left, right in lists), default=0.0)
            if worst <= allowed:
                return worst
    return float("inf")


def _rows(output: NDArray[Any], axes: int) -> NDArray[np.float64]:
    """One output as (lists, rows, columns)."""
    lists = output.shape[0] if axes == 2 else 1
    return output.reshape(lists, output.shape[axes - 1], -1).astype(np.float64)


def _scale(output: NDArray[Any]) -> float:
    """What differences are shares of: the largest number; whole numbers must be the same."""
    if output.dtype.kind in "iub":
        return 1.0
    return max(float(np.abs(output).max(initial=0.0)), 1e-6)


def _list_apart(left: NDArray[np.float64], right: NDArray[np.float64], allowed: float) -> float:
    falls = [(np.diff(side, axis=0) <= 1e-12).all(axis=0) for side in (left, right)]
    scores = np.flatnonzero(falls[0] & falls[1] & (left[0] > left[-1]))
    if not len(scores):
        return float("inf")
    score = scores[0]
    distance = np.zeros((len(left), len(right)))
    for column in range(left.shape[1]):
        gap = np.abs(left[:, column, None] - right[None, :, column])
        np.maximum(distance, gap, out=distance)
    ours, theirs = linear_sum_assignment(np.where(distance <= allowed, distance, 1e3))
    matched = distance[ours, theirs]
    far = matched > allowed
    last = min(left[-1, score], right[-1, score])
    at_end = (left[ours, score] - last <= allowed) & (right[theirs, score] - last <= allowed)
    if (far & ~at_end).any():
        return float("inf")
    return float(matched[~far].max(initial=0.0))
