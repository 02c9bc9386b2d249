"""Inputs as they are written on a command line."""

from __future__ import annotations

import pytest

from prunekit.core.inputs import InputSpec, format_inputs, parse_inputs, with_batch
from prunekit.support.errors import UsageError


@pytest.mark.parametrize(
    ("text", "specs"),
    [
        ("1x3x24x24", (InputSpec((1, 3, 24, 24)),)),
        ("1x3x8x8,1x3x8x8", (InputSpec((1, 3, 8, 8)),) * 2),
        ("a=1x3,b=2x4", (InputSpec((1, 3), "a"), InputSpec((2, 4), "b"))),
        ("1x16:int64<100", (InputSpec((1, 16), None, "int64", 100.0),)),
        (
            "ids=1x16:int64<30522, mask=1x16:int64=1",
            (
                InputSpec((1, 16), "ids", "int64", 30522.0),
                InputSpec((1, 16), "mask", "int64", None, 1.0),
            ),
        ),
        ("x=1x4:float32<0.5", (InputSpec((1, 4), "x", "float32", 0.5),)),
        ("m=4:bool", (InputSpec((4,), "m", "bool"),)),
    ],
)
def test_inputs_are_read_and_written(text, specs):
    assert parse_inputs(text) == specs
    assert parse_inputs(format_inputs(specs)) == specs


def test_another_batch_is_for_all():
    assert with_batch("a=1x3,b=2x4:int64<9", 8) == "a=8x3,b=8x4:int64<9"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot read input shape ''; write for example 1x3x224x224"),
        ("a=", "cannot read input shape 'a='; write for example a=1x3x24x24,b=1x3x24x24 or ids="),
        ("3", "cannot read input shape '3'; write"),
        ("1x0", "cannot read input shape '1x0'; write"),
        ("1xax3", "cannot read input shape '1xax3'; write"),
        ("a=1x3,1x3", "--input 'a=1x3,1x3': name all of the tensors or none"),
        ("a=1x3,a=1x3", "--input 'a=1x3,a=1x3' has two tensors called a"),
        ("1x3:int65", "--input '1x3:int65': unknown type 'int65'; types: float32, "),
        ("1x3:int64<0", "--input '1x3:int64<0': numbers below 0 are none; give a larger one"),
    ],
)
def test_what_is_no_input_is_said(text, message):
    with pytest.raises(UsageError) as caught:
        parse_inputs(text)
    assert str(caught.value).startswith(message)
