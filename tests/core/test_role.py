"""A role is a small type, and a text in files."""

from __future__ import annotations

import pytest

from prunekit.core.role import BOTH, IN, OUT, SCALED_OUT, Role


def test_a_role_is_its_text_in_files():
    texts = ["out", "in", "both", "~out", "gamma.0", "relative.position.12", "#num_heads"]
    roles = [Role.parse(text) for text in texts]
    assert [str(role) for role in roles] == texts
    assert roles[:5] == [OUT, IN, BOTH, SCALED_OUT, Role.of_tensor("gamma", 0)]
    assert [role.is_output for role in roles] == [True, False, True, *[False] * 4]
    assert [role.makes_channels for role in roles] == [True, False, True, True, True, False, True]
    for text in ("", "#", "~in", "gamma", ".0", "gamma.x"):
        with pytest.raises(ValueError, match="is no role of channels in a module"):
            Role.parse(text)
