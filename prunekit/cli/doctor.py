"""``prunekit doctor``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunekit.cli.common import Json, Quiet, Verbose, print_json, print_text, set_verbosity
from prunekit.cli.flags import Given, settings

if TYPE_CHECKING:
    from prunekit.pipeline.recipes.prune import Recipe

FLAGS = ("model", "base", "input", "example", "reparameterize")


@settings("prunekit.pipeline.recipes.prune:Recipe", *FLAGS)
def doctor(
    given: Given[Recipe],
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """One page for a bug report: versions, what is prunable, what an export does, seconds.

    It has no names of your layers, classes or files.
    """
    set_verbosity(verbose, quiet)
    from prunekit.pipeline.doctor import examine
    from prunekit.pipeline.examples import recipe_example
    from prunekit.pipeline.job import open_dense

    recipe = given.recipe()
    checkup = examine(open_dense(recipe).module, recipe_example(recipe))
    if json:
        print_json(checkup.as_dict())
    else:
        print_text(checkup.markdown())
