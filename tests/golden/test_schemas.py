"""The schema of every file that is written: as recorded in schemas.json.

Field names, types and defaults, and the kind and version in the head. What a name stands
for is in :data:`FILES` alone. `python tests/golden/record.py schemas` records them anew.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import recorded

FILE = "schemas.json"


class Written(NamedTuple):
    """A file's type, its kind and its version: where they are, or what they are."""

    type: str
    kind: str = ""
    version: str | int = 0


FILES = {
    "report.json": Written(
        "prunekit.report.schema:Report", "report", "prunekit.report.schema:REPORT_VERSION"
    ),
    "report.json of a sparse run": Written(
        "prunekit.report.sparsity:SparsityReport",
        "prunekit.report.sparsity:KIND",
        "prunekit.report.sparsity:SPARSITY_REPORT_VERSION",
    ),
    "plan.json": Written(
        "prunekit.core.plan:ChannelPlan", "plan", "prunekit.core.plan:PLAN_VERSION"
    ),
    "sparsity.json": Written(
        "prunekit.core.sparsity:SparsityPlan", "sparsity", "prunekit.core.sparsity:SPARSITY_VERSION"
    ),
    "table.json": Written(
        "prunekit.latency.table:LatencyTable",
        "latency table",
        "prunekit.latency.table:TABLE_VERSION",
    ),
    "sweep.json": Written("prunekit.report.sweep:Sweep", "sweep", 1),
    "work/landing.json": Written("prunekit.pipeline.landing:Landing", "landing", 1),
    "config.toml": Written("prunekit.pipeline.recipes.prune:Recipe"),
    "config.toml of a sparse run": Written("prunekit.pipeline.recipes.sparsify:SparseRecipe"),
    "model.engine.json": Written(
        "prunekit.runtimes.tensorrt.files:EngineFacts",
        "prunekit.runtimes.tensorrt.files:KIND",
        "prunekit.runtimes.sidecar:VERSION",
    ),
    "model.pt2.json": Written(
        "prunekit.runtimes.torch.package:PackageFacts",
        "prunekit.runtimes.torch.package:KIND",
        "prunekit.runtimes.sidecar:VERSION",
    ),
    "table diff --json": Written("prunekit.latency.comparing:TableDiff"),
}
"""Files by what they are called. Those without a kind have no head."""
VERSIONS = {
    "profile.jsonl": "prunekit.profiling.journal:JOURNAL_VERSION",
    "checkpoint.safetensors": "prunekit.train.checkpoint:_VERSION",
}
"""Of files whose fields no type lists."""
ROWS = {"profile.jsonl": "prunekit.profiling.rounds:Round"}
"""What every line of them has."""
LINE_TYPES = {"array": ["list"], "number": ["int", "float"]}


def _value(where: str | int) -> Any:
    return recorded.found(where) if isinstance(where, str) and ":" in where else where


def bare(schema: Any, *, named: bool = False) -> Any:
    """Keys in order, without titles and descriptions; ``named``: keys are names of fields."""
    if isinstance(schema, dict):
        return {
            key: bare(schema[key], named=key in ("properties", "$defs") and not named)
            for key in sorted(schema)
            if named or key not in ("title", "description")
        }
    return [bare(part) for part in schema] if isinstance(schema, list) else schema


def schemas() -> dict[str, Any]:
    """By file and by type, a type's fields one a line."""
    from pydantic import TypeAdapter

    found: dict[str, Any] = {}
    for file, written in FILES.items():
        cls = recorded.found(written.type)
        schema = bare(TypeAdapter(cls).json_schema(mode="validation"))
        head = {"kind": _value(written.kind), "version": _value(written.version)}
        found[f"{file} (head)"] = head if written.kind else None
        for name, part in {"": schema, **schema.pop("$defs", {})}.items():
            where = f"{file} {name}".rstrip()
            fields = part.pop("properties", {})
            found[where] = part
            found |= {f"{where}.{field}": facts for field, facts in fields.items()}
    for file, where in VERSIONS.items():
        found[file] = {"version": _value(where)}
    for file, where in ROWS.items():
        line = TypeAdapter(recorded.found(where)).json_schema(mode="validation")
        for field in line["required"]:
            found[f"{file} {field}"] = LINE_TYPES[line["properties"][field]["type"]]
    return dict(sorted(found.items()))


def record() -> None:
    recorded.write(FILE, schemas(), depth=1)


def test_schemas_are_as_recorded() -> None:
    recorded.check(FILE, schemas())
