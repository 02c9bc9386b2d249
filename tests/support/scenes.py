"""Small pictures with squares and bars on them, written as COCO, VOC, YOLO, masks and a table."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("bar", "square")
SIZE = (40, 32)
"""Width and height."""


@dataclass
class Scene:
    name: str
    pixels: np.ndarray
    boxes: list[tuple[int, int, int, int]]
    labels: list[int]
    mask: np.ndarray


def scenes(count: int, seed: int = 0) -> list[Scene]:
    """Seeded ones; the last has nothing on it."""
    rng = np.random.default_rng(seed)
    width, height = SIZE
    made = []
    for number in range(count):
        pixels = rng.integers(0, 60, (height, width, 3), dtype=np.uint8)
        mask = np.zeros((height, width), np.uint8)
        boxes, labels = [], []
        for _ in range(0 if number == count - 1 else 2):
            label = int(rng.integers(2))
            w, h = (12, 12) if label else (20, 6)
            x, y = int(rng.integers(width - w)), int(rng.integers(height - h))
            pixels[y : y + h, x : x + w] = 255 if label else 150
            mask[y : y + h, x : x + w] = 1 + label
            boxes.append((x, y, x + w, y + h))
            labels.append(label)
        made.append(Scene(f"p{number:02}", pixels, boxes, labels, mask))
    return made


def parts() -> dict[str, list[Scene]]:
    return {"train": scenes(6, 1), "val": scenes(3, 2)}


def _save(scene: Scene, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(scene.pixels).save(folder / f"{scene.name}.png")


def write_coco(root: Path) -> Path:
    width, height = SIZE
    for part, made in parts().items():
        for scene in made:
            _save(scene, root / part)
        annotations = [
            {
                "id": 10 * number + i,
                "image_id": number,
                "category_id": 3 + 4 * label,
                "bbox": [x, y, right - x, bottom - y],
                "iscrowd": 0,
            }
            for number, scene in enumerate(made)
            for i, ((x, y, right, bottom), label) in enumerate(
                zip(scene.boxes, scene.labels, strict=True)
            )
        ]
        content = {
            "images": [
                {"id": n, "file_name": f"{s.name}.png", "width": width, "height": height}
                for n, s in enumerate(made)
            ],
            "annotations": annotations,
            "categories": [{"id": 3 + 4 * i, "name": name} for i, name in enumerate(CLASSES)],
        }
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{part}.json").write_text(json.dumps(content))
    return root


def write_voc(root: Path) -> Path:
    for folder in ("Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for part, made in parts().items():
        names = [f"{part}_{scene.name}" for scene in made]
        (root / "ImageSets/Main" / f"{part}.txt").write_text("\n".join(names) + "\n")
        for name, scene in zip(names, made, strict=True):
            _save(Scene(name, scene.pixels, [], [], scene.mask), root / "JPEGImages")
            items = "".join(
                f"<object><name>{CLASSES[label]}</name><difficult>0</difficult><bndbox>"
                f"<xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{r}</xmax><ymax>{b}</ymax>"
                "</bndbox></object>"
                for (x, y, r, b), label in zip(scene.boxes, scene.labels, strict=True)
            )
            (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{items}</annotation>")
    return root


def write_yolo(root: Path) -> Path:
    width, height = SIZE
    for part, made in parts().items():
        (root / "labels" / part).mkdir(parents=True)
        for scene in made:
            _save(scene, root / "images" / part)
            lines = [
                f"{label} {(x + r) / 2 / width} {(y + b) / 2 / height} {(r - x) / width} "
                f"{(b - y) / height}"
                for (x, y, r, b), label in zip(scene.boxes, scene.labels, strict=True)
            ]
            if lines:
                (root / "labels" / part / f"{scene.name}.txt").write_text("\n".join(lines) + "\n")
    names = ", ".join(CLASSES)
    (root / "data.yaml").write_text(f"train: images/train\nval: images/val\nnames: [{names}]\n")
    return root / "data.yaml"


def write_masks(root: Path) -> Path:
    for part, made in parts().items():
        (root / "masks" / part).mkdir(parents=True)
        for scene in made:
            _save(scene, root / "images" / part)
            Image.fromarray(scene.mask).save(root / "masks" / part / f"{scene.name}.png")
    (root / "classes.txt").write_text("\n".join(("ground", *CLASSES)) + "\n")
    return root


def write_columns(root: Path, *, binary: bool) -> Path:
    """``labels.csv``: which classes are there, or the share of the picture that each takes."""
    rows = ["image," + ",".join(CLASSES)]
    for scene in scenes(10, 3):
        _save(scene, root / "images")
        shares = [float((scene.mask == 1 + label).mean()) for label in range(2)]
        values = [int(share > 0) for share in shares] if binary else shares
        rows.append(f"{scene.name}.png," + ",".join(map(str, values)))
    (root / "labels.csv").write_text("\n".join(rows) + "\n")
    return root
