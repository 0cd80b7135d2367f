import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests.data.toy_rlds import CAMERAS, make_episode, toy_features
from vla_jax.core.errors import DataError
from vla_jax.data.formats import image_codec, tfrecord
from vla_jax.data.formats.episodes import EpisodeDataset
from vla_jax.data.formats.features import Episode
from vla_jax.data.formats.rlds import RldsDataset
from vla_jax.data.formats.rlds_writer import RldsWriter


def test_episodes_come_back_as_written(toy, episodes):
    dataset = RldsDataset(toy)
    assert len(dataset) == len(episodes)
    assert dataset.num_frames == sum(len(e.steps["action"]) for e in episodes)
    for i, written in enumerate(episodes):
        read = dataset.episode(i)
        assert read.metadata == written.metadata
        assert read.steps.keys() == written.steps.keys()
        for name, value in written.steps.items():
            if name == "language_instruction":
                assert read.steps[name] == [value] * len(written.steps["action"])
            elif name.removeprefix("observation/") in CAMERAS:
                assert np.abs(read.steps[name].astype(int) - value.astype(int)).max() <= 2  # JPEG of flat pictures
            else:
                assert read.steps[name].dtype == value.dtype
                np.testing.assert_array_equal(read.steps[name], value)


def test_several_shards_carry_tfds_names(toy):
    names = sorted(path.name for path in toy.iterdir() if path.suffix != ".json")
    file_format = names[0].split("train.")[1].split("-")[0]
    assert len(names) > 1
    assert names == [f"toy-train.{file_format}-{i:05d}-of-{len(names):05d}" for i in range(len(names))]


def test_plain_tfds_reads_our_array_record(toy_folder):
    builder = tfds.builder_from_directory(str(toy_folder))
    source = builder.as_data_source(split="train")
    ours = RldsDataset(toy_folder)
    assert builder.info.full_name == "toy/1.0.0"
    assert len(source) == len(ours) == builder.info.splits["train"].num_examples
    for i in range(len(source)):
        theirs, mine = source[i], ours.episode(i)
        assert theirs["episode_metadata"]["file_path"].decode() == mine.metadata["episode_metadata/file_path"]
        assert theirs["episode_metadata"]["number"] == mine.metadata["episode_metadata/number"]
        _assert_same_steps(list(theirs["steps"]), mine)


def test_plain_tfds_decodes_our_tfrecord(tmp_path, write_toy):
    folder = write_toy(tmp_path / "toy", "tfrecord", max_shard_bytes=1 << 20)
    features = tfds.features.FeaturesDict.from_config(str(folder))
    (path,) = folder.glob("*.tfrecord-*")
    data = path.read_bytes()
    ours = RldsDataset(folder)
    for i, (start, stop) in enumerate(tfrecord.record_spans(data, path)):
        theirs = features.deserialize_example_np(data[start:stop])
        _assert_same_steps(list(theirs["steps"]), ours.episode(i))
    assert i == len(ours) - 1
    assert "tensorflow" not in sys.modules


def _assert_same_steps(theirs: list[dict], mine: Episode) -> None:
    assert len(theirs) == len(mine.steps["action"])
    for t, step in enumerate(theirs):
        observation = step.pop("observation")
        assert step.pop("language_instruction").decode() == mine.steps["language_instruction"][t]
        for name, value in {**{f"observation/{k}": v for k, v in observation.items()}, **step}.items():
            np.testing.assert_array_equal(value, mine.steps[name][t], err_msg=name)
            assert np.asarray(value).dtype == mine.steps[name].dtype


def test_encoded_pictures_are_stored_untouched(tmp_path):
    jpegs = [image_codec.encode_jpeg(np.full((*size, 3), 90, np.uint8), 40) for size in CAMERAS.values()]
    episode = make_episode(0, 3)
    steps = {**episode.steps, "observation/front": [jpegs[0]] * 3, "observation/wrist": [jpegs[1]] * 3}
    with RldsWriter(tmp_path / "d", toy_features(), "toy") as writer:
        writer.write(Episode(steps, episode.metadata))
    assert RldsDataset(tmp_path / "d").image_bytes(2, "observation/wrist") == jpegs[1]


def test_a_second_split_stands_beside_the_first(tmp_path, episodes):
    with RldsWriter(tmp_path / "d", toy_features(), "toy") as writer:
        writer.write(episodes[0])
        writer.write(episodes[1], split="val")
        writer.write(episodes[2])
    assert [len(RldsDataset(tmp_path / "d", split)) for split in ("train", "val")] == [2, 1]
    assert tfds.builder_from_directory(str(tmp_path / "d")).info.splits["val"].num_examples == 1
    with pytest.raises(DataError, match="did you mean 'val'"):
        RldsDataset(tmp_path / "d", "vall")


