"""Children that build parts: they may die, hang or fail, and the run must go on or stop, within seconds."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vla_jax.core.errors import DataError
from vla_jax.data.formats import features, index_build, index_workers
from vla_jax.data.formats.index_workers import Job
from vla_jax.data.formats.rlds import load_info

# A child that misbehaves until the file `marker` exists, which it makes first, or always where it is "never".
CHILD = """
import os, pathlib, signal, sys, time
from vla_jax.data.formats import index_workers
marker, what = pathlib.Path(sys.argv[1]), sys.argv[2]
(marker.parent / f"pid-{os.getpid()}").touch()
if not marker.exists():
    if marker.name != "never":
        marker.touch()
    sys.stdin.readline()
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "hang":
        time.sleep(60)
    raise ZeroDivisionError("a mistake in the child")
index_workers.main()
"""

# Seconds of silence allowed: only the child that hangs has to be waited for, and a busy machine starts one slowly.
LIMIT = {"die": 60.0, "fail": 60.0, "hang": 5.0}


@pytest.fixture
def jobs(toy_folder, tmp_path):
    shards = load_info(toy_folder).splits["train"]
    return [Job(shard, tmp_path / "parts" / f"{i}.npz") for i, shard in enumerate(shards)]


@pytest.fixture
def specs(toy_folder):
    return tuple(features.load_specs(toy_folder).values())


@pytest.fixture
def no_traces_left(tmp_path):
    """No child outlives the run, and no shared memory does."""
    before = sorted(os.listdir("/dev/shm"))
    yield
    assert sorted(os.listdir("/dev/shm")) == before
    pids = [int(path.name.removeprefix("pid-")) for path in tmp_path.glob("pid-*")]
    assert pids and not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def child(tmp_path: Path, marker: str, what: str) -> tuple[str, ...]:
    return (sys.executable, "-c", CHILD, str(tmp_path / marker), what)


@pytest.mark.parametrize("what", ["die", "fail", "hang"])
def test_a_child_that_goes_wrong_once_is_replaced(jobs, specs, tmp_path, what, no_traces_left):
    done = list(index_workers.run(jobs, specs, 2, silence_limit=LIMIT[what], command=child(tmp_path, "once", what)))
    assert sorted(done) == list(range(len(jobs)))
    for job in jobs:
        assert len(index_build.load(job.part).arrays["number"]) == job.shard.num_records


@pytest.mark.parametrize(
    ("what", "found"),
    [("die", "signal 9"), ("fail", r"exit status 1\nTraceback.*a mistake in the child"), ("hang", "said nothing")],
)
def test_a_child_that_goes_wrong_again_stops_the_run(jobs, specs, tmp_path, what, found, no_traces_left):
    started = time.monotonic()
    with pytest.raises(DataError, match=rf"(?s)-of-.*ended 2 worker processes.*{found}"):
        list(index_workers.run(jobs, specs, 1, silence_limit=LIMIT[what], command=child(tmp_path, "never", what)))
    assert time.monotonic() - started < 30


def test_a_run_that_is_given_up_leaves_no_child(jobs, specs, tmp_path, no_traces_left):
    (tmp_path / "once").touch()
    run = index_workers.run(jobs, specs, 2, command=child(tmp_path, "once", "die"))
    next(run)
    run.close()


def test_children_import_neither_jax_nor_tensorflow_datasets():
    code = "import sys, vla_jax.data.formats.index_workers; print(sorted(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert "'numpy'" in found.stdout
    assert not {"'jax'", "'tensorflow_datasets'", "'tensorflow'"} & set(found.stdout.strip("[]\n").split(", "))
