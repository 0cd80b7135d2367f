"""openpi-client 0.1.2 against our server: its bytes as they were recorded, and the client itself where it installs.

The client wants numpy<2, so it lives in a virtual environment of its own, made once under runs/ (ignored by git).
"""

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.serving import toy_policy
from tests.serving.process import BINARY, Stream
from tests.serving.running import Double, running
from vla_jax.core import wire
from vla_jax.core.access import Access, ApiKey
from vla_jax.serving.acting import BatchActor
from vla_jax.serving.keys import Request, RequestReader
from vla_jax.serving.served import metadata_of

ROOT = Path(__file__).parent.parent.parent
KEY = "0123456789abcdef"
RECORDED = np.load(ROOT / "tests" / "fixtures" / "openpi_client_0.1.2.npz")


def fields(robot):
    """The observation that was sent, in the order of its keys."""
    stored = {key.removeprefix(f"{robot}:"): RECORDED[key] for key in RECORDED.files if key.startswith(f"{robot}:")}
    return {key: str(value) if value.dtype.kind == "U" else value for key, value in stored.items()}


@pytest.mark.parametrize("robot", ["libero", "droid"])
def test_an_observation_is_read_as_it_was_sent_and_packed_to_the_same_bytes(robot):
    packed, sent = RECORDED[f"{robot}_packed"].tobytes(), fields(robot)
    assert wire.pack(sent) == packed
    received = wire.unpack(packed)
    assert list(received) == list(sent)
    for key, value in sent.items():
        np.testing.assert_array_equal(received[key], value)
        assert key == "prompt" or received[key].dtype == value.dtype


def test_replies_are_the_bytes_that_openpis_own_packer_makes():
    timing = {"infer_ms": 12.5, "prev_total_ms": 20.0}
    actions = np.arange(12, dtype=np.float32).reshape(4, 3)
    assert wire.pack({"actions": actions, "server_timing": timing}) == RECORDED["reply_packed"].tobytes()
    metadata = {"policy": "toy", "cameras": ["base", "wrist"], "control_hz": 20.0, "realtime": False}
    metadata |= {"n": np.int64(3), "f": np.float32(0.5)}
    assert wire.pack(metadata) == RECORDED["metadata_packed"].tobytes()


class EchoState(Double):
    """Answers with the state and the means of the pictures."""

    def run(self, requests: list[Request]):
        rows = [[*each.state[:2], each.images["base"].mean() + each.images["wrist"].mean()] for each in requests]
        return [np.array([row], np.float32) for row in rows], 0.001


@pytest.mark.parametrize("robot, access", [("libero", Access()), ("droid", Access(api_keys=(ApiKey("robot", KEY),)))])
def test_the_recorded_bytes_of_a_session_are_answered(policy, robot, access):
    """Handshake, two observations, as they went over the socket; the second recording carries an API key."""
    read = RequestReader.of(policy).read
    with running(read=read, actor=EchoState(), access=access) as server, server.raw() as sock:
        stream = Stream(sock, RECORDED[f"{robot}_stream"].tobytes())
        assert b"101" in stream.status
        frames = [stream.read() for _ in range(3)]
        stream.close()
    assert [kind for kind, _ in frames] == [BINARY] * 3
    _, first, second = (wire.unpack(data) for _, data in frames)
    sent = fields(robot)
    means = sum(value.mean() for value in sent.values() if getattr(value, "dtype", None) == np.uint8)
    np.testing.assert_allclose(first["actions"], [[-1, -1 + 2 / 7, means]], rtol=1e-5)
    np.testing.assert_array_equal(second["actions"], first["actions"])
    assert "prev_total_ms" in second["server_timing"] and "prev_total_ms" not in first["server_timing"]


def client_python():
    """The interpreter of an environment with the client; skips where the package cannot be had."""
    version = ".".join(map(str, sys.version_info[:2]))
    folder = ROOT / "runs" / f"openpi-client-0.1.2-py{version}"
    folder.parent.mkdir(exist_ok=True)
    with (folder.parent / ".openpi-client.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.is_dir():
            return folder / "bin" / "python"
        partial = folder.with_name(f"{folder.name}.incomplete")
        shutil.rmtree(partial, ignore_errors=True)
        install = [partial / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        install += ["--timeout", "10", "--retries", "1", "--only-binary", ":all:"]
        try:
            subprocess.run([sys.executable, "-m", "venv", partial], check=True, capture_output=True, timeout=60)
            # The package forgets to ask for typing_extensions.
            packages = ["openpi-client==0.1.2", "typing_extensions"]
            subprocess.run([*install, *packages], check=True, capture_output=True, timeout=180)
        except (subprocess.SubprocessError, OSError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            pytest.skip(f"openpi-client 0.1.2 cannot be installed here: {error}")
        os.replace(partial, folder)
    return folder / "bin" / "python"


def test_the_real_client_runs_unchanged(policy, tmp_path):
    python = client_python()
    actor = BatchActor(policy, (1,))
    actor.warm_up()
    reader = RequestReader.of(policy)
    metadata = metadata_of(policy, reader)
    with running(
        read=reader.read, actor=actor, access=Access(api_keys=(ApiKey("robot", KEY),)), metadata=metadata
    ) as server:
        command = [python, Path(__file__).parent / "openpi_robot.py", str(server.port), KEY, tmp_path / "out.npz"]
        found = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert found.returncode == 0, found.stderr
    out = np.load(tmp_path / "out.npz")
    message = {
        "observation/base": out["picture0"],
        "observation/wrist": out["picture1"],
        "observation/state": out["state"],
        "prompt": "put the bowl",
    }
    expected = toy_policy.local_act(policy, reader.read(message), 3)
    for robot in ("libero", "droid"):
        np.testing.assert_allclose(out[f"{robot}_seeded"], expected, rtol=1e-4, atol=1e-4)
        assert out[f"{robot}_unseeded"].shape == (toy_policy.HORIZON, toy_policy.ACTION_DIM)
        assert out[f"{robot}_horizon"] == toy_policy.HORIZON and (out[f"{robot}_timing"] > 0).all()
        assert "RequestError: prompt" in str(out[f"{robot}_error"])
