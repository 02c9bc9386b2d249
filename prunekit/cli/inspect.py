"""``prunekit inspect``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunekit.cli.common import (
    Json,
    Quiet,
    Verbose,
    print_json,
    print_table,
    print_text,
    set_verbosity,
)
from prunekit.cli.flags import Given, settings

if TYPE_CHECKING:
    from torch import nn

    from prunekit.core.graph import ChannelGraph
    from prunekit.pipeline.recipes.prune import Recipe

FLAGS = ("model", "base", "input", "example", "reparameterize", "heads")


@settings("prunekit.pipeline.recipes.prune:Recipe", *FLAGS)
def inspect(
    given: Given[Recipe],
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Show channel groups, layers, MACs, and what is not prunable and why."""
    set_verbosity(verbose, quiet)
    from prunekit.pipeline.examples import described, recipe_example
    from prunekit.pipeline.job import open_dense
    from prunekit.tracing import trace

    recipe = given.recipe()
    module = open_dense(recipe).module
    example = recipe_example(recipe)
    shape = recipe.input if recipe.example is None else described(example) or recipe.example
    graph = trace(module, example, heads=recipe.heads)
    if json:
        print_json({"model": recipe.model, "input": shape, **_facts(graph, module)})
        return
    _print_groups(graph, recipe.model)
    if verbose:
        _print_layers(graph)
    _print_summary(graph, shape)


def _macs(graph: ChannelGraph) -> dict[str, int]:
    """Multiply-accumulates of each layer."""
    return {layer.name: layer.macs(layer.in_channels, layer.out_channels) for layer in graph.layers}


def _facts(graph: ChannelGraph, module: nn.Module) -> dict[str, object]:
    from prunekit.networks.folding import folded_blocks

    macs = _macs(graph)
    return {
        "fingerprint": graph.fingerprint,
        "macs": graph.macs({}),
        **({"activation_macs": graph.activation_macs} if graph.activation_macs else {}),
        "memory_bytes": graph.memory({}),
        "peak_activation_bytes": graph.peak({}).bytes,
        "params": sum(p.numel() for p in module.parameters()),
        "prunable_macs_share": graph.prunable_macs_share(),
        "groups": [
            {
                "id": group.id,
                "size": group.size,
                "prunable": group.prunable,
                "reason": group.reason,
                "members": sorted({member.module for member in group.members}),
            }
            for group in graph.groups
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
        "folded_blocks": list(folded_blocks(module)),
        "notes": list(graph.notes),
    }


def _print_groups(graph: ChannelGraph, model: str) -> None:
    print_table(
        f"{model}: channel groups",
        ("group", "channels", "layers", "prunable", "why not"),
        [
            (
                group.id,
                str(group.size),
                str(len({member.module for member in group.members})),
                "yes" if group.prunable else "no",
                group.reason,
            )
            for group in graph.groups
        ],
    )


def _print_layers(graph: ChannelGraph) -> None:
    macs = _macs(graph)
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


def _print_summary(graph: ChannelGraph, shape: str) -> None:
    print_text(
        f"at {shape}: {graph.macs({}) / 1e6:.1f} MMACs in {len(graph.layers)} layers; "
        f"{graph.prunable_macs_share():.1%} of them in layers that can be narrowed; "
        f"{graph.memory({}) / 2**20:.1f} MiB of memory in fp32, "
        f"{graph.peak({}).bytes / 2**20:.1f} of it activations at their peak"
    )
    if graph.activation_macs:
        print_text(
            f"{graph.activation_macs / 1e6:.1f} MMACs more between activations, as in attention"
        )
    if graph.removable:
        shown = ", ".join(graph.removable[:4]) + (", ..." if len(graph.removable) > 4 else "")
        print_text(f"{len(graph.removable)} residual blocks could be left out: {shown}")
    for note in graph.notes:
        print_text(f"note: {note}")
