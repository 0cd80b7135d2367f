"""Damage of every kind: skipped and counted by default, the end of the run under `strict`."""

import json
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from array_record.python import array_record_module

from tests.data.toy_rlds import LENGTHS, make_episode, toy_features
from vla_jax.core.errors import DataError
from vla_jax.data.formats import image_codec
from vla_jax.data.formats.faults import Fault, FaultPolicy
from vla_jax.data.formats.features import Episode
from vla_jax.data.formats.records import RecordReader, Shard, scan
from vla_jax.data.formats.rlds import RldsDataset
from vla_jax.data.formats.rlds_writer import RldsWriter

TOTAL = sum(LENGTHS)


@pytest.fixture
def copy(toy, tmp_path) -> Path:
    return Path(shutil.copytree(toy, tmp_path / "copy"))


def first_shard(folder: Path) -> Path:
    return next(path for path in sorted(folder.iterdir()) if "-00000-of-" in path.name)


def frames_of(folder: Path, shard: int) -> int:
    """Frames that the records of a shard hold, from the file's own count of episodes."""
    lengths = [int(n) for n in json.loads((folder / "dataset_info.json").read_text())["splits"][0]["shardLengths"]]
    start = sum(lengths[:shard])
    return sum(LENGTHS[start : start + lengths[shard]])


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0xFF
    path.write_bytes(data)


def first_picture(path: Path) -> int:
    return path.read_bytes().index(b"\xff\xd8") + 10


def corrupt_record(folder: Path) -> int:
    """Damage one record; returns the frames that must remain."""
    flip(first_shard(folder), first_picture(first_shard(folder)))
    return TOTAL - LENGTHS[0]


