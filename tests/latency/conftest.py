"""Networks are exported once for all tests of tables."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from prunekit.core.artifact import Artifact


@pytest.fixture(autouse=True)
def _quick(exported_once: Callable[..., Artifact], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["prunekit.exporting.candidate"], "export", exported_once)
