"""Our TensorRT code against the real bindings of TensorRT 10 and 11: every name and call exists.

The bindings (a pip wheel) import over stub libraries that gcc compiles here; nothing can be built
or run with them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support import ROOT, TESTS

SOURCES = tuple(
    str(ROOT / "prunekit" / "runtimes" / "tensorrt" / name) for name in ("runtime.py", "build.py")
)
STUB = """
void *createInferBuilder_INTERNAL(void *logger, int version) { return 0; }
void *createInferRefitter_INTERNAL(void *engine, void *logger, int version) { return 0; }
void *createInferRuntime_INTERNAL(void *logger, int version) { return 0; }
void *createNvOnnxParserRefitter_INTERNAL(void *refitter, void *logger, int version) { return 0; }
void *createNvOnnxParser_INTERNAL(void *network, void *logger, int version) { return 0; }
void *getBuilderPluginRegistry(int capability) { return 0; }
int getNvOnnxParserVersion(void) { return 0; }
void *getPluginRegistry(void) { return 0; }
int initLibNvInferPlugins(void *logger, const char *space) { return 1; }
"""
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
FOLDER = os.environ.get("PRUNEKIT_TENSORRT_BINDINGS")
"""Has a folder ``10`` and one ``11`` with the bindings in them; where it is set they must be."""


@pytest.fixture(scope="module", params=["10", "11"])
def walked(request, tmp_path_factory):
    """A function: files -> what the walk over them with this version's bindings found."""
    major = request.param
    folder = Path(FOLDER or ROOT / ".tensorrt-bindings") / major
    missing = None
    if shutil.which("gcc") is None:
        missing = "gcc is not installed; it compiles the stub libraries"
    elif not (folder / "tensorrt_bindings").is_dir():
        command = f"pip install --no-deps --target {folder} 'tensorrt-cu13-bindings=={major}.*'"
        missing = f"no bindings of TensorRT {major}: {command}"
    if missing is not None:
        assert FOLDER is None, missing
        pytest.skip(missing)
    stubs = tmp_path_factory.mktemp(f"stubs{major}")
    (stubs / "stub.c").write_text(STUB)
    for name in LIBRARIES:
        library = f"lib{name}.so.{major}"
        flags = ["-w", "-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", library]
        subprocess.run(["gcc", *flags, "stub.c"], cwd=stubs, check=True)
    environment = os.environ | {"LD_LIBRARY_PATH": str(stubs), "PYTHONPATH": str(folder)}

    def walk(*files: str) -> dict:
        program = [
            sys.executable,
            str(TESTS / "support" / "tensorrt_contract.py"),
            "tensorrt_bindings",
        ]
        done = subprocess.run(
            [*program, *files], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["version"].startswith(f"{major}.")
        return found

    return walk


def test_all_that_our_code_uses_is_in_the_bindings(walked):
    found = walked(*SOURCES)
    assert found["wrong"] == []
    least = """
        Builder.build_serialized_network IBuilderConfig.set_timing_cache IBuilderConfig.clear_flag
        IBuilderConfig.progress_monitor ICudaEngine.get_tensor_mode ITimingCache.serialize
        IExecutionContext.execute_async_v3 IExecutionContext.profiler IOptimizationProfile.set_shape
        IProfiler.report_layer_time IProgressMonitor.step_complete BuilderFlag.SPARSE_WEIGHTS
        ILogger.log ITensor.shape NetworkDefinitionCreationFlag.STRONGLY_TYPED
        OnnxParser.parse_from_file Runtime.deserialize_cuda_engine MemoryPoolType.WORKSPACE
    """
    assert set(least.split()) <= set(found["used"])


WRONG = """
def f(trt, config: trt.IBuilderConfig, log):
    config.set_flag(trt.BuilderFlag.FASTER)
    config.set_flags(1)
    builder = trt.Builder(log)
    network = builder.create_network(flag=1)
    network.num_input
    if True:
        builder.build_serialized_network(network)
    trt.nptype()

    class Monitor(trt.IProgressMonitor):
        def step_complete(self, phase, step):
            pass

        def phase_ends(self):
            pass


class Engine:
    context: trt.IExecutionContext

    def run(self):
        self.context.execute_async_v2(1)
        self.context.execute_async_v3()
"""


def test_the_walk_finds_what_is_not_there(walked, tmp_path):
    path = tmp_path / "wrong.py"
    path.write_text(WRONG)
    wrong = "\n".join(walked(str(path))["wrong"])
    for text in (
        "BuilderFlag has no FASTER",
        "IBuilderConfig has no set_flags",
        "builder.create_network takes",
        "INetworkDefinition has no num_input",
        "builder.build_serialized_network takes",
        "trt.nptype takes",
        "IProgressMonitor.step_complete is called with",
        "IProgressMonitor calls no phase_ends",
        "IExecutionContext has no execute_async_v2",
        "self.context.execute_async_v3 takes",
    ):
        assert text in wrong, (text, wrong)
    assert len(wrong.splitlines()) == 10


def test_the_weak_flags_that_tensorrt_11_dropped_are_not_used(walked):
    used = walked(*SOURCES)["used"]
    assert not {f"BuilderFlag.{name}" for name in ("FP16", "BF16", "INT8", "FP8")} & set(used)


def test_the_double_offers_nothing_that_the_bindings_lack(walked, tmp_path):
    """Methods of the double, called on a value of the real class."""
    from support import tensorrt_double as double

    lines = ["def f(trt, x):"]
    for name, kind in vars(double).items():
        if isinstance(kind, type) and kind.__module__ == double.__name__ and kind.__doc__ is None:
            lines += [f"    {name.lower()}: trt.{name} = x"]
            members = [m for m in (*vars(kind), *kind.fields) if not m.startswith("_")]
            lines += [f"    {name.lower()}.{m}" for m in members if m != "fields"]
    path = tmp_path / "double.py"
    path.write_text("\n".join(lines) + "\n")
    found = walked(str(path))
    assert found["wrong"] == []
    assert len(found["used"]) > 40
