"""A table that comes with the package instead of a profile."""

from dataclasses import replace

import pytest

from prunekit.latency import LatencyTable
from prunekit.pipeline import shipped_table
from prunekit.pipeline.job import set_up
from prunekit.pipeline.prune import prune
from prunekit.pipeline.recipes.prune import make_recipe
from prunekit.runtimes.fake import Fake

SETTINGS = {
    "model": "net.py:tiny",
    "input": "1x1x8x8",
    "target": "fake",
    "epochs": 0,
    "target_latency": "65%",
}
ISA = ("avx2",)


@pytest.fixture
def shipped(home, monkeypatch):
    """A table for the tiny network, of a processor with the same instruction sets."""
    table = LatencyTable.load(home / "table.json")
    path = home / "tiny-fake_cpu-b1.json"
    other = replace(table.environment, device_name="another device", isa=ISA)
    replace(table, environment=other).save(path)
    environment = Fake.environment
    monkeypatch.setattr(
        Fake, "environment", lambda self, target: replace(environment(self, target), isa=ISA)
    )
    monkeypatch.setattr(shipped_table, "shipped_tables", lambda: [path])
    return path


def run(home, **settings):
    return prune(set_up(make_recipe({**SETTINGS, **settings})), home / "out")


def test_it_is_calibrated_by_a_few_networks(home, shipped):
    report = run(home, profile_error="30%")
    assert report.latency.met
    assert report.table.source.startswith("transfer from another device")
    assert report.table.nets == 5
    assert not (home / "out" / "work").exists()


def test_a_profile_is_made_where_that_is_asked_for(home, shipped):
    report = run(home, shipped=False)
    assert report.table.source == "harvest"
    assert report.latency.met


def test_a_table_that_is_too_far_off_here_is_not_taken(home, shipped, monkeypatch):
    real = shipped_table.make_table

    def far_off(*rest, **settings):
        table = real(*rest, **settings)
        return replace(table, calibration=replace(table.calibration, mape=0.2))

    monkeypatch.setattr(shipped_table, "make_table", far_off)
    report = run(home)
    assert report.table.source == "harvest"
    assert report.latency.met


def test_other_processors_layers_and_damaged_tables_are_passed_over(home, shipped):
    table = LatencyTable.load(shipped)
    replace(table, environment=replace(table.environment, isa=("avx512f",))).save(shipped)
    assert run(home).table.source == "harvest"
    shipped.write_text("{")
    job = set_up(make_recipe(SETTINGS))
    assert shipped_table._origin(job) is None


def test_a_profile_ends_by_its_error(home):
    soon = run(home, shipped=False, profile_error="50%")
    assert soon.table.rounds == 2


def test_a_profile_has_all_rounds_where_its_error_does_not_matter(home):
    assert run(home, shipped=False, profile_error="0%").table.rounds > 2
