"""``prunekit export``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunekit.cli.common import (
    Json,
    Overwrite,
    Quiet,
    Verbose,
    option,
    print_json,
    print_text,
    refuse_existing,
    set_verbosity,
)
from prunekit.core.target import DEVICES, PRECISIONS
from prunekit.support.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from prunekit.core.artifact import Artifact
    from prunekit.core.sparsity import SparsityPlan
    from prunekit.pipeline.export import Wanted
    from prunekit.report.schema import ExportPart
    from prunekit.train import Data

FORMATS = ("onnx", "openvino", "tensorrt", "aotinductor")
LONG_SECONDS = 10.0
"""An export that took longer says how long."""
INT8_RUNTIMES = ("onnxruntime", "tensorrt")

Run = Annotated[str, typer.Argument(metavar="RUN", help="A run folder, or any MODEL.")]
Format = Annotated[str, option("The file's format.", known=FORMATS)]
Precision = Annotated[
    str,
    option(
        "fp32, fp16, int8; of engines also tf32, of aotinductor all but int8.", known=PRECISIONS
    ),
]
Base = Annotated[
    str | None,
    option(
        "The dense model of a run folder, where that is your own code.",
        *("--base", "--model"),
        metavar="MODEL",
    ),
]
Input = Annotated[str | None, option("Input shape; default: the run's.")]
DataText = Annotated[
    str | None,
    option("What int8 takes its ranges from, and accuracy is measured on; default: the run's."),
]
TaskName = Annotated[
    str | None,
    option("What it was trained for, where your own code says it.", "--task", metavar="NAME"),
]
SparseInitializers = Annotated[
    bool, option("Leave zeros out of a sparse run's ONNX file.", "--sparse-initializers")
]
For = Annotated[str, option("Whom an int8 ONNX file is for.", "--for", known=INT8_RUNTIMES)]
Batches = Annotated[
    str, option("Batches that an engine takes; one number for all three.", metavar="MIN,OPT,MAX")
]
Workspace = Annotated[int, option("MiB that a layer of an engine may use; 0: no limit.", min=0)]
Sparse = Annotated[bool, option("Let an engine use 2:4 sparse weights.", "--sparse")]
Device = Annotated[str, option("What an aotinductor package is compiled for.", known=DEVICES)]
Fold = Annotated[
    bool,
    option(
        "Fold blocks that train with branches, as they are deployed.",
        "--reparameterize/--no-reparameterize",
    ),
]
Opset = Annotated[int | None, option("Version of an ONNX file's operators, 11 to 25.")]
IrVersion = Annotated[
    int | None, option("Version of the ONNX format itself; default: the opset's.")
]
Static = Annotated[bool, option("Fix the batch at the input's.", "--static")]
Dynamic = Annotated[
    str | None,
    option(
        "Sizes that stay free beside the batch: height,width, depth, length, or axes by number.",
        metavar="NAMES",
    ),
]
Tolerance = Annotated[
    float | None, option("How far outputs may be apart, as a share of the largest.")
]
MaxSeconds = Annotated[float | None, option("Give the export up after so long.")]
Output = Annotated[
    Path | None,
    option("Default: in RUN, named by precision and format.", "-o", "--output", section="Output"),
]


def export(
    run: Run,
    base: Base = None,
    input: Input = None,  # noqa: A002 - the flag's name
    data: DataText = None,
    task: TaskName = None,
    format: Format = "onnx",  # noqa: A002
    precision: Precision = "fp32",
    runtime: For = "onnxruntime",
    batches: Batches = "1",
    workspace: Workspace = 0,
    sparse: Sparse = False,
    sparse_initializers: SparseInitializers = False,
    device: Device = "cpu",
    reparameterize: Fold = True,
    opset: Opset = None,
    ir_version: IrVersion = None,
    static: Static = False,
    dynamic: Dynamic = None,
    tolerance: Tolerance = None,
    max_seconds: MaxSeconds = None,
    output: Output = None,
    overwrite: Overwrite = False,
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Write a deployment artifact; its outputs are compared with PyTorch's before it counts."""
    set_verbosity(verbose, quiet)
    from prunekit.exporting.form import OnnxForm
    from prunekit.pipeline.examples import example_input
    from prunekit.pipeline.export import Wanted, deploy, record

    wanted = Wanted(
        *(format, precision, runtime, _batches(batches), workspace, sparse, device),
        pattern=_pattern(run, (format, precision) if sparse_initializers else None),
        sparse_initializers=sparse_initializers,
        form=OnnxForm(opset, ir_version, _free(static, dynamic), tolerance, max_seconds),
    )
    module, shape = _network(run, base, input)
    path = output or _default_path(run, wanted)
    _check_shape(run, input, path)
    if shape is None:
        raise UsageError("the input shape is not known; give --input, such as 1x3x224x224")
    for file in wanted.files(path):
        refuse_existing(file, overwrite)
    images = _data(run, data, task, wanted, shape)
    example = example_input(shape)
    if images is not None:
        _check_outputs(module, example, images)
    module = _folded(run, module, example) if reparameterize else module
    started = time.monotonic()
    artifact = deploy(module, example, path, wanted, images)
    seconds = time.monotonic() - started
    part = record(Path(run), artifact, wanted, images)
    if json:
        print_json(part.model_dump(mode="json"))
    else:
        _show(artifact, part, wanted.files(path), seconds)


