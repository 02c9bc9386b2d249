"""A refusal is one line, and the rest of what an exporter said is in the file that it names."""

from __future__ import annotations

import logging
import sys
import tempfile
from pathlib import Path

import pytest

import prunekit as pk
from prunekit.support.errors import ModelError
from support.nets import Plain, image


class Noisy(Plain):
    def forward(self, x):
        for line in range(100):
            sys.stderr.write(f"line {line}\n")
        logging.getLogger("torch.onnx").error("what a logger says")
        return super().forward(x if float(x.sum()) > 0 else -x)


def test_one_line_and_a_file(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(ModelError, match="cannot export Noisy to ONNX: ") as caught:
        pk.export(Noisy(), image(), tmp_path / "m.onnx")
    assert "\n" not in str(caught.value)
    log = Path(str(caught.value).rpartition("; all of it is in ")[2])
    assert [p.name for p in tmp_path.iterdir()] == [log.name]
    text = log.read_text()
    assert "line 99" in text
    assert "Traceback" in text
    assert "line 1\n" * 2 not in capfd.readouterr().err
