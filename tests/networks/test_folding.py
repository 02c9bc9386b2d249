"""Blocks with branches are folded: the same outputs with one layer per block, or named."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit.networks.folding import folded_blocks
from prunekit.support.errors import ModelError
from support import rep_nets
from support.folding import BLOCKS, images, outputs, same
from support.rep_nets import Network, lively

FORMS = (rep_nets.Rep, rep_nets.Timm, rep_nets.Ultralytics, rep_nets.Returned)


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


# --- folding


@pytest.mark.parametrize("form", FORMS)
def test_a_copy_computes_the_same_with_one_layer_per_block(form):
    model, x = lively(Network(form)).eval(), images()
    before, wanted = copy.deepcopy(model), outputs(model, x)
    folded = pk.reparameterize(model, x)
    assert folded_blocks(folded) == BLOCKS
    assert norms(folded) == 0
    assert sum(isinstance(m, nn.Conv2d) for m in folded.modules()) == 3
    torch.testing.assert_close(outputs(folded, x), wanted)
    assert same(model, before)
    assert folded_blocks(model) == ()
    torch.testing.assert_close(outputs(model, x), wanted, rtol=0, atol=0)


@pytest.mark.parametrize("form", FORMS)
def test_what_is_folded_can_be_trained_and_copied(form):
    model = lively(Network(form)).train()
    for parameter in model.body[1].parameters():
        parameter.requires_grad_(False)
    folded = pk.reparameterize(model)
    for name, parameter in folded.named_parameters():
        assert parameter.is_leaf
        assert parameter.requires_grad == (not name.startswith("body.1.")), name
    assert all(module.training for module in folded.modules())
    again = copy.deepcopy(folded)
    again(images()).sum().backward()
    for name, parameter in again.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    assert all(parameter.grad is None for parameter in folded.parameters())
    assert not any("id_tensor" in vars(module) for module in folded.modules())


def test_gates_keep_their_own_need_of_gradients():
    model = lively(Network())
    model.stem.gate.requires_grad_(False)
    folded = pk.reparameterize(model)
    assert not folded.stem.gate.requires_grad
    assert folded.stem.merged.weight.requires_grad


def test_folding_uses_running_statistics_also_in_training_mode():
    model, x = lively(Network()).train(), images()
    model.body[0].eval()
    folded = pk.reparameterize(model, x)
    assert (folded.stem.training, folded.body[0].training) == (True, False)
    assert (model.stem.training, model.body[0].training) == (True, False)
    torch.testing.assert_close(outputs(folded.eval(), x), outputs(model.eval(), x))


@pytest.mark.parametrize("form", FORMS)
def test_a_folded_network_comes_back_as_it_is(form):
    folded = pk.reparameterize(lively(Network(form)))
    assert pk.reparameterize(folded) is folded
    other = copy.deepcopy(folded)
    assert pk.reparameterize(other) is other
    assert folded_blocks(other) == BLOCKS


def test_a_network_without_branches_comes_back_as_it_is():
    class Encoder(nn.Linear):
        def reparameterize(self, mean, deviation):
            raise AssertionError

    class Layer(nn.Sequential):
        def fuse(self):
            raise AssertionError

    model = nn.Sequential(Encoder(4, 4), Layer(nn.Linear(4, 4), nn.BatchNorm1d(4)))
    model.fuse = nn.Linear(4, 4)
    before = copy.deepcopy(model)
    assert pk.reparameterize(model, torch.ones(2, 4)) is model
    assert same(model, before)
    assert folded_blocks(model) == ()


def test_a_network_that_is_one_block_and_a_block_used_twice():
    block = lively(rep_nets.Returned(8, 8)).eval()
    folded = pk.reparameterize(block, images(channels=8))
    assert isinstance(folded, nn.Conv2d)
    assert folded_blocks(folded) == ("",)
    twice = nn.Sequential(block, block)
    folded = pk.reparameterize(twice, images(channels=8))
    assert folded[0] is folded[1]
    torch.testing.assert_close(
        outputs(folded, images(channels=8)), outputs(twice, images(channels=8))
    )


# --- errors


def test_a_block_that_cannot_be_folded_is_named():
    message = (
        r"^cannot fold stem \(Broken\): its switch_to_deploy\(\) failed with ValueError: no "
        r"kernel; mend it, or add --no-reparameterize to keep its branches$"
    )
    with pytest.raises(ModelError, match=message):
        pk.reparameterize(Network(rep_nets.Broken))


def test_a_block_that_computes_something_else_is_named():
    model = lively(Network(rep_nets.Wrong))
    message = (
        r"^body\.0 \(Wrong\) computes something else when it is folded: its output is off by [\d.]+"
        r", where the largest value is [\d.]+; mend it"
    )
    with pytest.raises(ModelError, match=message):
        pk.reparameterize(model, images())
    assert not any(module._forward_hooks for module in model.modules())
    pk.reparameterize(model)  # nothing to compare on


def test_another_shape_is_named():
    class Cropped(rep_nets.Rep):
        def merge(self):
            merged = super().merge()
            merged.padding = (0, 0)
            return merged

    message = r"shapes \[\(4, 32, 3, 3\)\], not \[\(4, 32, 4, 4\)\]"
    with pytest.raises(ModelError, match=message):
        pk.reparameterize(Network(Cropped), images())


def test_an_example_that_does_not_fit():
    with pytest.raises(ModelError, match=r"^Network refuses input 4x5x8x8: RuntimeError: "):
        pk.reparameterize(Network(), images(channels=5))


def test_a_network_that_cannot_be_copied():
    model = Network()
    model.file = sys.stdout
    with pytest.raises(ModelError, match=r"^Network cannot be copied: TypeError: "):
        pk.reparameterize(model)


def test_examples_in_tuples_and_dicts_are_compared_too():
    for example in ((images(),), {"x": images()}):
        with pytest.raises(ModelError, match="computes something else"):
            pk.reparameterize(lively(Network(rep_nets.Wrong)), example)
        assert folded_blocks(pk.reparameterize(lively(Network()), example)) == BLOCKS


# --- timm


@pytest.mark.parametrize(
    ("name", "blocks"),
    [("repvgg_a0", 22), ("mobileone_s0", 43), ("fastvit_t8", 20), ("repvit_m0_9", 24)],
)
def test_blocks_of_timm(name, blocks):
    timm = pytest.importorskip("timm", reason="timm is an extra")
    model, x = lively(timm.create_model(name, num_classes=5)).eval(), images(64, 3)
    folded = pk.reparameterize(model, x)
    assert len(folded_blocks(folded)) == blocks
    wanted = outputs(model, x)
    scale = wanted.std().item()
    torch.testing.assert_close(outputs(folded, x), wanted, rtol=0, atol=1e-4 * scale)
    assert all(parameter.requires_grad for parameter in folded.parameters())
    assert norms(folded) < norms(model)
    assert pk.reparameterize(folded) is folded
    copy.deepcopy(folded)(x).sum().backward()

    theirs = timm.utils.model.reparameterize_model(model)
    assert pk.reparameterize(theirs) is theirs
    if not name.startswith("repvit"):  # where timm also folds norms that stand alone
        assert same(theirs, folded)


def test_layers_with_a_norm_keep_it():
    timm = pytest.importorskip("timm", reason="timm is an extra")
    model = timm.create_model("levit_128s", num_classes=5)
    assert hasattr(model.stem.conv1, "fuse")
    assert pk.reparameterize(model) is model
