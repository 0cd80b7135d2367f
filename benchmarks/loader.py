"""Speed and memory of the loader against tf.data, openpi's pipeline, torch over video, and the decoder alone.

    python benchmarks/loader.py --json results/benchmarks/loader.json          # everything, about 7 minutes on 2 cores
    python benchmarks/loader.py --quick --sides ours,tuned_exact               # a look, under a minute

All sides read the same generated records of the DROID 1.0.1 schema (data_pipelines/droid_synthetic.py) and give one
batch: two pictures of 180 x 320 as they are stored (one of the exterior cameras, drawn, and the wrist), joints and
gripper, the next 16 commands, the words of the task (ours as token ids). Every side runs in a process of its own, on as
many threads as there are CPUs, several rounds interleaved; numbers are medians over the rounds. Peers live in virtual
environments that are made on first use under --venvs, so that ours stays without TensorFlow and torch.

The decoder's inverse transform matters: TensorFlow's default is the fast one, ours is always the exact one. Ratios are
therefore given against both; `exact` compares like with like, `fast` leaves the peer its advantage.
"""

import argparse
import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

from data_pipelines.droid_synthetic import DroidSyntheticConfig, generate

_PEERS = Path(__file__).parent / "loader_peers"
_SIDE_TIMEOUT = 240  # seconds
_INSTALL_TIMEOUT = 1800
_MEDIAN = ("frames_per_s", "frames_per_cpu_s", "first_batch_s")
_LARGEST = ("peak_rss_mb", "peak_anonymous_mb")


@dataclasses.dataclass(frozen=True)
class Side:
    """One thing to measure: a script, the interpreter it needs, and the data it reads."""

    script: str
    arguments: tuple[str, ...] = ()
    venv: str | None = None  # None: ours
    data: str = "rlds"
    batches: float = 1.0  # of the usual number: quick sides need more to be timed, slow ones must not take for ever


SIDES = {
    "bound_exact": Side("ours.py", ("bound", "--dct", "exact")),
    "bound_fast": Side("ours.py", ("bound", "--dct", "fast")),
    "ours": Side("ours.py", ("loader",)),
    "ours_cached": Side("ours.py", ("cached",), batches=4),
    "tuned_exact": Side("tfdata_tuned.py", ("--dct", "exact"), "tensorflow"),
    "tuned_fast": Side("tfdata_tuned.py", ("--dct", "fast"), "tensorflow"),
    "openpi": Side("tfdata_openpi.py", (), "tensorflow"),
    "ours_video": Side("ours.py", ("video",), data="lerobot", batches=0.25),
    "torch_video": Side("torch_video.py", (), "torch", data="lerobot", batches=0.25),
}
RATIOS = {  # name -> (side, other side, measure); above 1 means that the first is better
    "vs_tuned_tfdata_exact": ("ours", "tuned_exact", "frames_per_cpu_s"),
    "vs_tuned_tfdata_fast": ("ours", "tuned_fast", "frames_per_cpu_s"),
    "vs_openpi": ("ours", "openpi", "frames_per_cpu_s"),
    "vs_tuned_tfdata_exact_wall": ("ours", "tuned_exact", "frames_per_s"),
    "vs_openpi_wall": ("ours", "openpi", "frames_per_s"),
    "vs_decoding_alone": ("ours", "bound_exact", "frames_per_cpu_s"),
    "vs_decoding_alone_wall": ("ours", "bound_exact", "frames_per_s"),
    "fast_over_exact_decoding": ("bound_fast", "bound_exact", "frames_per_cpu_s"),
    "cached_vs_tuned_tfdata_exact": ("ours_cached", "tuned_exact", "frames_per_cpu_s"),
    "cached_vs_openpi": ("ours_cached", "openpi", "frames_per_cpu_s"),
    "video_vs_torch": ("ours_video", "torch_video", "frames_per_cpu_s"),
    "video_vs_torch_wall": ("ours_video", "torch_video", "frames_per_s"),
}


def interpreter(name: str | None, options: argparse.Namespace) -> str:
    """The Python of a side; its virtual environment is made and filled when it is not there."""
    if name is None:
        return sys.executable
    folder = options.venvs / name
    python, done = folder / "bin" / "python", folder / ".installed"
    wanted = {"tensorflow": options.tensorflow, "torch": options.torch}[name]
    if not done.is_file() or done.read_text() != wanted:
        print(f"installing {wanted} into {folder}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True, timeout=300)
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted.split()]
        subprocess.run(install, check=True, timeout=_INSTALL_TIMEOUT)
        done.write_text(wanted)
    return str(python)


def prepare(folder: Path, sides: list[str], options: argparse.Namespace) -> dict[str, Path]:
    """The records in every form that the sides ask for; what is there already is used."""
    rlds = folder / "droid" / "1.0.1"
    if not rlds.is_dir():
        config = DroidSyntheticConfig(num_episodes=options.episodes, success_rate=1.0, max_shard_bytes=16 << 20)
        generate(rlds, config)
    data = {"rlds": rlds, "lerobot": folder / "lerobot"}
    if any(SIDES[side].data == "lerobot" for side in sides) and not data["lerobot"].is_dir():
        from data_pipelines.lerobot import ToLeRobotOptions, rlds_to_lerobot  # needs the lerobot extra

        rlds_to_lerobot(rlds, data["lerobot"], ToLeRobotOptions(fps=15, keyframe_interval=2))
    return data


