"""Numbers as a person reads them."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Seconds below a minute, then the two largest units."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def share(value: float) -> str:
    """A share of one as a percentage."""
    return f"{value:.1%}"


def plural(count: int, what: str) -> str:
    """``1 epoch``, ``2 epochs``."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def loss_text(loss: float) -> str:
    """A loss to four digits."""
    return f"{loss:.4g}"
