"""Budgets out of reach, constraints that leave nothing."""

import re

import pytest

from support.commands import ON_FAKE
from support.refusals import PRUNE, Refuses


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ("fast", "cannot read budget 'fast'; write 50%, 12.5ms, 2x"),
        ("0%", "budget '0%' must be above zero"),
        ("-5%", "cannot read budget '-5%'"),
        ("150%", "budget '150%' is above the dense cost"),
        ("100%", "`target_latency` in the flags: '100%' is the dense latency; nothing to prune"),
        ("0.5x", "budget '0.5x' is above the dense cost"),
        ("12", "budget '12' has no usable unit for latency; write 50%, 12.5ms or 2x"),
        ("macs=50%", "`target_latency` in the flags: 'macs=50%' is not a latency"),
    ],
)
def test_budgets(refuses: Refuses, budget: str, message: str) -> None:
    assert message in refuses(*PRUNE, "--target-latency", budget, "-o", "new")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--keep", "fc*"), "`keep` names 'fc*', which matches no layer; layers: 0, 3, 8, 1, 4"),
        (("--keep", "*"), "net.py:tiny has no prunable channels: it is the model's output; kept"),
        (("--min-width", "0.3"), "cannot read `min_width` '0.3'; write a percentage such as 1.5%"),
        (("--min-width", "100%"), "cannot read `min_width` '100%'; write a percentage"),
    ],
)
def test_constraints(refuses: Refuses, flags: tuple[str, str], message: str) -> None:
    for command in ("prune", "sweep"):
        line = refuses(command, "net.py:tiny", *ON_FAKE, *flags, "-o", "new")
        assert line.startswith(message)


def test_below_what_is_reachable(refuses: Refuses) -> None:
    line = refuses(*PRUNE, "--target-latency", "30%", "-o", "new", status=1, work=True)
    said = re.fullmatch(
        r"30% is below what is reachable: the smallest network measures ([\d.]+)% "
        r"\[([\d.]+)%, ([\d.]+)%\] of the dense one, .* ms; ask for (\d+)% or more",
        line,
    )
    assert said is not None, line
    ratio, low, high, least = map(float, said.groups())
    assert 53 < low <= ratio <= high < 57  # timed: how many rounds depends on the machine
    assert high - 0.05 <= least <= high + 1.05
    line = refuses(*PRUNE, "--target-latency", "1us", "-o", "new", status=1, work=True)
    assert line.startswith("1us is below what is reachable")
    training = ("--data", "digits", "--from-scratch", "--epochs", 2)
    line = refuses(*PRUNE, *training, "--target-latency", "30%", "-o", "a/b", status=1, work=True)
    assert line.startswith("30% is below what is reachable")


def test_above_dense(refuses: Refuses) -> None:
    line = refuses(*PRUNE, "--target-latency", "5ms", "-o", "new", work=True)
    assert line.startswith("5ms is met already: the dense network takes 0.03")


@pytest.mark.parametrize(
    ("threshold", "message"),
    [
        ("5", "--threshold '5' is 500 %, which is too much; for 5 % write 5%"),
        ("100%", "--threshold '100%' is 100 %, which is too much"),
        ("inf", "--threshold 'inf' is inf %, which is too much"),
        ("nan", "cannot read --threshold 'nan'; write 5% or 0.05, at least 0.1%"),
        ("0", "cannot read --threshold '0'; write 5% or 0.05, at least 0.1%"),
        ("much", "cannot read --threshold 'much'; write 5% or 0.05, at least 0.1%"),
    ],
)
def test_thresholds(refuses: Refuses, threshold: str, message: str) -> None:
    check = ("check", "run/model.onnx", "--baseline", "run/dense.onnx", "--target", "fake")
    assert refuses(*check, "--threshold", threshold) == message
