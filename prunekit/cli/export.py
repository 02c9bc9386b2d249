"""``prunekit export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunekit.cli.common import (
    Json,
    Overwrite,
    Quiet,
    Reparameterize,
    Verbose,
    print_json,
    print_text,
    refuse_existing,
    set_verbosity,
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("export")(export)


def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run folder, or any MODEL.")],
    format: Annotated[  # noqa: A002
        str, typer.Option("--format", help="onnx, openvino, tensorrt, aotinductor.")
    ] = "onnx",
    precision: Annotated[
        str,
        typer.Option(help="fp32, fp16, int8; of engines also tf32, of aotinductor all but int8."),
    ] = "fp32",
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Default: in RUN, named by precision and format."),
    ] = None,
    input: Annotated[  # noqa: A002
        str | None, typer.Option("--input", help="Input shape; default: the run's.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--base",
            "--model",
            metavar="MODEL",
            help="The dense model of a run folder, where that is your own code.",
        ),
    ] = None,
    sparse_initializers: Annotated[
        bool,
        typer.Option("--sparse-initializers", help="Leave zeros out of a sparse run's ONNX file."),
    ] = False,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="What int8 takes its ranges from, and accuracy is measured on; default: the "
            "run's.",
        ),
    ] = None,
    runtime: Annotated[
        str,
        typer.Option("--for", help="Whom an int8 ONNX file is for: onnxruntime or tensorrt."),
    ] = "onnxruntime",
    batches: Annotated[
        str,
        typer.Option(
            "--batches",
            metavar="MIN,OPT,MAX",
            help="Batches that an engine takes; one number for all three.",
        ),
    ] = "1",
    workspace: Annotated[
        int, typer.Option(min=0, help="MiB that a layer of an engine may use; 0: no limit.")
    ] = 0,
    sparse: Annotated[
        bool, typer.Option("--sparse", help="Let an engine use 2:4 sparse weights.")
    ] = False,
    device: Annotated[
        str, typer.Option(help="What an aotinductor package is compiled for: cpu or cuda.")
    ] = "cpu",
    reparameterize: Reparameterize = True,
    overwrite: Overwrite = False,
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Write a deployment artifact; its outputs are compared with PyTorch's before it counts."""
    set_verbosity(verbose, quiet)
    import torch

    from prunekit.core.run_folder import REPORT, SPARSITY, is_run, is_sparse
    from prunekit.core.sparsity import SparsityPlan
    from prunekit.networks.folding import reparameterize as fold
    from prunekit.networks.running import evaluating
    from prunekit.networks.saved import load, open_model, saved_input
    from prunekit.pipeline.export import Wanted, deploy, record
    from prunekit.pipeline.job import example_input, open_data, say_folded
    from prunekit.pipeline.recipes.base import parse_shape
    from prunekit.support.errors import UsageError
    from prunekit.support.files import read_object
    from prunekit.train.data import is_code
    from prunekit.train.evaluating import logits_of

    pattern = SparsityPlan.load(Path(run) / SPARSITY) if is_sparse(run) else None
    if sparse_initializers and (pattern is None or (format, precision) != ("onnx", "fp32")):
        raise UsageError(
            "--sparse-initializers is for the fp32 ONNX file of a sparse run; leave it out"
        )
    wanted = Wanted(
        *(format, precision, runtime, _batches(batches), workspace, sparse, device),
        pattern=pattern,
        sparse_initializers=sparse_initializers,
    )
    own, told = saved_input(run), None
    shape = input or own
    if is_run(run):
        module = load(run, model)
        path = output or Path(run) / wanted.file_name
        other = shape and own and parse_shape(shape)[1:] != parse_shape(own)[1:]
        if other and path.parent.resolve() == Path(run).resolve():
            raise UsageError(
                f"{run} was made for inputs of {own}, and its files are for those; "
                f"for a file that takes {shape} give -o outside of it"
            )
        report = Path(run) / REPORT
        if report.is_file():  # a folder of `prunekit.save` has none
            told = read_object(report, "report").get("recipe", {}).get("data")
    else:
        channels = {} if shape is None else {"in_channels": parse_shape(shape)[1]}
        module = open_model(run, model, **channels).module
        name = f"{run.split(':')[-1]}{wanted.file_name.removeprefix('model')}"
        path = output or Path(name)
    if shape is None:
        raise UsageError("the input shape is not known; give --input, such as 1x3x224x224")
    for file in wanted.files(path):
        refuse_existing(file, overwrite)
    example = example_input(shape)
    # the accuracy of a plain copy is the run's own, which its report has
    source = data or (told if wanted.precision != "fp32" or wanted.format != "onnx" else None)
    if source is not None and data is None and is_code(str(source)):
        raise UsageError(
            f"{run} took its data from {source}, which is code that a file may not start by "
            f"itself; add --data {source} to say that you trust it"
        )
    found = None if source is None else open_data(source, parse_shape(shape))
    if found is not None:
        with evaluating(module), torch.no_grad():
            output = module(example)
        first = output[0] if isinstance(output, tuple) else output  # as of the file's outputs
        if isinstance(first, torch.Tensor):
            logits_of(first, found.num_classes)
    if reparameterize and not is_run(run):
        whole, module = module, fold(module, example)
        say_folded(whole, module)
    artifact = deploy(module, example, path, wanted, found)
    part = record(Path(run), artifact, wanted, found)
    if json:
        print_json(part.model_dump(mode="json"))
        return
    size = sum(file.stat().st_size for file in wanted.files(path))
    apart = "outputs equal PyTorch's"
    if wanted.precision != "fp32" and artifact.apart is not None:
        apart = f"outputs within {artifact.apart:.1e} of PyTorch's"
    accuracy = "" if part.accuracy is None else f", accuracy {part.accuracy:.2%}"
    print_text(f"{artifact.path} ({size / 2**20:.1f} MiB, {apart}{accuracy})")


def _batches(text: str) -> tuple[int, int, int]:
    """``1,8,32``, or one number for all three."""
    from prunekit.support.errors import UsageError

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
