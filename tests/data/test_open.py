import numpy as np
import pytest

from tests.data.formats.toy_lerobot import write_v2
from vla_jax.core.errors import DataError
from vla_jax.data.formats.episodes import EpisodeDataset
from vla_jax.data.formats.faults import FaultPolicy
from vla_jax.data.formats.lerobot import LeRobotDataset
from vla_jax.data.formats.rlds import RldsDataset
from vla_jax.data.open import open_dataset


def test_the_format_is_found_by_what_the_folder_holds(tmp_path, toy_folder):
    names, strict = ("action",), FaultPolicy(strict=True)
    rlds = open_dataset(toy_folder, "train", names=names, cache_folder=tmp_path / "cache", faults=strict)
    lerobot = open_dataset(write_v2(tmp_path / "v2"), "all", names=names, faults=strict)
    assert (type(rlds), type(lerobot)) == (RldsDataset, LeRobotDataset)
    for dataset in (rlds, lerobot):
        assert isinstance(dataset, EpisodeDataset)
        assert list(dataset.specs) == ["action"]
        assert dataset.faults.policy == strict
        assert np.isfinite(dataset.columns["action"]).all()
    assert list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize(
    ("make", "found", "fix"),
    [
        (lambda folder: None, "no such folder", "version folder"),
        (lambda folder: folder.mkdir(), "an empty folder", "version folder"),
        (lambda folder: folder.write_text(""), "a file", "version folder"),
        (lambda folder: write_v2(folder / "pusht"), "pusht", "did you mean .*pusht?"),
        (lambda folder: (folder / "features.json").mkdir(parents=True), "features.json", "version folder"),
    ],
)
def test_an_error_says_what_was_looked_for_and_what_is_there(tmp_path, make, found, fix):
    make(tmp_path / "set")
    with pytest.raises(DataError, match=fix) as raised:
        open_dataset(tmp_path / "set")
    assert "dataset_info.json (RLDS) or meta/info.json (LeRobot)" in str(raised.value)
    assert found in str(raised.value)


def test_an_rlds_set_two_folders_down_is_pointed_at(tmp_path, toy_folder):
    (tmp_path / "toy").symlink_to(toy_folder.parent)
    for folder in (tmp_path, tmp_path / "toy"):
        with pytest.raises(DataError, match=r"did you mean .*1\.0\.0"):
            open_dataset(folder)
