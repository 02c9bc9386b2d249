"""Networks as modules: built, slimmed, masked, folded, saved and loaded."""
