"""Commands that must be refused before any work."""

from collections.abc import Callable
from pathlib import Path

from support.commands import ON_FAKE

TABLE = ("--table", "table.json")
QUICK = (*ON_FAKE, *TABLE, "--epochs", 0, "--target-latency", "65%")
PRUNE = ("prune", "net.py:tiny", *QUICK)

Refuses = Callable[..., str]


def tree(root: Path) -> dict[str, bytes]:
    skipped = ("__pycache__", ".pytest_cache")
    return {
        str(p.relative_to(root)): p.read_bytes() if p.is_file() else b""
        for p in sorted(root.rglob("*"))
        if not any(part in skipped for part in p.parts)
    }


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
