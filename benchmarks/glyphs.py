"""A procedural image set: glyphs of unseen fonts, rendered over clutter, 32x32 in colour.

A class is a set of four strokes out of sixteen, so that classes share strokes; a font moves,
bends and thickens all sixteen in its own way. Validation and test images are drawn in fonts that
training never shows, which makes networks overfit as they do on photographs. Everything follows
from one seed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from prunekit.train import Data
from prunekit.train.images import TensorImages

CLASSES = 160
STROKES = 16
PER_CLASS = 4
SIZE = 32
CLUTTER = 4
POINTS = 14
COUNTS = {"train": 20_000, "val": 4_000, "test": 8_000}
FONTS = {"train": 150, "val": 40, "test": 80}
Shape = tuple[int, int, int]
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


@dataclass(frozen=True)
class Split:
    """Images (N, 3, 32, 32) of bytes, and labels (N,)."""

    images: Tensor
    labels: Tensor


def render(part: str, count: int, seed: int = 0, classes: int = CLASSES) -> Split:
    """``count`` images of one of the parts, each in one of that part's fonts."""
    alphabet = np.random.default_rng([seed, 0])
    strokes = _strokes(alphabet)
    every = np.array(list(combinations(range(STROKES), PER_CLASS)))
    chosen_strokes = every[alphabet.permutation(len(every))[:classes]]
    rng = np.random.default_rng([seed, 1 + list(COUNTS).index(part)])
    fonts = strokes + rng.normal(0, 0.13, (FONTS[part], STROKES, 3, 2))
    slants = np.eye(2) + rng.normal(0, 0.15, (FONTS[part], 2, 2))
    weights = rng.uniform(0.05, 0.13, FONTS[part])
    labels = rng.permutation(np.arange(count) % classes)
    images = torch.empty(count, 3, SIZE, SIZE, dtype=torch.uint8)
    for start in range(0, count, 500):
        chosen = labels[start : start + 500]
        font = rng.integers(0, FONTS[part], len(chosen))
        curves = fonts[font[:, None], chosen_strokes[chosen]]  # (n, strokes, 3, 2)
        curves = curves + rng.normal(0, 0.05, curves.shape)
        curves = np.einsum("nspi,nij->nspj", curves, slants[font])
        curves = _placed(curves, rng)
        width = weights[font] * rng.uniform(0.85, 1.2, len(chosen))
        images[start : start + len(chosen)] = _drawn(curves, width, rng)
    return Split(images, torch.from_numpy(labels))


def _strokes(rng: np.random.Generator) -> np.ndarray:
    """Sixteen quadratic curves in the square from -1 to 1: end, bend, end."""
    ends = rng.uniform(-0.9, 0.9, (STROKES, 2, 2))
    short = np.linalg.norm(ends[:, 0] - ends[:, 1], axis=1) < 0.8
    while short.any():
        ends[short] = rng.uniform(-0.9, 0.9, (int(short.sum()), 2, 2))
        short = np.linalg.norm(ends[:, 0] - ends[:, 1], axis=1) < 0.8
    bends = ends.mean(axis=1) + rng.normal(0, 0.45, (STROKES, 2))
    return np.stack([ends[:, 0], bends, ends[:, 1]], axis=1)


