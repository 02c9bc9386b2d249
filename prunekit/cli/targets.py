"""``prunekit targets``."""

from __future__ import annotations

from dataclasses import asdict, replace

from prunekit.cli.common import Json, Quiet, Verbose, print_json, print_table, set_verbosity


def targets(json: Json = False, verbose: Verbose = False, quiet: Quiet = False) -> None:
    """List runtimes and devices here; why one is unavailable."""
    set_verbosity(verbose, quiet)
    from prunekit.core.target import Target
    from prunekit.runtimes import Runtime
    from prunekit.support.registry import runtimes

    rows = []
    for name in runtimes.names():
        runtime: Runtime = runtimes.get(name)()
        for device in runtime.devices:
            target = Target(name, device)
            reason = runtime.unavailable(target)
            environment = None if reason else runtime.environment(target)
            rows.append(
                {
                    "target": str(target),
                    "available": reason is None,
                    "reason": reason or "",
                    "precisions": [
                        precision
                        for precision in runtime.precisions
                        if reason or not runtime.unavailable(replace(target, precision=precision))
                    ],
                    "granularity": None if reason else runtime.granularity(target),
                    "environment": None if environment is None else asdict(environment),
                }
            )
    if json:
        print_json({"targets": rows})
        return
    print_table(
        "targets",
        ("target", "available", "precisions", "granularity", "device, or why not"),
        [
            (
                str(row["target"]),
                "yes" if row["available"] else "no",
                ", ".join(row["precisions"]),  # type: ignore[arg-type]
                str(row["granularity"] or ""),
                str(row["reason"])
                or f"{row['environment']['device_name']}, "  # type: ignore[index]
                f"{row['environment']['runtime_version']}",  # type: ignore[index]
            )
            for row in rows
        ],
    )
