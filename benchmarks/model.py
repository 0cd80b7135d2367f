"""Speed of our pi0 against openpi's own code at the same shapes, on the same JAX: training, sampling, one wide layer.

    python benchmarks/model.py --json results/benchmarks/model.json          # about 15 minutes on 2 idle cores
    python benchmarks/model.py --quick                                       # does it run? sampling alone, once
    python benchmarks/model.py --quick --sides ours,ours_scanned             # without openpi

Cases: train_b8 and train_b32 (one update with AdamW, clipping and averaging), sample_b1 (prefix once, 10 flow steps),
both on two 224 x 224 pictures and 0.4M parameters; layer_b1 (forward and backward of one pi0 layer as published, 127M
parameters). Every side and case runs in a process of its own, rounds interleaved, numbers are medians over the rounds.
The first round compiles with an empty cache (cold), later ones with what it left (warm).

openpi needs a virtual environment of its own (made on first use under --venvs) and a clone of its repository (made on
first use at --openpi, from --openpi-url, at the commit that the peer was written for). The environment gets the JAX,
Flax and Optax versions of this one: the JAX version alone is worth 1.5 to 1.7 times, and that is not ours. Both sides
get the XLA flags that importing vla_jax sets.
"""

import argparse
import dataclasses
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

_PEERS = Path(__file__).parent / "model_peers"
sys.path.insert(0, str(_PEERS))  # scripts, not a package

import shapes  # noqa: E402
import timing  # noqa: E402

import vla_jax  # noqa: E402, F401  sets the flags of the CPU back end, which both sides get

OPENPI_COMMIT = "15a9616a00943ada6c20a0f158e3adb39df2ccac"
_SAME_VERSION = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint")
_OTHERS = ("einops", "jaxtyping==0.2.36", "beartype==0.19.0", "augmax", "safetensors", "pillow", "tqdm-loggable")
_SIDE_TIMEOUT, _INSTALL_TIMEOUT = 900, 1800  # seconds


@dataclasses.dataclass(frozen=True)
class Side:
    script: str
    arguments: tuple[str, ...] = ()
    is_peer: bool = False


SIDES = {
    "ours": Side("ours.py", ("--layers", "unrolled")),
    "ours_scanned": Side("ours.py", ("--layers", "scanned")),  # and recomputed in the gradient, as openpi's are
    "openpi": Side("openpi_side.py", is_peer=True),
}


def interpreter(side: Side, options: argparse.Namespace) -> str:
    """The Python of a side; the peer's environment and clone are made when they are not there."""
    if not side.is_peer:
        return sys.executable
    clone(options.openpi, options.openpi_url, OPENPI_COMMIT)
    return environment(options.venvs / "openpi", _SAME_VERSION, _OTHERS)


