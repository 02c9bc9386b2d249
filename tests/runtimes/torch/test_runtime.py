"""PyTorch as a runtime: live modules, their threads, their profile."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from prunekit.core.target import Target
from prunekit.runtimes import runtime_for
from prunekit.runtimes.torch.runtime import Torch
from prunekit.support.errors import ModelError, RuntimeUnavailableError, UsageError
from support.engines import of_module


def test_torch_needs_a_live_module(exported):
    _, artifact = exported("residual")
    with pytest.raises(ModelError, match="give a run folder"):
        Torch().load(artifact, Target("torch"))


def test_torch_leaves_module_and_threads_as_they_were(exported):
    module, _ = exported("residual")
    threads = torch.get_num_threads()
    target = Target("torch", precision="bf16", threads=threads + 1)
    seen = []
    engine = Torch().load(of_module(module), target)
    engine.module.register_forward_pre_hook(lambda *_: seen.append(torch.get_num_threads()))
    engine.time(2)
    assert seen == [threads + 1] * 2
    assert torch.get_num_threads() == threads
    assert next(module.parameters()).dtype == torch.float32
    (found,) = engine.run({"input": np.ones((1, 3, 32, 32), np.float32)})
    assert found.dtype == np.float32
    profiler = Torch().profiler(of_module(module), target)
    profiler.run(2)
    profiler.finish()
    assert not any(m._forward_pre_hooks for m in module.modules())
    engine.close()
    with pytest.raises(UsageError, match="closed"):
        engine.time(1)


def test_torch_profile_adds_up_to_the_forward_pass():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, 1, 1)

        def forward(self, x):
            return {"a": self.conv(self.conv(x)), "b": [x]}

    profiler = Torch().profiler(of_module(Twice().eval()), Target("torch"))
    profiler.run(4)
    runs = profiler.finish()
    assert [set(run) for run in runs] == [{"conv"}] * 3
    engine = Torch().load(of_module(Twice().eval()), Target("torch"))
    assert len(engine.run({"input": np.ones((1, 3, 32, 32), np.float32)})) == 2


@pytest.mark.parametrize("precision", ["fp16", "tf32"])
def test_what_a_cpu_is_not_timed_in(precision):
    with pytest.raises(RuntimeUnavailableError, match="PyTorch on a CPU is timed in fp32 and bf16"):
        runtime_for(Target("torch", "cpu", precision))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_why_there_is_no_gpu():
    reason = Torch().unavailable(Target("torch", "cuda"))
    assert "sees no CUDA GPU" in reason or "without CUDA" in reason
    assert "\n" not in reason
