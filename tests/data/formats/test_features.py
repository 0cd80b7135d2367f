"""What features.json can say, and what becomes of it."""

import zlib

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests.data.formats.raw_set import write_set
from vla_jax.core.errors import DataError
from vla_jax.data.formats import image_codec
from vla_jax.data.formats.features import load_specs, schema_of
from vla_jax.data.formats.rlds import RldsDataset

F = tfds.features
T = 3  # steps
PICTURE = np.full((8, 12, 3), 90, np.uint8)
JPEG = image_codec.encode_jpeg(PICTURE)


def episode_set(step, metadata=None) -> F.FeaturesDict:
    return F.FeaturesDict({"steps": F.Dataset({"action": F.Scalar(dtype=np.float32), **step}), **(metadata or {})})


def read(tmp_path, step, *records, metadata=None, names=None) -> RldsDataset:
    """The set of one-record shards, whose `action` counts from 0 in every record."""
    action = {"steps/action": np.arange(T, dtype=np.float32)}
    folder = write_set(tmp_path / "d", episode_set(step, metadata), [[{**action, **record}] for record in records])
    return RldsDataset(folder, names=names)


def test_float64_is_read_as_float32_and_bool_from_int64(tmp_path):
    step = {"d": F.Scalar(dtype=np.float64), "b": F.Tensor(shape=(2,), dtype=np.bool_), "u": F.Scalar(dtype=np.uint64)}
    record = {
        "steps/d": np.array([1.5, -2.0, 1e30], np.float32),
        "steps/b": np.array([1, 0, 0, 0, 1, 1]),
        "steps/u": np.array([2**63 + 1, 0, 7], np.uint64).view(np.int64),  # TFDS stores the bits
    }
    columns = read(tmp_path, step, record).columns
    assert columns["d"].dtype == np.float32 and columns["d"].tolist() == [1.5, -2.0, np.float32(1e30)]
    assert columns["b"].dtype == bool and columns["b"].tolist() == [[True, False], [False, False], [True, True]]
    assert columns["u"].dtype == np.uint64 and columns["u"].tolist() == [2**63 + 1, 0, 7]


def test_an_optional_feature_may_be_absent_from_a_record(tmp_path):
    step = {
        "f": F.Tensor(shape=(2,), dtype=np.float32, optional=True),
        "i": F.Scalar(dtype=np.int32, optional=True),
        "b": F.Scalar(dtype=np.bool_, optional=True),
        "t": F.Tensor(shape=(), dtype=np.object_, optional=True),
    }
    full = {
        "steps/f": np.ones((T, 2), np.float32),
        "steps/i": np.full(T, 5),
        "steps/b": np.ones(T, bool),
        "steps/t": [b"word"] * T,
    }
    dataset = read(tmp_path, step, {}, full, metadata={"m": F.Scalar(dtype=np.float32, optional=True)})
    columns, absent = dataset.columns, slice(0, T)
    assert len(dataset.faults) == 0 and len(dataset) == 2
    assert np.isnan(columns["f"][absent]).all() and (columns["f"][T:] == 1).all()
    assert columns["i"].tolist() == [0] * T + [5] * T
    assert columns["b"].tolist() == [False] * T + [True] * T
    assert [dataset.texts("t")[i] for i in dataset.text_ids("t")] == [""] * T + ["word"] * T
    assert np.isnan(columns["m"]).all() and columns["m"].shape == (2,)


def test_a_feature_that_is_not_optional_makes_its_record_a_fault(tmp_path):
    step = {"f": F.Scalar(dtype=np.float32)}
    dataset = read(tmp_path, step, {}, {"steps/f": np.ones(T, np.float32)})
    assert len(dataset) == 1
    assert dataset.faults.counts() == {"corrupt record": 1}
    assert 'no key "steps/f", which features.json promises' in dataset.faults.faults[0].reason


def test_an_absent_picture_is_black_and_no_fault(tmp_path):
    step = {"front": F.Image(shape=(8, 12, 3)), "side": F.Image(shape=(None, None, 3))}
    record = {"steps/front": [JPEG] * T, "steps/side": [JPEG, b"", JPEG]}
    dataset = read(tmp_path, step, {"steps/side": [b""] * T}, record)
    frames = np.arange(2 * T)
    out = np.full((2 * T, 8, 12, 3), 7, np.uint8)
    assert dataset.read_images(frames, "front", out).tolist() == [False] * T + [True] * T
    assert (out[:T] == 0).all() and (np.abs(out[T:].astype(int) - 90) <= 2).all()
    assert dataset.image_shape("side") == (8, 12, 3)  # of the first that is there
    assert dataset.read_images(frames, "side", out).tolist() == [False, False, False, True, False, True]
    assert len(dataset.faults) == 0


def test_a_feature_of_varying_shape_is_refused_and_the_others_stay(tmp_path):
    step = {
        "vary": F.Tensor(shape=(None, 3), dtype=np.float32),
        "words": F.Sequence(F.Text()),
        "depth": F.Image(shape=(8, 12, 1), dtype=np.float32),
    }
    record = {"steps/vary": np.zeros((T, 2, 3), np.float32)}
    dataset = read(tmp_path, step, record)
    assert set(dataset.specs) == {"action"} and dataset.num_frames == T
    for name, reason in (("vary", r"\[None, 3\] varies"), ("words", r"\[None\] varies"), ("depth", "float32")):
        with pytest.raises(DataError, match=rf'(?s)"{name}" cannot be read.*{reason}'):
            RldsDataset(dataset.folder, names=("action", name))


