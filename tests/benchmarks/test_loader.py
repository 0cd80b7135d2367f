"""benchmarks/loader.py: what it measures, how rounds combine, and that our sides run."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "benchmarks" / "loader_peers")]  # scripts, not packages

import loader  # noqa: E402
import measure  # noqa: E402


def batches(seconds_of_cpu: float):
    while True:
        start = time.process_time()
        while time.process_time() - start < seconds_of_cpu:
            pass
        yield {"exterior": np.zeros((4, 2, 3, 3), np.uint8), "wrist": np.ones((4, 2, 3, 3), np.uint8)}


def test_rates_are_frames_over_cpu_time_and_wall_time():
    found = measure.measure(lambda: batches(0.02), batch_size=4, warmup=1, batches=10)
    # 4 frames in 0.02 s of CPU are 200 per second; ticks of 10 ms and the watching thread cost up to a third.
    assert 130 < found["frames_per_cpu_s"] < 290
    assert 0 < found["frames_per_s"] < 210
    assert 0.02 <= found["first_batch_s"] < 2
    assert found["format"] == {"exterior": ["uint8", [4, 2, 3, 3]], "wrist": ["uint8", [4, 2, 3, 3]]}
    assert found["image_means"] == [0.0, 1.0]
    assert 0 < found["peak_anonymous_mb"] <= found["peak_rss_mb"]


def test_children_count():
    before = measure.cpu_seconds()
    code = "import time\nwhile time.process_time() < 0.3: pass\nprint('burnt', flush=True); time.sleep(20)"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout.readline() == "burnt\n"
        assert child.pid in measure.processes()
        assert measure.cpu_seconds() - before >= 0.25
    finally:
        child.kill()
        child.wait(timeout=10)
        child.stdout.close()


def test_rounds_combine_to_medians_and_the_largest_memory():
    def one(rate, memory):
        rates = {"frames_per_s": rate, "frames_per_cpu_s": 2 * rate, "first_batch_s": 1 / rate}
        return {**rates, "peak_rss_mb": memory, "peak_anonymous_mb": memory / 2, "format": "same"}

    found = loader.combine([one(10, 300), one(40, 100), one(20, 200)])
    assert (found["frames_per_s"], found["frames_per_cpu_s"], found["peak_rss_mb"]) == (20, 40, 300)


def test_sides_with_other_batches_are_not_compared():
    mine = {"format": {"state": ["float32", [4, 8]], "instruction": ["int32", [4, 48]]}}
    words = {"format": {"state": ["float32", [4, 8]], "instruction": ["object", [4]]}}
    other = {"format": {"state": ["float64", [4, 8]]}}
    loader.check_formats({"bound_exact": {"format": {}}, "ours": mine, "tuned_exact": words})
    with pytest.raises(RuntimeError, match="batches differ: ours"):
        loader.check_formats({"ours": mine, "openpi": other})


def test_ratios_are_of_known_sides():
    assert {side for first, second, _ in loader.RATIOS.values() for side in (first, second)} == set(loader.SIDES)


def test_our_side_runs_and_is_written(tmp_path):
    command = [sys.executable, "benchmarks/loader.py", "--quick", "--sides", "ours"]
    command += ["--data", str(tmp_path / "data"), "--json", str(tmp_path / "loader.json")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    document = json.loads((tmp_path / "loader.json").read_text())
    assert set(document) == {"ratios", "ours", "peers", "machine", "versions", "settings"}
    assert set(document["ours"]) == {"ours"} and document["peers"] == {}
    assert document["ours"]["ours"]["first_batch_s"] < 3
