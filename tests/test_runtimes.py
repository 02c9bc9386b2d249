import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from prunekit.core.artifact import Artifact
from prunekit.core.target import Target, cpu_isa
from prunekit.runtimes import onnxruntime as ort_runtime
from prunekit.runtimes import runtime_for
from prunekit.runtimes.base import timing_inputs
from prunekit.runtimes.fake import Fake
from prunekit.runtimes.onnx_graph import read
from prunekit.runtimes.onnxruntime import OnnxRuntime, layer_of_kernel, layer_times
from prunekit.runtimes.torch.runtime import Torch
from prunekit.support.errors import FileError, ModelError, RuntimeUnavailableError, UsageError


class Block(nn.Module):
    def __init__(self, cin, cout, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(cout)
        self.conv2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(cout)
        self.down = None
        if stride != 1:
            self.down = nn.Sequential(
                nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout)
            )

    def forward(self, x):
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + (x if self.down is None else self.down(x)))


class Residual(nn.Module):
    """As ResNet: residual adds, pooling."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 1, 1)
        self.pool = nn.MaxPool2d(2)
        self.layer1 = Block(16, 16, 1)
        self.layer2 = Block(16, 32, 2)
        self.fc = nn.Linear(32, 10)

    def forward(self, x):
        x = self.layer2(self.layer1(self.pool(torch.relu(self.stem(x)))))
        return self.fc(x.mean((2, 3)))


class Concats(nn.Module):
    """As DenseNet: norm and activation after a concat, before the convolution that reads it."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.norm1, self.conv1 = nn.BatchNorm2d(16), nn.Conv2d(16, 16, 3, 1, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(32), nn.Conv2d(32, 16, 3, 1, 1, bias=False)
        self.norm3, self.out = nn.BatchNorm2d(48), nn.Conv2d(48, 24, 1)
        self.fc = nn.Linear(24, 10)

    def forward(self, x):
        x = self.stem(x)
        x = torch.cat([x, self.conv1(torch.relu(self.norm1(x)))], 1)
        x = torch.cat([x, self.conv2(torch.relu(self.norm2(x)))], 1)
        return self.fc(self.out(torch.relu(self.norm3(x))).mean((2, 3)))


class Mobile(nn.Module):
    """As MobileNet-V3: depthwise convolutions, squeeze and excite."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6()),
            *(nn.Conv2d(16, 16, 3, 1, 1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU6()),
            *(nn.Conv2d(16, 32, 1, bias=False), nn.BatchNorm2d(32), nn.Hardswish()),
        )
        self.excite = nn.Sequential(
            *(nn.AdaptiveAvgPool2d(1), nn.Conv2d(32, 8, 1), nn.SiLU()),
            *(nn.Conv2d(8, 32, 1), nn.Sigmoid()),
        )
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(32 * 16 * 16, 10))

    def forward(self, x):
        x = self.body(x)
        return self.head(x * self.excite(x))


class Mixer(nn.Module):
    """Linear layers on sequences: exported as MatMul, whose weights may lose their names."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 32, 8, 8)
        self.norm = nn.LayerNorm(32)
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32, bias=False)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        return (x + self.down(nn.functional.gelu(self.up(self.norm(x))))).mean(1)


