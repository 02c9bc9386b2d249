"""``multilabel:PATH`` and ``regression:PATH``: images, and a table of what belongs to each."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prunekit.support.errors import DataError
from prunekit.train.folder import augmented, centred, verify
from prunekit.train.formats.pictures import Pictures, check_channels, composed
from prunekit.train.images import Shape

SHARE = 0.2
"""Of the rows without a split: what is held out."""

Row = tuple[Path, list[float]]
"""A picture and its numbers."""


def open_columns(path: Path, shape: Shape, seed: int, *, binary: bool) -> tuple[Pictures, Pictures]:
    """Training and validation set; the columns' names are the classes.

    ``train.csv`` and ``val.csv``, or ``labels.csv``, of which a fifth is held out by ``seed``. The
    first column names an image, beside the file or in ``images/``. ``binary``: the others are 0
    or 1.
    """
    check_channels(shape, path)
    files = [path / "train.csv", path / "val.csv"]
    if all(file.is_file() for file in files):
        (names, train), (others, val) = (_read(file, binary=binary) for file in files)
        if names != others:
            raise DataError(f"{files[1]} has other columns than {files[0].name}; make them alike")
    elif (path / "labels.csv").is_file():
        names, rows = _read(path / "labels.csv", binary=binary)
        if len(rows) < 2:
            raise DataError(f"{path / 'labels.csv'} has {len(rows)} rows; two are needed at least")
        order = np.random.default_rng(seed).permutation(len(rows)).tolist()
        count = max(1, round(SHARE * len(rows)))
        val, train = ([rows[i] for i in sorted(part)] for part in (order[:count], order[count:]))
    else:
        raise DataError(f"no labels.csv in {path}, nor train.csv and val.csv; add them")
    verify([picture for picture, _ in (*train, *val)], path)
    first, second = (
        Pictures(
            [picture for picture, _ in part],
            [numbers for _, numbers in part],
            names,
            composed([change]),
            grey=shape[0] == 1,
            target_of=lambda numbers, _: _values(numbers),
        )
        for part, change in ((train, augmented(shape)), (val, centred(shape)))
    )
    return first, second


def _values(numbers: list[float]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float32)


def _read(file: Path, *, binary: bool) -> tuple[list[str], list[Row]]:
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            head, *rows = csv.reader(lines)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {file}: {error}; repair or replace it") from error
    except ValueError as error:
        raise DataError(f"{file} is empty; its first line names the columns") from error
    if len(head) < 2:
        raise DataError(f"{file} has one column; an image and one number at least are needed")
    filled = [(line, row) for line, row in enumerate(rows, 2) if row]
    return head[1:], [_row(file, line, row, head, binary=binary) for line, row in filled]


def _row(file: Path, line: int, row: list[str], head: list[str], *, binary: bool) -> Row:
    where = f"{file}, line {line}"
    if len(row) != len(head):
        raise DataError(f"{where} has {len(row)} columns, the first line {len(head)}; repair it")
    places = [file.parent / row[0], file.parent / "images" / row[0]]
    picture = next((place for place in places if place.is_file()), None)
    if picture is None:
        raise DataError(f"{where} names the image {row[0]}, which is not there; add it")
    try:
        numbers = [float(text) for text in row[1:]]
    except ValueError as error:
        raise DataError(f"{where} is not of numbers: {error}; repair it") from error
    if not all(map(math.isfinite, numbers)) or (binary and not {*numbers} <= {0.0, 1.0}):
        raise DataError(f"{where} has other values than {'0 and 1' if binary else 'numbers'}")
    return picture, numbers
