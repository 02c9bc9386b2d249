"""A thing that can be deployed and timed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunekit.support.errors import FileError
from prunekit.support.files import sha256_file

_FORMATS = {
    ".onnx": "onnx",
    ".engine": "tensorrt",
    ".xml": "openvino",
    ".pt2": "aotinductor",
}


@dataclass(frozen=True)
class Artifact:
    """A model in a deployable form: a file, or (format ``module``) a live torch module.

    ``input_shapes`` maps input names to shapes; a dimension of -1 is the batch.
    """

    path: str
    format: str
    precision: str = "fp32"
    sha256: str = ""
    plan: str | None = None
    input_shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    apart: float | None = field(default=None, compare=False)
    """How far its outputs were from PyTorch's when it was exported, as a share of them."""
    module: Any = field(default=None, compare=False, repr=False)
    """The live module, in evaluation mode, of an artifact of format ``module``."""

    @classmethod
    def of_file(cls, path: str | Path, **facts: Any) -> Artifact:
        """The artifact at ``path``, its format told by its suffix."""
        path = Path(path)
        if not path.is_file():
            raise FileError(f"no artifact at {path}")
        kind = _FORMATS.get(path.suffix)
        if kind is None:
            raise FileError(f"{path}: unknown artifact type; known: {', '.join(_FORMATS)}")
        return cls(str(path), kind, sha256=sha256_file(path), **facts)
