"""What we use of NVIDIA's bindings to CUDA and to its management library exists in them."""

from __future__ import annotations

import ast
import inspect

import pytest

from support import ROOT

RUNTIMES = ROOT / "prunekit" / "runtimes"


def attributes(source, bases):
    """Every ``base.name`` in a file, for the texts that stand for the module."""
    tree = ast.parse((RUNTIMES / source).read_text())
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in bases
    ]


def test_cuda_bindings_have_what_is_called():
    api = pytest.importorskip("cuda.bindings.runtime", reason="pip install cuda-bindings")
    bases = ("self._api", "cudart", "api")
    found = [*attributes("nvidia/cuda.py", bases), *attributes("nvidia/gpu.py", bases)]
    assert len({node.attr for node in found}) > 20
    assert [node.attr for node in found if not hasattr(api, node.attr)] == []


def test_members_of_cuda_enumerations_exist():
    api = pytest.importorskip("cuda.bindings.runtime", reason="pip install cuda-bindings")
    names = ("cudaMemcpyKind", "cudaStreamCaptureMode", "cudaDeviceAttr", "cudaError_t")
    tree = ast.parse((RUNTIMES / "nvidia" / "cuda.py").read_text())
    members = [
        (ast.unparse(node.value).rpartition(".")[2], node.attr)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and ast.unparse(node.value).rpartition(".")[2] in (*names, "kind")
    ]
    assert len(members) >= 6
    for name, member in members:
        where = "cudaDeviceAttr" if name == "kind" else name
        assert hasattr(getattr(api, where), member), (where, member)


def test_cuda_functions_are_given_as_many_arguments_as_they_take():
    """``call(self._api.function, ...)`` against the parameters that docstrings begin with."""
    api = pytest.importorskip("cuda.bindings.runtime", reason="pip install cuda-bindings")
    checked = []
    for source in ("nvidia/cuda.py", "nvidia/gpu.py"):
        for node in ast.walk(ast.parse((RUNTIMES / source).read_text())):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            text = ast.unparse(node.func)
            name = ast.unparse(node.args[0]).rpartition(".")[2]
            if text.rpartition(".")[2] == "call" and name.startswith("cuda"):
                given = len(node.args) - 1
            elif text.rpartition(".")[2].startswith("cuda"):
                name, given = text.rpartition(".")[2], len(node.args)
            else:
                continue
            first = (getattr(api, name).__doc__ or "").strip().splitlines()[0]
            inside = first.partition("(")[2].rpartition(")")[0]
            assert given == len([part for part in inside.split(",") if part.strip()]), first
            checked.append(name)
    assert len(set(checked)) >= 18


def test_the_management_library_has_what_is_called():
    pynvml = pytest.importorskip("pynvml", reason="pip install nvidia-ml-py")
    from prunekit.runtimes.nvidia.gpu import _SLOWED

    found = attributes("nvidia/gpu.py", ("pynvml",))
    assert len({node.attr for node in found}) >= 12
    assert [node.attr for node in found if not hasattr(pynvml, node.attr)] == []
    for name in _SLOWED:
        assert isinstance(getattr(pynvml, f"nvmlClocksEventReason{name}"), int)
    for node in ast.walk(ast.parse((RUNTIMES / "nvidia" / "gpu.py").read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("pynvml.nvml"):
            function = getattr(pynvml, ast.unparse(node.func).partition(".")[2])
            inspect.signature(function).bind(*node.args)
