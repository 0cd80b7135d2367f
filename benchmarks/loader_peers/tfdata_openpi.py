"""Peer: the shape of openpi's DROID pipeline, written from its order of operations.

TFDS reads episodes with pictures left encoded; episodes without "success" are dropped; the stream repeats; whole
episodes are restructured and chunked; they are flattened to frames, which pass a lookup by key; pictures are decoded by
`tf.io.decode_image` with its defaults, before the shuffle buffer, which so holds decoded frames; then batches.
The buffer is far smaller than openpi's 250,000 frames, which would be 86 GB: a smaller one costs no more CPU.
Source: Physical-Intelligence/openpi, commit 15a9616, src/openpi/training/droid_rlds_dataset.py.
"""

import argparse
from collections.abc import Iterator

import measure
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds


def restructure(episode: dict, filter_table: tf.lookup.StaticHashTable) -> dict[str, tf.Tensor]:
    """Commands, one of the exterior cameras and one wording for the whole episode, and which frames pass."""
    steps, metadata = episode["steps"], episode["episode_metadata"]
    actions = tf.concat([steps["action_dict"]["joint_velocity"], steps["action_dict"]["gripper_position"]], axis=-1)
    observation = steps["observation"]
    exterior = tf.cond(
        tf.random.uniform([]) > 0.5,
        lambda: observation["exterior_image_1_left"],
        lambda: observation["exterior_image_2_left"],
    )
    names = ("language_instruction", "language_instruction_2", "language_instruction_3")
    instruction = tf.random.shuffle([steps[name] for name in names])[0]
    step = tf.as_string(tf.range(tf.shape(actions)[0]))
    key = metadata["recording_folderpath"] + "--" + metadata["file_path"] + "--" + step
    return {
        "exterior": exterior,
        "wrist": observation["wrist_image_left"],
        "state": tf.concat([observation["joint_position"], observation["gripper_position"]], axis=-1),
        "actions": actions,
        "instruction": instruction,
        "passes": filter_table.lookup(key),
    }


def chunk(episode: dict[str, tf.Tensor], horizon: int) -> dict[str, tf.Tensor]:
    length = tf.shape(episode["actions"])[0]
    ahead = tf.minimum(tf.range(length)[:, None] + tf.range(horizon)[None], length - 1)
    return {**episode, "actions": tf.gather(episode["actions"], ahead)}


def decode(frame: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    decoded = {
        name: tf.io.decode_image(frame[name], expand_animations=False, dtype=tf.uint8) for name in ("exterior", "wrist")
    }
    numbers = {name: tf.cast(frame[name], tf.float32) for name in ("state", "actions")}
    return {**decoded, **numbers, "instruction": frame["instruction"]}


def make_batches(options: argparse.Namespace) -> Iterator[measure.Batch]:
    auto = tf.data.AUTOTUNE
    builder = tfds.builder_from_directory(options.data)
    everything_passes = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer([""], [True]), default_value=True)
    dataset = builder.as_dataset(
        split="train",
        shuffle_files=True,
        decoders={"steps": tfds.decode.SkipDecoding()},
        read_config=tfds.ReadConfig(
            skip_prefetch=True, num_parallel_calls_for_interleave_files=auto, interleave_cycle_length=auto
        ),
    )
    dataset = (
        dataset.filter(lambda e: tf.strings.regex_full_match(e["episode_metadata"]["file_path"], ".*success.*"))
        .repeat()
        .map(lambda episode: restructure(episode, everything_passes), auto)
        .map(lambda episode: chunk(episode, options.horizon), auto)
        .interleave(tf.data.Dataset.from_tensor_slices, cycle_length=auto, num_parallel_calls=auto)
        .filter(lambda frame: frame["passes"])
        .map(decode, auto)
        .shuffle(options.buffer)
        .batch(options.batch, drop_remainder=True)
    )
    settings = tf.data.Options()
    settings.autotune.ram_budget = 1
    return dataset.with_options(settings).as_numpy_iterator()


def default_transform() -> str:
    """Which inverse transform `decode_image` uses by default, by comparing its pixels with both of `decode_jpeg`."""
    data = tf.io.encode_jpeg(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    default = tf.io.decode_image(data, expand_animations=False)
    for name, method in (("exact", "INTEGER_ACCURATE"), ("fast", "INTEGER_FAST")):
        if bool(tf.reduce_all(default == tf.io.decode_jpeg(data, dct_method=method))):
            return name
    return "neither"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--horizon", type=int, default=16)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--warmup", type=int, required=True)
    parser.add_argument("--batches", type=int, required=True)
    parser.add_argument("--buffer", type=int, default=2000, help="decoded frames")
    options = parser.parse_args()
    tf.config.set_visible_devices([], "GPU")
    result = measure.measure(lambda: make_batches(options), options.batch, options.warmup, options.batches)
    versions = {"tensorflow": tf.__version__, "tensorflow-datasets": tfds.__version__}
    measure.report({**result, **versions, "dct": default_transform()})
