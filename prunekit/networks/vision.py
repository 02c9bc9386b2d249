"""torchvision, without PyTorch's compiler, which takes longer to import than all the rest."""

from __future__ import annotations

from types import ModuleType

from prunekit.support.postponing import postponing


def torchvision() -> ModuleType:
    """The package; one of its operators compiles itself when it is called, and not before."""
    with postponing("torch._dynamo.utils", "is_compile_supported"):
        import torchvision

    module: ModuleType = torchvision
    return module
