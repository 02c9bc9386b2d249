"""The table of handlers: what is known of each aten operator."""

from __future__ import annotations

from collections.abc import Callable

from prunekit.tracing.calls import Call
from prunekit.tracing.labels import Labels

Handler = Callable[[Labels, Call], None]
HANDLERS: dict[str, Handler] = {}


def handles(names: str) -> Callable[[Handler], Handler]:
    """Register a handler for aten operators (names between spaces), in-place forms included."""

    def register(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(names.split(), handler))
        return handler

    return register
