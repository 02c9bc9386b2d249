"""What each operator does with the identities of channels: one small function per kind.

An operator that is in none of these modules freezes what it touches.
"""

from prunekit.tracing.operators import movement, norms, pointwise, products, sums

__all__ = ["movement", "norms", "pointwise", "products", "sums"]
