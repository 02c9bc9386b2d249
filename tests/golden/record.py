"""Record what must not change: `python tests/golden/record.py [names flags schemas traces]`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # the package of this tree, not an installed one

import test_flags
import test_public_names
import test_schemas
import test_traces

PARTS = {
    "names": test_public_names.record,
    "flags": test_flags.record,
    "schemas": test_schemas.record,
    "traces": test_traces.record,
}

if __name__ == "__main__":
    for part in sys.argv[1:] or PARTS:
        PARTS[part]()
