"""The latency tables that come with the package."""

from __future__ import annotations

from pathlib import Path

FOLDERS = (
    Path(__file__).parent.parent / "latency_tables",
    Path(__file__).parent.parent.parent / "latency_tables",
)
"""In an installed package, and in a checkout."""


def shipped_tables() -> list[Path]:
    """Their files, by name."""
    folder = next((folder for folder in FOLDERS if folder.is_dir()), None)
    return sorted(folder.glob("*.json")) if folder is not None else []


def find_table(name: str | Path) -> Path:
    """A file as it is; else the shipped table of that name, with or without ``.json``.

    Examples:
        >>> find_table("resnet18-openvino_cpu-b1").name
        'resnet18-openvino_cpu-b1.json'
    """
    path = Path(name)
    if path.exists():
        return path
    known = {table.stem: table for table in shipped_tables()}
    return known.get(str(name).removesuffix(".json"), path)
