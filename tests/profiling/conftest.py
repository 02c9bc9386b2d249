"""In tests of profiles the fake device has no noise, and no probe of it is remembered."""

from collections.abc import Callable

import pytest

from prunekit.profiling import probing


@pytest.fixture(autouse=True)
def device(device: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    monkeypatch.setattr(probing, "_known", {})
    return device
