"""A dataset on disk from the raw features of its records, for layouts that our own writer does not make."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from array_record.python import array_record_module

from vla_jax.data.formats import tfrecord
from vla_jax.data.formats.example_proto import serialize_example

Record = Mapping[str, Any]  # the name inside the Example -> bytes strings or an array


def write_set(
    folder: Path,
    features: tfds.features.FeaturesDict,
    shards: Sequence[Sequence[Record]],
    file_format: str = "tfrecord",
) -> Path:
    """One split, `train`, with one file per item of `shards`."""
    folder.mkdir(parents=True)
    features.save_config(folder)
    for number, records in enumerate(shards):
        path = folder / f"raw-train.{file_format}-{number:05d}-of-{len(shards):05d}"
        payloads = [serialize_example(record) for record in records]
        if file_format == "tfrecord":
            with path.open("wb") as file:
                for payload in payloads:
                    tfrecord.write_record(file, payload)
        else:
            writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
            for payload in payloads:
                writer.write(payload)
            writer.close()
    split = {"name": "train", "shardLengths": [str(len(records)) for records in shards]}
    info = {"name": "raw", "version": "1.0.0", "fileFormat": file_format, "splits": [split]}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder
