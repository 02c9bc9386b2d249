"""What tests share: networks, data, doubles, loops. Tests of `prunekit.support` lie here too."""

import os
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent

if "pytest" in sys.modules:  # what fails in here is shown as in a test
    sys.modules["pytest"].register_assert_rewrite(
        *(f"{__name__}.{path.stem}" for path in Path(__file__).parent.glob("[!_]*.py"))
    )


def environment(**more: str) -> dict[str, str]:
    """For a process of its own in which `support` can be imported."""
    paths = (str(TESTS), os.environ.get("PYTHONPATH", ""))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **more}
