"""Latency and rate of `vla-jax serve` as robots see it: 1, 4 and 16 clients at once, with dynamic batching and without.

    python benchmarks/serving.py --json results/benchmarks/serving.json        # under 3 minutes on 2 idle cores
    python benchmarks/serving.py --quick                                       # does it run?
    python benchmarks/serving.py --checkpoint runs/demo/imitation --prompt "lift the red cube"

Serves pi0 at random weights in two sizes, `tiny` (1M parameters, 64 x 64 pixels) and `small` (13M, 112 x 112), each in
a process of its own over loopback; speed does not depend on what the weights are. Every client sends two pictures of
224 x 224, as openpi's robots do, and asks again as soon as it has its answer: more than any robot asks, so latencies
with several clients are those of a server at its limit. The clients are threads of this process and share the cores
with the server; what that costs is in `network`, which is the round trip less the server's own total. `device` is the
whole batch from the first byte in to the last one out.
"""

import argparse
import contextlib
import json
import os
import platform
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vla_jax.core import functional
from vla_jax.data.normalization import FieldStatistics, Statistics
from vla_jax.data.schema import DatasetConfig
from vla_jax.learners.imitation import ImitationConfig
from vla_jax.nets import vla_transformer
from vla_jax.nets.gemma import GemmaConfig
from vla_jax.nets.siglip import SiglipConfig
from vla_jax.policies.flow import FlowConfig
from vla_jax.serving.client import PolicyClient
from vla_jax.serving.latency import QUANTILES, LatencyMeter, split
from vla_jax.training import trained
from vla_jax.training.checkpoints import Checkpoints
from vla_jax.training.fit import FitConfig
from vla_jax.training.optimizers import AdamW
from vla_jax.training.recipe import DataConfig, EvaluationConfig, PolicyConfig, Recipe, TextConfig

CAMERAS, STATE_DIM, ACTION_DIM, HORIZON, PROMPT_LENGTH = ("exterior", "wrist"), 8, 8, 16, 48
SMALL = dict(
    vision=SiglipConfig(256, depth=4, mlp_dim=1024, num_heads=4, patch_size=14, image_size=112),
    prefix_expert=GemmaConfig(320, depth=6, mlp_dim=1024, num_heads=8, num_kv_heads=1, head_dim=40),
    suffix_expert=GemmaConfig(160, depth=6, mlp_dim=512, num_heads=8, num_kv_heads=1, head_dim=40),
)
SIZES: dict[str, dict[str, Any]] = {"tiny": {}, "small": SMALL}
BATCHING = {"on": ("1", "2", "4", "8", "16"), "off": ("1",)}  # the compiled batch sizes
SHOWN = ("round trip", "network", "preprocessing", "queue", "device")
_START_TIMEOUT, _STOP_TIMEOUT, _WARM_UP = 240, 30, 3  # seconds, seconds, requests of every client


def recipe(size: str) -> Recipe:
    """A policy of the pi0 family in one of SIZES, for a robot like DROID's."""
    text = TextConfig(prompt_length=PROMPT_LENGTH)
    changes = {"state_token": "suffix", **SIZES[size]}
    backbone = vla_transformer.tiny(CAMERAS, STATE_DIM, text.tokenizer().vocab_size, PROMPT_LENGTH, **changes)
    pictures = (*backbone.image_size, "pad")
    data = DatasetConfig("none", HORIZON, tuple((name, name) for name in CAMERAS), resize=pictures)
    return Recipe(
        name=f"pi0/{size}",
        policy=PolicyConfig(backbone, FlowConfig(HORIZON, ACTION_DIM)),
        learner=ImitationConfig(),
        optimizer=AdamW(peak_lr=1e-3),
        fit=FitConfig(num_train_steps=1),
        evaluation=EvaluationConfig((), execution_horizon=8),
        data=DataConfig((data,), batch_size=1),
        text=text,
    )


