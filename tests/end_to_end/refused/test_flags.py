"""Flags, options and commands that do not exist or do not go together."""

import json
from pathlib import Path

import pytest

from support.commands import SHAPE, Says
from support.refusals import PRUNE, Refuses


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--criterion", "beauty"),
            "unknown criteria name 'beauty'; known: activation, bn_scale, fpgm, lamp,",
        ),
        (("--solver", "magic"), "unknown allocators name 'magic'; known: greedy, joint"),
        (("--method", "magic"), "`method` in the flags: Input should be 'oneshot', 'halp' or"),
        (("--method", "halp"), "--method halp needs data; add --data"),
        (("--method", "iee"), "--method iee needs data; add --data"),
        (("--criterion", "taylor"), "--criterion taylor needs data; add --data"),
        (("--from-scratch",), "--from-scratch needs data; add --data"),
        (("--distill", "0.5"), "--distill needs data; add --data"),
        (
            ("--dense-epochs", "3"),
            "--dense-epochs is for --from-scratch, --pretrained or --weights",
        ),
        (("--dense-epochs", "3", "--weights", "w"), "--dense-epochs needs data; add --data"),
        (("--from-scratch", "--pretrained"), "--from-scratch and --pretrained exclude each other"),
        (("--pretrained", "--weights", "w"), "--pretrained and --weights exclude each other"),
        (("--pretrained",), "`--pretrained` is for torchvision and timm models"),
        (("--data", "digits", "--method", "halp", "--epochs", "1"), "give --epochs 2 or more"),
        (("--epochs", "-1"), "`epochs` in the flags: Input should be greater than or equal to 0"),
        (("--epochs", "many"), "Invalid value for '--epochs'"),
        (("--batch-size", "1"), "`batch_size` in the flags: Input should be greater than"),
        (("--momentum", "2"), "`momentum` must be a number at least 0 and below 1, not 2.0"),
        (("--lr", "inf"), "`lr` must be a number above 0, not inf"),
        (("--mixed-precision", "fp16", "--device", "cpu"), "`mixed_precision` fp16 needs a GPU"),
        (("--threads", "0"), "`threads` in the flags: Input should be greater than or equal to 1"),
        (("--profile-nets", "2"), "`profile_nets` in the flags: Input should be greater than or"),
        (("--color", "red"), "No such option: --color"),
        (("--overwrite", "--resume"), "--overwrite and --resume exclude each other; keep one"),
        (("--config", "gone.toml"), "cannot read gone.toml: No such file or directory"),
        (("--config", "net.py"), "net.py is not valid TOML"),
        (("--config", "odd.toml"), "`colour` in odd.toml or the flags: Extra inputs are not"),
    ],
)
def test_flags(refuses: Refuses, home: Path, flags: tuple[str, ...], message: str) -> None:
    (home / "odd.toml").write_text('colour = "red"\n')
    assert message in refuses(*PRUNE, *flags, "-o", "new")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--iee", "nonsense=1"), "unknown IEE option 'nonsense'; known: warmup, cycles, estimate"),
        (("--iee", "steps=7"), "unknown IEE option 'steps'; known: warmup, "),
        (("--iee", "omega"), "cannot read --iee 'omega'; write KEY=VALUE, such as omega=0.3"),
        (("--iee", "=1"), "cannot read --iee '=1'; write KEY=VALUE, such as omega=0.3"),
        (("--iee", "omega=2"), "`omega` must be from 0 to 1, not 2.0"),
        (("--iee", "explore=2.5"), "IEE option `explore`: Input should be a valid integer"),
        (("--iee", "grow=best"), "IEE option `grow`: Input should be 'explored', 'mru' or 'zero'"),
        (("--iee", "seed=-1"), "`seed` must be a whole number of at least 0, not -1"),
        (("--iee", "estimate=9999"), "further steps, the training has 66; train longer or shorten"),
        (("--iee", "omega=0.1", "--method", "oneshot"), "--iee has the options of method iee; add"),
        (("--epochs", "1"), "method iee prunes while it trains; give --epochs 2 or more, or "),
        (("--ema", "0.9"), "--ema averages one network, and method iee trains several in turn"),
        (("--distill", "0.5"), "--distill needs a trained dense network, which --from-scratch"),
    ],
)
def test_options_of_iee(refuses: Refuses, flags: tuple[str, ...], message: str) -> None:
    training = ("--data", "digits", "--from-scratch", "--epochs", 3, "--method", "iee")
    line = refuses(*PRUNE, *training, *flags, "-o", "new")
    assert message in line


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("fly", "No such command 'fly'; see prunekit --help"),
        ("prune -o new", "no model given; name one, such as zoo:resnet20_w32"),
        ("inspect", "Missing argument 'MODEL'; see prunekit inspect --help"),
        ("profile net.py:tiny --nets 2", "Invalid value for '--nets': "),
        ("table show", "Missing argument 'TABLE'; see prunekit table show --help"),
        ("export run --format gguf", "unknown format 'gguf'; this version exports onnx"),
        ("export net.py:tiny", "the input shape is not known; give --input"),
        ("bench", "Missing argument 'A [B ...]'"),
        ("bench gone.onnx", "no artifact at gone.onnx"),
        ("bench net.py", "net.py: unknown artifact type; known: .onnx"),
        ("bench .", ". is a folder without plan.json, not a finished run"),
        ("check", "check needs --baseline FILE, an artifact or a report.json"),
        ("check --baseline run/model.onnx", "check against an artifact needs the ARTIFACT"),
        ("check --baseline gone.json", "cannot read report gone.json: No such file"),
        ("check --baseline run/report.json --threads 2", "--threads does not go with a report"),
        ("check x.onnx --baseline run/model.onnx", "no artifact at x.onnx"),
    ],
)
def test_commands(refuses: Refuses, command: str, message: str) -> None:
    assert message in refuses(*command.split())


def test_errors_as_json(prunekit: Says, home: Path) -> None:
    status, out, err = prunekit("inspect", "zoo:nothing", *SHAPE, "--json")
    assert status == 2
    failure = json.loads(out)
    assert failure["exit_code"] == 2
    assert err == f"prunekit: {failure['error']}\n"
