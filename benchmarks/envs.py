"""Simulation and rendering speed of the tabletop suite against plain MJX, C MuJoCo and mujoco.Renderer.

    python benchmarks/envs.py --json envs.json

All sides step the same model of `tabletop/place` from the same states with the same controls, one after the other in
one process, several rounds; the numbers are medians. C MuJoCo's comparison says what a CPU costs us: MJX pays on
accelerators, and for staying inside one jit with the policy.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import jax
import jax.numpy as jnp
import mujoco
import mujoco.rollout
import numpy as np
from mujoco import mjx

from vla_jax.core import errors
from vla_jax.core.types import PromptTable
from vla_jax.envs.mjx.host_renderer import HostRenderer
from vla_jax.envs.mjx.scene import SUBSTEPS
from vla_jax.envs.mjx.tabletop import TabletopConfig, TabletopEnv


def make_env() -> TabletopEnv:
    config = TabletopConfig("place")
    shape = (len(config.instructions), 1)
    return TabletopEnv(config, PromptTable(jnp.zeros(shape, jnp.int32), jnp.ones(shape, bool)))


def wrapped_steps(env: TabletopEnv, states, num_steps: int) -> Callable[[], object]:
    """Our control steps: actions, targets, success, freezing, and SUBSTEPS of physics each."""
    actions = jax.random.uniform(jax.random.key(1), (num_steps, states.done.shape[0], 5), minval=-1.0)

    @jax.jit
    def run(states):
        return jax.lax.scan(lambda states, action: (jax.vmap(env.step)(states, action), None), states, actions)[0]

    return lambda: jax.block_until_ready(run(states))


def plain_steps(env: TabletopEnv, states, num_steps: int) -> Callable[[], object]:
    """The loop anyone would write around `mjx.step` for the same physics."""
    model = env.model.mjx_physics

    @jax.jit
    def run(qpos, control):
        def one(qpos, control):
            data = env.model.initial.replace(qpos=qpos, ctrl=control)
            return jax.lax.fori_loop(0, num_steps * SUBSTEPS, lambda _, data: mjx.step(model, data), data).qpos

        return jax.vmap(one)(qpos, control)

    qpos = states.physics.qpos
    control = jnp.concatenate([states.physics.target, jnp.full((qpos.shape[0], 2), 0.04)], axis=1)
    return lambda: jax.block_until_ready(run(qpos, control))


def host_steps(env: TabletopEnv, states, num_steps: int, num_threads: int) -> Callable[[], object]:
    """mujoco.rollout, C on `num_threads` threads."""
    model, qpos = env.model.physics, np.asarray(states.physics.qpos, np.float64)
    datas = [mujoco.MjData(model) for _ in range(num_threads)]
    initial = np.concatenate([np.zeros((len(qpos), 1)), qpos, np.zeros((len(qpos), model.nv + model.na))], axis=1)
    control = np.concatenate([np.asarray(states.physics.target), np.full((len(qpos), 2), 0.04)], axis=1)
    control = np.repeat(control[:, None], num_steps * SUBSTEPS, axis=1)
    return lambda: mujoco.rollout.rollout(model, datas, initial, control)


def ray_images(env: TabletopEnv, states) -> Callable[[], object]:
    observe = jax.jit(jax.vmap(env.observe))
    return lambda: jax.block_until_ready(observe(states).images)


def host_images(renderer: HostRenderer, members: list) -> Callable[[], object]:
    return lambda: [renderer.rgb(state, camera) for state in members for camera in ("front", "wrist")]


def measure(sides: dict[str, tuple[Callable[[], object], float]], rounds: int) -> dict[str, float]:
    """Median rate of each side, work units per second, its rounds interleaved with the others'."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for run, _ in sides.values():
        run()  # compiles
    for _ in range(rounds):
        for name, (run, _) in sides.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: work / statistics.median(seconds[name]) for name, (_, work) in sides.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=10, help="control steps per run")
    parser.add_argument("--images", type=int, default=64, help="states to render, two cameras each")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    env, num_threads = make_env(), os.cpu_count() or 1
    states = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(0), options.batch))
    work = options.batch * options.steps * SUBSTEPS
    physics = measure(
        {
            "ours": (wrapped_steps(env, states, options.steps), work),
            "plain_mjx": (plain_steps(env, states, options.steps), work),
            "mujoco_rollout": (host_steps(env, states, options.steps, num_threads), work),
        },
        options.rounds,
    )
    ours = {"physics_steps_per_s": physics["ours"], "env_steps_per_s": physics["ours"] / SUBSTEPS}
    peers = {"plain_mjx_steps_per_s": physics["plain_mjx"], "mujoco_rollout_steps_per_s": physics["mujoco_rollout"]}
    ratios = {
        "env_step_vs_plain_mjx": physics["ours"] / physics["plain_mjx"],
        "physics_vs_mujoco_rollout": physics["ours"] / physics["mujoco_rollout"],
    }

    shown = jax.tree.map(lambda leaf: leaf[: options.images], states)
    members = [jax.tree.map(lambda leaf, i=i: leaf[i], shown) for i in range(4)]
    sides = {"ours": (ray_images(env, shown), 2 * options.images)}
    try:
        renderer = HostRenderer(env.model, 64, 64)
        sides["mujoco_renderer"] = (host_images(renderer, members), 2 * len(members))
    except errors.EnvError as error:
        print(f"mujoco.Renderer left out: {error}")
    images = measure(sides, options.rounds)
    ours["images_per_s"] = images["ours"]
    if "mujoco_renderer" in images:
        peers["mujoco_renderer_images_per_s"] = images["mujoco_renderer"]
        ratios["images_vs_mujoco_renderer"] = images["ours"] / images["mujoco_renderer"]
    report(ratios, ours, peers, options)


def report(ratios: dict[str, float], ours: dict[str, float], peers: dict[str, float], options) -> None:
    for name, value in {**ours, **peers}.items():
        print(f"{name} {value:.0f}")
    for name, value in ratios.items():
        print(f"ratio {name} {value:.2f}")
    if options.json:
        machine = {"cpus": os.cpu_count(), "processor": platform.machine(), "load": os.getloadavg()[0]}
        machine["device"] = jax.devices()[0].device_kind
        versions = {name: metadata.version(name) for name in ("jax", "mujoco", "mujoco-mjx", "numpy")}
        settings = {name: value for name, value in vars(options).items() if name != "json"}
        result = {"ratios": ratios, "ours": ours, "peers": peers, "machine": machine, "versions": versions}
        options.json.write_text(json.dumps({**result, "settings": settings}, indent=2) + "\n")


if __name__ == "__main__":
    main()
