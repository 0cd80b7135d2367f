"""What docs/serving.md says of options, metrics and timing keys is what the code has."""

import dataclasses
import json
import re
import tomllib
from pathlib import Path

import pytest

from vla_jax import cli_serve
from vla_jax.core.access import AccessOptions
from vla_jax.core.contract import ACCEPTABLE
from vla_jax.serving import robots, server
from vla_jax.serving.keys import RequestReader
from vla_jax.serving.latency import TIMING_KEYS
from vla_jax.serving.metrics import OUTCOMES, Metrics
from vla_jax.serving.served import metadata_of
from vla_jax.serving.server import ServerConfig

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "serving.md").read_text()


def test_every_option_it_names_exists():
    options = (cli_serve.Serve, AccessOptions, ServerConfig)
    fields = [field for each in options for field in dataclasses.fields(each)]
    known = {f"--{field.name.replace('_', '-')}" for field in fields} | {"--help", "--json"}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", PAGE))
    assert named <= known and len(named) > 15, named - known


def test_the_limits_it_lists_are_the_defaults():
    config = ServerConfig()
    for name in ("handshake_timeout", "receive_timeout", "send_timeout", "idle_timeout"):
        assert f"| `--{name.replace('_', '-')}` | {getattr(config, name):g} s |" in PAGE
    assert config.max_request_bytes == 16 << 20 and config.max_connections == 64


def test_nothing_of_serving_unpickles_anything():
    """Whatever reads a message must not run what is in it."""
    sources = [path.read_text() for path in Path(server.__file__).parent.glob("*.py")]
    assert len(sources) > 10
    for word in (r"import .*(pickle|marshal|shelve|dill|joblib)", r"allow_pickle=True", r"\b(eval|exec)\("):
        assert not [text for text in sources if re.search(word, text)], word


def test_it_listens_on_this_machine_only_unless_told_otherwise():
    assert cli_serve.Serve().access.host == "127.0.0.1" and "listens on 127.0.0.1" in PAGE


def test_the_robot_it_describes_can_be_read():
    (description,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    arm = robots.from_fields(tomllib.loads(description), "arm.toml")
    assert arm.cameras == {"observation/front": (180, 320)} and len(arm.action_names) == 7
    section = PAGE[PAGE.index("## The right checkpoint") : PAGE.index("## Keys")]
    assert all(name in section for name in ACCEPTABLE)


def test_the_metadata_are_all_listed(policy):
    named = metadata_of(policy, RequestReader.of(policy))
    missing = {name for name in named if f"`{name}`" not in PAGE} - {"server", "protocol"}
    assert not missing, missing


def test_its_figures_are_those_that_were_measured():
    measured = json.loads((ROOT / "results" / "benchmarks" / "serving.json").read_text())["ours"]
    rows = [re.split(r" \| ", line.strip("| ")) for line in PAGE.splitlines() if re.match(r"\| (tiny|small) \|", line)]
    assert len(rows) == 12
    for name, batching, clients, rate, round_trip, *_ in rows:
        one = measured[name][batching][clients]
        assert float(rate) == round(one["requests_per_s"])
        shown = [float(value) for value in round_trip.split(" / ")]
        assert shown == pytest.approx(list(one["latency_ms"]["round trip"].values()), rel=0.01)


def test_metrics_and_timings_are_all_listed():
    for line in Metrics().to_text().splitlines():
        if line.startswith("# TYPE"):
            assert line.split()[2] in PAGE
    assert all(f"`{name}`" in PAGE for name in (*OUTCOMES, *TIMING_KEYS.values()))
