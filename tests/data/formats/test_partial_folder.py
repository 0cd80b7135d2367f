"""What a stopped writer left, and to whom it is of use."""

import pytest

from vla_jax.core.errors import DataError
from vla_jax.data.formats.partial_folder import PartialFolder


def write(tmp_path, identity="a"):
    """One file finished, another not."""
    folder = PartialFolder(tmp_path / "out", identity)
    assert folder.begin() == {}
    (folder.path / "deep").mkdir()
    (folder.path / "deep" / "first").write_text("whole")
    folder.keep({"next": 3})
    (folder.path / "second").write_text("hal")
    return folder


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_finished_files_stay_and_the_rest_goes(tmp_path):
    write(tmp_path).abandon()
    again = PartialFolder(tmp_path / "out", "a")
    assert again.begin() == {"next": 3}
    assert names(again.path) == ["deep/first", "progress.json"]
    (again.path / "second").write_text("whole")
    (tmp_path / "out").mkdir()  # an empty folder may stand in the way
    again.complete()
    assert names(tmp_path) == ["out/deep/first", "out/second"]


@pytest.mark.parametrize("change", ["identity", "no identity", "cut file", "lost file"])
def test_what_is_of_no_use_is_removed(tmp_path, change):
    left = write(tmp_path)
    if change == "cut file":
        (left.path / "deep" / "first").write_text("who")
    if change == "lost file":
        (left.path / "deep" / "first").unlink()
    again = PartialFolder(tmp_path / "out", {"identity": "b", "no identity": None}.get(change, "a"))
    assert again.begin() == {} and names(again.path) == []


def test_where_nothing_is_finished_nothing_stays(tmp_path):
    for identity in ("a", None):
        folder = PartialFolder(tmp_path / "out", identity)
        folder.begin()
        (folder.path / "first").write_text("hal")
        if identity is None:
            folder.keep({"next": 3})  # nobody could go on with it
        folder.abandon()
        assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="never written over"):
        PartialFolder(tmp_path)
