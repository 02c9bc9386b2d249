"""A runtime of your own: it loads an artifact, runs it, and times it."""

import time
from dataclasses import dataclass
from itertools import pairwise

import onnx
from onnx.reference import ReferenceEvaluator

import prunekit as pk
from prunekit.core.target import cpu_environment
from prunekit.runtimes.base import timing_inputs
from prunekit.runtimes.onnx_graph import read
from prunekit.support.registry import runtimes


class Engine:
    """A loaded artifact; inputs for timing are bound once."""

    def __init__(self, artifact, target):
        inputs = read(artifact.path).inputs  # name -> shape, -1 for the batch
        self.bound = timing_inputs(pk.Artifact("", "onnx", input_shapes=inputs), target)
        self.model = ReferenceEvaluator(onnx.load(artifact.path))

    def run(self, inputs):
        return self.model.run(None, dict(inputs))

    def time(self, runs):
        stamps = [time.perf_counter()]
        for _ in range(runs):
            self.run(self.bound)
            stamps.append(time.perf_counter())
        return [1e3 * (end - start) for start, end in pairwise(stamps)]

    def close(self):
        self.model = None


@dataclass(frozen=True)
class Reference:
    """ONNX's own evaluator, slow and in NumPy."""

    name: str = "reference"
    artifact_format: str = "onnx"
    formats: tuple[str, ...] = ("onnx",)
    devices: tuple[str, ...] = ("cpu",)
    precisions: tuple[str, ...] = ("fp32",)
    casts: bool = False  # whether it computes in the target's precision from a file in fp32

    def unavailable(self, target):
        return None  # or the reason and the remedy, in one line

    def environment(self, target):
        return cpu_environment(f"onnx {onnx.__version__}")

    def granularity(self, target):
        return 1  # channels that its kernels work in

    def load(self, artifact, target):
        return Engine(artifact, target)

    def profiler(self, artifact, target):
        return None  # it tells no times of layers: tables are made by regression


# A package registers it by an entry point instead:
#   [project.entry-points."prunekit.runtimes"]
#   reference = "my_package:Reference"
runtimes.register("reference", Reference)

if __name__ == "__main__":
    import torch

    from prunekit import zoo

    torch.manual_seed(0)
    model, example = zoo.build("resnet8").eval(), torch.randn(1, 3, 8, 8)
    plan = pk.ChannelPlan.random(pk.trace(model, example), keep=0.5)
    dense = pk.export(model, example, "dense.onnx")
    small = pk.export(pk.slim(model, plan), example, "small.onnx")
    result = pk.bench([dense, small], target="reference", max_seconds=0.5, min_rounds=5)
    print(f"ratio {result.ratio:.2f} in {len(result.samples_ms[0])} runs")
