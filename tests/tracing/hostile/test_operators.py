"""Operators across channels and across positions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from support.hostile import check, gradient, net, parameter, same
from support.nets import conv, image

KNOWN = "does to channels is not known"
OPERATORS = {
    "flip": net(lambda s, x: x.flip(1), "b", "moves channels by number"),
    "flip of rows": net(lambda s, x: x.flip(2), "a b"),
    "roll": net(lambda s, x: x.roll(1, 1), "b", "moves channels by number"),
    "roll of rows": net(lambda s, x: x.roll(1, 2), "a b"),
    "sort": net(lambda s, x: x.sort(1)[0], "b", "compares channels (sort)"),
    "topk": net(lambda s, x: x.topk(4, 1)[0], "b", "compares channels (topk)", wide=4),
    "argmax": net(lambda s, x: x.argmax(1, keepdim=True).to(x.dtype), "b", "argmax", wide=1),
    "gather": net(lambda s, x: x.gather(1, x.argmax(1, keepdim=True)), "b", "argmax", wide=1),
    "softmax": net(lambda s, x: x.softmax(1), "b", "compares channels (softmax)"),
    "softmax of positions": net(lambda s, x: x.flatten(2).softmax(-1).view_as(x), "a b"),
    "log softmax": net(lambda s, x: x.log_softmax(1), "b", "compares channels (log_softmax)"),
    "mean": net(lambda s, x: x - x.mean(1, keepdim=True), "b", "takes a mean over channels"),
    "sum": net(lambda s, x: x.sum(1, keepdim=True), "a b", wide=1),
    "var": net(lambda s, x: x / (x.var(1, keepdim=True) + 1), "b", "takes a var over channels"),
    "std": net(lambda s, x: x / (x.std(1, keepdim=True) + 1), "b", "takes a std over channels"),
    "norm": net(lambda s, x: x / (x.norm(dim=1, keepdim=True) + 1), "a b"),
    "smallest norm": net(
        lambda s, x: x / (torch.linalg.vector_norm(x, -np.inf, 1, keepdim=True) + 1), "b"
    ),
    "normalised": net(lambda s, x: F.normalize(x, dim=1), "a b"),
    "cumsum": net(lambda s, x: x.cumsum(1), "b", "takes a cumsum over channels"),
    "cumsum of rows": net(lambda s, x: x.cumsum(2), "a b"),
    "largest": net(lambda s, x: x.amax(1, keepdim=True), "b", "amax over channels", wide=1),
    "larger": net(lambda s, x: torch.maximum(x, s.p(x)), "a b", p=same),
    "maxout": net(lambda s, x: x.view(len(x), -1, 2, 8, 8).amax(2), "a b", wide=4),  # whole units
    "glu": net(lambda s, x: F.glu(x, 1), "b", "compares channels (glu)", wide=4),
    "counted": net(lambda s, x: x * x.count_nonzero(1)[:, None], "b", "aten.count_nonzero"),
    "quantile": net(lambda s, x: x * x.quantile(0.5, dim=1, keepdim=True), "b", "over channels"),
    "histogram": net(lambda s, x: x * torch.histc(x, 4)[0], "b", KNOWN),
    "local response": net(lambda s, x: F.local_response_norm(x, 3), "b", "mixes its positions"),
    "pixel shuffle": net(lambda s, x: F.pixel_shuffle(x, 2), "a b", wide=2),
    "pixel unshuffle": net(lambda s, x: F.pixel_unshuffle(x, 2), "a b", wide=32),
    "unfold and fold": net(
        lambda s, x: F.fold(F.unfold(x, 3, padding=1), (8, 8), 3, padding=1), "b", "aten.im2col"
    ),
    "windows": net(lambda s, x: x.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2)), "b", "unfold"),
    "interpolate": net(lambda s, x: F.interpolate(x, scale_factor=2, mode="bilinear"), "a b"),
    "interpolate channels": net(
        lambda s, x: F.interpolate(x[:, None], size=(8, 4, 4))[:, 0], "b", "mixes its positions"
    ),
    "grid sample": net(
        lambda s, x: F.grid_sample(x, s.p(x).permute(0, 2, 3, 1).tanh(), align_corners=False),
        "a b",
        {"p": "reads it (grid_sampler_2d)"},
        p=lambda: conv(8, 2),
    ),
    "unpooled": net(
        lambda s, x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2), "b", KNOWN
    ),
    "Fourier of channels": net(lambda s, x: torch.fft.fft(x, dim=1).real, "b", "aten._fft_r2c"),
    "Fourier of positions": net(
        lambda s, x: torch.fft.irfft2(torch.fft.rfft2(x), s=(8, 8)), "b", "aten._fft_r2c"
    ),
    "Fourier filter": net(
        lambda s, x: torch.fft.irfft2(torch.fft.rfft2(x) * torch.view_as_complex(s.w), s=(8, 8)),
        "b",
        "aten._fft_r2c",
        w=parameter(8, 8, 5, 2),
    ),
    "complex number": net(lambda s, x: (x * (1 + 1j)).abs(), "a b"),
    "complex of two": net(
        lambda s, x: torch.view_as_real(torch.complex(x, s.p(x))).sum(-1),
        "b",
        "aten.complex",
        p=same,
    ),
    "quantized for a moment": net(
        lambda s, x: torch.fake_quantize_per_tensor_affine(x, 0.01, 0, -128, 127), "b", KNOWN
    ),
    "autocast": net(lambda s, x: half(s.p, x), "a b p", p=same),
    "cosine": net(lambda s, x: x * F.cosine_similarity(x, s.p(x), dim=1)[:, None], "a b", p=same),
    "distances": net(
        lambda s, x: x * torch.cdist(x.flatten(2), x.flatten(2)).mean(), "b", "aten._cdist_forward"
    ),
    "attention of channels": net(
        lambda s, x: ((x.flatten(2) @ x.flatten(2).mT).softmax(-1) @ x.flatten(2)).view_as(x),
        "b",
        "compares channels (softmax)",
    ),
    "attention of positions": net(
        lambda s, x: (x.flatten(2) @ (x.flatten(2).mT @ x.flatten(2)).softmax(-1)).view_as(x),
        "a b",
    ),
    "singular values": net(lambda s, x: x * torch.linalg.svdvals(x.flatten(2)).sum(), "b", KNOWN),
    "upper triangle": net(lambda s, x: x.triu(), "b", "aten.triu"),
    "scattered": net(
        lambda s, x: torch.zeros_like(x).scatter(1, x.argsort(1), x), "b", "compares channels"
    ),
    "added by index": net(
        lambda s, x: torch.zeros_like(x).index_add(1, torch.arange(8).flip(0), x), "b", KNOWN
    ),
    "repeated": net(lambda s, x: x.repeat(1, 2, 1, 1), "b", "repeats it", wide=16),
    "each repeated": net(lambda s, x: x.repeat_interleave(2, 1), "a b", wide=16),
    "padded": net(lambda s, x: F.pad(x, (0, 0, 0, 0, 2, 2)), "b", "mixes its positions", wide=12),
    "beside itself": net(lambda s, x: torch.cat([x, x], 1), "a b", wide=16),
    "beside nothing": net(lambda s, x: torch.cat([torch.zeros(0, dtype=x.dtype), x], 1), "a b"),
    "beside an empty slice": net(lambda s, x: torch.cat([x, x[:, :0]], 1), "b", "slice of it"),
    "beside positions": net(
        lambda s, x: torch.cat([x, torch.ones(len(x), 1, *x.shape[2:]).to(x)], 1), "a b", wide=9
    ),
    "stacked the other way": net(lambda s, x: torch.stack(x.unbind(1)[::-1], 1), "b"),
    "sample by sample": net(
        lambda s, x: torch.stack([s.p(v[None])[0] for v in x.unbind(0)]),
        "a b p",
        others=[image(3)],
        p=same,
    ),
    "uneven chunks": net(lambda s, x: torch.cat(x.chunk(3, 1)[::-1], 1), "b", "unevenly"),
    "even and odd": net(lambda s, x: torch.cat([x[:, ::2], x[:, 1::2]], 1), "b", "slice of it"),
    "halves of a cat": net(
        lambda s, x: sum(s.p(torch.cat([x, 2 * x], 1)).chunk(2, 1)),
        "a b",
        p=lambda: nn.BatchNorm2d(16),
    ),
    "samples into channels": net(lambda s, x: x.reshape(1, -1, 8, 8).view(x.shape), "a b"),
    "channels into samples": net(
        lambda s, x: s.p(x.reshape(-1, 1, 8, 8)).view(x.shape),
        "a b",
        p=lambda: conv(1, 1),
    ),
    "channels as depth": net(
        lambda s, x: s.p(x[:, None])[:, 0],
        "b",
        "p (Conv3d) mixes positions of it",
        p=lambda: nn.Conv3d(1, 1, 3, padding=1),
    ),
    "samples meet": net(lambda s, x: x + x.flip(0) - x.mean(0, keepdim=True), "a b"),
    "statistics of the batch": net(lambda s, x: F.batch_norm(x, None, None, training=True), "a b"),
    "gradient": net(lambda s, x: x + gradient(s.p, x), "b", "aten.convolution_backward", p=same),
}


def half(layer, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    return y.to(x.dtype)


@pytest.mark.parametrize("name", OPERATORS)
def test_across_channels_and_across_positions(name):
    check(OPERATORS[name])
