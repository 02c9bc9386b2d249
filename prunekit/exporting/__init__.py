"""Deployment artifacts: exported, compared with PyTorch's outputs, and only then put in place."""

from prunekit.exporting.narrow import narrow_onnx
from prunekit.exporting.onnx import export, live_artifact
from prunekit.exporting.openvino import export_openvino
from prunekit.exporting.precision import lower, lowered_for

__all__ = ["export", "export_openvino", "live_artifact", "lower", "lowered_for", "narrow_onnx"]
