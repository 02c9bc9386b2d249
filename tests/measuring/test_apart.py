"""Sessions in processes of their own: the same numbers come back, and errors as they are."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from prunekit.core.artifact import Artifact
from prunekit.core.target import Target
from prunekit.measuring import apart
from prunekit.measuring.apart import can_run_apart, session_apart
from prunekit.runtimes.base import runtime_for
from prunekit.support.errors import FileError, RuntimeUnavailableError, UsageError
from support.onnx_files import conv_net

CPU = Target("onnxruntime")


@pytest.fixture
def pair(tmp_path):
    return [Artifact.of_file(conv_net(tmp_path / f"{width}.onnx", width)) for width in (64, 8)]


def test_a_session_apart_times_every_artifact_in_rounds(pair):
    session = session_apart(pair, CPU, 1, 0.05)
    assert len(session.timings) == 2
    assert session.rounds >= 3
    assert all(one.median_ms > 0 for one in session.timings)
    assert all(len(one.samples_ms) >= session.rounds for one in session.timings)
    assert 0 <= session.lost <= 1
    assert session.ratio(1) == pytest.approx(
        session.timings[1].median_ms / session.timings[0].median_ms, rel=0.5
    )


def test_errors_are_those_of_the_process(pair, tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    with pytest.raises(FileError, match="not a model ONNX Runtime can load"):
        session_apart([pair[0], Artifact.of_file(broken)], CPU, 0, 0.05)
    fixed = replace(pair[0], input_shapes={"x": (3, 3, 32, 32)})
    with pytest.raises(UsageError, match="batches of"):
        session_apart([fixed], replace(CPU, batch=2), 0, 0.05)


def test_a_process_that_dies_is_told_with_its_last_words(pair, monkeypatch):
    monkeypatch.setattr(apart.sys, "executable", _dying())
    with pytest.raises(RuntimeUnavailableError, match=r"ended with status 7: out of luck"):
        session_apart(pair, CPU, 0, 0.05)


def _dying():
    """An interpreter that reads its request and dies."""
    import tempfile
    from pathlib import Path

    path = Path(tempfile.mkdtemp()) / "python"
    path.write_text("#!/bin/sh\ncat > /dev/null\necho out of luck >&2\nexit 7\n")
    path.chmod(0o755)
    return str(path)


def test_an_interrupted_session_leaves_no_process(pair, monkeypatch):
    made, real = [], subprocess.Popen

    class Interrupted(real):
        def communicate(self, *_args, **_settings):
            made.append(self)
            raise KeyboardInterrupt

    monkeypatch.setattr(apart.subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        session_apart(pair, CPU, 0, 0.05)
    assert made[0].poll() is not None


def test_only_runtimes_that_start_in_a_moment_run_apart_and_on_the_processor():
    assert can_run_apart(runtime_for(CPU), CPU)
    assert not can_run_apart(runtime_for(CPU), replace(CPU, device="cuda"))
    fake = Target("fake")
    assert not can_run_apart(runtime_for(fake), fake)


def test_sessions_do_not_import_torch(pair, tmp_path):
    """A process a session has to start in a moment."""
    code = (
        "import sys, prunekit.measuring.apart as a\n"
        "assert 'torch' not in sys.modules and 'scipy' not in sys.modules, 'slow to start'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ})
