"""What networks are trained for: losses, metrics, and how deployed files are judged."""

from __future__ import annotations

from prunekit.core.metric import Metric
from prunekit.tasks.base import Scorer, Task
from prunekit.tasks.classification import Classification
from prunekit.tasks.detection import Detection, detections
from prunekit.tasks.multilabel import MultiLabel
from prunekit.tasks.regression import Regression
from prunekit.tasks.scorers import Library
from prunekit.tasks.segmentation import Segmentation

__all__ = [
    "Classification",
    "Detection",
    "Library",
    "Metric",
    "MultiLabel",
    "Regression",
    "Scorer",
    "Segmentation",
    "Task",
    "detections",
]
