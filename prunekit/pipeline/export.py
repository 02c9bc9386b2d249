"""``prunekit export``: one artifact in a format and precision, its accuracy put on record."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from prunekit.core.artifact import Artifact
from prunekit.core.run_folder import PAGE, REPORT, is_sparse
from prunekit.core.sparsity import SparsityPlan
from prunekit.core.target import Target, usable_cores
from prunekit.exporting import export, export_openvino
from prunekit.exporting.form import OnnxForm
from prunekit.exporting.onnx import compare_outputs
from prunekit.exporting.package import export_package
from prunekit.exporting.precision import PRECISIONS
from prunekit.exporting.sparse import export_sparse
from prunekit.pipeline.accuracy import file_accuracy
from prunekit.pipeline.job import calibration
from prunekit.report import Report, to_html
from prunekit.report.schema import ExportPart
from prunekit.runtimes import runtime_for
from prunekit.runtimes.tensorrt.build import Build
from prunekit.support.errors import UsageError
from prunekit.support.files import write_text
from prunekit.train import Data

SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "tensorrt": ".engine", "aotinductor": ".pt2"}


@dataclass(frozen=True)
class Wanted:
    """What to export.

    ``runtime`` is whom an int8 ONNX file is for. ``batches`` (least, optimal, largest),
    ``workspace_mib`` and ``sparse`` are of engines; ``device`` is what a package is compiled for.
    """

    format: str = "onnx"
    precision: str = "fp32"
    runtime: str = "onnxruntime"
    batches: tuple[int, int, int] = (1, 1, 1)
    workspace_mib: int = 0
    sparse: bool = False
    device: str = "cpu"
    pattern: SparsityPlan | None = None
    """Of a run with sparse weights: checked in the file, and marked there."""
    sparse_initializers: bool = False
    form: OnnxForm = field(default_factory=OnnxForm)
    """Operators, free sizes and tolerance of an ONNX file."""

    def __post_init__(self) -> None:
        if self.format not in SUFFIXES:
            raise UsageError(
                f"unknown format {self.format!r}; this version exports {', '.join(SUFFIXES)}"
            )
        able = {"onnx": PRECISIONS, "openvino": ("fp32",), "tensorrt": ("tf32", *PRECISIONS)}
        if self.format in able and self.precision not in able[self.format]:
            raise UsageError(
                f"{self.format} files are written in {', '.join(sorted(able[self.format]))}, "
                f"not {self.precision}"
            )
        if self.runtime not in ("onnxruntime", "tensorrt"):
            raise UsageError(f"--for is onnxruntime or tensorrt, not {self.runtime!r}")
        int8 = self.format == "onnx" and self.precision == "int8"
        for flag, given, fits, what in (
            ("--for", self.runtime != "onnxruntime", int8, "int8 ONNX files"),
            ("--batches", self.batches != (1, 1, 1), self.format == "tensorrt", "engines"),
            ("--workspace", self.workspace_mib > 0, self.format == "tensorrt", "engines"),
            ("--sparse", self.sparse, self.format == "tensorrt", "engines"),
            (self.form.flags(), self.form != OnnxForm(), self.format == "onnx", "ONNX files"),
            ("--device", self.device != "cpu", self.format == "aotinductor", "packages"),
        ):
            if given and not fits:
                raise UsageError(f"{flag} is for {what}, and this is {self.format}; leave it out")

    @property
    def target(self) -> Target:
        """Where the artifact runs for its outputs to be compared, and its accuracy measured."""
        cores = usable_cores()
        if self.format == "tensorrt":
            return Target("tensorrt", "cuda", self.precision, batch=self.batches[1])
        if self.format == "aotinductor":
            return Target("torch", self.device, self.precision, threads=cores)
        name = "openvino" if self.format == "openvino" else "onnxruntime"
        return Target(name, threads=cores)

    @property
    def file_name(self) -> str:
        """What it is called in a run's folder."""
        middle = "" if self.precision == "fp32" else f"-{self.precision}"
        middle += "" if self.runtime == "onnxruntime" else f"-{self.runtime}"
        return f"model{middle}{SUFFIXES[self.format]}"

    def files(self, path: Path) -> tuple[Path, ...]:
        """All that is written for an artifact at ``path``."""
        beside = {
            "openvino": (path.with_suffix(".bin"),),
            "tensorrt": (Path(f"{path}.json"), path.with_suffix(".engine.onnx")),
            "aotinductor": (Path(f"{path}.json"),),
        }
        return (path, *beside.get(self.format, ()))


def deploy(
    module: nn.Module, example: Any, path: Path, wanted: Wanted, data: Data | None, seed: int = 0
) -> Artifact:
    """Write ``module`` as ``wanted``; outputs are compared with PyTorch's before it counts.

    An int8 file takes its ranges from training images of ``data``, and is compared on them.
    """
    if wanted.precision == "int8" and data is None:
        raise UsageError("int8 needs data for its ranges; add --data (digits, imagefolder:PATH)")
    runtime_for(wanted.target)
    needs = wanted.precision in ("fp16", "int8") and wanted.format in ("onnx", "tensorrt")
    batches = calibration(data, seed) if needs and data is not None else []
    if wanted.format == "openvino":
        return export_openvino(module, example, path, wanted.precision)
    if wanted.format == "aotinductor":
        return export_package(module, example, path, wanted.target)

    def write(path: Path, precision: str, runtime: str) -> Artifact:
        more: dict[str, Any] = {"batches": batches, "runtime": runtime, **asdict(wanted.form)}
        if wanted.pattern is None:
            return export(module, example, path, precision, **more)
        more["sparse_initializers"] = wanted.sparse_initializers
        return export_sparse(module, example, path, wanted.pattern, precision, **more)

    if wanted.format == "onnx":
        return write(path, wanted.precision, wanted.runtime)
    from prunekit.runtimes.tensorrt.runtime import export_engine

    in_file = "fp32" if wanted.precision == "tf32" else wanted.precision
    onnx_path = path.with_suffix(".engine.onnx")
    onnx = write(onnx_path, in_file, "tensorrt")
    build = Build(
        wanted.batches,
        tf32=wanted.precision == "tf32",
        sparse=wanted.sparse or (wanted.pattern is not None and wanted.pattern.pattern == "2:4"),
        workspace_mib=wanted.workspace_mib,
    )

    def compare(engine: Artifact) -> float:
        return compare_outputs(module, engine, example, wanted.target, batches)

    return export_engine(onnx, path, wanted.target, build, compare)


def record(run: Path, artifact: Artifact, wanted: Wanted, data: Data | None) -> ExportPart:
    """Measure the artifact's accuracy and put it into the run's reports, where there are any."""
    path = Path(artifact.path)
    part = ExportPart(
        path=str(path),
        format=wanted.format,
        precision=wanted.precision,
        sha256=artifact.sha256,
        apart=artifact.apart,
        accuracy=file_accuracy(path, data, target=wanted.target),
    )
    kept = run / REPORT
    if kept.is_file() and not is_sparse(run):
        report = Report.load(kept)
        here = path.resolve()  # one file may have been named in several ways
        others = tuple(o for o in report.exports if Path(o.path).resolve() != here)
        report = report.model_copy(update={"exports": (*others, part)})
        write_text(run / PAGE, to_html(report))
        report.save(kept)
    return part
