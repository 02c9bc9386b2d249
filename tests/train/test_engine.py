"""Parameter groups and two processes that train one model."""

import subprocess
import sys
from pathlib import Path

import pytest

from prunekit import zoo
from prunekit.train.engine import parameter_groups
from support import environment
from support.training import same


def test_no_decay_on_norms_and_biases() -> None:
    model = zoo.resnet20(3, 1)
    model.head.fc.weight.requires_grad_(False)
    decayed, free = parameter_groups(model, 0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)
    assert all(parameter.ndim == 4 for parameter in decayed["params"])
    assert all(parameter.ndim == 1 for parameter in free["params"])
    grouped = {names[id(p)] for group in (decayed, free) for p in group["params"]}
    assert {*names.values()} - grouped == {"head.fc.weight"}


SCRIPT = """
import atexit
import os
import sys
from dataclasses import replace
from pathlib import Path
import torch
from support.training import CONFIG, Mask, stripes, tiny, weights
from prunekit.support.errors import UsageError
from prunekit.train import Data, fit

out = Path(sys.argv[1])
rank = int(os.environ["RANK"])


def at_last():
    joined = torch.distributed.is_initialized()
    (out / f"rank{rank}.left").write_text(f"{ever} {joined}")


atexit.register(at_last)  # before prunekit's own, and so called after it
data = Data(stripes(70, 0), stripes(31, 1), 3, (1, 8, 8), "stripes")
config = replace(CONFIG, epochs=2, ema=0.9)
model = tiny(rank)  # made equal by the loop
told = []
result = fit(model, data, config, folder=out / "run", rule=Mask(), log=told.append)
again = tiny(7)
finished = fit(again, data, config, folder=out / "run", resume=True, rule=Mask())
assert (finished.accuracy, finished.steps) == (result.accuracy, result.steps)
assert all(torch.equal(a, b) for a, b in zip(weights(model).values(), weights(again).values()))
assert len(told) == (2 if rank == 0 else 0)
try:
    fit(tiny(), data, replace(config, batch_size=15))
except UsageError as error:
    assert "multiple of 2" in str(error), error
else:
    raise SystemExit("a batch of 15 was shared by 2")
from safetensors.torch import save_file
save_file(weights(model), out / f"rank{rank}.safetensors")
(out / f"rank{rank}.txt").write_text(f"{result.accuracy} {result.steps}")
ever = torch.distributed.is_initialized()
"""


@pytest.mark.slow
def test_two_processes_train_one_model(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    run = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc_per_node", "2", str(script), str(tmp_path)),
        ],
        env=environment(CUDA_VISIBLE_DEVICES=""),
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert run.returncode == 0, run.stderr
    assert same(*(load_file(tmp_path / f"rank{rank}.safetensors") for rank in (0, 1)))
    first, second = ((tmp_path / f"rank{rank}.txt").read_text() for rank in (0, 1))
    assert first == second
    assert first.split()[1] == "8"
    for rank in (0, 1):  # the group was there, and is let go before Python is taken down
        assert (tmp_path / f"rank{rank}.left").read_text() == "True False"
