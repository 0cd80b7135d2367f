"""Runs that are killed, stopped, poisoned or spread over devices end as they should."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import toy_learner as toy

from vla_jax.training import checkpoints
from vla_jax.training import logging as logs


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """(result, folder) of the 60 steps that every broken run is compared with."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    return toy.run(folder), folder


def _start(folder: Path) -> subprocess.Popen:
    """The same run in another process, slow enough to be hit in its middle."""
    command = [sys.executable, toy.__file__, str(folder), "0.02", "400"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)


def _wait_for(condition, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
        time.sleep(0.02)


def _assert_equal_runs(folder: Path, result, reference) -> None:
    expected, expected_folder = reference
    assert (folder / logs.METRICS_FILE).read_bytes() == (expected_folder / logs.METRICS_FILE).read_bytes()
    for ours, theirs in zip(jax.tree.leaves(result.state), jax.tree.leaves(expected.state), strict=True):
        if jax.dtypes.issubdtype(ours.dtype, jax.dtypes.prng_key):
            ours, theirs = jax.random.key_data(ours), jax.random.key_data(theirs)
        np.testing.assert_array_equal(ours, theirs)


def test_a_run_killed_with_sigkill_and_resumed_equals_an_uninterrupted_one_bit_for_bit(tmp_path, uninterrupted):
    process = _start(tmp_path)
    # 7 lines are steps 5 to 35: past the checkpoints of 10 and 20, with lines beyond the last one to cut.
    lines = tmp_path / logs.METRICS_FILE
    _wait_for(lambda: lines.exists() and lines.read_bytes().count(b"\n") >= 7, process)
    process.kill()
    process.communicate()
    saved = max(int(child.name) for child in (tmp_path / checkpoints.FOLDER).iterdir() if child.name.isdigit())
    assert process.returncode == -signal.SIGKILL and 10 <= saved < 60

    _assert_equal_runs(tmp_path, toy.run(tmp_path), uninterrupted)


def test_sigterm_saves_in_the_middle_of_a_log_interval_exits_0_and_resumes_exactly(tmp_path, uninterrupted):
    process = _start(tmp_path)
    lines = tmp_path / logs.METRICS_FILE
    _wait_for(lambda: lines.exists() and lines.read_bytes().count(b"\n") >= 4, process)
    process.terminate()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    word, stopped_at = output.split()
    assert word == "interrupted" and checkpoints.step_folder(tmp_path).name == stopped_at

    _assert_equal_runs(tmp_path, toy.run(tmp_path), uninterrupted)
