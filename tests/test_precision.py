"""Files in fp16 and int8: what stays in fp32, what is compared, and what runs measure in them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from core_nets import Concat, Depthwise, Residual, SqueezeExcite, Tokens, image, randomise
from onnx import TensorProto, numpy_helper
from torch import nn
from torch.utils.data import TensorDataset

import prunekit as pk
from prunekit.core import target as target_module
from prunekit.core.target import Target
from prunekit.exporting import live_artifact
from prunekit.exporting.half import LARGEST, peaks_of, to_half
from prunekit.exporting.int8 import Quantiser, quantise
from prunekit.pipeline.accuracy import file_accuracy
from prunekit.report import Report
from prunekit.runtimes import runtime_for
from prunekit.runtimes.onnx_graph import check_precision, load_model, precision_of, read
from prunekit.support.errors import ModelError, UsageError
from prunekit.train import Data

NETS = {net.__name__: net for net in (Concat, Depthwise, Residual, SqueezeExcite, Tokens)}


class Loud(nn.Module):
    """A layer whose values fp16 cannot hold, and one whose weights it cannot."""

    def __init__(self):
        super().__init__()
        self.quiet, self.loud, self.heavy = (nn.Conv2d(3, 3, 1, bias=False) for _ in range(3))
        nn.init.constant_(self.loud.weight, 3e4)
        nn.init.constant_(self.heavy.weight, 2 * LARGEST)

    def forward(self, x):
        x = torch.relu(self.quiet(x))
        x = self.loud(x) / 3e4
        return self.heavy(x) / LARGEST


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.out = nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x):
        x = self.norm(x)
        return self.out(torch.softmax(x @ x.transpose(1, 2), -1) @ x)


def batches(shape, count=3, rows=8):
    rng = np.random.default_rng(0)
    return [{"input": rng.standard_normal((rows, *shape), np.float32)} for _ in range(count)]


def kinds(path):
    """The type that every node computes in, by its first floating input."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    graph = model.graph
    known = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input)}
    known |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    return [(n.op_type, known.get(n.input[0])) for n in graph.node if n.op_type != "Cast"]


@pytest.mark.parametrize("name", NETS)
def test_fp16_has_16_bits_and_the_models_outputs(name, tmp_path):
    net = randomise(NETS[name]())
    example = torch.randn(1, 5, 6) if name == "Tokens" else image()
    made = pk.export(net, example, tmp_path / "half.onnx", precision="fp16")
    assert 0 < made.apart < 0.02
    model = onnx.load(made.path)
    assert precision_of(model) == "fp16"
    assert {v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)} == {1}
    exact = pk.export(net, example, tmp_path / "exact.onnx")
    assert Path(made.path).stat().st_size < Path(exact.path).stat().st_size
    assert read(made.path).layers == read(exact.path).layers, "layers keep their names"
    assert any(kind == TensorProto.FLOAT16 for op, kind in kinds(made.path))


def test_softmax_and_norms_stay_in_fp32(tmp_path):
    made = pk.export(Attention().eval(), torch.randn(1, 4, 8), tmp_path / "a.onnx", "fp16")
    for op, kind in kinds(made.path):
        wanted = op in ("Softmax", "LayerNormalization")
        assert (kind == TensorProto.FLOAT) == wanted or kind == TensorProto.INT64, (op, kind)


def test_what_overflows_stays_in_fp32(tmp_path):
    net = Loud().eval()
    made = pk.export(net, image(), tmp_path / "loud.onnx", precision="fp16")
    convs = [kind for op, kind in kinds(made.path) if op == "Conv"]
    assert convs == [TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.FLOAT]
    exact = pk.export(net, image(), tmp_path / "exact.onnx")
    naive = tmp_path / "naive.onnx"
    onnx.save(to_half(onnx.load(exact.path), {}), naive)  # nothing known of its values
    convs = [kind for op, kind in kinds(naive) if op == "Conv"]
    assert convs == [TensorProto.FLOAT16, TensorProto.FLOAT16, TensorProto.FLOAT]


def test_a_weight_that_both_types_read_is_there_twice(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.linspace(0.5, 1.5, 8))

        def forward(self, x):
            return torch.softmax(x, -1) ** self.scale + x * self.scale

    made = pk.export(Tied().eval(), torch.rand(1, 4, 8), tmp_path / "tied.onnx", "fp16")
    types = {t.name: t.data_type for t in onnx.load(made.path).graph.initializer}
    assert Counter(types.values())[TensorProto.FLOAT16] >= 1
    assert Counter(types.values())[TensorProto.FLOAT] >= 1


def test_peaks_are_the_largest_values_seen(tmp_path):
    made = pk.export(Loud().eval(), image(), tmp_path / "loud.onnx")
    given = batches(image().shape[1:])
    peaks = peaks_of(made.path, given)
    assert peaks["input"] == pytest.approx(max(abs(b["input"]).max() for b in given))
    assert max(peaks.values()) > LARGEST