def truncated_shard(folder: Path) -> int:
    path = first_shard(folder)
    os.truncate(path, path.stat().st_size // 2 if "array_record" in path.name else path.stat().st_size - 3)
    episodes = int(json.loads((folder / "dataset_info.json").read_text())["splits"][0]["shardLengths"][0])
    # ArrayRecord keeps its directory at the end of the file, and is lost with it.
    return TOTAL - (frames_of(folder, 0) if "array_record" in path.name else LENGTHS[episodes - 1])


def missing_file(folder: Path) -> int:
    first_shard(folder).unlink()
    return TOTAL - frames_of(folder, 0)


def wrong_episode_count(folder: Path) -> int:
    info = json.loads((folder / "dataset_info.json").read_text())
    lengths = info["splits"][0]["shardLengths"]
    lengths[0] = str(int(lengths[0]) + 1)
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return TOTAL


DAMAGE = [
    (corrupt_record, "corrupt record"),
    (truncated_shard, "truncated shard"),
    (missing_file, "missing file"),
    (wrong_episode_count, "wrong episode count"),
]


@pytest.mark.parametrize(("damage", "kind"), DAMAGE, ids=[kind for _, kind in DAMAGE])
def test_damage_is_left_out_and_counted(copy, damage, kind):
    remaining = damage(copy)
    dataset = RldsDataset(copy)
    assert dataset.faults.counts() == {kind: 1}
    assert "-00000-of-" in dataset.faults.faults[0].place
    assert dataset.num_frames == remaining
    frames = np.arange(dataset.num_frames)
    out = np.empty((len(frames), *dataset.image_shape("observation/front")), np.uint8)
    assert dataset.read_images(frames, "observation/front", out).all()  # all that is left is whole
    for i in range(len(dataset)):  # and columns belong to their pictures: both know the episode and the step
        episode = dataset.episode(i)
        number, step = episode.steps["observation/state"][:, 0], episode.steps["observation/state"][:, 1]
        np.testing.assert_allclose(episode.steps["observation/wrist"][:, 0, 0, 0], 10 * number + 5 * step, atol=2)


@pytest.mark.parametrize(("damage", "kind"), DAMAGE, ids=[kind for _, kind in DAMAGE])
def test_strict_stops_at_once_and_names_the_file(copy, damage, kind):
    damage(copy)
    with pytest.raises(DataError, match=rf"(?s)00000-of-.*: {kind}.*none \(strict\).*fix"):
        RldsDataset(copy, faults=FaultPolicy(strict=True))


def test_more_damage_than_the_limit_stops(copy):
    corrupt_record(copy)
    assert RldsDataset(copy, faults=FaultPolicy(limit=1)).num_frames == TOTAL - LENGTHS[0]
    with pytest.raises(DataError, match="at most 0 faults"):
        RldsDataset(copy, faults=FaultPolicy(limit=0))


def test_a_set_with_no_file_left_is_refused(copy):
    for path in copy.iterdir():
        if path.suffix != ".json":
            path.unlink()
    with pytest.raises(DataError, match=r"(?s)names this file and it is not there.*none: \d+ damaged"):
        RldsDataset(copy)


def test_a_wrong_length_ends_the_shard_but_not_the_set(tmp_path, write_toy):
    folder = write_toy(tmp_path / "d", "tfrecord")
    flip(first_shard(folder), 3)  # the first record's length, so none of the shard can be found
    dataset = RldsDataset(folder)
    assert dataset.faults.counts() == {"corrupt record": 1}
    assert dataset.num_frames == TOTAL - frames_of(folder, 0)


def test_damage_after_indexing_is_met_while_reading(copy):
    dataset = RldsDataset(copy)
    path = first_shard(copy)
    os.truncate(path, 64)
    out = np.full((TOTAL, *dataset.image_shape("observation/front")), 7, np.uint8)
    ok = dataset.read_images(np.arange(TOTAL), "observation/front", out)
    lost = frames_of(copy, 0)
    np.testing.assert_array_equal(ok, np.arange(TOTAL) >= lost)
    assert (out[~ok] == 0).all()
    assert set(dataset.faults.counts()) <= {"truncated shard", "corrupt record"} and len(dataset.faults) >= 1


def test_a_file_that_vanishes_is_one_fault(copy):
    dataset = RldsDataset(copy)
    first_shard(copy).unlink()
    out = np.empty((TOTAL, *dataset.image_shape("observation/front")), np.uint8)
    ok = dataset.read_images(np.arange(TOTAL), "observation/front", out)
    assert ok.sum() == TOTAL - frames_of(copy, 0)
    assert dataset.faults.counts() == {"missing file": 1}


def test_checksums_are_compared_on_read_by_option(tmp_path, write_toy):
    folder = write_toy(tmp_path / "d", "tfrecord", max_shard_bytes=1 << 20)
    trusting, verifying = RldsDataset(folder), RldsDataset(folder, verify_on_read=True)
    path = first_shard(folder)
    flip(path, path.read_bytes().rindex(b"instruction"))  # in the last record, and in none of its pictures
    frames, last = np.arange(TOTAL), TOTAL - LENGTHS[-1]
    out = np.empty((TOTAL, *trusting.image_shape("observation/front")), np.uint8)
    assert trusting.read_images(frames, "observation/front", out).all()
    np.testing.assert_array_equal(verifying.read_images(frames, "observation/front", out), frames < last)
    assert verifying.faults.counts() == {"corrupt record": 1}


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_one_bad_picture_is_black_and_counted_once(tmp_path, file_format):
    episode = make_episode(3, 4)
    jpegs = [image_codec.encode_jpeg(image) for image in episode.steps["observation/front"]]
    jpegs[2] = jpegs[2][:-3]  # its header is whole, so that nobody notices before it is decoded
    with RldsWriter(tmp_path / "d", toy_features(), "toy", file_format=file_format) as writer:
        writer.write(Episode({**episode.steps, "observation/front": jpegs}, episode.metadata))
    dataset = RldsDataset(tmp_path / "d")
    out = np.full((4, *dataset.image_shape("observation/front")), 7, np.uint8)
    for _ in range(2):
        ok = dataset.read_images(np.array([3, 2, 1, 0]), "observation/front", out)
        assert ok.tolist() == [True, False, True, True]
        assert (out[1] == 0).all() and (out[ok] > 20).all()
    assert dataset.faults.counts() == {"bad image": 1}
    assert '00000-of-00001, episode 0, step 2: "steps/observation/front"' in dataset.faults.faults[0].place
    strict = RldsDataset(tmp_path / "d", faults=FaultPolicy(strict=True))
    with pytest.raises(DataError, match=r"(?s)episode 0, step 2.*bad image.*Premature end"):
        strict.read_images(np.array([3, 2]), "observation/front", out[:2])


@pytest.mark.parametrize("compressed", [True, False])
def test_pictures_of_a_batch_read_each_whole_record_at_most_once(tmp_path, toy_folder, monkeypatch, compressed):
    folder = Path(shutil.copytree(toy_folder, tmp_path / "d"))
    if compressed:  # as TFDS writes it: a picture is then no piece of the file
        for path in folder.glob("*.array_record*"):
            payloads = array_record_module.ArrayRecordReader(str(path)).read_all()
            writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
            for payload in payloads:
                writer.write(payload)
            writer.close()
    dataset = RldsDataset(folder)
    loads = []
    load = RecordReader._load
    monkeypatch.setattr(RecordReader, "_load", lambda self, record: loads.append(record) or load(self, record))
    frames = np.random.default_rng(0).permutation(np.repeat(np.arange(TOTAL), 3))
    out = np.empty((len(frames), *dataset.image_shape("observation/front")), np.uint8)
    assert dataset.read_images(frames, "observation/front", out).all()
    expected = RldsDataset(toy_folder)
    for row in range(len(frames)):
        np.testing.assert_array_equal(out[row], expected.image(int(frames[row]), "observation/front"))
    loads = sorted(set(loads)) if len(set(loads)) == len(loads) else ["a record was read twice"]
    assert loads == (list(range(len(LENGTHS))) if compressed else [])


def test_threads_read_the_same_pictures(toy):
    dataset = RldsDataset(toy)
    expected = np.stack([dataset.image(frame, "observation/front") for frame in range(TOTAL)])
    wrong = []

    def read(seed: int) -> None:
        rng = np.random.default_rng(seed)
        out = np.empty((8, *expected.shape[1:]), np.uint8)
        for _ in range(20):
            frames = rng.integers(0, TOTAL, 8)
            if not dataset.read_images(frames, "observation/front", out).all() or (out != expected[frames]).any():
                wrong.append(seed)

    threads = [threading.Thread(target=read, args=(seed,), daemon=True) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads) and not wrong


def test_a_scan_gives_every_payload(toy):
    shards = sorted(path for path in toy.iterdir() if path.suffix != ".json")
    file_format = "tfrecord" if "tfrecord" in shards[0].name else "array_record"
    found = [record for path in shards for record in scan(Shard(path, 99, file_format))]
    assert sum(not isinstance(record, Fault) for record in found) == len(LENGTHS)
    assert {record.kind for record in found if isinstance(record, Fault)} == {"wrong episode count"}