NETS = {"residual": Residual, "concats": Concats, "mobile": Mobile, "mixer": Mixer}


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """Name -> (module, artifact), each made once."""
    folder = tmp_path_factory.mktemp("nets")
    made = {}

    def make(name):
        if name not in made:
            torch.manual_seed(0)
            module = NETS[name]().eval()
            for norm in module.modules():
                if isinstance(norm, nn.BatchNorm2d):
                    norm.running_mean.normal_()
                    norm.running_var.uniform_(0.5, 2)
            program = torch.onnx.export(
                module,
                (torch.randn(2, 3, 32, 32),),
                dynamo=True,
                optimize=True,
                verbose=False,
                external_data=False,
                input_names=["input"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
            )
            path = folder / f"{name}.onnx"
            program.save(str(path), external_data=False)
            made[name] = (module, Artifact.of_file(path))
        return made[name]

    return make


def layers(module):
    return {n for n, m in module.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}


def of_module(module, **facts):
    shapes = {"input": (-1, 3, 32, 32)}
    return Artifact("live", "module", input_shapes=shapes, module=module, **facts)


ORT = Target("onnxruntime")


@pytest.mark.parametrize("net", NETS)
def test_graph_names_every_layer_as_the_model_does(exported, net):
    module, artifact = exported(net)
    graph = read(artifact.path)
    assert set(graph.layers) == layers(module)
    assert graph.inputs == {"input": (-1, 3, 32, 32)}
    assert set(graph.nodes.values()) == layers(module)
    assert len(graph.nodes) == len(onnx.load(artifact.path).graph.node)


@pytest.mark.parametrize("net", NETS)
def test_graph_knows_the_layers_shapes(exported, net):
    module, artifact = exported(net)
    for anchor in read(artifact.path).anchors:
        layer = module.get_submodule(anchor.layer)
        if isinstance(layer, nn.Linear):
            assert (anchor.cin, anchor.cout) == (layer.in_features, layer.out_features)
        else:
            assert (anchor.cin, anchor.cout) == (layer.in_channels, layer.out_channels)
            assert (anchor.kernel, anchor.stride) == (layer.kernel_size, layer.stride)
            assert anchor.groups == layer.groups
            assert anchor.out_hw == tuple(size // layer.stride[0] for size in anchor.in_hw)


def owner_by_op(artifact, op):
    graph = read(artifact.path)
    return [graph.nodes[n.name] for n in onnx.load(artifact.path).graph.node if n.op_type == op]


def test_epilogues_belong_to_the_layer_before(exported):
    _, artifact = exported("residual")
    assert owner_by_op(artifact, "Relu") == [
        *("stem", "layer1.conv1", "layer1.conv2"),
        *("layer2.conv1", "layer2.down.0"),
    ]
    assert owner_by_op(artifact, "Add") == ["layer1.conv2", "layer2.down.0"]
    assert owner_by_op(artifact, "MaxPool") == ["stem"]
    assert owner_by_op(artifact, "ReduceMean") == ["layer2.down.0"]


def test_what_follows_a_concat_belongs_to_the_layer_that_reads_it(exported):
    _, artifact = exported("concats")
    assert owner_by_op(artifact, "Concat") == ["conv2", "out"]
    assert owner_by_op(artifact, "BatchNormalization") == ["stem", "conv2", "out"]
    assert owner_by_op(artifact, "Relu") == ["stem", "conv2", "out"]
    assert owner_by_op(artifact, "ReduceMean") == ["out"]


def test_excitation_belongs_to_the_feature_map_it_scales(exported):
    _, artifact = exported("mobile")
    graph = onnx.load(artifact.path).graph
    owners = read(artifact.path).nodes
    scaling = [n for n in graph.node if n.op_type == "Mul"][-1]
    assert owners[scaling.name] == "body.6"


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage"])
@pytest.mark.parametrize("runtime", [OnnxRuntime(), Fake()])
def test_damaged_file_is_named(exported, tmp_path, damage, runtime):
    _, artifact = exported("residual")
    whole = Path(artifact.path).read_bytes()
    path = tmp_path / "broken.onnx"
    path.write_bytes(
        {"cut": whole[: len(whole) // 2], "empty": b"", "garbage": b"\xff" * 99}[damage]
    )
    target = Target(runtime.name)
    for use in (runtime.load, runtime.profiler):
        with pytest.raises(FileError, match=r"broken\.onnx"):
            use(Artifact.of_file(path), target)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("runtime", ["onnxruntime", "torch", "fake"])
def test_outputs_are_the_models(exported, net, runtime):
    module, artifact = exported(net)
    target = Target(runtime)
    engine = runtime_for(target).load(of_module(module) if runtime == "torch" else artifact, target)
    x = np.random.default_rng(1).standard_normal((3, 3, 32, 32), dtype=np.float32)
    (found,) = engine.run({"input": x})
    with torch.inference_mode():
        expected = module(torch.tensor(x)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    engine.close()


@pytest.mark.parametrize("runtime", ["onnxruntime", "torch", "fake"])
def test_timing_gives_a_positive_time_for_every_run(exported, runtime):
    module, artifact = exported("residual")
    target = Target(runtime, batch=2)
    engine = runtime_for(target).load(of_module(module) if runtime == "torch" else artifact, target)
    times = engine.time(5)
    assert len(times) == 5
    assert all(ms > 0 for ms in times)
    engine.close()


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("runtime", ["onnxruntime", "torch", "fake"])
def test_profile_covers_every_layer(exported, net, runtime, tmp_path, monkeypatch):
    module, artifact = exported(net)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    target = Target(runtime)
    profiler = runtime_for(target).profiler(
        of_module(module) if runtime == "torch" else artifact, target
    )
    profiler.run(3)
    profiler.run(8)
    runs = profiler.finish()
    assert 10 <= len(runs) <= 11
    for run in runs:
        assert set(run) == layers(module)
    for layer in layers(module):
        assert sum(run[layer] for run in runs) > 0
    assert list(tmp_path.iterdir()) == []


def test_abandoned_profiler_leaves_no_files(exported, tmp_path, monkeypatch):
    _, artifact = exported("residual")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    profiler = OnnxRuntime().profiler(artifact, ORT)
    profiler.run(1)
    assert len(list(tmp_path.iterdir())) == 1
    del profiler
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UsageError, match="batches of"):
        OnnxRuntime().profiler(replace(artifact, input_shapes={"input": (2, 3, 32, 32)}), ORT)
    assert list(tmp_path.iterdir()) == []


def test_kernel_names_lead_to_layers(exported):
    _, artifact = exported("concats")
    graph = read(artifact.path)
    nodes = {node.op_type: node for node in onnx.load(artifact.path).graph.node}
    norm, gemm = nodes["BatchNormalization"], nodes["Gemm"]
    assert layer_of_kernel(f"{norm.output[0]}_bn_nchwc", graph) == "out"
    assert layer_of_kernel(f"{nodes['Concat'].output[0]}_nchwc", graph) == "out"
    assert layer_of_kernel(f"{gemm.name}_token_12", graph) == "fc"
    assert layer_of_kernel(f"{gemm.name}/GemmActivationFusion/", graph) == "fc"
    assert layer_of_kernel("ReorderOutput_token_3", graph) is None


def kernel(name, op, ts, dur):
    return {
        "cat": "Node",
        "name": f"{name}_kernel_time",
        "ts": ts,
        "dur": dur,
        "args": {"op_name": op},
    }


def test_unknown_kernels_count_to_the_layer_before_within_their_run(exported):
    _, artifact = exported("concats")
    graph = read(artifact.path)
    gemm = next(n for n in onnx.load(artifact.path).graph.node if n.op_type == "Gemm")
    events = []
    for start in (0, 100):
        events += [
            {"cat": "Session", "name": "model_run", "ts": start, "dur": 90},
            kernel("ReorderInput", "ReorderInput", start + 1, 1),
            kernel(gemm.name, "Gemm", start + 5, 20),
            kernel("mystery", "Fused", start + 30, 10 if start else 5),
        ]
    events.append(kernel("between", "Fused", 95, 1000))
    runs, named = layer_times(json.loads(json.dumps(events)), graph)
    assert runs == [{"stem": 1, "fc": 25}, {"stem": 1, "fc": 30}]
    assert named == pytest.approx(42 / 57)


def test_poorly_named_profile_is_said(exported, capsys, monkeypatch):
    _, artifact = exported("concats")
    monkeypatch.setattr(ort_runtime, "layer_of_kernel", lambda *_: None)
    profiler = OnnxRuntime().profiler(artifact, ORT)
    profiler.run(2)
    profiler.finish()
    assert "whose layer is known by name" in capsys.readouterr().err


def test_provider_missing_here_is_said_with_the_remedy():
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(RuntimeUnavailableError, match="no CUDAExecutionProvider; pip uninstall"):
        runtime_for(Target("onnxruntime", "cuda"))


def test_package_missing_here_is_said(monkeypatch):
    def missing():
        raise ImportError("no module of that name")

    monkeypatch.setattr(ort_runtime, "_ort", missing)
    assert "pip install onnxruntime" in OnnxRuntime().unavailable(ORT)


def test_cpu_environment_and_granularity_are_the_processors():
    for runtime in (OnnxRuntime(), Torch()):
        environment = runtime.environment(Target(runtime.name))
        assert environment.runtime_version.startswith(runtime.name)
        assert environment.device_name
        assert runtime.granularity(Target(runtime.name)) == (16 if "avx512f" in cpu_isa() else 8)


def test_inputs_that_do_not_fit_are_named(exported, tmp_path):
    module, artifact = exported("residual")
    engine = OnnxRuntime().load(artifact, ORT)
    with pytest.raises(UsageError, match=r"residual\.onnx does not run on input \[1, 4, 32, 32\]"):
        engine.run({"input": np.zeros((1, 4, 32, 32), np.float32)})
    live = Torch().load(of_module(module), Target("torch"))
    with pytest.raises(UsageError, match=r"live does not run on input \[1, 4, 32, 32\]"):
        live.run({"input": np.zeros((1, 4, 32, 32), np.float32)})
    with pytest.raises(UsageError, match="no input 'input'"):
        live.run({"x": np.zeros((1, 3, 32, 32), np.float32)})
    fixed = onnx.load(artifact.path)
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(fixed, tmp_path / "fixed.onnx")
    for runtime in (OnnxRuntime(), Fake()):
        with pytest.raises(UsageError, match=r"batches of 1, not 4; time it with --batch 1"):
            runtime.load(Artifact.of_file(tmp_path / "fixed.onnx"), Target(runtime.name, batch=4))
    for axis in (0, 2):
        fixed.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"free{axis}"
    onnx.save(fixed, tmp_path / "free.onnx")
    for runtime in (OnnxRuntime(), Fake()):
        with pytest.raises(UsageError, match="leaves more than its batch open"):
            runtime.load(Artifact.of_file(tmp_path / "free.onnx"), Target(runtime.name))


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


def test_fake_follows_its_formula(exported):
    _, artifact = exported("mobile")
    quiet = Fake(noise=0.0)
    target = Target("fake")
    (ms,) = quiet.load(artifact, target).time(1)
    profiler = quiet.profiler(artifact, target)
    profiler.run(2)
    (run,) = profiler.finish()
    assert ms == pytest.approx((sum(run.values()) + quiet.overhead_us) / 1e3)
    assert run["body.0"] == pytest.approx(2 + 0.004 * 2 * 1 * 9 * 256)
    assert run["body.3"] == pytest.approx(2 + 0.004 * 2 * 1 * 9 * 256)
    assert run["body.6"] == pytest.approx(2 + 0.004 * 2 * 4 * 256)
    halved = Target("fake", precision="fp16")
    assert quiet.load(artifact, halved).time(1)[0] < ms
    assert quiet.granularity(target) == 8


def test_fake_noise_differs_from_load_to_load_and_is_small(exported):
    _, artifact = exported("mobile")
    one, two = (Fake().load(artifact, Target("fake")).time(200) for _ in range(2))
    assert one != two
    assert np.std(np.log(one)) == pytest.approx(0.02, rel=0.3)
    assert np.median(one) == pytest.approx(np.median(two), rel=0.02)


def test_timing_inputs_are_fixed():
    artifact = Artifact("x", "module", input_shapes={"a": (-1, 3), "b": (2,)})
    first, again = (timing_inputs(artifact, Target("torch", batch=4)) for _ in range(2))
    assert first["a"].shape == (4, 3)
    assert first["b"].shape == (2,)
    np.testing.assert_array_equal(first["a"], again["a"])