@pytest.mark.parametrize("runtime", ["onnxruntime", "tensorrt"])
def test_int8_has_quantisers_scaled_to_the_data(runtime, tmp_path):
    net, shape = randomise(Residual()), image().shape[1:]
    path = tmp_path / "int8.onnx"
    made = pk.export(net, image(), path, "int8", batches=batches(shape), runtime=runtime)
    assert 0 < made.apart < 0.3
    model = onnx.load(path)
    assert precision_of(model) == "int8"
    tensors = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    weights = [t for name, t in tensors.items() if name.endswith("weight_quantized")]
    assert weights
    assert all(w.dtype == np.int8 for w in weights)
    scales = [t for name, t in tensors.items() if name.endswith("weight_scale")]
    assert all(s.size > 1 for s in scales), "one scale for every output channel"
    zeros = [t for name, t in tensors.items() if name.endswith("_zero_point")]
    only_zero = all(not np.any(zero) for zero in zeros)
    assert only_zero == (runtime == "tensorrt"), "TensorRT takes ranges around zero only"
    whole = any(t.dtype == np.int32 for t in tensors.values())
    assert whole == (runtime == "onnxruntime"), "TensorRT takes biases in fp32"
    assert set(read(path).layers) == set(
        read(pk.export(net, image(), tmp_path / "e.onnx").path).layers
    )
    loud = [{"input": 100 * batch["input"]} for batch in batches(shape)]
    again = pk.export(net, image(), tmp_path / "loud.onnx", "int8", batches=loud, runtime=runtime)
    scale = {
        n: float(numpy_helper.to_array(t))
        for n, t in ((t.name, t) for t in onnx.load(again.path).graph.initializer)
        if n == "input_scale"
    }
    assert scale["input_scale"] == pytest.approx(100 * float(tensors["input_scale"]), rel=0.01)


def test_int8_without_data_is_refused(tmp_path):
    with pytest.raises(UsageError, match="int8 needs data for its ranges; add --data"):
        pk.export(Residual().eval(), image(), tmp_path / "m.onnx", "int8")
    assert not list(tmp_path.iterdir())


def test_int8_that_spoils_the_outputs_is_refused(tmp_path):
    far = [{"input": 1e4 * batch["input"]} for batch in batches(image().shape[1:])]
    near = batches(image().shape[1:], 1)
    with pytest.raises(ModelError, match=r"differs from Residual by .* \(allowed: 3e-01\)"):
        pk.export(randomise(Residual()), image(), tmp_path / "m.onnx", "int8", batches=near + far)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "bits"),
    [(("avx2",), 7), (("avx2", "avx512_vnni"), 8), (("avx2", "avx_vnni"), 8), (("asimd",), 8)],
)
def test_whom_an_int8_file_is_for(flags, bits, monkeypatch, tmp_path):
    monkeypatch.setattr(target_module, "_cpuinfo", lambda: {"flags": " ".join(flags)})
    assert Quantiser.for_runtime("tensorrt") == Quantiser(symmetric=True, whole_bias=False)
    wanted = Quantiser(symmetric=False, whole_bias=True, short_weights=bits == 7)
    assert Quantiser.for_runtime("onnxruntime") == wanted
    source = pk.export(randomise(Residual()), image(), tmp_path / "exact.onnx").path
    quantise(source, tmp_path / "m.onnx", batches(image().shape[1:]), wanted)
    values = [numpy_helper.to_array(t) for t in onnx.load(tmp_path / "m.onnx").graph.initializer]
    weights = [v for v in values if v.dtype == np.int8 and v.ndim > 1]
    assert max(int(np.abs(w.astype(int)).max()) for w in weights) == 2 ** (bits - 1) - (bits == 8)


def test_a_target_refuses_files_of_another_precision(tmp_path):
    made = pk.export(randomise(Residual()), image(), tmp_path / "exact.onnx")
    target = Target("onnxruntime", "cpu", "int8")
    with pytest.raises(
        UsageError, match=r"exact\.onnx is in fp32, .* one in int8: prunekit export"
    ):
        pk.bench([made], target, max_seconds=0.1)
    check_precision("x", load_model(made.path), "fp32")


@pytest.mark.parametrize("precision", ["fp16", "tf32"])
def test_onnx_runtime_on_a_cpu_has_no(precision):
    with pytest.raises(pk.PrunekitError, match=r"compute .* networks in fp32"):
        runtime_for(Target("onnxruntime", "cpu", precision))


# --- the commands ---------------------------------------------------------------------------------