def write_checkpoint(size: str, folder: Path) -> int:
    """Random weights as a checkpoint. Returns how many."""
    config, rng = recipe(size), np.random.default_rng(0)
    shapes = functional.describe(config.policy.constructor())[1]
    params = jax.tree.map(lambda leaf: (0.02 * rng.normal(size=leaf.shape)).astype(leaf.dtype), shapes)
    fields = [FieldStatistics.of(rng.normal(size=(100, dim))) for dim in (STATE_DIM, ACTION_DIM)]
    names = tuple(f"action_{dim}" for dim in range(ACTION_DIM))
    store = Checkpoints(folder)
    with contextlib.closing(store):
        store.save(1, {"params": params}, params, {}, trained.contract(config, Statistics(*fields), names, 15.0))
    return sum(leaf.size for leaf in jax.tree.leaves(params))


@contextlib.contextmanager
def served(checkpoint: str | Path, batch_sizes: tuple[str, ...]) -> Iterator[tuple[str, float]]:
    """`vla-jax serve` in a process of its own: its address, and the seconds until it was ready."""
    command = [sys.executable, "-c", "from vla_jax.cli import main; main()", "serve", str(checkpoint), "--port", "0"]
    command += ["--batch-sizes", *batch_sizes, "--requests-per-second", "1e6", "--burst", "1e6"]
    start, lines = time.perf_counter(), queue.Queue()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def read() -> None:
        for line in process.stdout:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    try:
        printed: list[str] = []
        while (line := lines.get(timeout=_START_TIMEOUT)) is not None and not line.startswith("ready "):
            printed.append(line)
        if line is None:
            raise RuntimeError(f"vla-jax serve ended before it was ready:\n{''.join(printed)}")
        yield line.split()[1], time.perf_counter() - start
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(_STOP_TIMEOUT)


def observation(said: Mapping[str, Any], seed: int, picture: int, prompt: str) -> dict[str, Any]:
    """A request that fits what a server says of its policy."""
    rng = np.random.default_rng(seed)
    layout = said["layouts"]["flat"]
    pictures = {key: rng.integers(0, 256, (picture, picture, 3), dtype=np.uint8) for key in layout["cameras"]}
    return {**pictures, "observation/state": rng.normal(size=said["state_dim"]), "prompt": prompt}


def load(address: str, num_clients: int, seconds: float, picture: int, prompt: str) -> dict[str, Any]:
    """What `num_clients` see that ask for `seconds`, each again as soon as it is answered."""
    meter, together, failed = LatencyMeter(window=1 << 20), threading.Barrier(num_clients + 1), []
    counts = [0] * num_clients
    end = [0.0]

    def client(number: int) -> None:
        try:
            with PolicyClient(address) as asking:
                message = observation(asking.metadata, number, picture, prompt)
                for _ in range(_WARM_UP):
                    asking.infer(message)
                together.wait(_START_TIMEOUT)
                while (start := time.perf_counter()) < end[0]:
                    answer = asking.infer(message)
                    now = time.perf_counter()
                    meter.record(split(now - start, answer["server_timing"]))
                    counts[number] += now < end[0]
        except Exception as error:  # raised below, where it ends the benchmark
            failed.append(error)
            together.abort()

    threads = [threading.Thread(target=client, args=(number,), daemon=True) for number in range(num_clients)]
    for thread in threads:
        thread.start()
    end[0] = time.perf_counter() + 10 * _START_TIMEOUT  # until all have warmed up
    with contextlib.suppress(threading.BrokenBarrierError):
        together.wait(_START_TIMEOUT)
    before = _batches(address)
    end[0] = time.perf_counter() + seconds
    for thread in threads:
        thread.join(seconds + _START_TIMEOUT)
    if failed:
        raise failed[0]
    calls, rows = (after - earlier for after, earlier in zip(_batches(address), before, strict=True))
    names = [f"p{round(100 * quantile)}" for quantile in QUANTILES]
    summaries = meter.summaries()
    return {
        "requests_per_s": sum(counts) / seconds,
        "mean_batch": rows / max(1, calls),
        "requests": summaries["total"].count,
        "latency_ms": {
            part: {name: 1000 * value for name, value in zip(names, summaries[part].quantiles, strict=True)}
            for part in SHOWN
        },
    }


def _batches(address: str) -> tuple[float, float]:
    """Calls of the device so far, and the requests in them."""
    with urllib.request.urlopen(address.replace("ws", "http", 1) + "/metrics", timeout=30) as answer:
        values = dict(line.rsplit(" ", 1) for line in answer.read().decode().splitlines() if not line.startswith("#"))
    return float(values["vla_jax_batches_total"]), float(values["vla_jax_batch_rows_total"])


