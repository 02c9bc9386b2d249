"""Profiles taken up again: as what they were, and where the journal is damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prunekit.profiling.journal import Journal
from prunekit.profiling.rounds import Round
from support.commands import ON_FAKE, Says
from support.devices import Be, Silent


def test_a_fallback_is_resumed_as_what_it_is(device: Be, prunekit: Says, home: Path):
    device(Silent)
    journal = home / "t.json.journal.jsonl"
    command = ("profile", "net.py:tiny", *ON_FAKE, "--rounds", 1, "-o", "t.json")
    kept = []
    append = Journal.append

    def stop(own: Journal, row: Round) -> None:
        append(own, row)
        kept.append(journal.read_text())
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "append", stop)
        assert prunekit(*command)[0] == 130
    assert '"source": "differences"' in kept[0]
    status, _, err = prunekit(*command, "--resume", "--nets", 30)
    assert status == 2  # other networks than the journal's
    assert "`nets` was 24 and is 30 now" in err
    status, _, err = prunekit(*command, "--resume")
    assert status == 0
    assert "profile: 1 rounds taken from" in err


@pytest.mark.parametrize(
    ("line", "damage"),
    [
        (0, "123"),
        (1, "123"),
        (1, '{"round": 3}'),
        (0, {"probe": {"granularity": "wide"}}),
        (0, {"source": "guess"}),
    ],
)
def test_a_damaged_journal_is_named(line, damage, prunekit: Says, home: Path):
    journal = home / "t.json.journal.jsonl"
    command = ("profile", "net.py:tiny", *ON_FAKE, "--nets", 4, "--rounds", 3, "-o", "t.json")
    append = Journal.append

    def stop(own: Journal, row: Round) -> None:
        append(own, row)
        if row.round == 1:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "append", stop)
        assert prunekit(*command)[0] == 130
    lines = journal.read_text().splitlines()
    head = json.loads(lines[0])
    lines[line] = damage if isinstance(damage, str) else json.dumps(head | damage)
    journal.write_text("\n".join(lines) + "\n")
    status, _, err = prunekit(*command, "--resume")
    assert status == 2
    said = f"damaged at line {line + 1}; remove it to start again"
    assert err.splitlines()[-1] == f"prunekit: journal t.json.journal.jsonl is {said}"
    assert journal.exists()
