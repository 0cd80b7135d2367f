"""Runs that are killed, stopped, poisoned or spread over devices end as they should."""

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.training import toy_learner as toy
from vla_jax.core import errors
from vla_jax.training import checkpoints, sharding, sources
from vla_jax.training import logging as logs
from vla_jax.training.fit import FitConfig, fit


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """(result, folder) of the 60 steps that every broken run is compared with."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    return toy.run(folder), folder


def _start(folder: Path, *cluster: str, env: dict[str, str] | None = None) -> subprocess.Popen:
    """The same run in another process, slow enough to be hit in its middle."""
    command = [sys.executable, toy.__file__, str(folder), "0.02", "400", *cluster]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=dict(os.environ, **(env or {})))


def _wait_for(condition, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 300  # a busy machine; idle it takes a few seconds
    while not condition():
        if time.monotonic() > deadline:
            process.kill()
        assert process.poll() is None, process.communicate()[1]
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
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    word, stopped_at = output.split()
    assert word == "interrupted" and checkpoints.step_folder(tmp_path).name == stopped_at

    _assert_equal_runs(tmp_path, toy.run(tmp_path), uninterrupted)


def test_a_stop_inside_a_log_interval_loses_no_metric(tmp_path, uninterrupted):
    class Stopping(toy.CountingSource):
        def next(self, step, actor_params):
            if step == 13:  # saved at 14: the sums of 10 to 13 and the source's metric of 12 are half an interval
                signal.raise_signal(signal.SIGTERM)
            return super().next(step, actor_params)

    config = FitConfig(num_train_steps=60, log_every=5, checkpoint_every=10, mesh=sharding.MeshConfig(data=1))
    stopped = fit(toy.ToyLearner(), Stopping(toy.ToyLoader()), config, tmp_path, metadata=toy.METADATA, quiet=True)
    assert stopped.interrupted and stopped.train_step == 14
    _assert_equal_runs(tmp_path, toy.run(tmp_path), uninterrupted)


def test_two_processes_stop_together_and_one_process_goes_on(tmp_path, uninterrupted):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    one_device = {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    processes = [_start(tmp_path, address, str(rank), env=one_device) for rank in range(2)]
    lines = tmp_path / logs.METRICS_FILE
    _wait_for(lambda: lines.exists() and lines.read_bytes().count(b"\n") >= 2, processes[0])
    processes[1].terminate()  # one is told, both must stop, at the same step
    outputs = [process.communicate(timeout=300)[0].splitlines()[-1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert outputs[0].startswith("interrupted") and outputs[0] == outputs[1]

    toy.run(tmp_path)
    for line, expected in zip(logs.read(tmp_path), logs.read(uninterrupted[1]), strict=True):
        assert line == pytest.approx(expected, rel=1e-4)


def test_eight_devices_train_as_one(tmp_path, uninterrupted):
    # Sums over the batch are taken in another order: float32 noise of 10 Adam steps, far below one step's size of 1e-2.
    for name, mesh in (("data", sharding.MeshConfig()), ("all", sharding.MeshConfig(2, 2, 2, fsdp_min_size=1))):
        result = toy.run(tmp_path / name, mesh=mesh, num_train_steps=10)
        assert len(result.state.params["hidden"]["kernel"].sharding.device_set) == 8
        ours, reference = (logs.read(folder)[:2] for folder in (tmp_path / name, uninterrupted[1]))
        for line, expected in zip(ours, reference, strict=True):
            assert line == pytest.approx(expected, rel=1e-5)


def test_a_run_goes_on_over_another_mesh(tmp_path, uninterrupted):
    toy.run(tmp_path, mesh=sharding.MeshConfig(1, 4, fsdp_min_size=1), num_train_steps=30)
    result = toy.run(tmp_path)
    for ours, theirs in zip(
        jax.tree.leaves(result.state.params), jax.tree.leaves(uninterrupted[0].state.params), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_scanned_updates_are_the_same_updates(tmp_path, uninterrupted):
    result = toy.run(tmp_path, scan_updates=5)
    assert logs.read(tmp_path)[-1] == pytest.approx(logs.read(uninterrupted[1])[-1], rel=1e-5)
    assert int(result.state.step) == 60


def test_a_finished_run_returns_its_state_without_training(tmp_path, uninterrupted, capsys):
    expected, folder = uninterrupted
    before = (folder / logs.METRICS_FILE).read_bytes()
    source = toy.CountingSource(toy.ToyLoader())
    config = FitConfig(num_train_steps=60, mesh=sharding.MeshConfig(data=1))
    result = fit(toy.ToyLearner(), source, config, folder, metadata=toy.METADATA)
    assert "already done, 60 of 60 steps" in capsys.readouterr().err
    assert (folder / logs.METRICS_FILE).read_bytes() == before
    assert result.train_step == 60 and result.metrics == expected.metrics


def test_a_changed_recipe_is_named_on_resume(tmp_path, capsys):
    toy.run(tmp_path, num_train_steps=10)
    config = FitConfig(num_train_steps=10, seed=3, mesh=sharding.MeshConfig(data=1))
    source = toy.CountingSource(toy.ToyLoader())
    fit(toy.ToyLearner(), source, dataclasses.replace(config, num_train_steps=11), tmp_path, metadata=toy.METADATA)
    assert "changed since the checkpoint: fit.seed 0 -> 3" in capsys.readouterr().err


def test_the_nan_guard_names_the_first_bad_update_and_keeps_the_checkpoint_before_it(tmp_path):
    with pytest.raises(errors.TrainingError) as caught:
        # Bad from update 23 only; the log at 25 finds it. grad_norm stays finite and is listed apart.
        toy.run(tmp_path, learner=toy.ToyLearner(nan_at=23))
    message = str(caught.value)
    assert "update 23 gave a metric that is not finite" in message
    assert "found     loss nan; beside grad_norm" in message and "checkpoint 20" in message
    assert checkpoints.step_folder(tmp_path).name == "20"
    assert logs.read(tmp_path)[-1]["step"] == 20


def test_without_the_guard_a_nan_is_only_logged(tmp_path):
    toy.run(tmp_path, learner=toy.ToyLearner(nan_at=7), num_train_steps=10, nan_guard=False)
    assert [np.isnan(line["loss"]) for line in logs.read(tmp_path)] == [False, True]


def test_the_best_checkpoint_is_kept_beside_the_last_ones(tmp_path):
    scores = {10: 0.1, 20: 0.9, 30: 0.2, 40: 0.3, 50: 0.4, 60: 0.5}
    result = toy.run(
        tmp_path,
        evaluate=lambda params, train_step: {"eval/score": scores[train_step]},
        eval_every=10,
        max_to_keep=2,
        best_metric="eval/score",
    )
    assert sorted(int(child.name) for child in (tmp_path / checkpoints.FOLDER).iterdir()) == [20, 50, 60]
    assert result.metrics["eval/score"] == 0.5
    assert [line["eval/score"] for line in logs.read(tmp_path) if "eval/score" in line] == list(scores.values())


def test_a_best_metric_that_nobody_measures_stops_the_run_early(tmp_path):
    with pytest.raises(errors.ConfigError, match=r"'los' is not measured\n.*did you mean 'loss'"):
        toy.run(tmp_path, best_metric="los")


def test_a_warm_start_replaces_the_fresh_parameters_once(tmp_path):
    def zeros_twice(state):
        params = jax.tree.map(np.zeros_like, state.params)
        return state.replace(params=params, ema_params=params)  # one tree at two places must not break donation

    config = FitConfig(num_train_steps=1, mesh=sharding.MeshConfig(data=1))
    source = toy.CountingSource(toy.ToyLoader())
    result = fit(toy.ToyLearner(), source, config, tmp_path, metadata=toy.METADATA, warm_start=zeros_twice, quiet=True)
    assert np.abs(result.state.params["hidden"]["kernel"]).max() < 0.02  # one Adam step of 1e-2 away from zero


def test_an_abstract_example_and_a_source_on_the_device_are_enough(tmp_path):
    class DeviceSource:
        """Placed batches, a typed key as state: what an online source looks like."""

        def __init__(self):
            self.key = jax.random.key(0)

        def use_mesh(self, mesh):
            self.mesh = mesh

        def example(self):
            return jax.eval_shape(self._batch, self.key)

        def next(self, step, actor_params):
            self.key, key = jax.random.split(self.key)
            return sharding.place_batch(self._batch(key), self.mesh), {"source/drawn": key.size * step}

        def state(self):
            return {"key": self.key}

        def restore(self, state):
            self.key = state["key"]

        def _batch(self, key):
            return {"x": jax.random.normal(key, (8, 4)), "y": jax.random.normal(key, (8, 2))}

    def run(folder, num_train_steps):
        config = FitConfig(num_train_steps=num_train_steps, log_every=2)
        fit(toy.ToyLearner(), DeviceSource(), config, folder, metadata=toy.METADATA, quiet=True)
        return (folder / logs.METRICS_FILE).read_bytes()

    run(tmp_path / "twice", 4)
    assert run(tmp_path / "twice", 8) == run(tmp_path / "once", 8)


def test_what_the_source_raises_ends_the_run_and_its_thread(tmp_path):
    class Broken(toy.ToyLoader):
        def _batch(self, position):
            if position == 7:
                raise errors.DataError("shard 3: damaged record")
            return super()._batch(position)

    config = FitConfig(num_train_steps=20, mesh=sharding.MeshConfig(data=1))
    with pytest.raises(errors.DataError, match="shard 3"):
        fit(toy.ToyLearner(), sources.DatasetSource(Broken()), config, tmp_path, metadata=toy.METADATA, quiet=True)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("vla_jax-prefetch")]


def test_impossible_settings_say_which():
    with pytest.raises(
        errors.ConfigError, match=r"log_every falls between two dispatches\n.*multiple of scan_updates=4"
    ):
        FitConfig(num_train_steps=8, log_every=10, scan_updates=4)
    with pytest.raises(errors.ConfigError, match="eval_every"):
        FitConfig(num_train_steps=8, eval_every=0)
