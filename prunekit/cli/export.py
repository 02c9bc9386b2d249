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
    format: Annotated[str, typer.Option("--format", help="onnx, openvino.")] = "onnx",  # noqa: A002
    precision: Annotated[str, typer.Option(help="fp32.")] = "fp32",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Default: RUN/model.onnx, or .xml.")
    ] = None,
    input: Annotated[  # noqa: A002
        str | None, typer.Option("--input", help="Input shape; default: the run's.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="The dense model, where the run's is your own code."),
    ] = None,
    sparse_initializers: Annotated[
        bool,
        typer.Option("--sparse-initializers", help="Leave zeros out of a sparse run's ONNX file."),
    ] = False,
    reparameterize: Reparameterize = True,
    overwrite: Overwrite = False,
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Write a deployment artifact; its outputs are compared with PyTorch's before it counts."""
    set_verbosity(verbose, quiet)
    from prunekit.errors import UsageError
    from prunekit.exporting import export as write_onnx
    from prunekit.exporting import export_openvino
    from prunekit.exporting.sparse import export_sparse
    from prunekit.folding import reparameterize as fold
    from prunekit.pipeline.setup import example_input, say_folded
    from prunekit.plan import ChannelPlan
    from prunekit.runs import PLAN, SPARSITY, is_run, is_sparse, load, open_model
    from prunekit.sparsity import SparsityPlan

    kinds = {"onnx": (write_onnx, ".onnx"), "openvino": (export_openvino, ".xml")}
    if format not in kinds:
        raise UsageError(f"unknown format {format!r}; this version exports {' and '.join(kinds)}")
    write, suffix = kinds[format]
    sparse = is_sparse(run) and format == "onnx"
    if sparse_initializers and not sparse:
        raise UsageError("--sparse-initializers is for the ONNX file of a sparse run; leave it out")
    shape = input
    if is_run(run):
        base = ChannelPlan.load(Path(run) / PLAN).base
        if shape is None and base is not None and base.input_shapes:
            shape = "x".join(map(str, base.input_shapes[0]))
        module = load(run, model)
        path = output or Path(run) / f"model{suffix}"
    else:
        module = open_model(run).module
        path = output or Path(run.split(":")[-1] + suffix)
    if shape is None:
        raise UsageError("the input shape is not known; give --input, such as 1x3x224x224")
    refuse_existing(path, overwrite)
    if format == "openvino":
        refuse_existing(path.with_suffix(".bin"), overwrite)
    example = example_input(shape)
    if reparameterize and not is_run(run):
        whole, module = module, fold(module, example)
        say_folded(whole, module)
    if sparse:
        plan = SparsityPlan.load(Path(run) / SPARSITY)
        artifact = export_sparse(
            module, example, path, plan, precision, sparse_initializers=sparse_initializers
        )
    else:
        artifact = write(module, example, path, precision)
    if json:
        print_json({"path": artifact.path, "format": format, "sha256": artifact.sha256})
    else:
        files = (path, path.with_suffix(".bin")) if format == "openvino" else (path,)
        size = sum(file.stat().st_size for file in files)
        print_text(f"{artifact.path} ({size / 2**20:.1f} MiB, outputs equal PyTorch's)")