def test_an_interrupted_write_leaves_no_dataset(tmp_path, episodes):
    folder = tmp_path / "root" / "d"
    with pytest.raises(KeyboardInterrupt), RldsWriter(folder, toy_features(), "toy") as writer:
        writer.write(episodes[0])
        assert not folder.exists()  # a kill here would leave the folder absent too
        raise KeyboardInterrupt
    assert list(folder.parent.iterdir()) == []


def test_a_killed_writer_is_cleaned_up_by_the_next(tmp_path, episodes):
    RldsWriter(tmp_path / "d", toy_features(), "toy").__enter__().write(episodes[0])  # never closed
    assert [p.name for p in tmp_path.iterdir()] == ["d.incomplete"]
    with RldsWriter(tmp_path / "d", toy_features(), "toy") as writer:
        writer.write(episodes[1])
    assert [p.name for p in tmp_path.iterdir()] == ["d"]
    assert len(RldsDataset(tmp_path / "d")) == 1


def test_a_dataset_is_never_written_over(toy_folder):
    with pytest.raises(DataError, match="never written over"):
        RldsWriter(toy_folder, toy_features(), "toy")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"action": np.zeros((3, 5), np.float32)}, r'(?s)"steps/action".*float32 \[3, 4\].*float32 \[3, 5\]'),
        ({"action": np.full((3, 4), np.nan, np.float32)}, "NaN"),
        ({"observation/front": np.zeros((3, 8, 8, 3), np.uint8)}, r"(?s)observation/front.*8, 8, 3"),
        ({"observation/front": np.zeros((3, 16, 24, 3), np.float32)}, "uint8"),
        ({"language_instruction": ["a", "b"]}, "one text, or 3"),
        ({"surprise": np.zeros(3)}, r"unknown \['surprise'\]"),
    ],
)
def test_the_writer_refuses_episodes_of_another_schema(tmp_path, change, message):
    good = make_episode(0, 3)
    with pytest.raises(DataError, match=message), RldsWriter(tmp_path / "d", toy_features(), "toy") as writer:
        writer.write(Episode({**good.steps, **change}, good.metadata))


def test_a_record_without_a_promised_key_is_named(tmp_path, write_toy):
    folder = write_toy(tmp_path / "d", "tfrecord", max_shard_bytes=1 << 20)
    text = (folder / "features.json").read_text().replace('"wrist"', '"hand"')
    (folder / "features.json").write_text(text)
    with pytest.raises(DataError) as error:
        RldsDataset(folder)
    assert (
        str(error.value)
        .splitlines()[0]
        .endswith('toy-train.tfrecord-00000-of-00001, record 0: no key "steps/observation/hand"')
    )
    assert "steps/observation/wrist" in str(error.value)


def test_a_folder_that_is_no_dataset_says_what_it_holds(tmp_path):
    (tmp_path / "1.0.0").mkdir()
    with pytest.raises(DataError, match=r"(?s)not a finished RLDS dataset.*found\s+1\.0\.0.*version folder"):
        RldsDataset(tmp_path)


def test_only_the_features_asked_for_are_indexed(toy):
    dataset = RldsDataset(toy, names=("action",))
    assert set(dataset.columns) == {"action"} and dataset.cameras == ()
    with pytest.raises(DataError, match=r"(?s)no key .*did you mean 'action'"):
        RldsDataset(toy, names=("actions",))


def test_it_is_a_set_of_episodes(toy):
    assert isinstance(RldsDataset(toy), EpisodeDataset)


@pytest.mark.parametrize(
    ("feature", "reason"),
    [
        (tfds.features.Sequence(np.float32), "varies"),
        (tfds.features.Sequence(np.float32, length=2), "sequences within steps"),
        (tfds.features.Tensor(shape=(2,), dtype=np.float32, encoding="zlib"), "encoded tensors"),
    ],
)
def test_the_writer_refuses_features_it_would_lose(tmp_path, feature, reason):
    features = tfds.features.FeaturesDict({"steps": tfds.features.Dataset({"action": np.float32, "odd": feature})})
    with pytest.raises(DataError, match=f"(?s)cannot be written.*odd: .*{reason}"):
        RldsWriter(tmp_path / "d", features, "toy")
