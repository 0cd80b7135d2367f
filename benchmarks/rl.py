"""Speed of our reinforcement learners against the public agents: the same sizes, batches and JAX.

    python benchmarks/rl.py --json results/benchmarks/rl.json                # about 9 minutes on 2 idle cores
    python benchmarks/rl.py --quick                                          # does it run? one case, once
    python benchmarks/rl.py --quick --sides ours                             # without the public agents
    python benchmarks/rl.py --platform cuda --sides ours,public --num-envs 1024 --json rl_gpu.json

Cases: dqc_2x256 and dqc_4x1024 (one update of decoupled Q-chunking on 256 chunks; `_scanN` are N of them in one
call), serl_utd20 (20 critic updates of 256 transitions with 10 critics, then one update of actor and temperature on all
of them), online (environment steps per second in our pick-cube scene with learning: ours is RLPD, the peer is brax's
own PPO loop, whose networks and updates are much smaller). Before updates are timed the losses and gradients of both
sides are compared on the same parameters, batch and draws. Every side and case runs in a process of its own, rounds
interleaved, numbers are medians over the rounds.

The public agents need a virtual environment of their own (made on first use under --venvs) and clones of their
repositories (made on first use under --clones, at the commits that the peers were written for). The environment gets
the JAX, Flax and Optax versions of this one. They are timed twice: `public` with the XLA flags that importing vla_jax
sets, which ours has, and `public_default` with those of JAX; our ratios are against the faster. brax has an environment
of its own, too.
"""

import argparse
import dataclasses
import os
import sys
import tempfile
import time
from pathlib import Path

GIVEN_FLAGS = os.environ.get("XLA_FLAGS", "")  # before vla_jax adds its own, which the import of model.py makes it do
_HERE = Path(__file__).parent
_PEERS = _HERE / "rl_peers"
sys.path[:0] = [str(_HERE), str(_PEERS)]  # scripts, not packages

import model  # noqa: E402
import sizes  # noqa: E402
import timing  # noqa: E402

CLONES = {
    "dqc": ("https://github.com/ColinQiyangLi/dqc", "df898256a77f3594b54a7268bd5f89915981da35"),
    "serl": ("https://github.com/rail-berkeley/serl", "cd5f7e7c687266d9ebd1a19dd2049b2bbb9d2e9b"),
}
_SAME_VERSION = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint")
_OTHERS = ("distrax==0.1.9", "ml_collections==1.1.0", "chex==0.1.92", "einops==0.8.2")

_MORE_OF_SHORT = 15  # times as many calls where one takes milliseconds
_BRAX = ("brax==0.14.2", "jaxtyping==0.3.11")  # for our scene it needs what vla_jax.envs imports
_SCENE = ("mujoco", "mujoco-mjx")
CASES = (*sizes.CASES, "online")


@dataclasses.dataclass(frozen=True)
class Side:
    script: str
    is_peer: bool = False
    default_flags: bool = False  # XLA's, instead of those that importing vla_jax sets


SIDES = {
    "ours": Side("ours.py"),
    "public": Side("public_side.py", is_peer=True),
    "public_default": Side("public_side.py", is_peer=True, default_flags=True),
}


def prepare(options: argparse.Namespace) -> dict[bool, str]:
    """The Python of our side (False) and of the public agents' (True), whose environment and clones are made."""
    if not any(SIDES[name].is_peer for name in options.sides.split(",")):
        return {False: sys.executable}
    for name, (url, commit) in CLONES.items():
        model.clone(options.clones / name, options.mirror.get(name, url), commit)
    python = options.peer_python or model.environment(options.venvs / "rl", _SAME_VERSION, _OTHERS)
    return {False: sys.executable, True: python}


