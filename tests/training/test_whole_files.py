"""Files of training/support/files.py: written whole or not at all."""

import json
import os

import pytest

from training.support.files import replacing, write_json, write_text


def test_the_file_changes_when_all_is_written(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with replacing(path) as partial:
        assert partial.parent == tmp_path  # a rename within one file system
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.txt"]


def write_half(path, error: BaseException) -> None:
    with replacing(path) as partial:
        partial.write_text("half")
        raise error


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file_and_no_part(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(type(error)):
        write_half(path, error)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_failure_leaves_nothing_where_there_was_nothing(tmp_path):
    with pytest.raises(KeyError):
        write_half(tmp_path / "a.txt", KeyError())
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("function", ["replace", "fsync"])
def test_a_text_that_cannot_be_put_in_place(tmp_path, monkeypatch, function):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, function, full)
        with pytest.raises(OSError, match="No space"):
            write_text(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]
    write_text(path, "new")
    assert path.read_text() == "new"


def test_json_is_strict_and_whole(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": [1.5, float("nan")], "b": {"c": (float("inf"), None)}})
    assert json.loads(path.read_text()) == {"a": [1.5, None], "b": {"c": [None, None]}}
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text())["a"] == [1.5, None]
    assert os.listdir(tmp_path) == ["a.json"]