def test_sequences_of_fixed_length_are_columns(tmp_path):
    step = {
        "pair": F.Sequence(F.Tensor(shape=(2,), dtype=np.float32), length=3),
        "nested": F.Sequence({"x": F.Scalar(dtype=np.int32)}, length=2),
    }
    # Inside `steps`, TFDS stores every sequence as ragged: values, and lengths beside them.
    record = {
        "steps/pair/ragged_flat_values": np.arange(T * 6, dtype=np.float32),
        "steps/pair/ragged_row_lengths_0": np.full(T, 3),
        "steps/nested/x/ragged_flat_values": np.arange(T * 2),
        "steps/nested/x/ragged_row_lengths_0": np.full(T, 2),
        "m": np.array([1.0, 2.0], np.float32),
    }
    columns = read(tmp_path, step, record, metadata={"m": F.Sequence(np.float32, length=2)}).columns
    np.testing.assert_array_equal(columns["pair"], np.arange(T * 6).reshape(T, 3, 2))
    np.testing.assert_array_equal(columns["nested/x"], [[0, 1], [2, 3], [4, 5]])
    np.testing.assert_array_equal(columns["m"], [[1, 2]])


def test_texts_come_as_text_and_as_tensors_of_strings(tmp_path):
    step = {
        "plain": F.Text(),
        "tensor": F.Tensor(shape=(), dtype=np.object_),
        "pair": F.Tensor(shape=(2,), dtype=np.object_),
    }
    record = {
        "steps/plain": [b"a", b"a", "ü".encode()],
        "steps/tensor": [b"x", b"\xff", b"x"],
        "steps/pair": [b"l", b"r", b"l", b"r", b"r", b"r"],
    }
    dataset = read(tmp_path, step, record)
    assert dataset.texts("plain") == ("a", "ü") and dataset.text_ids("plain").tolist() == [0, 0, 1]
    assert dataset.texts("tensor") == ("x", "\ufffd")  # not UTF-8: marked as such, and the episode stays usable
    assert np.array(dataset.texts("pair"))[dataset.text_ids("pair")].tolist() == [["l", "r"], ["l", "r"], ["r", "r"]]


def test_texts_of_several_shards_share_one_table(tmp_path):
    records = [{"steps/t": [word] * T} for word in (b"b", b"a", b"b")]
    dataset = read(tmp_path, {"t": F.Text()}, *records)
    assert dataset.texts("t") == ("b", "a")
    assert dataset.text_ids("t").tolist() == [0] * T + [1] * T + [0] * T


@pytest.mark.parametrize("encoding", ["bytes", "zlib"])
def test_encoded_tensors_are_decoded(tmp_path, encoding):
    values = np.random.default_rng(0).normal(size=(T, 2, 2))
    pack = zlib.compress if encoding == "zlib" else bytes
    record = {"steps/e": [pack(value.tobytes()) for value in values]}
    step = {"e": F.Tensor(shape=(2, 2), dtype=np.float64, encoding=encoding)}
    np.testing.assert_array_equal(read(tmp_path, step, record).columns["e"], values.astype(np.float32))


def test_old_sets_call_their_steps_a_sequence(tmp_path):
    features = F.FeaturesDict({"steps": F.Sequence({"action": F.Scalar(dtype=np.float32)})})
    folder = write_set(tmp_path / "d", features, [[{"steps/action": np.arange(T, dtype=np.float32)}]])
    assert RldsDataset(folder).columns["action"].tolist() == [0, 1, 2]


def test_labels_are_integers(tmp_path):
    columns = read(tmp_path, {"c": F.ClassLabel(num_classes=4)}, {"steps/c": np.array([3, 0, 1])}).columns
    assert columns["c"].dtype == np.int64 and columns["c"].tolist() == [3, 0, 1]


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (np.zeros(T - 1, np.float32), "2 float32"),
        (np.zeros(T, np.int64), "3 int64"),
        ([b"x"] * T, "3 byte strings"),
        ([], "0 byte strings"),
    ],
)
def test_a_value_that_does_not_fit_makes_its_record_a_fault(tmp_path, value, found):
    dataset = read(tmp_path, {"z": F.Scalar(dtype=np.float32)}, {"steps/z": value}, {"steps/z": np.ones(T, np.float32)})
    assert len(dataset) == 1
    assert f'"steps/z" does not fit the features: {found} where' in dataset.faults.faults[0].reason


def test_features_without_episodes_are_refused():
    with pytest.raises(DataError, match=r'(?s)no episodes.*called "steps".*found\s+image, label'):
        schema_of(F.FeaturesDict({"image": F.Image(), "label": F.Text()}))


def test_a_folder_without_features_says_what_it_holds(tmp_path):
    (tmp_path / "1.0.0").mkdir()
    with pytest.raises(DataError, match=r"(?s)not an RLDS dataset.*found\s+1\.0\.0.*version folder"):
        load_specs(tmp_path)