def _pattern(run: str, without_zeros: tuple[str, str] | None) -> SparsityPlan | None:
    """Where the zeros of a sparse run are; only its fp32 ONNX file may be written without."""
    from prunekit.core.run_folder import SPARSITY, is_sparse
    from prunekit.core.sparsity import SparsityPlan

    pattern = SparsityPlan.load(Path(run) / SPARSITY) if is_sparse(run) else None
    if without_zeros and (pattern is None or without_zeros != ("onnx", "fp32")):
        raise UsageError(
            "--sparse-initializers is for the fp32 ONNX file of a sparse run; leave it out"
        )
    return pattern


def _network(run: str, base: str | None, shape: str | None) -> tuple[nn.Module, str | None]:
    """The network of a run, or any model; and the input's shape, where it is known."""
    from prunekit.core.inputs import parse_inputs
    from prunekit.core.run_folder import is_run
    from prunekit.networks.saved import load, open_model, saved_input

    shape = shape or saved_input(run)
    if is_run(run):
        return load(run, base), shape
    shapes = [(0,)] if shape is None else [one.shape for one in parse_inputs(shape)]
    channels = {"in_channels": shapes[0][1]} if len(shapes[0]) > 1 else {}
    return open_model(run, base, **channels).module, shape


def _rest(text: str) -> list[tuple[int, ...]]:
    """All but the batch of what a network takes."""
    from prunekit.core.inputs import parse_inputs

    return [one.shape[1:] for one in parse_inputs(text)]


def _default_path(run: str, wanted: Wanted) -> Path:
    from prunekit.core.run_folder import is_run

    if is_run(run):
        return Path(run) / wanted.file_name
    return Path(f"{run.split(':')[-1]}{wanted.file_name.removeprefix('model')}")


def _check_shape(run: str, shape: str | None, path: Path) -> None:
    """The files in a run's folder are all for the inputs that it was made for."""
    from prunekit.core.run_folder import is_run
    from prunekit.networks.saved import saved_input

    own = saved_input(run)
    if not (is_run(run) and shape and own) or _rest(shape) == _rest(own):
        return
    if path.parent.resolve() == Path(run).resolve():
        raise UsageError(
            f"{run} was made for inputs of {own}, and its files are for those; "
            f"for a file that takes {shape} give -o outside of it"
        )


