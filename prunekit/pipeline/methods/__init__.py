"""How channels are chosen: once, or while training goes on."""

from prunekit.pipeline.methods.base import Method, Pruned
from prunekit.pipeline.methods.halp import HalpMethod
from prunekit.pipeline.methods.iee import IeeMethod
from prunekit.pipeline.methods.oneshot import OneShot
from prunekit.pipeline.recipes.prune import Recipe

METHODS: dict[str, Method] = {
    method.name: method for method in (OneShot(), HalpMethod(), IeeMethod())
}


def method_of(recipe: Recipe) -> Method:
    """The method that the recipe asks for, or gets by default."""
    return METHODS[recipe.resolved_method()]


def check_method(recipe: Recipe) -> None:
    """Raise UsageError for settings that the recipe's method cannot work with, or never reads."""
    method = method_of(recipe)
    method.check(recipe)
    for other in METHODS.values():
        if other is not method:
            other.check_unused(recipe)


__all__ = ["METHODS", "HalpMethod", "IeeMethod", "Method", "OneShot", "Pruned"]