def _placed(curves: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Turned, scaled and moved, each image in its own way."""
    count = len(curves)
    angle = rng.normal(0, 0.16, count)
    scale = rng.uniform(0.62, 0.9, count)
    turn = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], -1)
    matrix = turn.reshape(count, 2, 2) * scale[:, None, None]
    shift = rng.uniform(-0.18, 0.18, (count, 1, 1, 2))
    return np.einsum("nspi,nij->nspj", curves, matrix) + shift


def _drawn(curves: np.ndarray, width: np.ndarray, rng: np.random.Generator) -> Tensor:
    """Bytes (n, 3, 32, 32): a shaded ground, clutter in its own colours, the glyph, noise."""
    count = len(curves)
    axis = torch.linspace(-1, 1, SIZE)
    pixels = torch.stack(torch.meshgrid(axis, axis, indexing="ij")[::-1], -1).view(1, -1, 2)
    # Ink is lighter than the ground, as clutter need not be: with either contrast pixels would tell
    # nothing of the class by themselves, and training would begin with a long plateau.
    ground, ink = rng.uniform(0.0, 0.55, (count, 3)), rng.uniform(0.5, 1.0, (count, 3))
    tilt = rng.normal(0, 0.12, (count, 3, 2))
    picture = torch.from_numpy(ground).float()[:, :, None] + torch.einsum(
        "ncj,pj->ncp", torch.from_numpy(tilt).float(), pixels[0]
    )
    ends = rng.uniform(-1.1, 1.1, (count, CLUTTER, 1, 2))
    steps = rng.normal(0, 0.45, (count, CLUTTER, 2, 2)).cumsum(axis=2)
    clutter = np.concatenate([ends, ends + steps], axis=2)
    hues = rng.uniform(0.1, 0.9, (count, CLUTTER, 3))
    for index in range(CLUTTER):
        cover = _cover(clutter[:, index : index + 1], rng.uniform(0.04, 0.12, count), pixels)
        hue = torch.from_numpy(hues[:, index]).float()[:, :, None]
        picture = picture + (hue - picture) * cover[:, None]
    cover = _cover(curves, width, pixels)[:, None]
    picture = picture + (torch.from_numpy(ink).float()[:, :, None] - picture) * cover
    noise = rng.normal(0, 0.06, picture.shape)
    picture = picture + torch.from_numpy(noise).float()
    return (picture.clamp(0, 1) * 255).round().to(torch.uint8).view(count, 3, SIZE, SIZE)


def _cover(curves: np.ndarray, width: np.ndarray, pixels: Tensor) -> Tensor:
    """How much of each pixel the curves (n, strokes, 3, 2) cover, (n, pixels), 0 to 1."""
    t = np.linspace(0, 1, POINTS)[:, None, None]
    start, bend, end = (curves[:, :, None, i] for i in range(3))
    t = t[:, 0, 0][None, None, :, None]
    points = (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end
    flat = torch.from_numpy(points.reshape(len(curves), -1, 2)).float()
    distance = torch.cdist(pixels.expand(len(curves), -1, -1), flat).amin(dim=2)
    edge = 2.0 / SIZE
    return ((torch.from_numpy(width).float()[:, None] - distance) / edge + 0.5).clamp(0, 1)


@cache
def split(part: str, classes: int = CLASSES, count: int | None = None, seed: int = 0) -> Split:
    """:func:`render`, kept on disk beside this file."""
    count = COUNTS[part] if count is None else count
    path = Path(__file__).parent / ".cache" / f"glyphs{classes}-{seed}-{part}-{count}.npz"
    if path.is_file():
        kept = np.load(path)
        return Split(torch.from_numpy(kept["images"]), torch.from_numpy(kept["labels"]))
    made = render(part, count, seed, classes)
    path.parent.mkdir(exist_ok=True)
    held = path.with_suffix(".tmp.npz")
    np.savez(held, images=made.images.numpy(), labels=made.labels.numpy())
    held.replace(path)
    return made


def dataset(part: str, size: int, classes: int = CLASSES) -> TensorImages:
    """One part at ``size`` pixels (a divisor of 32), in memory."""
    made = split(part, classes)
    images = made.images
    if size != SIZE:
        images = F.avg_pool2d(images.float(), SIZE // size).round().to(torch.uint8)
    shape = (3, size, size)
    return TensorImages(images, made.labels.tolist(), shape, peak=255, mean=MEAN, std=STD)


def glyphs(input_shape: Shape = (3, 32, 32), test: bool = False, classes: int = CLASSES) -> Data:
    """Training and validation (or test) set, as ``--data benchmarks/glyphs.py:glyphs`` takes it."""
    size = input_shape[1]
    if input_shape not in [(3, SIZE // n, SIZE // n) for n in (1, 2, 4)]:
        raise ValueError(f"glyphs come as 3x32x32, 3x16x16 or 3x8x8, not {input_shape}")
    held_out = dataset("test" if test else "val", size, classes)
    return Data(dataset("train", size, classes), held_out, classes, input_shape, "glyphs")


def glyphs64(input_shape: Shape = (3, 32, 32), test: bool = False) -> Data:
    """The easier task of 64 classes."""
    return glyphs(input_shape, test, 64)


def contact_sheet(path: Path, rows: int = 8) -> None:
    """A picture of some training images, to look at."""
    from PIL import Image

    part = split("train")
    order = torch.argsort(part.labels, stable=True)
    per = math.ceil(len(order) / CLASSES)
    images = torch.stack([part.images[order[per * c + k]] for c in range(rows) for k in range(12)])
    sheet = images.view(rows, 12, 3, SIZE, SIZE).permute(0, 3, 1, 4, 2).reshape(rows * SIZE, -1, 3)
    Image.fromarray(sheet.numpy()).resize((12 * 64, rows * 64)).save(path)
