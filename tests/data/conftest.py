"""The dataset of toy_rlds.py on disk, in either record format."""

import pytest

from tests.data import rich_rlds
from tests.data.toy_rlds import LENGTHS, make_episode, toy_features
from vla_jax.data.formats.rlds_writer import RldsWriter


@pytest.fixture(scope="session")
def episodes():
    return [make_episode(number, length) for number, length in enumerate(LENGTHS)]


@pytest.fixture(scope="session")
def write_toy(episodes):
    """Write the toy dataset: `write_toy(folder, file_format)`; two shards by a small shard size."""

    def write(folder, file_format="array_record", max_shard_bytes=8000):
        with RldsWriter(folder, toy_features(), "toy", file_format=file_format, max_shard_bytes=max_shard_bytes) as w:
            for episode in episodes:
                w.write(episode)
        return folder

    return write


@pytest.fixture(scope="session", params=["array_record", "tfrecord"])
def toy(request, tmp_path_factory, write_toy):
    return write_toy(tmp_path_factory.mktemp(request.param) / "toy" / "1.0.0", request.param)


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory, write_toy):
    return write_toy(tmp_path_factory.mktemp("toy") / "toy" / "1.0.0")


@pytest.fixture(autouse=True)
def index_cache(monkeypatch, tmp_path_factory):
    """Frame indices of tests stay out of the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def rich_folder(tmp_path_factory):
    return rich_rlds.write(tmp_path_factory.mktemp("rich") / "rich" / "1.0.0")
