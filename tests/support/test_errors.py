"""Errors: how they end a command, and what is told of those of other libraries."""

import pytest

from prunekit.support.errors import (
    AnswerNoError,
    InfeasibleError,
    InterruptedRunError,
    PrunekitError,
    UsageError,
    first_line,
)


@pytest.mark.parametrize(
    ("kind", "status"),
    [(PrunekitError, 2), (UsageError, 2), (AnswerNoError, 1), (InfeasibleError, 1)],
)
def test_every_error_has_the_exit_status_of_its_kind(kind, status):
    assert kind("why").exit_code == status
    assert InterruptedRunError("stopped").exit_code == 130


@pytest.mark.parametrize(
    ("error", "more", "line"),
    [
        (ValueError("one\ntwo"), {}, "one"),
        (ValueError("\n  one\ntwo"), {}, "one"),
        (ValueError(""), {}, "ValueError"),
        (ValueError(" \n"), {"empty": "no message"}, "no message"),
        (ValueError("abcdef"), {"longest": 3}, "abc"),
        ("text\nmore", {}, "text"),
    ],
)
def test_first_line(error, more, line):
    assert first_line(error, **more) == line
