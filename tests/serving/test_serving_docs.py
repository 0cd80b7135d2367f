"""What docs/serving.md says of options, metrics and timing keys is what the code has."""

import dataclasses
import re
from pathlib import Path

from vla_jax import cli_serve
from vla_jax.serving.latency import TIMING_KEYS
from vla_jax.serving.metrics import OUTCOMES, Metrics
from vla_jax.serving.server import ServerConfig

PAGE = (Path(__file__).parent.parent.parent / "docs" / "serving.md").read_text()


def test_every_option_it_names_exists():
    fields = [*dataclasses.fields(cli_serve.Serve), *dataclasses.fields(ServerConfig)]
    known = {f"--{field.name.replace('_', '-')}" for field in fields} | {"--help"}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", PAGE))
    assert named <= known and len(named) > 15, named - known


def test_the_limits_it_lists_are_the_defaults():
    config = ServerConfig()
    for name in ("handshake_timeout", "receive_timeout", "send_timeout", "idle_timeout"):
        assert f"| `--{name.replace('_', '-')}` | {getattr(config, name):g} s |" in PAGE
    assert config.max_request_bytes == 16 << 20 and config.max_connections == 64


def test_metrics_and_timings_are_all_listed():
    for line in Metrics().to_text().splitlines():
        if line.startswith("# TYPE"):
            assert line.split()[2] in PAGE
    assert all(f"`{name}`" in PAGE for name in (*OUTCOMES, *TIMING_KEYS.values()))
