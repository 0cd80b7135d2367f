"""benchmarks/serving.py: what it serves, what it counts, what it compares. It runs as a whole with --quick."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from tests.serving.running import METADATA, running
from vla_jax.core import errors
from vla_jax.serving.batching import BatchingConfig
from vla_jax.serving.keys import RequestReader
from vla_jax.training import trained

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "serving.py"


@pytest.fixture(scope="module")
def serving():
    spec = importlib.util.spec_from_file_location("benchmarks_serving", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SAID = {**METADATA, "state_dim": 8, "layouts": {"flat": {"cameras": {"observation/front": "front"}, "state": []}}}


def read(message):
    if message["observation/front"].shape != (32, 32, 3):
        raise errors.RequestError("observation/front", expected=(32, 32, 3))
    return {"x": float(message["observation/state"][0])}


def test_a_load_is_counted_over_its_time_and_split_into_parts(serving):
    with running(read=read, metadata=SAID, batching=BatchingConfig(4, 0.002, 64)) as server:
        found = serving.load(server.address, 4, 0.4, 32, "go")
    assert found["requests"] > 20 and found["requests_per_s"] == pytest.approx(found["requests"] / 0.4, rel=0.3)
    assert 1 <= found["mean_batch"] <= 4
    parts = found["latency_ms"]
    assert set(parts) == set(serving.SHOWN) and parts["device"] == {"p50": 1.0, "p95": 1.0, "p99": 1.0}
    assert all(values["p50"] <= values["p95"] <= values["p99"] for values in parts.values())
    assert parts["round trip"]["p50"] > parts["device"]["p50"] + parts["queue"]["p50"]


def test_a_client_that_is_refused_ends_the_benchmark(serving):
    with running(read=read, metadata=SAID) as server, pytest.raises(errors.RequestError, match="observation/front"):
        serving.load(server.address, 2, 0.2, 16, "go")


def test_what_it_serves_is_a_checkpoint_that_takes_what_it_sends(serving, tmp_path):
    assert serving.write_checkpoint("tiny", tmp_path) == pytest.approx(1.2e6, rel=0.2)
    policy = trained.load(tmp_path)
    layout = RequestReader.of(policy).layouts[0]
    said = {"state_dim": 8, "layouts": {layout.name: {"cameras": dict(layout.cameras)}}}
    request = RequestReader.of(policy).read(serving.observation(said, 0, 224, "put the bowl on the plate"))
    assert request.images["wrist"].shape == (64, 64, 3) and np.isfinite(request.state).all()


def test_ratios_are_above_one_where_batching_answers_more_or_sooner(serving):
    def side(rate, p95):
        parts = {part: {"p50": 1.0, "p95": p95, "p99": 9.0} for part in serving.SHOWN}
        return {"16": {"requests_per_s": rate, "mean_batch": 2.0, "latency_ms": parts}}

    results = {"tiny": {"on": side(30.0, 4.0), "off": side(10.0, 8.0)}}
    assert serving.ratios(results, [16]) == {
        "tiny_16_clients_requests_batching_on_vs_off": 3.0,
        "tiny_16_clients_p95_batching_on_vs_off": 2.0,
    }
    table = serving.to_table(results, [16]).splitlines()
    assert len(table) == 4 and table[2].startswith("| tiny | on | 16 | 30.0 | 2.0 | 1.0 / 4.0 / 9.0 |")