MODEL = ("--model", "net.py:tiny")


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_an_export_has_its_accuracy_in_the_report(home, prunekit, precision):
    status, out, err = prunekit("export", "run", "--precision", precision, *MODEL, "--json")
    assert status == 0, err
    told = json.loads(out)
    assert told["path"] == f"run/model-{precision}.onnx"
    report = Report.load(home / "run" / "report.json")
    (part,) = report.exports
    assert part.model_dump() == told
    assert abs(part.accuracy - report.accuracy.pruned) < 0.05
    page = (home / "run" / "report.html").read_text()
    assert f"model-{precision}.onnx" in page
    assert f"{part.accuracy:.2%}" in page
    status, out, _ = prunekit("report", "run")
    assert f"| model-{precision}.onnx | onnx | {precision} |" in out
    status, _, err = prunekit("export", "run", "--precision", precision, *MODEL)
    assert status == 2
    assert "exists; use --overwrite" in err
    status, _, err = prunekit("export", "run", "--precision", precision, *MODEL, "--overwrite")
    assert status == 0, err
    again = ("-o", f"run/../run/model-{precision}.onnx", "--overwrite")
    status, _, err = prunekit("export", "run", "--precision", precision, *MODEL, *again)
    assert status == 0, err
    assert len(Report.load(home / "run" / "report.json").exports) == 1  # one file, named anew


def test_a_run_on_an_int8_target_is_int8_throughout(home, prunekit):
    status, out, err = prunekit(
        *(
            "prune",
            "net.py:tiny",
            "--input",
            "1x1x8x8",
            "--target",
            "fake:int8",
            "--data",
            "digits",
        ),
        *("--epochs", "0", "--profile-nets", "4", "--target-latency", "85%", "-o", "new", "--json"),
    )
    assert status == 0, err
    report = json.loads(out)
    for name in ("dense.onnx", "model.onnx"):
        assert precision_of(onnx.load(home / "new" / name)) == "int8"
    assert report["target"]["precision"] == "int8"
    assert report["accuracy"]["pruned"] is not None


def test_a_run_is_overwritten_with_what_was_exported_from_it(home, prunekit):
    assert prunekit("export", "run", "--precision", "fp16", *MODEL, "-q")[0] == 0
    given = ("prune", "net.py:tiny", "--input", "1x1x8x8", "--target", "fake", "--epochs", "0")
    more = ("--table", "table.json", "--target-latency", "85%", "--overwrite", "-o", "run", "-q")
    status, _, err = prunekit(*given, *more)
    assert status == 0, err
    assert not (home / "run" / "model-fp16.onnx").exists()


def test_a_run_on_an_fp16_target_is_fp16_throughout(home, prunekit):
    status, _, err = prunekit(
        *("prune", "net.py:tiny", "--input", "1x1x8x8", "--target", "fake:fp16", "--epochs", "0"),
        *("--profile-nets", "4", "--target-latency", "85%", "-o", "new", "--json"),
    )
    assert status == 0, err
    for name in ("dense.onnx", "model.onnx"):
        assert precision_of(onnx.load(home / "new" / name)) == "fp16"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--precision", "int4"), "onnx files are written in fp16, fp32, int8, not int4"),
        (
            ("--format", "openvino", "--precision", "int8"),
            "openvino files are written in fp32, not",
        ),
        (("--format", "gguf"), "unknown format 'gguf'; this version exports onnx, openvino, "),
        (("--for", "tflite"), "--for is onnxruntime or tensorrt, not 'tflite'"),
        (("--batches", "8,1"), "cannot read --batches '8,1'; write MIN,OPT,MAX such as 1,8,32"),
        (("--batches", "4,2,1"), "cannot read --batches '4,2,1'"),
        (("--batches", "4"), "--batches is for engines, and this is onnx; leave it out"),
        (("--sparse",), "--sparse is for engines, and this is onnx; leave it out"),
        (("--for", "tensorrt"), "--for is for int8 ONNX files, and this is onnx; leave it out"),
        (("--device", "cuda"), "--device is for packages, and this is onnx; leave it out"),
    ],
)
def test_wrong_export_flags(home, prunekit, arguments, line):
    status, out, err = prunekit("export", "run", *MODEL, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith(f"prunekit: {line}")
    assert err.count("\n") == 1


def test_int8_of_a_bare_model_needs_data(home, prunekit):
    given = ("export", "net.py:tiny", "--input", "1x1x8x8", "--precision", "int8")
    status, _, err = prunekit(*given)
    assert status == 2
    assert err == (
        "prunekit: int8 needs data for its ranges; add --data (digits, imagefolder:PATH)\n"
    )
    status, _, err = prunekit(*given, "--data", "digits")
    assert status == 0, err
    assert (home / "tiny-int8.onnx").is_file()


def test_accuracy_of_a_live_module_is_in_the_targets_precision():
    """Of a network that bf16 makes wrong: it tells apart what differs in the last bits of fp32."""

    class LastBits(nn.Module):
        def forward(self, x):
            x = x.flatten(1)
            return torch.stack([x[:, 0] * 0, (x[:, 0] + 256.0) - 256.0], 1)

    images = torch.full((8, 1, 2, 2), 0.25)  # a sixteenth of a bf16 step at 256
    labels = torch.ones(8, dtype=torch.long)
    both = TensorDataset(images, labels)
    data = Data(both, both, 2, (1, 2, 2), "made")
    live = live_artifact(LastBits().eval(), images[:1])
    assert file_accuracy(live, data, target=Target("torch")) == 1.0
    assert file_accuracy(live, data, target=Target("torch", precision="bf16")) == 0.0
