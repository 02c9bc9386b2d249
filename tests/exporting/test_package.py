"""Compiled packages: their outputs, and where they are refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from prunekit.core.artifact import Artifact
from prunekit.core.target import Target
from prunekit.exporting.package import export_package
from prunekit.runtimes import runtime_for
from prunekit.runtimes.sidecar import facts_path
from prunekit.runtimes.torch import package as torch_package
from prunekit.runtimes.torch.runtime import Torch
from prunekit.support.errors import FileError, RuntimeUnavailableError, UsageError
from support.nets import Residual, image, randomise

CPU = Target("torch")


@pytest.fixture(scope="module")
def net():
    return randomise(Residual())


@pytest.fixture(scope="module")
def package(net, tmp_path_factory):
    """Compiled once: it takes the compiler half a minute."""
    path = tmp_path_factory.mktemp("package") / "net.pt2"
    try:
        return export_package(net, image(), path, CPU)
    except Exception as error:
        if "compiler" in str(error).lower():
            pytest.skip(f"AOTInductor needs a C++ compiler: {error}")
        raise


@pytest.mark.slow
def test_a_package_gives_the_models_outputs_at_any_batch(net, package):
    assert package.apart < 1e-4
    loaded = Artifact.of_file(package.path)
    assert loaded.format == "aotinductor"
    engine = runtime_for(CPU).load(loaded, CPU)
    for batch in (1, 3):
        x = torch.randn(batch, *image().shape[1:], generator=torch.Generator().manual_seed(batch))
        (found,) = engine.run({"input": x.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(found, net(x).numpy(), rtol=1e-4, atol=1e-4)
    assert len(engine.time(3)) == 3
    engine.close()
    with pytest.raises(UsageError, match="the engine is closed"):
        engine.time(1)


@pytest.mark.slow
def test_a_package_is_refused_where_it_is_not_for(package, monkeypatch, tmp_path):
    loaded = Artifact.of_file(package.path)
    with pytest.raises(UsageError, match="was compiled for torch:cpu, not torch:cpu:bf16"):
        Torch().load(loaded, Target("torch", precision="bf16"))
    with monkeypatch.context() as elsewhere:
        other = SimpleNamespace(runtime_version="torch 1", device_name="x")
        elsewhere.setattr(torch_package, "torch_environment", lambda _: other)
        with pytest.raises(
            RuntimeUnavailableError, match=r"for PyTorch torch .*, and here is torch"
        ):
            Torch().load(loaded, CPU)
    kept = facts_path(package.path).read_text()
    copy = tmp_path / "copy.pt2"
    copy.write_bytes(Path(package.path).read_bytes() + b"x")
    with pytest.raises(FileError, match="has no description"):
        Torch().load(Artifact.of_file(copy), CPU)
    facts_path(copy).write_text(kept)
    with pytest.raises(FileError, match="is not the file that"):
        Torch().load(Artifact.of_file(copy), CPU)
    assert json.loads(kept)["precision"] == "fp32"
