"""Both sides as real processes, each killed with kill -9 in the middle of its work and started again."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.training.actor_learner.toy import ROW
from vla_jax.data.replay.host import HostBuffer

ROOT = Path(__file__).parent.parent.parent.parent


def start(*arguments):
    command = [sys.executable, "-m", "tests.training.actor_learner.toy", *map(str, arguments)]
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment)


def steps_until(process, rows):
    """Read what a learner says until it has so many rows; the steps it said."""
    steps = []
    for line in process.stdout:
        if line.startswith("step"):
            _, step, stored, _ = line.split()
            steps.append(int(step))
            if int(stored) >= rows:
                return steps
    raise AssertionError(f"the learner ended after {steps[-3:]}")


def kill(process):
    os.kill(process.pid, signal.SIGKILL)
    process.wait(30)
    process.stdout.close()


def test_nothing_acknowledged_is_lost_when_either_side_is_killed(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run_dir, address = tmp_path / "run", f"ws://127.0.0.1:{port}"
    actor_arguments = ("actor", address, "arm", tmp_path / "spool", 0.01)
    learner_arguments = ("learner", run_dir, port, 10**6, 0.002)
    learner, actor = start(*learner_arguments), start(*actor_arguments)
    try:
        steps_until(learner, 60)
        kill(actor)
        actor = start(*actor_arguments)
        before = steps_until(learner, 160)
        kill(learner)
        stored = _rows_in(run_dir)  # the learner may have stored more than it had said, never less
        assert stored >= 160
        learner = start(*learner_arguments)
        after = steps_until(learner, stored + 60)
    finally:
        for process in (learner, actor):
            kill(process)
    assert 0 < after[0] <= before[-1]  # it went on from its checkpoint, with all the rows since
    buffer = HostBuffer(ROW, 4096, run_dir / "replay")
    assert buffer.expected("arm") == buffer.num_inserted  # no number is missing, none came twice
    batch = buffer.sample(np.random.default_rng(0), (5000,))
    went = batch.next_observation.state[:, 1] - batch.observation.state[:, 1]
    np.testing.assert_array_equal(went, batch.action_mask.sum(axis=1))


def _rows_in(run_dir):
    buffer = HostBuffer(ROW, 4096, run_dir / "replay")
    try:
        return buffer.num_inserted
    finally:
        buffer.close()
