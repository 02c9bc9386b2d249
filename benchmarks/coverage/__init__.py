"""Architectures of public libraries: what can be pruned, and whether the result is right."""
