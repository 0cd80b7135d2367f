"""A file is replaced when the new one is complete, and never before."""

import pytest

from vla_jax.core import files


def test_folders_are_made_and_an_older_file_is_replaced(tmp_path):
    path = tmp_path / "a" / "b.json"
    files.write_text(path, "old")
    files.write_text(str(path), "né\n")
    assert path.read_text(encoding="utf-8") == "né\n"
    assert list(path.parent.iterdir()) == [path]


def test_what_cannot_be_written_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "b.json"
    files.write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        files.write_text(path, "\ud800")  # half a pair has no UTF-8
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
