"""Files are there whole or not at all, whatever stops their writing."""

import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from mlx_phi4.errors import ConfigError
from mlx_phi4.files import expanded, read_json, taken, why_not_file, write_whole


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


def test_links_stay_and_devices_and_pipes_are_written_to(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there/file")
    for text in ("new", "newer"):
        with write_whole(tmp_path / "link") as partial:
            partial.write_text(text)
        assert (tmp_path / "link").is_symlink() and (tmp_path / "there/file").read_text() == text
    for device in ("/dev/null", "/dev/fd/1"):
        with write_whole(Path(device)) as partial:
            assert partial == Path(device)
    os.mkfifo(tmp_path / "pipe")
    with write_whole(tmp_path / "pipe") as partial:
        assert partial == tmp_path / "pipe"
    assert names(tmp_path) == ["link", "pipe", "there"] and names(tmp_path / "there") == ["file"]


def test_what_was_private_stays_so_and_the_longest_names_can_be_written(tmp_path):
    path = tmp_path / ("x" * 255)
    with write_whole(path) as partial:
        partial.write_text("old")
    path.chmod(0o600)
    with write_whole(path) as partial:
        partial.write_text("new")
    assert path.read_text() == "new" and path.stat().st_mode & 0o777 == 0o600


def test_paths_as_people_give_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert expanded("~") == Path.home() and expanded("a/~b") == Path("a/~b")
    assert expanded("~nobody-here/x") == tmp_path / "~nobody-here/x"  # a name like any other
    reasons = {"none": "no such file", ".": "is a folder", "x" * 300: "File name too long", "a\0": "embedded null byte"}
    assert {given: why_not_file(Path(given)) for given in reasons} == reasons
    (tmp_path / "full").write_text("x"), (tmp_path / "empty").touch()
    there = ("full", "empty", "none", "x" * 300, "a\0", "/dev/null", ".")
    assert [given for given in there if taken(Path(given))] == ["full"]


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
