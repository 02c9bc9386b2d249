"""States of methods: every field is saved, under the names that files have always had."""

import json
from dataclasses import dataclass, field
from typing import Literal

import pytest
import torch

import prunekit as pk
from prunekit.pruning.iee_schedule import IEESchedule
from prunekit.sparsify import SparsitySchedule
from prunekit.train.method_state import (
    UNSAVED,
    ByParameter,
    BySlot,
    Named,
    Numbered,
    Saved,
    forms_of,
    read,
    write,
)
from pruning.test_halp import Training as HalpLoop
from support.iee_loop import Loop as ChannelLoop
from support.sparse_loop import Loop as WeightLoop


@dataclass
class State:
    stage: Literal["one", "two"] = "one"
    done: int = 0
    share: float = 0.0
    parts: list[torch.Tensor] = field(default_factory=list)
    values: dict[str, torch.Tensor] = field(default_factory=dict)
    momentum: dict = field(default_factory=dict)
    slots: list[dict] = field(default_factory=list)
    derived: list[int] = field(default_factory=list, metadata=UNSAVED)


SPECIAL = {
    "parts": Numbered("part"),
    "values": Named("value"),
    "momentum": ByParameter("momentum"),
    "slots": BySlot("slot"),
}
FORMS = forms_of(State, SPECIAL)


def test_a_state_comes_back_from_its_saved_form():
    step, average = torch.tensor(3.0), torch.ones(2)
    state = State(
        stage="two",
        done=7,
        share=0.1 + 0.2,
        parts=[torch.arange(3), torch.tensor([True])],
        values={"a.weight": torch.zeros(2)},
        momentum={"a.weight": {"step": step, "avg": average, "lr": 0.5, "gone": None}},
        slots=[{}, {"step": step, "count": 4}],
        derived=[1],
    )
    saved = Saved.empty()
    write(state, saved, FORMS)
    assert {*saved.tensors} == {
        *("part.0", "part.1", "value.a.weight", "slot.1.step"),
        *("momentum.step.a.weight", "momentum.avg.a.weight"),
    }
    back = State()
    read(back, Saved(saved.tensors, json.loads(json.dumps(saved.facts))), FORMS)
    assert (back.stage, back.done, back.share, back.derived) == ("two", 7, 0.1 + 0.2, [])
    assert [part.tolist() for part in back.parts] == [[0, 1, 2], [True]]
    assert torch.equal(back.values["a.weight"], torch.zeros(2))
    assert back.momentum["a.weight"].keys() == {"step", "avg", "lr"}
    assert back.momentum["a.weight"]["lr"] == 0.5
    assert back.slots[0] == {}
    assert back.slots[1] == {"step": step, "count": 4}
    back.parts[0][0] = 9  # what was loaded stays the caller's
    back.momentum["a.weight"]["avg"][0] = 9
    assert saved.tensors["part.0"][0] == 0
    assert average[0] == 1


def test_a_field_that_nobody_says_how_to_save_is_an_error():
    with pytest.raises(TypeError, match=r"in which form State\.parts is saved"):
        forms_of(State, {name: form for name, form in SPECIAL.items() if name != "parts"})


IEE = {
    *("settings", "stage", "numbers", "left", "done", "cycle", "stretch", "work", "keep"),
    *("predicted", "wide", "before", "kept_scores", "scoreless", "history"),
}
SPARSE = {
    *("settings", "stage", "left", "done", "cycle", "waited", "omega", "work", "weights"),
    *("scored", "record"),
}


def kinds(state):
    """The first parts of the names of all tensors, and the names of all facts."""
    tensors, facts = state
    return {name.partition(".")[0] for name in tensors}, {*facts}


def test_saved_states_have_the_names_that_files_have_always_had():
    loop = ChannelLoop(source="mru", optimizer="adamw").until("explore")
    names, facts = kinds(loop.iee.state())
    assert names == {"small", "wide", "mru", "state", "small_state"}
    assert facts == IEE | {"batches", "sums"}
    assert kinds(loop.until("final").iee.state())[1] == IEE

    loop = WeightLoop("iee", grow="mru", momentum="kept", optimizer="adamw", criterion=pk.Taylor())
    loop.until("explore").until("train").until("explore").step()
    names, facts = kinds(loop.sparse.state())
    structures = {"mask", "before", "left", "grown", "ever"}
    explored = {"asleep", "recent", "awake", "buffer", "held", "slept"}
    assert names == structures | explored | {"sum"}
    assert facts == SPARSE | {"states"}
    loop = WeightLoop("rigl")
    while loop.sparse._state.left > 1:
        loop.step()
    assert kinds(loop.sparse.state()) == ({"mask", "before", "left"}, SPARSE)

    loop = HalpLoop()
    loop.run(5)
    names, facts = kinds(loop.rule.state())
    assert names == {"sum", "last", "first", "known", "before"}
    batches = {"batches", "last_batches", "first_batches", "known_batches"}
    assert facts == {*batches, "keep", "predicted"}


def test_the_schedule_says_what_comes_next():
    schedule = IEESchedule(100, warmup=4, estimate=5, improve=3, explore=2, until=0.5)
    assert schedule.first_stage == ("warm-up", 4)
    course, stage = [], "warm-up"
    for _ in range(4):
        stage, steps = schedule.stage_after(stage, 2)
        course.append((stage, steps))
    assert course == [("estimate", 10), ("improve", 6), ("explore", 2), ("estimate", 10)]
    short = IEESchedule(100, warmup=0, estimate=5, improve=0, explore=2, until=0.5)
    assert short.first_stage == ("estimate", 5)
    assert short.stage_after("estimate", 1) == ("explore", 2)
    assert [schedule.fitting(8, done) for done in (0, 20, 40, 41)] == [4, 2, 1, 0]
    assert schedule.stretch_after(4, 1.0) == 1  # not adaptive
    adaptive = IEESchedule(100, adaptive=True)
    assert [adaptive.stretch_after(4, iou) for iou in (0.94, 0.95)] == [1, 8]
    assert adaptive.stretch_after(8, 1.0) == 8


def test_exchanges_of_weights_end_by_time_or_by_overlap():
    schedule = SparsitySchedule(100, every=10, explore=10, until=0.5, stop_iou=0.8)
    assert not schedule.ends(30, 0.79, exploring=True)
    assert schedule.ends(31, 0.0, exploring=True)
    assert schedule.ends(0, 0.8, exploring=True)
    assert not schedule.ends(40, 0.0, exploring=False)
    assert not SparsitySchedule(100, every=10).ends(0, 1.0, exploring=False)  # never by overlap
