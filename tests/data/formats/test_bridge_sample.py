"""Real BridgeData V2 episodes, as other people's tools wrote them."""

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests.data.real_sets import BRIDGE as FOLDER
from tests.data.real_sets import needs_bridge
from vla_jax.data.demonstrations import compute_statistics
from vla_jax.data.formats import tfrecord
from vla_jax.data.formats.rlds import RldsDataset
from vla_jax.data.loader import Loader
from vla_jax.data.normalization import Normalizer
from vla_jax.data.schema import DatasetConfig

pytestmark = needs_bridge


@pytest.mark.parametrize("split", ["train", "val"])
def test_every_number_and_picture_equals_what_tfds_decodes(split):
    dataset = RldsDataset(FOLDER, split)
    features = tfds.features.FeaturesDict.from_config(str(FOLDER))
    (path,) = FOLDER.glob(f"*-{split}.tfrecord-*")
    data = path.read_bytes()
    assert (len(dataset), dataset.num_frames) == (25, 250)
    for i, (start, stop) in enumerate(tfrecord.record_spans(data, path)):
        theirs, mine = features.deserialize_example_np(data[start:stop]), dataset.episode(i)
        for name, value in theirs["episode_metadata"].items():
            value = value.decode() if isinstance(value, bytes) else value
            assert mine.metadata[f"episode_metadata/{name}"] == value
        for t, step in enumerate(theirs["steps"]):
            assert step["language_instruction"].decode() == mine.steps["language_instruction"][t]
            np.testing.assert_array_equal(step["action"], mine.steps["action"][t])
            np.testing.assert_array_equal(step["language_embedding"], mine.steps["language_embedding"][t])
            if i < 3:
                for camera in ("image_0", "image_3"):
                    np.testing.assert_array_equal(step["observation"][camera], mine.steps[f"observation/{camera}"][t])


def test_it_loads_as_demonstrations():
    config = DatasetConfig(
        path=str(FOLDER), action_horizon=4, cameras=(("front", "image_0"),), displacement_dims=tuple(range(6))
    )
    statistics = compute_statistics(config)
    assert statistics.actions.count == 250
    loader = Loader(
        config,
        batch_size=10,
        seed=0,
        tokenizer=lambda text: (np.array([len(text)]), np.array([True])),
        normalizer=Normalizer.create(statistics),
    )
    batch = next(loader)
    loader.close()
    assert batch.observation.images["front"].shape == (10, 64, 64, 3)
    assert batch.actions.shape == (10, 4, 7)
    inside = np.abs(batch.actions[batch.action_mask]) <= 1 + 1e-5
    assert inside.mean() > 0.9  # 1st and 99th percentiles are at -1 and 1
