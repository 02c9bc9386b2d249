import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from prunekit import zoo
from prunekit.support.errors import DataError, FileError, ModelError, TrainingError, UsageError
from prunekit.train import Data, TrainConfig, evaluate, fit, load_data, loader, loss_fn
from prunekit.train.batches import epoch_batches
from prunekit.train.checkpoint import CHECKPOINT
from prunekit.train.engine import parameter_groups
from prunekit.train.rule import NoRule

CONFIG = TrainConfig(epochs=3, batch_size=16, lr=0.05, device="cpu")


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    # Tensors this small gain nothing from threads, which wait for each other on a busy machine.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Tiny(nn.Module):
    """Convolution, normalisation, dropout: all that a resumed training could get wrong."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.2)
        self.fc = nn.Linear(4, classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.drop(torch.relu(self.bn(self.conv(x))).mean((2, 3))))
        return out


class Mask(NoRule):
    """A rule with a state: it moves a mask over the first layer's filters every few steps."""

    def __init__(self) -> None:
        self.mask = torch.ones(4)
        self.turns = 0
        self.steps: list[int] = []

    def after_backward(self, model: Tiny, step: int) -> None:
        assert model.conv.weight.grad is not None
        self.steps.append(step)

    def after_step(self, model: Tiny, optimizer: torch.optim.Optimizer, step: int) -> None:
        assert isinstance(optimizer, torch.optim.SGD)
        if step % 4 == 0:
            self.turns += 1
            self.mask = torch.ones(4)
            self.mask[self.turns % 4] = 0
        with torch.no_grad():
            model.conv.weight.mul_(self.mask[:, None, None, None])

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {"mask": self.mask}, {"turns": self.turns}

    def load_state(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        self.mask, self.turns = tensors["mask"], facts["turns"]


def tiny(seed: int = 0, classes: int = 3) -> Tiny:
    torch.manual_seed(seed)
    return Tiny(classes)


def stripes(count: int, seed: int) -> TensorDataset:
    """Three classes that a small net tells apart: stripes across, stripes down, noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    images = 0.3 * torch.randn(count, 1, 8, 8, generator=generator)
    images[labels == 0, :, ::2] += 1
    images[labels == 1, :, :, ::2] += 1
    return TensorDataset(images, labels)


@pytest.fixture(scope="module")
def data() -> Data:
    return Data(stripes(70, 0), stripes(30, 1), 3, (1, 8, 8), "stripes")


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def stop_after(epoch: int) -> Any:
    def log(entry: dict[str, Any]) -> None:
        if entry["epoch"] == epoch:
            raise KeyboardInterrupt

    return log


# --- settings


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("epochs", -1, "`epochs` must be a whole number of at least 0, not -1"),
        ("epochs", 1.5, "`epochs` must be a whole number of at least 0, not 1.5"),
        ("epochs", True, "`epochs` must be a whole number of at least 0, not True"),
        ("batch_size", 1, "`batch_size` must be a whole number of at least 2, not 1"),
        ("optimizer", "adam", "`optimizer` must be one of sgd, adamw, not 'adam'"),
        ("lr", 0, "`lr` must be a number above 0, not 0"),
        ("lr", float("nan"), "`lr` must be a number above 0, not nan"),
        ("lr", "big", "`lr` must be a number above 0, not 'big'"),
        ("momentum", 1, "`momentum` must be a number at least 0 and below 1, not 1"),
        ("weight_decay", -0.1, "`weight_decay` must be a number at least 0, not -0.1"),
        ("schedule", "step", "`schedule` must be one of cosine, constant, not 'step'"),
        ("warmup_epochs", -1, "`warmup_epochs` must be a number at least 0, not -1"),
        ("ema", 1.0, "`ema` must be a number at least 0 and below 1, not 1.0"),
        ("mixed_precision", "fp8", "`mixed_precision` must be one of no, fp16, bf16, not 'fp8'"),
        ("distill", 2, "`distill` must be a number at least 0 and at most 1, not 2"),
        ("distill_temperature", 0, "`distill_temperature` must be a number above 0, not 0"),
        ("workers", -1, "`workers` must be a whole number of at least 0, not -1"),
        ("device", "tpu", "`device` must be one of auto, cpu, cuda, not 'tpu'"),
        ("seed", -1, "`seed` must be a whole number of at least 0, not -1"),
    ],
)
def test_a_setting_is_checked_by_name(field: str, value: Any, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        replace(CONFIG, **{field: value})
    assert str(caught.value) == message


def test_learning_rates() -> None:
    config = TrainConfig(epochs=10, lr=1.0, warmup_epochs=2)
    rates = [config.lr_at(step, 5) for step in range(50)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert rates[30] == pytest.approx(0.5)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 0.01
    assert replace(config, schedule="constant").lr_at(49, 5) == 1.0
    assert replace(config, epochs=2).lr_at(5, 5) == 1.0  # half of the training at most
    assert replace(config, epochs=1).lr_at(0, 1) == 1.0
    assert TrainConfig(batch_size=128).base_lr == 0.1
    assert TrainConfig(optimizer="adamw").base_lr == 1e-3


# --- batches


def test_batches_are_a_function_of_seed_and_epoch() -> None:
    batches = epoch_batches(70, 16, seed=3, epoch=1)
    assert [len(batch) for batch in batches] == [16] * 4
    assert len({index for batch in batches for index in batch}) == 64
    assert epoch_batches(70, 16, 3, 1) == batches
    assert epoch_batches(70, 16, 3, 2) != batches
    assert epoch_batches(70, 16, 4, 1) != batches


def test_ranks_share_every_batch() -> None:
    whole = epoch_batches(70, 16, 0, 0)
    first, second = (epoch_batches(70, 16, 0, 0, rank, 2) for rank in (0, 1))
    for batch, a, b in zip(whole, first, second, strict=True):
        assert len(a) == len(b) == 8
        assert sorted([*a, *b]) == sorted(batch)


def test_fewer_samples_than_a_batch() -> None:
    assert [len(batch) for batch in epoch_batches(5, 16, 0, 0)] == [5]
    assert [len(batch) for batch in epoch_batches(5, 16, 0, 0, 1, 2)] == [2]
    with pytest.raises(DataError, match="has 1 samples; at least 2 are needed"):
        epoch_batches(1, 16, 0, 0)
    with pytest.raises(DataError, match="at least 4 are needed with 2 processes"):
        epoch_batches(3, 16, 0, 0, 0, 2)


def test_loader(data: Data) -> None:
    in_order = [labels for _, labels in loader(data.val, 8)]
    assert [len(labels) for labels in in_order] == [8, 8, 8, 6]
    assert torch.equal(torch.cat(in_order), torch.arange(30) % 3)
    shuffled = [next(iter(loader(data.val, 8, 1)))[0] for _ in range(2)]
    assert torch.equal(*shuffled)
    assert not torch.equal(shuffled[0], next(iter(loader(data.val, 8, 2)))[0])


# --- training


def test_it_learns_and_tells(data: Data) -> None:
    model = tiny()
    told: list[dict[str, Any]] = []
    before = evaluate(model, data.val)
    result = fit(model, data, replace(CONFIG, epochs=12), log=told.append, title="dense")
    assert result.accuracy == evaluate(model, data.val) > max(0.8, before)
    assert not model.training
    assert (result.epochs, result.steps) == (12, 48)
    assert result.best == max(entry["accuracy"] for entry in told) >= result.accuracy
    assert [entry["epoch"] for entry in told] == list(range(1, 13))
    assert {entry["stage"] for entry in told} == {"dense"}
    assert told[-1]["loss"] < 0.7 * told[0]["loss"]
    assert told[-1]["seconds"] == result.seconds > 0
    assert told[-1]["lr"] < told[0]["lr"]


@pytest.mark.parametrize(
    "extra", [{}, {"optimizer": "adamw", "lr": 0.01}, {"mixed_precision": "bf16"}]
)
def test_the_same_seed_gives_the_same_weights(data: Data, extra: dict[str, Any]) -> None:
    config = replace(CONFIG, epochs=1, **extra)
    first, again, other = tiny(), tiny(), tiny()
    fit(first, data, config)
    torch.rand(3)  # where the global generator stands must not matter
    fit(again, data, config)
    fit(other, data, replace(config, seed=1))
    assert same(weights(first), weights(again))
    assert not same(weights(first), weights(other))
    assert "forward" not in vars(first)  # accelerate's patch stays off the user's model
    assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in weights(first).values())


def test_a_tiny_set_and_no_epochs(data: Data) -> None:
    few = replace(data, train=stripes(3, 0))
    assert fit(tiny(), few, CONFIG).steps == 3
    model = tiny()
    start = weights(model)
    result = fit(model, data, replace(CONFIG, epochs=0, ema=0.9))
    assert same(start, weights(model))
    assert result.accuracy == evaluate(model, data.val)
    with pytest.raises(DataError, match="the training set has 1 samples"):
        fit(tiny(), replace(data, train=stripes(1, 0)), CONFIG)


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


def test_distillation_pulls_towards_the_teacher(data: Data) -> None:
    teacher = tiny(1)
    fit(teacher, data, replace(CONFIG, epochs=8))
    teacher.train()
    kept = weights(teacher)
    config = replace(CONFIG, epochs=6, distill=1.0, label_smoothing=0.1)
    alone, taught = tiny(), tiny()
    fit(alone, data, replace(config, distill=0.0), teacher=teacher)
    fit(taught, data, config, teacher=teacher)
    assert teacher.training
    assert same(kept, weights(teacher))
    teacher.eval()
    images = data.val.tensors[0]
    with torch.no_grad():
        target = teacher(images).softmax(1)
        far, near = ((m(images).softmax(1) - target).abs().mean() for m in (alone, taught))
    assert near < far
    with pytest.raises(UsageError, match="`distill` is above 0 but there is no `teacher`"):
        fit(tiny(), data, config)
    with pytest.raises(ModelError, match="the teacher has 4 outputs and the model 3"):
        fit(tiny(), data, config, teacher=tiny(classes=4))


def test_clipping_bounds_the_step(data: Data) -> None:
    config = replace(CONFIG, epochs=1, batch_size=70, momentum=0.0, weight_decay=0.0)
    model = tiny()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    fit(model, data, replace(config, lr=1.0, clip_norm=1e-3))
    moves = [p.detach() - start[name] for name, p in model.named_parameters()]
    moved = sum(float(move.square().sum()) for move in moves)
    assert moved**0.5 == pytest.approx(1e-3, rel=1e-2)


def test_a_loss_that_is_not_a_number(data: Data, tmp_path: Path) -> None:
    images, labels = (tensor.clone() for tensor in data.train.tensors)
    images[5] = float("nan")
    bad = replace(data, train=TensorDataset(images, labels))
    with pytest.raises(TrainingError) as caught:
        fit(tiny(), bad, replace(CONFIG, batch_size=70), folder=tmp_path)
    assert "the loss became nan in epoch 1 at step 0 with lr 0.05; lower `lr`" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_models_that_do_not_fit(data: Data) -> None:
    with pytest.raises(ModelError, match="has 2 outputs but the data has 3 classes"):
        fit(tiny(classes=2), data, CONFIG)
    with pytest.raises(ModelError, match="cannot be trained on a batch of 16x1x8x8: Given groups"):
        fit(nn.Sequential(nn.Conv2d(3, 4, 3)), data, CONFIG)
    with pytest.raises(ModelError, match=r"output is \(16, 4, 6, 6\); \(batch, classes\) logits"):
        fit(nn.Sequential(nn.Conv2d(1, 4, 3)), data, CONFIG)
    with pytest.raises(ModelError, match="no trainable parameters"):
        fit(nn.Flatten(), data, CONFIG)
    with pytest.raises(UsageError, match="fp16 needs a GPU"):
        fit(tiny(), data, replace(CONFIG, mixed_precision="fp16"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none(data: Data) -> None:
    with pytest.raises(UsageError, match="`device` is cuda but torch sees no CUDA device"):
        fit(tiny(), data, replace(CONFIG, device="cuda"))


def test_evaluate_and_loss_leave_the_model_as_it_was(data: Data) -> None:
    model = tiny().train()
    model.drop.eval()
    start = weights(model)
    images, labels = data.val.tensors
    expected = float((tiny().eval()(images).argmax(1) == labels).float().mean())
    assert evaluate(model, data.val, batch_size=7) == pytest.approx(expected)
    assert model.training
    assert model.bn.training
    assert not model.drop.training
    assert same(start, weights(model))
    loss = loss_fn(model.eval(), (images, labels))
    assert loss.requires_grad
    reference = nn.CrossEntropyLoss()(model(images), labels)
    assert torch.allclose(loss, reference)
    with pytest.raises(DataError, match="nothing to evaluate"):
        evaluate(model, TensorDataset(images[:0], labels[:0]))


# --- stopping and going on


@pytest.mark.parametrize(
    "extra", [{"ema": 0.9, "clip_norm": 0.5}, {"optimizer": "adamw", "lr": 0.01}]
)
def test_a_resumed_training_equals_an_uninterrupted_one(
    data: Data, tmp_path: Path, extra: dict[str, Any]
) -> None:
    config = replace(CONFIG, **extra)
    rule = None if "optimizer" in extra else Mask
    straight, stopped = tiny(), tiny()
    whole = fit(straight, data, config, rule=rule and rule())
    with pytest.raises(KeyboardInterrupt):
        fit(stopped, data, config, folder=tmp_path, rule=rule and rule(), log=stop_after(1))
    assert [file.name for file in tmp_path.iterdir()] == [CHECKPOINT]
    resumed, later = tiny(seed=9), rule and rule()
    part = fit(resumed, data, config, folder=tmp_path, resume=True, rule=later)
    assert same(weights(straight), weights(resumed))
    assert (part.accuracy, part.best, part.epochs) == (whole.accuracy, whole.best, 3)
    assert part.steps == whole.steps == 12
    if later:
        assert later.steps == list(range(4, 12))
        assert (resumed.conv.weight[later.turns % 4] == 0).all()  # the average keeps the mask

    # Finished: nothing is trained again, whatever the model given.
    finished = tiny(seed=8)
    told: list[Any] = []
    last = fit(
        finished, data, config, folder=tmp_path, resume=True, rule=rule and rule(), log=told.append
    )
    assert last == part
    assert told == []
    assert same(weights(straight), weights(finished))
    assert not finished.training


def test_augmentation_is_repeated_too(tmp_path: Path) -> None:
    digits = load_data("digits", (1, 8, 8))
    digits = replace(digits, train=torch.utils.data.Subset(digits.train, range(200)))
    config = replace(CONFIG, epochs=2)
    straight, stopped, resumed = tiny(classes=10), tiny(classes=10), tiny(classes=10)
    fit(straight, digits, config)
    with pytest.raises(KeyboardInterrupt):
        fit(stopped, digits, config, folder=tmp_path, log=stop_after(1))
    fit(resumed, digits, config, folder=tmp_path, resume=True)
    assert same(weights(straight), weights(resumed))


def test_worker_processes_repeat_their_augmentation(tmp_path: Path) -> None:
    digits = load_data("digits", (1, 8, 8))
    digits = replace(digits, train=torch.utils.data.Subset(digits.train, range(40)))
    config = replace(CONFIG, epochs=1, workers=2)
    first, again, alone = tiny(classes=10), tiny(classes=10), tiny(classes=10)
    fit(first, digits, config, folder=tmp_path)
    fit(again, digits, config)
    assert same(weights(first), weights(again))
    fit(alone, digits, replace(config, workers=0), folder=tmp_path, resume=True)
    assert same(weights(first), weights(alone))  # how many workers is free when resuming


def test_resume_without_a_checkpoint_starts_at_the_beginning(data: Data, tmp_path: Path) -> None:
    first, again = tiny(), tiny()
    fit(first, data, CONFIG)
    fit(again, data, CONFIG, folder=tmp_path / "new", resume=True)
    assert same(weights(first), weights(again))
    with pytest.raises(UsageError, match="`resume` needs a `folder`"):
        fit(tiny(), data, CONFIG, resume=True)


def test_a_checkpoint_of_something_else(data: Data, tmp_path: Path) -> None:
    fit(tiny(), data, replace(CONFIG, epochs=1), folder=tmp_path)

    def again(**changes: Any) -> str:
        config = replace(CONFIG, **{"epochs": 1, **changes.pop("config", {})})
        arguments = {"model": tiny(), "data": data, **changes}
        with pytest.raises(UsageError) as caught:
            fit(config=config, folder=tmp_path, resume=True, **arguments)
        assert str(tmp_path / CHECKPOINT) in str(caught.value)
        return str(caught.value)

    assert "was made with `lr` 0.05, now it is 0.1; use the same" in again(config={"lr": 0.1})
    assert "`epochs` 1, now it is 2" in again(config={"epochs": 2})
    assert "`data` 'stripes', now it is 'other'" in again(data=replace(data, name="other"))
    assert "`rule`" in again(rule=Mask())
    assert "fc.weight is [3, 4] there and [4, 4] here" in again(model=tiny(classes=4))
    assert "another model: they differ in" in again(model=zoo.resnet20(3, 1))
    assert (
        fit(
            tiny(), data, replace(CONFIG, epochs=1, device="auto"), folder=tmp_path, resume=True
        ).steps
        == 4
    )  # where it runs is free


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "text", "foreign", "folder"])
def test_a_damaged_checkpoint_is_named(data: Data, tmp_path: Path, damage: str) -> None:
    from safetensors.torch import save_file

    path = tmp_path / CHECKPOINT
    config = replace(CONFIG, epochs=1)
    fit(tiny(), data, config, folder=tmp_path)
    content = bytearray(path.read_bytes())
    path.unlink()
    if damage == "foreign":
        save_file({"x": torch.zeros(2)}, path)
    elif damage == "folder":
        path.mkdir()
    else:
        content[-5] ^= 16
        cut = {
            "cut": bytes(content[:-9]),
            "flipped": bytes(content),
            "empty": b"",
            "text": b"hello",
        }
        path.write_bytes(cut[damage])
    with pytest.raises(FileError) as caught:
        fit(tiny(), data, config, folder=tmp_path, resume=True)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_full_disk_leaves_the_last_checkpoint(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(entry: dict[str, Any]) -> None:
        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "write_bytes", full)

    with pytest.raises(FileError, match=r"cannot write .*checkpoint.*: No space left on device"):
        fit(tiny(), data, CONFIG, folder=tmp_path, log=fill)
    monkeypatch.undo()
    assert [file.name for file in tmp_path.iterdir()] == [CHECKPOINT]
    model, straight = tiny(5), tiny()
    fit(model, data, CONFIG, folder=tmp_path, resume=True)
    fit(straight, data, CONFIG)
    assert same(weights(model), weights(straight))


def test_an_interrupt_after_the_checkpoint_waits_for_the_log(tmp_path: Path, data: Data) -> None:
    rows = []

    def log(row):
        if row["epoch"] == 2 and not rows[1:]:
            signal.raise_signal(signal.SIGINT)
        rows.append(row)

    with pytest.raises(KeyboardInterrupt):
        fit(tiny(), data, CONFIG, folder=tmp_path, log=log)
    assert [row["epoch"] for row in rows] == [1, 2]
    fit(tiny(), data, CONFIG, folder=tmp_path, resume=True, log=log)
    assert [row["epoch"] for row in rows] == [*range(1, CONFIG.epochs + 1)]


# --- several processes

SCRIPT = """
import atexit
import os
import sys
from dataclasses import replace
from pathlib import Path
import torch
from test_train import CONFIG, Mask, stripes, tiny, weights
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
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent), "CUDA_VISIBLE_DEVICES": ""},
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


class Viewed(nn.Module):
    """As many networks are written: `view` wants what a convolution gives in the usual order."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4 * 36, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu()
        found: Tensor = self.head(x.view(x.shape[0], -1))
        return found


def test_a_network_that_views_is_trained_and_evaluated() -> None:
    data = Data(stripes(70, 0), stripes(30, 1), 3, (1, 8, 8), "stripes")
    model = Viewed()
    found = fit(model, data, replace(CONFIG, epochs=2))
    assert found.accuracy == evaluate(model, data.val)


def test_a_label_above_the_outputs_is_named() -> None:
    with pytest.raises(DataError, match="a label is 7, and the model has 3 outputs"):
        loss_fn(Viewed(), (torch.rand(2, 1, 8, 8), torch.tensor([0, 7])))