def call(name: str, case: str, arguments: list, pythons: dict[bool, str], options: argparse.Namespace) -> dict:
    side = SIDES[name]
    command = [pythons[side.is_peer], _PEERS / side.script, "--case", case, *arguments]
    paths = [_PEERS, _HERE / "model_peers"]
    if side.is_peer:
        command += ["--clones", options.clones]
    else:
        paths.append(_HERE.parent)
    environ = {"JAX_PLATFORMS": options.platform}
    if "--check" in arguments:  # by default a GPU rounds what it multiplies to ten bits
        environ["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"
    if side.default_flags:
        environ["XLA_FLAGS"] = GIVEN_FLAGS
    return model.call(command, paths, f"{name} {case}", **environ)


def compare(case: str, cache: Path, pythons: dict[bool, str], options: argparse.Namespace) -> dict:
    """The largest difference between the sides' losses and gradients; raises RuntimeError where it is not rounding."""
    arguments = ["--check", cache / f"{case}.npz", "--cache", cache / f"check_{case}"]
    call("public", case, arguments, pythons, options)
    return call("ours", case, arguments, pythons, options)


def run(name: str, case: str, cache: Path, pythons: dict[bool, str], options: argparse.Namespace) -> dict:
    calls = options.repeats * (_MORE_OF_SHORT if "2x256" in case else 1)
    arguments = ["--repeats", calls, "--cache", cache / f"{name}_{case}"]
    result = call(name, case, arguments, pythons, options)
    if not result["finite"]:
        raise RuntimeError(f"{name} {case} computed something that is not finite")
    return result


def online(options: argparse.Namespace) -> dict[str, dict]:
    """Environment steps per second with learning, ours and brax's: the run of the median rate."""
    scripts = {"ours": (sys.executable, "online_ours.py")}
    if any(SIDES[name].is_peer for name in options.sides.split(",")):
        versions = (*_SAME_VERSION, *_SCENE)
        python = options.peer_python or model.environment(options.venvs / "brax", versions, _BRAX)
        scripts["brax_ppo"] = (python, "online_brax.py")
    runs: dict[str, list[dict]] = {name: [] for name in scripts}
    for number in range(options.rounds):
        for name, (python, script) in scripts.items():
            paths = [_PEERS, _HERE / "model_peers", _HERE.parent]
            command = [python, _PEERS / script, "--num-envs", options.num_envs]
            result = model.call(command, paths, f"{name} online", JAX_PLATFORMS=options.platform)
            if not result["finite"]:
                raise RuntimeError(f"{name} online computed something that is not finite")
            runs[name].append(result)
            print(f"round {number + 1} online {name}: {result['env_steps_per_s']:.0f} env steps/s", flush=True)
    return {
        name: sorted(found, key=lambda run: run["env_steps_per_s"])[len(found) // 2] for name, found in runs.items()
    }


def ratios(results: dict[str, dict[str, dict]]) -> dict[str, float]:
    """Ours against the faster public side, per case, and updates in a scan against as many calls."""
    found, ours = {}, results.get("ours", {})
    for case, result in ours.items():
        peers = [cases[case]["seconds"] for name, cases in results.items() if SIDES[name].is_peer and case in cases]
        if peers:
            found[f"ours_{case}_vs_public"] = min(peers) / result["seconds"]
    for name, cases in results.items():
        for case, result in cases.items():
            plain, *scan = case.split("_scan")
            if scan and plain in cases:
                found[f"{name}_{plain}_scanned_vs_called"] = int(scan[0]) * cases[plain]["seconds"] / result["seconds"]
    return dict(sorted(found.items()))


def rates(results: dict[str, dict[str, dict]], peak: float) -> tuple[dict[str, float], dict[str, float]]:
    """Updates of the critics per second, and the share of the matmul peak that the update's own products reach."""
    per_second, shares = {}, {}
    for side, cases in results.items():
        for case, result in cases.items():
            per_second[f"{side}_{case}"] = sizes.updates_per_call(case) / result["seconds"]
            shares[f"{side}_{case}_share_of_peak"] = sizes.flops(case, SIDES[side].is_peer) / result["seconds"] / peak
    return per_second, shares


def document(found: dict[str, dict], results: dict, peak: float, options: argparse.Namespace) -> dict:
    shown = ("sides", "cases", "repeats", "rounds", "platform", "num_envs")
    return {
        **found,
        "ours": {name: cases for name, cases in results.items() if not SIDES[name].is_peer},
        "peers": {name: cases for name, cases in results.items() if SIDES[name].is_peer},
        "machine": model.machine({"float32": peak}),
        "versions": model.versions() | {name: commit for name, (_, commit) in CLONES.items()},
        "settings": {name: str(getattr(options, name)) for name in shown}
        | {"xla_flags": os.environ.get("XLA_FLAGS", ""), "xla_flags_of_public_default": GIVEN_FLAGS},
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sides", default=",".join(SIDES), help="some of " + ", ".join(SIDES))
    parser.add_argument("--cases", default=",".join(CASES), help="some of " + ", ".join(CASES))
    parser.add_argument("--repeats", type=int, default=10, help="timed calls in each round, more of short ones")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--platform", default="cpu", help="what JAX_PLATFORMS is set to")
    parser.add_argument("--num-envs", type=int, default=64, help="of online learning")
    parser.add_argument("--peer-python", help="that has the peers' packages, where no environment can be made")
    parser.add_argument("--venvs", type=Path, default=Path("runs/benchmarks/venvs"))
    parser.add_argument("--clones", type=Path, default=Path("runs/benchmarks"), help="of the public repositories")
    parser.add_argument("--mirror", default="", help="where else to clone from: dqc=URL,serl=URL")
    parser.add_argument("--quick", action="store_true", help="the smallest case alone, once: does it run?")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.mirror = dict(each.split("=", 1) for each in options.mirror.split(",") if each)
    if options.quick:
        options.cases, options.repeats, options.rounds = "dqc_2x256", 1, 1
    for name, known in (("sides", SIDES), ("cases", CASES)):
        if unknown := [each for each in getattr(options, name).split(",") if each not in known]:
            parser.error(f"unknown {name} {unknown}; known: {', '.join(known)}")
    return options


def main() -> None:
    options = parse()
    sides = options.sides.split(",")
    cases = [case for case in options.cases.split(",") if case != "online"]
    pythons = prepare(options)
    found: dict[str, dict] = {"differences": {}}
    runs: dict[str, dict[str, list[dict]]] = {side: {case: [] for case in cases} for side in sides}
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        if {"ours", "public"} <= set(sides):
            for case in (case for case in cases if "_scan" not in case):
                found["differences"][case] = compare(case, cache, pythons, options)["difference"]
                print(f"{case}: losses and gradients equal to {found['differences'][case]:.1e}", flush=True)
        for number in range(options.rounds):
            for case in cases:
                for name in sides:
                    start = time.perf_counter()
                    result = run(name, case, cache, pythons, options)
                    runs[name][case].append(result)
                    took = f"compiled in {result['compile_s']:.1f} s, {time.perf_counter() - start:.0f} s in all"
                    print(f"round {number + 1} {case} {name}: {result['seconds']:.4f} s, {took}", flush=True)
    results = {name: {case: model.combine(found) for case, found in cases.items()} for name, cases in runs.items()}
    if cases:
        model.check_versions(results)
    found["online"] = online(options) if "online" in options.cases.split(",") else {}
    peak = timing.matmul_flops_per_s("float32")
    print(f"matmul peak {peak / 1e9:.0f} GFLOP/s in float32")
    found["updates_per_second"], found["shares"] = rates(results, peak)
    found["ratios"] = ratios(results)
    if "brax_ppo" in found["online"]:
        rate = {name: result["env_steps_per_s"] for name, result in found["online"].items()}
        found["ratios"]["ours_online_vs_brax_ppo"] = rate["ours"] / rate["brax_ppo"]
    for kind in ("updates_per_second", "shares"):
        for name, value in found[kind].items():
            print(f"{kind} {name} {value:.3f}")
    for name, value in found["ratios"].items():
        print(f"ratio {name} {value:.2f}")
    if options.json:
        model.save(options.json, document(found, results, peak, options))


if __name__ == "__main__":
    main()
