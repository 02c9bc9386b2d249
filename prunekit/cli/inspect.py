"""``prunekit inspect``."""

from __future__ import annotations

import typer

from prunekit.cli.common import (
    Base,
    Heads,
    Input,
    Json,
    Model,
    Quiet,
    Reparameterize,
    Verbose,
    print_json,
    print_table,
    print_text,
    set_verbosity,
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("inspect")(inspect)


def inspect(
    model: Model,
    base: Base = None,
    input: Input = None,  # noqa: A002 - the flag's name
    reparameterize: Reparameterize = True,
    heads: Heads = "whole",
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Show channel groups, layers, MACs, and what is not prunable and why."""
    set_verbosity(verbose, quiet)
    from prunekit.networks.folding import folded_blocks
    from prunekit.pipeline.job import example_input, open_dense
    from prunekit.pipeline.recipes.prune import make_recipe
    from prunekit.tracing import trace

    recipe = make_recipe(
        {
            "model": model,
            "base": base,
            "input": input,
            "reparameterize": reparameterize,
            "heads": heads,
        }
    )
    built = open_dense(recipe)
    graph = trace(built.module, example_input(recipe.input), heads=recipe.heads)
    macs = {layer.name: layer.macs(layer.in_channels, layer.out_channels) for layer in graph.layers}
    if json:
        print_json(
            {
                "model": model,
                "input": recipe.input,
                "fingerprint": graph.fingerprint,
                "macs": graph.macs({}),
                "memory_bytes": graph.memory({}),
                "peak_activation_bytes": graph.peak({}).bytes,
                "params": sum(p.numel() for p in built.module.parameters()),
                "prunable_macs_share": graph.prunable_macs_share(),
                "groups": [
                    {
                        "id": g.id,
                        "size": g.size,
                        "prunable": g.prunable,
                        "reason": g.reason,
                        "members": sorted({m.module for m in g.members}),
                    }
                    for g in graph.groups
                ],
                "layers": [
                    {
                        "name": layer.name,
                        "shape": str(layer.shape),
                        "in_channels": layer.in_channels,
                        "out_channels": layer.out_channels,
                        "in_groups": [span.group for span in layer.in_spans],
                        "out_group": layer.out_group,
                        "macs": macs[layer.name],
                        "calls": layer.calls,
                    }
                    for layer in graph.layers
                ],
                "removable_blocks": list(graph.removable),
                "folded_blocks": list(folded_blocks(built.module)),
                "notes": list(graph.notes),
            }
        )
        return
    print_table(
        f"{model}: channel groups",
        ("group", "channels", "layers", "prunable", "why not"),
        [
            (
                g.id,
                str(g.size),
                str(len({m.module for m in g.members})),
                "yes" if g.prunable else "no",
                g.reason,
            )
            for g in graph.groups
        ],
    )
    if verbose:
        print_table(
            "layers",
            ("layer", "shape", "in", "out", "MMACs"),
            [
                (
                    layer.name,
                    str(layer.shape),
                    str(layer.in_channels),
                    str(layer.out_channels),
                    f"{macs[layer.name] / 1e6:.2f}",
                )
                for layer in graph.layers
            ],
        )
    print_text(
        f"at {recipe.input}: {graph.macs({}) / 1e6:.1f} MMACs in {len(graph.layers)} layers; "
        f"{graph.prunable_macs_share():.1%} of them in layers that can be narrowed; "
        f"{graph.memory({}) / 2**20:.1f} MiB of memory in fp32, "
        f"{graph.peak({}).bytes / 2**20:.1f} of it activations at their peak"
    )
    if graph.removable:
        shown = ", ".join(graph.removable[:4]) + (", ..." if len(graph.removable) > 4 else "")
        print_text(f"{len(graph.removable)} residual blocks could be left out: {shown}")
    for note in graph.notes:
        print_text(f"note: {note}")
