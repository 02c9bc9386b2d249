"""Targets and precisions that are not there."""

from pathlib import Path

import pytest

from support.commands import SHAPE
from support.refusals import Refuses


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nothing", "unknown runtimes name 'nothing'; known: fake, onnxruntime, "),
        ("fake:moon", "unknown part 'moon' in target 'fake:moon'"),
        ("fake:cuda", "fake:cuda: runtime 'fake' runs on cpu, not cuda"),
        ("onnxruntime:cpu:fp16", "ONNX Runtime's CPU kernels compute fp16 networks in fp32"),
        ("onnxruntime:cuda", "onnxruntime:cuda is unavailable: this onnxruntime"),
        ("", "empty target ''"),
    ],
)
def test_targets(refuses: Refuses, target: str, message: str) -> None:
    if target == "onnxruntime:cuda":
        import onnxruntime

        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            pytest.skip("this onnxruntime has CUDA")
    for command in ("profile", "prune"):
        line = refuses(command, "net.py:tiny", *SHAPE, "--target", target, "-o", "new")
        assert message in line
    assert message in refuses("bench", "run/model.onnx", "--target", target)


def test_a_precision_that_no_file_is_written_in(refuses: Refuses) -> None:
    line = refuses("prune", "net.py:tiny", *SHAPE, "--target", "fake:bf16", "-o", "new")
    assert line == "target fake:cpu:bf16: ONNX files are written in fp32, fp16, int8, not bf16"


def test_int8_without_data(refuses: Refuses) -> None:
    line = refuses("prune", "net.py:tiny", *SHAPE, "--target", "fake:int8", "-o", "new")
    assert line == "target fake:cpu:int8: int8 needs data for its ranges; add --data"


def test_precision_without_gpu(refuses: Refuses) -> None:
    for command in ("profile", "prune"):
        line = refuses(command, "net.py:tiny", *SHAPE, "--precision", "fp16")
        assert line == "--precision goes with --gpu; a target has its own, such as torch:cuda:fp16"
        line = refuses(command, "net.py:tiny", *SHAPE, "--gpu", "--precision", "fp12")
        assert line.startswith("unknown --precision 'fp12'; known: fp32, tf32")


def test_gpu_without_a_gpu(refuses: Refuses) -> None:
    from prunekit.runtimes.nvidia.gpu import best_gpu
    from prunekit.support.errors import RuntimeUnavailableError

    try:
        best_gpu()
    except RuntimeUnavailableError:
        pass
    else:
        pytest.skip("there is a GPU runtime")
    for command in ("profile", "prune"):
        line = refuses(command, "net.py:tiny", *SHAPE, "--gpu")
        assert line.startswith("no GPU runtime here (tensorrt: ")
        assert "; torch: " in line
        assert "; onnxruntime: " in line
        assert line.endswith("--target onnxruntime:cpu works in place of --gpu")
        line = refuses(command, "net.py:tiny", *SHAPE, "--gpu", "--target", "fake")
        assert line == "--gpu and --target exclude each other; keep one"


def test_sparse_networks_are_timed_in_fp32(refuses: Refuses, home: Path) -> None:
    sparse = ("sparsify", "net.py:tiny", *SHAPE, "--sparsity", "50%", "--method", "static")
    line = refuses(*sparse, "--target", "onnxruntime:cpu:int8", "-o", "new")
    assert line.startswith("sparse networks are written and timed in fp32")
