"""Data as people write it: names, folders, factories, and what is not understood."""

from pathlib import Path

import pytest

from prunekit.support.errors import DataError
from prunekit.train import load_data


@pytest.mark.parametrize(
    ("name", "cls"), [("cifar10", "CIFAR10"), ("svhn", "SVHN"), ("mnist", "MNIST")]
)
def test_a_set_that_is_not_there(tmp_path: Path, name: str, cls: str) -> None:
    with pytest.raises(DataError, match=f"no complete {cls} in {tmp_path}; fetch it with"):
        load_data(f"{name}:{tmp_path}", (3, 16, 16))
    with pytest.raises(DataError, match="no such folder"):
        load_data(f"{name}:{tmp_path / 'gone'}", (3, 16, 16))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("imagnet", "unknown data 'imagnet'; known: digits, imagefolder:PATH, cifar10:PATH"),
        ("cifra10:/data", "cannot import 'cifra10' (in 'cifra10:/data')"),
        ("cifra10:/data", "; known data: digits, imagefolder:PATH, cifar10:PATH"),
        ("imagefolder:", "data 'imagefolder:' lacks its folder; write imagefolder:PATH"),
        ("cifar10", "data 'cifar10' lacks its folder; write cifar10:PATH"),
        ("json:nothing", "json has no callable 'nothing'"),
        ("nowhere/data.py:make", "no file nowhere/data.py"),
        ("digits:8", "cannot import 'digits' (in 'digits:8'): ModuleNotFoundError"),
    ],
)
def test_what_cannot_be_understood(spec: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        load_data(spec, (3, 8, 8))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_alone_gets_a_hint(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"write imagefolder:{tmp_path}"):
        load_data(str(tmp_path), (3, 8, 8))


@pytest.mark.parametrize("shape", [(3, 8), (3, 0, 8), (3, 8.0, 8)])
def test_a_shape_that_is_none(shape: tuple[int, int, int]) -> None:
    with pytest.raises(DataError, match="`input_shape` must be"):
        load_data("digits", shape)
