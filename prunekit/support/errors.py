"""Every error a user can meet, in one tree; each knows the exit status it ends a command with.

The message states the fact, the value and the remedy, in one line.
"""

from __future__ import annotations


class PrunekitError(Exception):
    """Root of all errors raised on purpose by prunekit."""

    exit_code = 2


class UsageError(PrunekitError):
    """An argument, flag, recipe or environment that cannot be used as given."""


class ModelError(PrunekitError):
    """A model that is unknown, cannot be built, traced, slimmed or exported."""


class DataError(PrunekitError):
    """A data source that is missing, empty, broken or does not fit the model."""


class TableError(PrunekitError):
    """A latency table that lacks a timing or belongs to another target, device or model."""


class NoLayerTimesError(TableError):
    """A runtime that does not tell how long each layer of a network takes."""


class FileError(PrunekitError):
    """A file that is missing, truncated, edited, of another version, or cannot be written."""


class RuntimeUnavailableError(PrunekitError):
    """A runtime that is not usable on this machine, with the reason."""


class TrainingError(PrunekitError):
    """Training that cannot go on, such as a loss that is not a number."""


class AnswerNoError(PrunekitError):
    """The command ran and the answer is no: target missed, regression found, infeasible."""

    exit_code = 1


class InfeasibleError(AnswerNoError):
    """A budget below the smallest that can be reached."""


class OpenAnswerError(PrunekitError):
    """The command ran and the answer is open: this machine is too noisy to tell."""

    exit_code = 3


class InterruptedRunError(PrunekitError):
    """Stopped by the user; the message says what was saved and how to resume."""

    exit_code = 130


def first_line(error: BaseException | str, empty: str = "", longest: int | None = None) -> str:
    """The first line of what an error of another library says, of at most ``longest`` characters.

    ``empty`` stands for one that says nothing; the name of its type unless given.
    """
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else empty or type(error).__name__)[:longest]