def run(name: str, data: dict[str, Path], options: argparse.Namespace) -> dict:
    """Measure one side once. Raises RuntimeError with its output when it fails or takes too long."""
    side = SIDES[name]
    batches = max(2, round(options.batches * side.batches))
    command = [
        *(interpreter(side.venv, options), _PEERS / side.script, *side.arguments, "--data", data[side.data]),
        *("--batch", options.batch, "--warmup", options.warmup, "--batches", batches),
    ]
    if side.venv != "tensorflow":
        command += ["--workers" if side.venv else "--threads", options.threads]
    root = str(Path(__file__).parents[1])
    env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "JAX_PLATFORMS": "cpu", "PYTHONPATH": root}
    env["XDG_CACHE_HOME"] = str(data["rlds"].parent / "cache")
    ended = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=_SIDE_TIMEOUT, env=env, check=False
    )
    found = [line for line in ended.stdout.splitlines() if line.startswith("RESULT ")]
    if ended.returncode or not found:
        raise RuntimeError(f"side {name} failed:\n{ended.stdout[-2000:]}\n{ended.stderr[-4000:]}")
    return json.loads(found[-1].removeprefix("RESULT "))


def combine(runs: list[dict]) -> dict:
    """Medians of the rates over the rounds, the largest memory, everything else as in the last."""
    medians = {name: statistics.median(run[name] for run in runs) for name in _MEDIAN}
    return {**runs[-1], **medians, **{name: max(run[name] for run in runs) for name in _LARGEST}}


def check_formats(results: dict[str, dict]) -> None:
    """Every side has to give the same arrays, the words apart; otherwise the comparison means nothing."""
    wanted = None
    for name, result in results.items():
        arrays = {key: value for key, value in result["format"].items() if key != "instruction"}
        if name.startswith("bound"):
            continue
        wanted = wanted or (name, arrays)
        if arrays != wanted[1]:
            raise RuntimeError(f"batches differ: {wanted[0]} gives {wanted[1]}, {name} gives {arrays}")


def write(path: Path, ratios: dict[str, float], results: dict[str, dict], options: argparse.Namespace) -> None:
    versions = {name: metadata.version(name) for name in ("jax", "numpy", "simplejpeg")}
    for result in results.values():
        versions |= {
            name: result[name] for name in ("tensorflow", "tensorflow-datasets", "torch", "av") if name in result
        }
    measured = {name: {key: result[key] for key in (*_MEDIAN, *_LARGEST)} for name, result in results.items()}
    machine = {"cpus": len(os.sched_getaffinity(0)), "processor": platform.machine(), "load": os.getloadavg()[0]}
    machine["model"] = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        "unknown",
    )
    settings = {name: value for name, value in vars(options).items() if name not in ("json", "venvs", "data")}
    document = {
        "ratios": ratios,
        "ours": {name: value for name, value in measured.items() if name.startswith(("ours", "bound"))},
        "peers": {name: value for name, value in measured.items() if not name.startswith(("ours", "bound"))},
        "machine": machine,
        "versions": {"python": platform.python_version(), **versions},
        "settings": settings,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sides", default=",".join(SIDES), help="some of " + ", ".join(SIDES))
    parser.add_argument("--episodes", type=int, default=20, help="of about 120 frames")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--batches", type=int, default=120, help="timed in each round")
    parser.add_argument("--warmup", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--data", type=Path, help="where the records go and stay; by default a temporary folder")
    parser.add_argument("--venvs", type=Path, default=Path("runs/benchmarks/venvs"))
    parser.add_argument("--tensorflow", default="tensorflow-cpu tensorflow-datasets", help="what pip installs")
    parser.add_argument("--torch", default="torch av pyarrow numpy", help="what pip installs")
    parser.add_argument("--quick", action="store_true", help="few small batches, one round: does it run?")
    options = parser.parse_args()
    if options.quick:
        options.episodes, options.batch, options.batches, options.warmup, options.rounds = 2, 16, 12, 4, 1
    if unknown := [side for side in options.sides.split(",") if side not in SIDES]:
        parser.error(f"unknown sides {unknown}; known: {', '.join(SIDES)}")
    return options


def main() -> None:
    options = parse()
    sides = options.sides.split(",")
    runs: dict[str, list[dict]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as temporary:
        data = prepare(options.data or Path(temporary), sides, options)
        for name in sides:  # makes environments, indices and caches, so that no timed run does
            run(name, data, argparse.Namespace(**{**vars(options), "batches": 2, "warmup": 1}))
        for number in range(options.rounds):
            for name in sides:
                start = time.perf_counter()
                runs[name].append(run(name, data, options))
                rate = runs[name][-1]["frames_per_cpu_s"]
                print(
                    f"round {number + 1} {name}: {rate:.0f} frames per CPU-second, {time.perf_counter() - start:.0f} s"
                )
    results = {name: combine(found) for name, found in runs.items()}
    check_formats(results)
    for name, result in results.items():
        print(name, *(f"{key} {result[key]:.4g}" for key in (*_MEDIAN, *_LARGEST)))
    ratios = {
        name: results[side][key] / results[other][key]
        for name, (side, other, key) in RATIOS.items()
        if side in results and other in results
    }
    for name, value in ratios.items():
        print(f"ratio {name} {value:.2f}")
    if options.json:
        write(options.json, ratios, results, options)


if __name__ == "__main__":
    main()
