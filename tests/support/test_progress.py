"""Long work says where it is."""

import pytest


def test_long_work_says_where_it_is_on_a_pipe(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from prunekit.support import progress

    monkeypatch.setattr(progress.verbosity, "level", 0)
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    with progress.bar("walking", 2) as shown:
        shown.advance(1, "half way")
    assert capsys.readouterr().err == "walking: 1/2 (half way)\nwalking: done (half way)\n"
    monkeypatch.setattr(progress, "LINE_SECONDS", 10.0)
    assert list(progress.track(range(3), "counting", 3)) == [0, 1, 2]
    assert capsys.readouterr().err == "counting: done\n"
    monkeypatch.setattr(progress.verbosity, "level", -1)
    with progress.bar("quiet", 1):
        pass
    assert capsys.readouterr().err == ""
