"""The metrics file is that of one run, however often it was started."""

import sys

import pytest

from vla_jax.core import errors
from vla_jax.training import logging as logs
from vla_jax.training.logging import LogConfig


def test_resuming_cuts_later_lines_and_a_half_written_one(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 10, "loss": 1.0}\n{"step": 20, "loss": 0.5}\n{"step": 20, "eval": 1}\n{"step": 30, "lo')
    lines = logs.JsonLines(path, resume_step=20)
    lines.write(25, {"loss": 0.4})
    lines.close()
    assert logs.read(path) == [
        {"step": 10, "loss": 1.0},
        {"step": 20, "loss": 0.5},
        {"step": 20, "eval": 1},
        {"step": 25, "loss": 0.4},
    ]
    logs.truncate(path, 0)
    assert path.read_bytes() == b""


def test_speeds_stay_out_of_the_metrics_file(tmp_path):
    log = logs.RunLog(tmp_path, LogConfig())
    log.metrics(5, {"loss": 0.25})
    log.timing(5, {"timing/steps_per_second": 3.0})
    log.close()
    assert logs.read(tmp_path) == [{"step": 5, "loss": 0.25}]
    assert logs.read(tmp_path / logs.TIMING_FILE) == [{"step": 5, "timing/steps_per_second": 3.0}]


def test_only_the_main_process_writes(tmp_path):
    log = logs.RunLog(tmp_path, LogConfig(tensorboard=True), is_main=False)
    log.metrics(5, {"loss": 0.25})
    log.close()
    assert not list(tmp_path.iterdir())


def test_tensorboard_gets_the_same_scalars(tmp_path):
    pytest.importorskip("tensorboardX")
    log = logs.RunLog(tmp_path, LogConfig(tensorboard=True))
    log.metrics(5, {"policy/loss": 0.25})
    log.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"policy/loss" in events.read_bytes()


@pytest.mark.parametrize(
    ("config", "package"),
    [(LogConfig(tensorboard=True), "tensorboardX"), (LogConfig(wandb_project="robots"), "wandb")],
)
def test_a_missing_logger_names_its_extra(tmp_path, monkeypatch, config, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(errors.ConfigError, match=rf"needs {package}, which is not installed\n.*vla-jax\[logging\]"):
        logs.RunLog(tmp_path, config)


def test_without_a_terminal_progress_is_a_line_now_and_then(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(logs.time, "monotonic", lambda: now[0])
    progress = logs.Progress(100, 0, 8, LogConfig(plain_seconds=10.0))
    for step in range(1, 31):
        now[0] += 1.0
        progress.advance(step)
        if step % 5 == 0:
            progress.paused(2.0)  # of the last five seconds two were evaluation: 5 steps in 3 s
            speeds = progress.logged(step, {"grad_norm": 3.0, "policy/loss": 0.125})
    assert speeds == pytest.approx({"timing/steps_per_second": 5 / 3, "timing/samples_per_second": 40 / 3})
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert lines[1] == "step 20/100  1.67 steps/s  13.3 samples/s  policy/loss 0.125  ETA 0:00:48"