def _data(
    run: str, source: str | None, task: str | None, wanted: Wanted, shape: str
) -> Data | None:
    """What was asked for, or the run's own data where the file is no plain copy.

    The accuracy of a plain copy is the run's own, which its report has.
    """
    from prunekit.core.inputs import parse_inputs
    from prunekit.core.run_folder import REPORT, is_run
    from prunekit.pipeline.job import open_data
    from prunekit.support.files import read_object
    from prunekit.tasks.choosing import TaskChoice
    from prunekit.train.data import is_code

    report = Path(run) / REPORT
    is_copy = (wanted.format, wanted.precision) == ("onnx", "fp32")
    # a folder of `prunekit.save` has no report
    known = is_run(run) and report.is_file()
    recipe = read_object(report, "report").get("recipe", {}) if known else {}
    if source is None and not is_copy:
        source = recipe.get("data")
        if source is not None and is_code(str(source)):
            raise UsageError(
                f"{run} took its data from {source}, which is code that a file may not start by "
                f"itself; add --data {source} to say that you trust it"
            )
    if source is None:
        return None
    choice = TaskChoice(
        *(task or recipe.get("task"), recipe.get("loss"), recipe.get("metric")),
        recipe.get("class_weights"),
    )
    if task is None and choice.is_code:
        raise UsageError(
            f"{run} was trained for {choice.spec}, which is code that a file may not start by "
            f"itself; add --task {choice.spec} to say that you trust it"
        )
    inputs = parse_inputs(shape)[0]
    return open_data(source, inputs.shape, choice=choice, floating=inputs.is_floating)


def _check_outputs(module: nn.Module, example: Tensor, data: Data) -> None:
    """There must be one output for each class; the file's accuracy is of the first."""
    import torch

    from prunekit.networks.running import evaluating
    from prunekit.tasks import Classification
    from prunekit.tasks.classification import logits_of

    with evaluating(module), torch.no_grad():
        output = module(example)
    first = output[0] if isinstance(output, tuple) else output
    if isinstance(first, torch.Tensor) and isinstance(data.task, Classification):
        logits_of(first, data.num_classes)


def _folded(run: str, module: nn.Module, example: Tensor) -> nn.Module:
    """The network as it is deployed; that of a run is that already."""
    from prunekit.core.run_folder import is_run
    from prunekit.networks.folding import reparameterize
    from prunekit.pipeline.job import say_folded

    if is_run(run):
        return module
    folded = reparameterize(module, example)
    say_folded(module, folded)
    return folded


def _show(artifact: Artifact, part: ExportPart, files: tuple[Path, ...], seconds: float) -> None:
    size = sum(file.stat().st_size for file in files)
    outputs = "outputs equal PyTorch's"
    if part.precision != "fp32" and artifact.apart is not None:
        outputs = f"outputs within {artifact.apart:.1e} of PyTorch's"
    accuracy = "" if part.accuracy is None else f", accuracy {part.accuracy:.2%}"
    took = f", {seconds:.0f} s" if seconds >= LONG_SECONDS else ""
    print_text(f"{artifact.path} ({size / 2**20:.1f} MiB, {outputs}{accuracy}{took})")


def _free(static: bool, names: str | None) -> tuple[str, ...]:
    """The sizes that stay free in the file."""
    free = [] if static else ["batch"]
    free += [name.strip() for name in (names or "").split(",") if name.strip()]
    return tuple(dict.fromkeys(free))


def _batches(text: str) -> tuple[int, int, int]:
    """``1,8,32``, or one number for all three."""
    parts = text.split(",")
    try:
        numbers = [int(part) for part in parts]
    except ValueError:
        numbers = []
    if len(numbers) == 1:
        numbers *= 3
    if len(numbers) != 3 or not 1 <= numbers[0] <= numbers[1] <= numbers[2]:
        raise UsageError(f"cannot read --batches {text!r}; write MIN,OPT,MAX such as 1,8,32")
    return numbers[0], numbers[1], numbers[2]
