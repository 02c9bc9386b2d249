"""Staircases read through noise: blocks, cliffs, neither."""

from __future__ import annotations

import numpy as np
import pytest

from prunekit.latency.probe import BLOCKS, block_of, read_probe
from prunekit.profiling.probing import GPU_WIDTHS, WIDTHS


def staircase(block: int, rough: float = 0.0) -> dict[int, float]:
    rng = np.random.default_rng(0)
    return {
        w: (5 + 0.05 * (-(-w // block) * block) ** 2) * float(np.exp(rough * rng.normal()))
        for w in WIDTHS
    }


@pytest.mark.parametrize("block", BLOCKS)
def test_a_staircase_is_read_through_noise(block: int):
    assert block_of(staircase(block)) == block
    assert block_of(staircase(block, 0.02)) == block


def test_smooth_and_flat_layers_have_no_block():
    assert block_of({w: 5 + 0.3 * w for w in WIDTHS}) == 1
    assert block_of({w: 5 + 0.05 * w**2 for w in WIDTHS}) == 1
    assert block_of(dict.fromkeys(WIDTHS, 80.0)) == 1
    assert read_probe({"dense": dict.fromkeys(WIDTHS, 80.0)}, nominal=8).granularity == 8


@pytest.mark.parametrize("block", BLOCKS[:-1])
def test_outputs_in_blocks_and_inputs_in_any_number_are_a_staircase_too(block: int):
    """As OpenVINO's convolutions are."""
    times = {w: 2 + 0.06 * w * (-(-w // block) * block) for w in WIDTHS}
    assert block_of(times) == block


def test_odd_widths_that_fall_off_the_fast_path_are_a_cliff_and_no_block():
    """As depthwise layers do on ONNX Runtime: blocks of 16, and five times that off fours."""
    smooth = staircase(16)
    times = {w: us * (5 if w % 4 else 1) * (1.5 if w < 16 else 1) for w, us in smooth.items()}
    found = read_probe({"dense": smooth, "depthwise": times}, nominal=8)
    assert found.granularity == 16
    assert [(c.kind, c.multiple, c.below) for c in found.cliffs] == [
        ("depthwise", 4, False),
        ("depthwise", 16, True),
    ]
    assert found.cliffs[0].slowdown == pytest.approx(5, rel=0.1)
    assert str(found.cliffs[0]).startswith("depthwise layers off multiples of 4 channels take")


@pytest.mark.parametrize("block", [8, 16, 32, 64])
def test_the_widths_probed_on_gpus_tell_the_blocks_of_tensor_cores(block):
    """A staircase with a slope of its own on every step, and a cost of launching."""
    times = {w: 4.0 + -(-w // block) * block * 0.05 + 0.002 * w for w in GPU_WIDTHS}
    assert block_of(times) == block
    even = {w: 4.0 + 0.05 * w for w in GPU_WIDTHS}
    assert block_of(even) == 1
