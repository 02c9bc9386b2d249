"""Pretrained weights: what is taken over, and what is said about the head."""

from __future__ import annotations

import importlib

import pytest
import torch

from prunekit.networks.build import _take_over, build, rebuild
from prunekit.support import progress
from prunekit.support.errors import ModelError
from support.nets import randomise

models = pytest.importorskip("torchvision").models


@pytest.fixture(autouse=True)
def _normal_verbosity(monkeypatch):
    monkeypatch.setattr(progress.verbosity, "level", 0)


def fetches(monkeypatch, **changes):
    """Let ``weights="DEFAULT"`` mean random weights, built as torchvision builds with weights."""
    real, made = models.get_model, []

    def get_model(name, *, weights, **arguments):
        if weights is None:
            return real(name, weights=None, **arguments)
        with_weights = {"transform_input": True} if name in ("googlenet", "inception_v3") else {}
        if with_weights and not arguments.get("aux_logits", True):
            raise ValueError("The parameter 'aux_logits' expected value True but got False instead")
        if with_weights:
            with_weights |= {"init_weights": False}
        made.append(randomise(real(name, weights=None, **with_weights, **arguments, **changes)))
        return made[-1]

    monkeypatch.setattr(models, "get_model", get_model)
    return made


def test_all_weights_are_taken_where_the_classes_are_the_same(monkeypatch, capsys):
    made = fetches(monkeypatch)
    for classes in (None, 1000):
        state = build("torchvision:resnet18", num_classes=classes, pretrained=True).module
        expected = made[-1].state_dict()
        assert all(torch.equal(t, expected[n]) for n, t in state.state_dict().items())
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("name", "head"),
    [("resnet18", "fc"), ("squeezenet1_1", "classifier.1"), ("mobilenet_v3_small", "classifier.3")],
)
def test_a_head_for_other_classes_is_said_to_be_random(monkeypatch, capsys, name, head):
    made = fetches(monkeypatch)
    state = build(f"torchvision:{name}", num_classes=7, pretrained=True).module.state_dict()
    assert capsys.readouterr().err == (
        f"note: the head {head} has 7 classes, the pretrained one 1000: it starts at random; "
        "add --dense-epochs to train it before pruning\n"
    )
    expected = made[-1].state_dict()
    left = {n for n, t in state.items() if not torch.equal(t, expected[n])}
    assert left == {f"{head}.weight", f"{head}.bias"}


def test_the_names_left_out_are_returned():
    module = models.get_model("resnet18", weights=None, num_classes=3)
    state = models.get_model("resnet18", weights=None).state_dict()
    assert _take_over("it", module, state) == ["fc.bias", "fc.weight"]
    assert _take_over("it", module, module.state_dict()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s | {"conv1.weight": s["conv1.weight"][:32]}, r"conv1\.weight is \(32, 3, 7, 7"),
        (
            lambda s: s | {"fc.weight": s["fc.weight"][:, :9]},
            r"fc\.weight is \(1000, 9\) there and",
        ),
        (lambda s: s | {"more": torch.zeros(1)}, r"more is \(1,\) there and missing here"),
        (lambda s: {n: t for n, t in s.items() if n != "fc.bias"}, r"fc\.bias is missing there"),
    ],
)
def test_nothing_but_the_head_may_differ(change, message):
    module = models.get_model("resnet18", weights=None)
    with pytest.raises(ModelError, match=f"do not fit it: {message}.*only the classes of the head"):
        _take_over("it", module, change(module.state_dict()))


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_pretrained_networks_with_auxiliary_heads(monkeypatch, name):
    made = fetches(monkeypatch)
    built = build(f"torchvision:{name}", num_classes=5, pretrained=True)
    state, expected = built.module.state_dict(), made[-1].state_dict()
    assert not any(n.lower().startswith("aux") for n in state)
    assert {n for n, t in state.items() if not torch.equal(t, expected[n])} == {
        "fc.weight",
        "fc.bias",
    }
    assert built.module.transform_input is True
    assert built.arguments == {"num_classes": 5, "transform_input": 1}
    assert rebuild(built.spec, built.arguments).transform_input is True
    assert rebuild(built.spec, {"num_classes": 5}).transform_input is False


@pytest.mark.parametrize("error", [OSError("no route"), ValueError("another name")])
def test_weights_that_cannot_be_had(monkeypatch, error):
    real = models.get_model

    def get_model(name, *, weights, **arguments):
        if weights is not None:
            raise error
        return real(name, weights=None, **arguments)

    monkeypatch.setattr(models, "get_model", get_model)
    message = f"cannot fetch pretrained weights of torchvision:resnet18: {error}; use `--weights"
    with pytest.raises(ModelError, match=message):
        build("torchvision:resnet18", pretrained=True)


def test_the_head_of_a_timm_model(monkeypatch, capsys):
    timm = pytest.importorskip("timm", reason="timm is an extra")
    create = timm.create_model
    monkeypatch.setattr(
        importlib.import_module("timm"),
        "create_model",
        lambda name, pretrained, **more: create(name, **more),
    )
    for classes in (None, 1000):
        build("timm:resnet18", num_classes=classes, pretrained=True)
    build("timm:resnet18", num_classes=5)
    assert capsys.readouterr().err == ""
    build("timm:resnet18", num_classes=5, pretrained=True)
    assert "note: the head fc has 5 classes, the pretrained one 1000" in capsys.readouterr().err
