"""Peer: plain tf.data as someone who knows it well would write it for DROID records.

Records are parsed as they lie, without TFDS; frames stay encoded through the shuffle buffer, which therefore holds tens
of thousands in little memory; only pictures that are used are decoded, in parallel, with the chosen inverse transform.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import measure
import tensorflow as tf

CAMERAS = ("exterior_image_1_left", "exterior_image_2_left", "wrist_image_left")
TEXTS = ("language_instruction", "language_instruction_2", "language_instruction_3")


def frames(record: tf.Tensor, horizon: int) -> tf.data.Dataset:
    """The frames of one episode, pictures encoded, chunks gathered."""
    strings = tf.io.RaggedFeature(tf.string)
    floats = tf.io.RaggedFeature(tf.float32)
    spec = {f"steps/observation/{name}": strings for name in CAMERAS} | {f"steps/{name}": strings for name in TEXTS}
    for name in ("observation/joint_position", "observation/gripper_position"):
        spec[f"steps/{name}"] = floats
    for name in ("action_dict/joint_velocity", "action_dict/gripper_position"):
        spec[f"steps/{name}"] = floats
    episode = tf.io.parse_single_example(record, spec)

    def columns(first: str, second: str) -> tf.Tensor:
        return tf.concat(
            [tf.reshape(episode[f"steps/{first}"], [-1, 7]), tf.reshape(episode[f"steps/{second}"], [-1, 1])], axis=1
        )

    actions = columns("action_dict/joint_velocity", "action_dict/gripper_position")
    length = tf.shape(actions)[0]
    ahead = tf.range(length)[:, None] + tf.range(horizon)[None]
    chunks = tf.gather(actions, tf.minimum(ahead, length - 1))
    return tf.data.Dataset.from_tensor_slices(
        {
            "cameras": tf.stack([episode[f"steps/observation/{name}"] for name in CAMERAS], axis=1),
            "texts": tf.stack([episode[f"steps/{name}"] for name in TEXTS], axis=1),
            "state": columns("observation/joint_position", "observation/gripper_position"),
            "actions": chunks,
        }
    )


def decode(frame: dict[str, tf.Tensor], dct_method: str) -> dict[str, tf.Tensor]:
    drawn = tf.random.uniform([], 0, 2, tf.int32)

    def picture(data: tf.Tensor) -> tf.Tensor:
        return tf.ensure_shape(tf.io.decode_jpeg(data, channels=3, dct_method=dct_method), [180, 320, 3])

    return {
        "exterior": picture(frame["cameras"][drawn]),
        "wrist": picture(frame["cameras"][2]),
        "state": frame["state"],
        "actions": frame["actions"],
        "instruction": frame["texts"][tf.random.uniform([], 0, 3, tf.int32)],
    }


def make_batches(options: argparse.Namespace) -> Iterator[measure.Batch]:
    paths = sorted(map(str, Path(options.data).glob("*.tfrecord-*")))
    dct_method = {"fast": "INTEGER_FAST", "exact": "INTEGER_ACCURATE"}[options.dct]
    dataset = (
        tf.data.Dataset.from_tensor_slices(paths)
        .shuffle(len(paths))
        .repeat()
        .interleave(tf.data.TFRecordDataset, cycle_length=4, num_parallel_calls=tf.data.AUTOTUNE, deterministic=False)
        .interleave(
            lambda record: frames(record, options.horizon),
            cycle_length=8,
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=False,
        )
        .shuffle(options.buffer)
        .map(lambda frame: decode(frame, dct_method), tf.data.AUTOTUNE, deterministic=False)
        .batch(options.batch, drop_remainder=True)
        .prefetch(2)
    )
    return dataset.as_numpy_iterator()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--dct", choices=("fast", "exact"), required=True)
    parser.add_argument("--horizon", type=int, default=16)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--warmup", type=int, required=True)
    parser.add_argument("--batches", type=int, required=True)
    parser.add_argument("--buffer", type=int, default=10_000, help="encoded frames")
    options = parser.parse_args()
    tf.config.set_visible_devices([], "GPU")
    result = measure.measure(lambda: make_batches(options), options.batch, options.warmup, options.batches)
    measure.report({**result, "tensorflow": tf.__version__})
