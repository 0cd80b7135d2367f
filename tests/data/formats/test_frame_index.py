"""The index of a split: built once, resumed, noticed to be stale, found where it lies."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from vla_jax.core.errors import DataError
from vla_jax.data.formats import frame_index, index_build
from vla_jax.data.formats.faults import FaultPolicy
from vla_jax.data.formats.rlds import RldsDataset


def shards_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if ".tfrecord" in path.name or ".array_record" in path.name)


@pytest.fixture
def copy(toy, tmp_path) -> Path:
    return Path(shutil.copytree(toy, tmp_path / "copy"))


@pytest.fixture
def read(monkeypatch) -> list[str]:
    """The names of the shards that were read, in order."""
    names = []
    build = index_build.build
    monkeypatch.setattr(index_build, "build", lambda shard, specs: names.append(shard.path.name) or build(shard, specs))
    return names


def test_an_index_is_built_once(copy, tmp_path, read):
    first = RldsDataset(copy, cache_folder=tmp_path / "cache")
    assert sorted(read) == [path.name for path in shards_of(copy)]
    read.clear()
    second = RldsDataset(copy, cache_folder=tmp_path / "cache")
    assert read == []
    np.testing.assert_array_equal(first.columns["action"], second.columns["action"])


def test_only_a_shard_that_changed_is_read_again(copy, tmp_path, read):
    before = RldsDataset(copy, cache_folder=tmp_path / "cache").columns["action"]
    read.clear()
    changed = shards_of(copy)[1]
    os.utime(changed, ns=(1, 1))
    np.testing.assert_array_equal(RldsDataset(copy, cache_folder=tmp_path / "cache").columns["action"], before)
    assert read == [changed.name]
    parts = list((tmp_path / "cache").rglob("*.npz"))
    assert len(parts) == len(shards_of(copy))  # the old state's part is gone


def test_a_build_that_was_interrupted_goes_on(copy, tmp_path, read, monkeypatch):
    whole = RldsDataset(copy, cache_folder=tmp_path / "other").columns["action"]
    read.clear()

    def interrupt(done: int, total: int) -> None:
        assert total == len(shards_of(copy))
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        RldsDataset(copy, cache_folder=tmp_path / "cache", progress=interrupt)
    told = []
    resumed = RldsDataset(copy, cache_folder=tmp_path / "cache", progress=lambda *counts: told.append(counts))
    assert sorted(read) == [path.name for path in shards_of(copy)]  # each exactly once
    total = len(shards_of(copy))
    assert told == [(done, total) for done in range(2, total + 1)]
    np.testing.assert_array_equal(resumed.columns["action"], whole)
    assert not list((tmp_path / "cache").rglob("*.incomplete"))


def test_an_index_beside_the_data_moves_with_them(copy, tmp_path, read):
    RldsDataset(copy, index_beside_data=True, cache_folder=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    read.clear()
    moved = copy.rename(tmp_path / "moved")
    assert RldsDataset(moved, cache_folder=tmp_path / "cache").num_frames == 16
    assert read == []


def test_an_index_of_more_features_serves_fewer(copy, tmp_path, read):
    RldsDataset(copy, cache_folder=tmp_path / "cache")
    read.clear()
    few = RldsDataset(copy, names=("action", "language_instruction"), cache_folder=tmp_path / "cache")
    assert read == [] and set(few.columns) == {"action"}
    assert few.texts("language_instruction") == ("instruction 0", "instruction 1")


def test_other_features_are_another_index(copy, tmp_path, read):
    RldsDataset(copy, names=("action",), cache_folder=tmp_path / "cache")
    read.clear()
    both = RldsDataset(copy, names=("action", "reward"), cache_folder=tmp_path / "cache")
    assert len(read) == len(shards_of(copy)) and set(both.columns) == {"action", "reward"}
    read.clear()
    RldsDataset(copy, names=("action",), cache_folder=tmp_path / "cache")  # the first one is still there
    assert read == []


def test_worker_processes_find_what_this_process_finds(copy, tmp_path, monkeypatch):
    alone = RldsDataset(copy, cache_folder=tmp_path / "alone", num_workers=1)
    monkeypatch.setattr(frame_index, "_BYTES_WITHOUT_WORKERS", 0)
    before = sorted(os.listdir("/dev/shm"))
    told = []
    spread = RldsDataset(
        copy, cache_folder=tmp_path / "spread", num_workers=2, progress=lambda *counts: told.append(counts)
    )
    assert told[-1] == (len(shards_of(copy)),) * 2
    assert sorted(os.listdir("/dev/shm")) == before
    for i in range(len(alone)):
        one, other = alone.episode(i), spread.episode(i)
        assert one.metadata == other.metadata
        for name, value in one.steps.items():
            np.testing.assert_array_equal(other.steps[name], value, err_msg=name)


def test_faults_are_remembered_with_the_index(copy, tmp_path, read):
    shards_of(copy)[0].unlink()
    first = RldsDataset(copy, cache_folder=tmp_path / "cache").faults.faults
    read.clear()
    again = RldsDataset(copy, cache_folder=tmp_path / "cache")
    assert read == []
    assert again.faults.faults == first and again.faults.counts() == {"missing file": 1}
    with pytest.raises(DataError, match="missing file"):
        RldsDataset(copy, cache_folder=tmp_path / "cache", faults=FaultPolicy(strict=True))
