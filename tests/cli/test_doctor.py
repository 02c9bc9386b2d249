"""`prunekit doctor`: one page that may be shown to anybody."""

import json
from pathlib import Path

from support.commands import SHAPE, Says

SECRET = """
from torch import nn
class SecretBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.project_x, self.rest = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
    def forward(self, x):
        x = self.project_x(x)
        return self.rest(x) + x.sort(1)[0]
"""


def test_a_page(prunekit: Says, home: Path) -> None:
    status, out, err = prunekit("doctor", "net.py:tiny", *SHAPE)
    assert (status, err) == (0, "")
    wanted = ("- versions: prunekit ", "torch 2", "- input: 1x1x8x8 float32", "conv", "% of MACs")
    for text in wanted:
        assert text in out
    for step in ("trace", "slim", "export", "export of the slim network"):
        assert f"- {step}: done (" in out
    status, out, _ = prunekit("doctor", "net.py:tiny", *SHAPE, "--json")
    assert json.loads(out)["outcomes"]["export"] == "done"


def test_no_names_of_the_users(prunekit: Says, home: Path) -> None:
    (home / "hidden.py").write_text(SECRET)
    status, out, _ = prunekit("doctor", "hidden.py:SecretBlock", *SHAPE)
    assert status == 0
    assert "stays" in out
    for name in ("SecretBlock", "project_x", "hidden", str(home)):
        assert name not in out


def test_what_is_refused_is_part_of_the_page(prunekit: Says, home: Path) -> None:
    (home / "hidden.py").write_text(SECRET)
    status, out, _ = prunekit("doctor", "hidden.py:SecretBlock", "--input", "1x3x8x8")
    assert status == 0
    assert "- trace: refused: " in out
