"""Weights as people keep them: what lies around them is undone, and what does not fit is told."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from prunekit.networks.weights import check_fit, read_weights
from prunekit.support import progress
from prunekit.support.errors import FileError, UsageError


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 2))


class Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = network()


@pytest.fixture(autouse=True)
def _normal_verbosity(monkeypatch):
    monkeypatch.setattr(progress.verbosity, "level", 0)


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return network().state_dict()


def renamed(state, before):
    return {f"{before}{name}": tensor for name, tensor in state.items()}


def equal(read, state) -> bool:
    return read.keys() == state.keys() and all(torch.equal(read[n], t) for n, t in state.items())


WRAPPED = {
    "as it is": lambda s: s,
    "DataParallel": lambda s: renamed(s, "module."),
    "torch.compile": lambda s: renamed(s, "_orig_mod."),
    "FSDP": lambda s: renamed(s, "_fsdp_wrapped_module."),
    "lightning": lambda s: {
        "state_dict": {**renamed(s, "model."), "loss.weight": torch.ones(2)},
        "epoch": 3,
        "hyper_parameters": {"lr": 0.1},
    },
    "arguments and NumPy's numbers beside": lambda s: {
        "model_state_dict": renamed(s, "module."),
        "args": argparse.Namespace(lr=0.1, out=Path("here")),
        "best": np.float64(0.9),
        "curve": np.zeros(3),
    },
    "with an optimizer": lambda s: {
        "net": s,
        "optimizer": {"state": {0: {"step": torch.ones(1)}}, "param_groups": [{"lr": 0.1}]},
    },
    "counted by thop": lambda s: {**s, "total_ops": torch.ones(1), "0.total_ops": torch.ones(1)},
    "before batches were counted": lambda s: {
        n: t for n, t in s.items() if not n.endswith("num_batches_tracked")
    },
    "averaged weights beside": lambda s: {
        "ema": {
            "n_averaged": torch.ones(1),
            **renamed({n: t + 1 for n, t in s.items()}, "module."),
        },
        "model": s,
    },
    "averages in one dictionary": lambda s: {
        **renamed({n: t + 1 for n, t in s.items()}, "ema_model."),
        **renamed(s, "model."),
    },
}


@pytest.mark.parametrize("kept_as", WRAPPED)
def test_wrappers_and_prefixes_are_undone(kept_as, state, tmp_path):
    file = tmp_path / "w.pth"
    torch.save(WRAPPED[kept_as](state), file)
    assert equal(read_weights(file, network()), state)


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "model."])
def test_a_wrapped_network_takes_the_weights_of_the_network_inside(prefix, state, tmp_path):
    file = tmp_path / "w.safetensors"
    save_file(renamed(state, prefix), file)
    assert equal(read_weights(file, Wrapped()), renamed(state, "model."))


def test_a_note_says_what_was_undone(state, tmp_path, capsys):
    file = tmp_path / "w.pt"
    torch.save({"state_dict": {**renamed(state, "module."), "loss.a": torch.ones(1)}}, file)
    read_weights(file, network())
    assert capsys.readouterr().err == (
        f"note: {file}: the weights are those of 'state_dict.module' in it\n"
        f"note: {file}: 1 entry left out, loss.a first\n"
    )


def test_averaged_weights_are_offered_and_taken_by_name(state, tmp_path, capsys):
    averaged = {name: tensor + 1 for name, tensor in state.items()}
    file = tmp_path / "w.pth"
    torch.save({"model": state, "model_ema": renamed(averaged, "module.")}, file)
    assert equal(read_weights(file, network()), state)
    offer = "has more averaged weights: --weights-entry model_ema.module takes them"
    assert offer in capsys.readouterr().err
    for name in ("model_ema.module", "model_ema"):
        assert equal(read_weights(file, network(), name), averaged)
    with pytest.raises(UsageError, match="no --weights-entry 'other'; entries: model, model_ema"):
        read_weights(file, network(), "other")


def test_what_does_not_fit_is_told_name_by_name(state, tmp_path):
    wrong = {n: t for n, t in state.items() if not n.startswith("1.")}
    wrong |= {"3.weight": torch.zeros(7, 8), "more": torch.zeros(1)}
    with pytest.raises(FileError) as caught:
        check_fit(network(), wrong, "w.pth")
    assert str(caught.value) == (
        "w.pth does not fit Sequential: it lacks 1.weight; it lacks 1.bias; it lacks "
        "1.running_mean; it lacks 1.running_var; it lacks 1.num_batches_tracked; and 2 more"
    )
    with pytest.raises(FileError) as caught:
        check_fit(network(), {**state, "3.weight": torch.zeros(7, 8)}, "w.pth")
    assert str(caught.value) == "w.pth does not fit Sequential: 3.weight is (7, 8), not (2, 8)"


def test_no_code_is_run(tmp_path):
    file = tmp_path / "whole.pt"
    torch.save({"ema": network()}, file)
    with pytest.raises(FileError) as caught:
        read_weights(file, network())
    assert str(caught.value) == (
        f"{file} cannot be read without running code in it "
        "(torch.nn.modules.container.Sequential); where it was made, "
        "torch.save(model.state_dict(), FILE)"
    )


def test_files_that_hold_no_weights(tmp_path, state):
    torch.save(state, tmp_path / "cut.pth")
    whole = (tmp_path / "cut.pth").read_bytes()
    cases = {"cut.pth": whole[: len(whole) // 2], "junk.pth": b"\x80\x02abc", "empty.pth": b""}
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FileError, match=f"{name} is truncated or not a "):
            read_weights(tmp_path / name, network())
    for content, message in (([1, 2], "holds list, not weights"), ({"a": 1}, "holds no weights")):
        torch.save(content, tmp_path / "other.pth")
        with pytest.raises(FileError, match=message):
            read_weights(tmp_path / "other.pth", network())