def measure(checkpoint: str | Path, options: argparse.Namespace) -> dict[str, Any]:
    """All numbers of clients, with batching and without."""
    found: dict[str, Any] = {}
    for batching, batch_sizes in BATCHING.items():
        with served(checkpoint, batch_sizes) as (address, ready):
            found[batching] = {"ready_s": ready}
            for count in options.clients:
                found[batching][str(count)] = load(address, count, options.seconds, options.picture, options.prompt)
    return found


def ratios(results: Mapping[str, Any], clients: list[int]) -> dict[str, float]:
    """Above 1 where batching answers more requests, or sooner."""
    found = {}
    for name, sides in results.items():
        for count in clients:
            on, off = sides["on"][str(count)], sides["off"][str(count)]
            found[f"{name}_{count}_clients_requests_batching_on_vs_off"] = on["requests_per_s"] / off["requests_per_s"]
            waits = [side["latency_ms"]["round trip"]["p95"] for side in (off, on)]
            found[f"{name}_{count}_clients_p95_batching_on_vs_off"] = waits[0] / waits[1]
    return found


def to_table(results: Mapping[str, Any], clients: list[int]) -> str:
    """Markdown; milliseconds as p50 / p95 / p99."""
    head = ["policy", "batching", "clients", "requests/s", "mean batch", *SHOWN]
    rows = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for name, sides in results.items():
        for batching in BATCHING:
            for count in clients:
                one = sides[batching][str(count)]
                cells = [name, batching, str(count), f"{one['requests_per_s']:.1f}", f"{one['mean_batch']:.1f}"]
                cells += [" / ".join(f"{value:.1f}" for value in one["latency_ms"][part].values()) for part in SHOWN]
                rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sizes", default=",".join(SIZES), help="some of " + ", ".join(SIZES))
    parser.add_argument("--checkpoint", type=Path, help="a run or checkpoint to serve instead")
    parser.add_argument("--prompt", default="put the bowl on the plate")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--seconds", type=float, default=5.0, help="of every number of clients")
    parser.add_argument("--picture", type=int, default=224, help="height and width of what the clients send")
    parser.add_argument("--quick", action="store_true", help="tiny, two clients at most, half a second each")
    options = parser.parse_args()
    if options.quick:
        options.sizes, options.clients, options.seconds = "tiny", [1, 2], 0.5
    if unknown := [size for size in options.sizes.split(",") if size not in SIZES]:
        parser.error(f"unknown sizes {unknown}; known: {', '.join(SIZES)}")
    return options


def main() -> None:
    options, results, num_params = parse(), {}, {}
    if options.checkpoint is not None:
        results[options.checkpoint.name] = measure(options.checkpoint, options)
    else:
        for size in options.sizes.split(","):
            with tempfile.TemporaryDirectory() as folder:
                num_params[size] = write_checkpoint(size, Path(folder))
                print(f"{size}: {num_params[size] / 1e6:.1f}M parameters", flush=True)
                results[size] = measure(folder, options)
    found = ratios(results, options.clients)
    print(to_table(results, options.clients))
    for name, value in found.items():
        print(f"ratio {name} {value:.2f}")
    if options.json:
        cpuinfo = Path("/proc/cpuinfo")
        lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
        models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
        machine = {"cpus": len(os.sched_getaffinity(0)), "processor": platform.machine(), "load": os.getloadavg()[0]}
        machine |= {"model": models[0] if models else "unknown", "device": jax.devices()[0].device_kind}
        versions = {name: metadata.version(name) for name in ("jax", "numpy", "websockets")}
        document = {
            "ratios": found,
            "ours": results,
            "peers": {},
            "machine": machine,
            "versions": {"python": platform.python_version(), **versions},
            "settings": {
                "parameters": num_params,
                **{name: value for name, value in vars(options).items() if name not in ("json", "checkpoint")},
            },
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        partial = options.json.with_name(f"{options.json.name}.incomplete")
        partial.write_text(json.dumps(document, indent=2) + "\n")
        os.replace(partial, options.json)


if __name__ == "__main__":
    main()
