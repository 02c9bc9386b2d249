"""Scenes of our own for detection and segmentation: six shapes of all sizes over clutter.

    python benchmarks/scenes.py FOLDER                  4,000 + 500 images of 128 x 128
    python benchmarks/scenes.py FOLDER --train 40 --val 10

Writes FOLDER/coco (COCO's files), and FOLDER/masks (images/, masks/ and classes.txt) of the same
scenes. Everything follows from one seed. Shapes may cover each other by a quarter at most.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

CLASSES = ("disc", "square", "triangle", "cross", "ring", "bar")
SIZE, MOST, TRIES = 128, 6, 20
LEAST, LARGEST = 10, 60
"""Sides of an object in pixels."""

Box = tuple[int, int, int, int]


def scene(rng: np.random.Generator) -> tuple[Image.Image, Image.Image, list[Box], list[int]]:
    """A picture, its mask (0 is the ground), and the objects' boxes and classes."""
    picture = _ground(rng)
    mask = Image.new("L", (SIZE, SIZE))
    boxes: list[Box] = []
    labels: list[int] = []
    for _ in range(int(rng.integers(1, MOST + 1))):
        box = _free(rng, boxes)
        if box is None:
            continue
        label = int(rng.integers(len(CLASSES)))
        colour = tuple(int(v) for v in rng.integers(40, 256, 3))
        boxes.append(_draw(ImageDraw.Draw(picture), label, box, colour))
        _draw(ImageDraw.Draw(mask), label, box, label + 1)
        labels.append(label)
    noise = rng.normal(0, 12, (SIZE, SIZE, 3))
    pixels = np.clip(np.asarray(picture, np.float32) + noise, 0, 255).astype(np.uint8)
    return Image.fromarray(pixels), mask, boxes, labels


def _ground(rng: np.random.Generator) -> Image.Image:
    """Blurred blots, and lines over them, which look like parts of shapes."""
    small = rng.integers(0, 200, (8, 8, 3), dtype=np.uint8)
    ground = Image.fromarray(small).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(ground)
    for _ in range(int(rng.integers(6, 16))):
        ends = [int(v) for v in rng.integers(0, SIZE, 4)]
        colour = tuple(int(v) for v in rng.integers(0, 256, 3))
        draw.line(ends, fill=colour, width=int(rng.integers(1, 4)))
    return ground.filter(ImageFilter.GaussianBlur(0.6))


def _free(rng: np.random.Generator, boxes: list[Box]) -> Box | None:
    """A place that no other shape has more than a quarter of."""
    for _ in range(TRIES):
        side = math.exp(rng.uniform(math.log(LEAST), math.log(LARGEST)))
        width = int(side * rng.uniform(0.8, 1.25))
        height = int(side * rng.uniform(0.8, 1.25))
        x, y = (int(rng.integers(0, SIZE - n)) for n in (width, height))
        box = (x, y, x + width, y + height)
        if all(_shared(box, other) < 0.25 * min(_area(box), _area(other)) for other in boxes):
            return box
    return None


def _shared(one: Box, other: Box) -> int:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0, width) * max(0, height)


def _area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def _draw(draw: ImageDraw.ImageDraw, label: int, box: Box, fill: Any) -> Box:
    """Draw a shape; its own box, which is flatter for a bar."""
    left, top, right, bottom = box
    inside = (left, top, right - 1, bottom - 1)
    if label == 0:
        draw.ellipse(inside, fill=fill)
    elif label == 1:
        draw.rectangle(inside, fill=fill)
    elif label == 2:
        draw.polygon([((left + right) // 2, top), inside[2:], (left, bottom - 1)], fill=fill)
    elif label == 3:
        third_x, third_y = (right - left) // 3, (bottom - top) // 3
        draw.rectangle((left + third_x, top, right - 1 - third_x, bottom - 1), fill=fill)
        draw.rectangle((left, top + third_y, right - 1, bottom - 1 - third_y), fill=fill)
    elif label == 4:
        width = max(2, min(right - left, bottom - top) // 5)
        draw.ellipse(inside, outline=fill, width=width)
    else:
        thick = max(3, (bottom - top) // 4)
        box = (left, top, right, top + thick)
        draw.rectangle((left, top, right - 1, top + thick - 1), fill=fill)
    return box


def write(folder: Path, counts: dict[str, int], seed: int = 0) -> None:
    """Both layouts."""
    for part, count in counts.items():
        rng = np.random.default_rng([seed, part == "val"])
        places = [
            folder / "coco" / part,
            folder / "masks/images" / part,
            folder / "masks/masks" / part,
        ]
        for place in [*places, folder / "coco/annotations"]:
            place.mkdir(parents=True, exist_ok=True)
        images, annotations = [], []
        for number in range(count):
            picture, mask, boxes, labels = scene(rng)
            name = f"{number:05}.png"
            picture.save(places[0] / name)
            (places[1] / name).hardlink_to(places[0] / name)
            mask.save(places[2] / name)
            images.append({"id": number, "file_name": name, "width": SIZE, "height": SIZE})
            for (left, top, right, bottom), label in zip(boxes, labels, strict=True):
                sides = [left, top, right - left, bottom - top]
                annotation = {"id": len(annotations), "image_id": number, "category_id": label}
                annotations.append({**annotation, "bbox": sides, "iscrowd": 0})
        content = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": i, "name": name} for i, name in enumerate(CLASSES)],
        }
        (folder / f"coco/annotations/instances_{part}.json").write_text(json.dumps(content))
    (folder / "masks/classes.txt").write_text("\n".join(("ground", *CLASSES)) + "\n")


def main() -> None:
    """Write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=4_000)
    parser.add_argument("--val", type=int, default=500)
    asked = parser.parse_args()
    write(asked.folder, {"train": asked.train, "val": asked.val})


if __name__ == "__main__":
    main()