def clone(folder: Path, url: str, commit: str) -> None:
    """A peer's repository at the commit that it was written for, unless the folder is there."""
    if folder.is_dir():
        return
    print(f"cloning {url} into {folder}", flush=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    command = ["git", "clone", "--quiet", "--no-checkout", url, str(partial)]
    subprocess.run(command, check=True, timeout=_INSTALL_TIMEOUT)
    subprocess.run(["git", "-C", str(partial), "checkout", "--quiet", commit], check=True, timeout=300)
    partial.rename(folder)


def environment(folder: Path, same_version: Sequence[str], others: Sequence[str]) -> str:
    """The Python of a virtual environment with some packages in the versions of this one, and others."""
    python, done = folder / "bin" / "python", folder / ".installed"
    wanted = [*(f"{name}=={metadata.version(name)}" for name in same_version), *others]
    if not done.is_file() or done.read_text() != " ".join(wanted):
        print(f"installing {' '.join(wanted)} into {folder}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True, timeout=300)
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted]
        subprocess.run(install, check=True, timeout=_INSTALL_TIMEOUT)
        done.write_text(" ".join(wanted))
    return str(python)


def run(name: str, case: str, cache: Path, options: argparse.Namespace) -> dict:
    """Measure one side and case once. Raises RuntimeError with its output when it fails."""
    side = SIDES[name]
    command = [interpreter(side, options), _PEERS / side.script, *side.arguments, "--case", case]
    command += ["--dtype", options.dtype, "--repeats", options.repeats, "--cache", cache / f"{name}_{case}"]
    paths = [_PEERS, options.openpi / "src"] if side.is_peer else [_PEERS, Path(__file__).parents[1]]
    result = call(command, paths, f"{name} {case}", JAX_PLATFORMS=options.platform)
    if not result["finite"]:
        raise RuntimeError(f"{name} {case} computed something that is not finite")
    return result


def call(command: Sequence, paths: Sequence[Path], what: str, **environ: str) -> dict:
    """What a script printed after RESULT, run with these import paths. Raises RuntimeError with its output when it
    fails."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(str(p.resolve()) for p in paths), **environ}
    ended = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=_SIDE_TIMEOUT, env=env, check=False
    )
    found = [line for line in ended.stdout.splitlines() if line.startswith("RESULT ")]
    if ended.returncode or not found:
        raise RuntimeError(f"{what} failed:\n{ended.stdout[-2000:]}\n{ended.stderr[-4000:]}")
    return json.loads(found[-1].removeprefix("RESULT "))


def combine(runs: list[dict]) -> dict:
    """The median time over the rounds, and the time to compile of the first (cold) and of the later ones (warm)."""
    warm = [run["compile_s"] for run in runs[1:]]
    return {
        "seconds": statistics.median(run["seconds"] for run in runs),
        "compile_cold_s": runs[0]["compile_s"],
        "compile_warm_s": statistics.median(warm) if warm else None,
        **{key: runs[0][key] for key in ("num_params", "flops", "jax", "device")},
    }


def ratios(results: dict[str, dict[str, dict]]) -> dict[str, float]:
    """Ours against openpi, per case: times, and times to compile; above 1 means that ours is faster."""
    found = {}
    peer = results.get("openpi", {})
    for ours in ("ours", "ours_scanned"):
        for case in results.get(ours, {}).keys() & peer.keys():
            for key in ("seconds", "compile_cold_s", "compile_warm_s"):
                mine, theirs = results[ours][case][key], peer[case][key]
                if mine and theirs:
                    what = "" if key == "seconds" else f"_{key.removesuffix('_s')}"
                    found[f"{ours}_{case}{what}_vs_openpi"] = theirs / mine
    return dict(sorted(found.items()))


def shares(results: dict[str, dict[str, dict]], peak: float) -> dict[str, float]:
    """Share of the matmul peak, by our own counts: of the layer from its shapes, of training from our traced program
    with its layers written out (what it computes again in attention's gradient included). Sampling has none.
    """
    ours = results.get("ours", {})
    counts = {case: result["flops"] for case, result in ours.items() if case.startswith("train")}
    counts |= {case: shapes.layer_flops(int(case.split("_b")[1])) for case in timing.CASES if case.startswith("layer")}
    return {
        f"{side}_{case}_share_of_peak": counts[case] / result["seconds"] / peak
        for side, cases in results.items()
        for case, result in cases.items()
        if counts.get(case)
    }


def check_versions(results: dict[str, dict[str, dict]]) -> None:
    """Raise RuntimeError when sides ran on different versions of JAX: the ratio would not be ours."""
    versions = {name: {case["jax"] for case in cases.values()} for name, cases in results.items()}
    if len(set.union(*versions.values())) != 1:
        raise RuntimeError(f"sides ran on different versions of JAX: {versions}")


def write(
    path: Path, found: dict[str, dict], results: dict, peak: dict[str, float], options: argparse.Namespace
) -> None:
    document = {
        **found,
        "ours": {name: cases for name, cases in results.items() if not SIDES[name].is_peer},
        "peers": {name: cases for name, cases in results.items() if SIDES[name].is_peer},
        "machine": machine(peak),
        "versions": versions() | {"openpi": OPENPI_COMMIT},
        # where things lie on this machine is nobody's business
        "settings": {
            name: str(value)
            for name, value in vars(options).items()
            if name not in ("json", "venvs", "openpi", "openpi_url")
        }
        | {"xla_flags": os.environ.get("XLA_FLAGS", "")},
    }
    save(path, document)


def machine(peak: dict[str, float]) -> dict:
    return {"cpus": os.cpu_count(), "processor": platform.machine(), "load": os.getloadavg()[0], "matmul": peak}


def versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax", "numpy")}


def save(path: Path, document: dict) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(document, indent=2) + "\n")
    partial.rename(path)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sides", default=",".join(SIDES), help="some of " + ", ".join(SIDES))
    parser.add_argument("--cases", default=",".join(timing.CASES), help="some of " + ", ".join(timing.CASES))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of activations")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--platform", default="cpu", help="what JAX_PLATFORMS is set to")
    parser.add_argument("--venvs", type=Path, default=Path("runs/benchmarks/venvs"))
    parser.add_argument("--openpi", type=Path, default=Path("runs/benchmarks/openpi"), help="clone of its repository")
    parser.add_argument("--openpi-url", default="https://github.com/Physical-Intelligence/openpi")
    parser.add_argument("--quick", action="store_true", help="sampling alone, once: does it run?")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.quick:
        options.cases, options.repeats, options.rounds = "sample_b1", 1, 1
    for name, known in (("sides", SIDES), ("cases", timing.CASES)):
        if unknown := [each for each in getattr(options, name).split(",") if each not in known]:
            parser.error(f"unknown {name} {unknown}; known: {', '.join(known)}")
    return options


def main() -> None:
    options = parse()
    sides, cases = options.sides.split(","), options.cases.split(",")
    for name in sides:
        interpreter(SIDES[name], options)  # makes environments, so that no timed run waits for one
    runs: dict[str, dict[str, list[dict]]] = {side: {case: [] for case in cases} for side in sides}
    with tempfile.TemporaryDirectory() as cache:
        for number in range(options.rounds):
            for case in cases:
                for name in sides:
                    start = time.perf_counter()
                    result = run(name, case, Path(cache), options)
                    runs[name][case].append(result)
                    seconds, compile_s = result["seconds"], result["compile_s"]
                    took = f"compiled in {compile_s:.1f} s, {time.perf_counter() - start:.0f} s in all"
                    print(f"round {number + 1} {case} {name}: {seconds:.4f} s, {took}")
    results = {name: {case: combine(found) for case, found in cases.items()} for name, cases in runs.items()}
    check_versions(results)
    peak = {options.dtype: timing.matmul_flops_per_s(options.dtype)}
    found = ratios(results)
    print(f"matmul peak {peak[options.dtype] / 1e9:.0f} GFLOP/s in {options.dtype}")
    part = shares(results, peak[options.dtype])
    for name, value in part.items():
        print(f"{name} {value:.3f}")
    for name, value in found.items():
        print(f"ratio {name} {value:.2f}")
    if options.json:
        write(options.json, {"ratios": found, "shares": part}, results, peak, options)


if __name__ == "__main__":
    main()
