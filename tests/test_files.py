"""Files are there whole or not at all, whatever stops their writing."""

from contextlib import ExitStack

import pytest

from mlx_phi4.errors import ConfigError
from mlx_phi4.files import read_json, write_whole


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_once_it_is_complete_and_replaces_the_old_one(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with write_whole(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old" and partial.name.startswith(".") and partial.parent == tmp_path
    assert path.read_text() == "new" and names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("stop", [OSError, ValueError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, stop):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(stop), write_whole(path) as partial:
        partial.write_text("half")
        raise stop
    assert path.read_text() == "old" and names(tmp_path) == ["a.txt"]


def test_a_rename_that_fails_leaves_nothing(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError), write_whole(tmp_path / "folder") as partial:
        partial.write_text("whole")
    assert names(tmp_path) == ["folder"]


def test_several_files_appear_together(tmp_path):
    paths = [tmp_path / name for name in ("a.srt", "a.vtt")]
    with ExitStack() as stack:
        for path in paths:
            stack.enter_context(write_whole(path)).write_text(path.suffix)
            assert not any(other.exists() for other in paths)
    assert names(tmp_path) == ["a.srt", "a.vtt"]
    with pytest.raises(OSError), ExitStack() as stack:
        for path in paths:
            stack.enter_context(write_whole(path)).write_text("again")
        raise OSError
    assert [path.read_text() for path in paths] == [".srt", ".vtt"] and names(tmp_path) == ["a.srt", "a.vtt"]


@pytest.mark.parametrize(
    ("text", "message"), [(None, "is missing"), ("{", "cannot be read"), ("[1]", "cannot be read: it holds a list")]
)
def test_what_is_no_json_object_is_refused_by_name(tmp_path, text, message):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=rf"config\.json {message}"):
        read_json(tmp_path / "config.json")
