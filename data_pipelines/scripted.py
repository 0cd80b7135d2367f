"""Scripted episodes of the small tasks of reinforcement learning, as RLDS with their rewards.

    path = generate("runs/mine/demonstrations/1.0.0", PickCubeData(num_episodes=20))

The recipes of these tasks have a `generate` each, which calls this one.

The actions written are those that were run, noise included, the last one of an episode too: `last_step="acts"` of a
`TransitionConfig`. Of picking the cube only successes are kept. The point's sets have failures too, which time cut off:
they have no terminal step, so that their last row is what to bootstrap from.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from data_pipelines.finished import is_finished
from data_pipelines.recorder import Recorder
from vla_jax.core import errors, keys
from vla_jax.core.types import PromptTable
from vla_jax.data.formats.features import Episode, episode_features
from vla_jax.data.formats.rlds_writer import RldsWriter
from vla_jax.envs.base import Env, EnvState
from vla_jax.envs.mjx.experts import expert
from vla_jax.envs.mjx.pick_cube import PickCubeConfig
from vla_jax.envs.planar import maze, reach
from vla_jax.envs.planar.maze import MazeConfig
from vla_jax.envs.planar.reach import ReachConfig

_LEAST_SUCCESS_RATE = 0.05  # below it the expert is broken, and waiting for enough episodes would take for ever


@dataclasses.dataclass(frozen=True)
class PickCubeData:
    """Successes of the scripted expert under jitter; another value of any field is another dataset."""

    env: PickCubeConfig = PickCubeConfig()
    num_episodes: int = 20
    jitter: float = 0.3  # up to this standard deviation on every action entry, drawn per episode
    cameras: bool = True  # whether pictures are drawn and written
    seed: int = 0

    def __post_init__(self):
        _check(self)
        if self.jitter < 0:
            raise errors.ConfigError("PickCubeData.jitter", expected="at least 0", found=self.jitter)

    def episodes(self, env: Env, key: Key[Array, ""]) -> Iterator[Episode]:
        shown = env if self.cameras else _Unseen(env)
        recorder, written, attempts = Recorder(shown), 0, 0
        while written < self.num_episodes:
            batch = jax.random.split(keys.at_step(key, attempts), 2 * self.num_episodes)
            states, after, actions = _simulate(env, self.jitter, batch)
            attempts += len(batch)
            kept = np.flatnonzero(after.success[:, -1])[: self.num_episodes - written]
            found = recorder.episodes(states, actions, kept, [{}] * len(kept))
            rewards, discounts = np.asarray(after.reward), np.asarray(after.discount)
            for place, episode in zip(kept, found, strict=True):
                length = len(episode.steps["reward"])
                flags = _flags(rewards[place, :length], discounts[place, :length])
                yield dataclasses.replace(episode, steps={**episode.steps, **flags})
            written += len(kept)
            if written < _LEAST_SUCCESS_RATE * attempts:
                raise errors.EnvError(
                    f"the scripted expert of {env.spec.name}",
                    expected=f"success in at least {_LEAST_SUCCESS_RATE:.0%} of the episodes",
                    found=f"{written} of {attempts}",
                    fix="lower the jitter",
                )


@dataclasses.dataclass(frozen=True)
class ReachData:
    """Episodes between two goals; most of them miss."""

    env: ReachConfig = ReachConfig()
    demonstrator: reach.DemonstratorConfig = reach.DemonstratorConfig()
    num_episodes: int = 100
    seed: int = 0

    def __post_init__(self):
        _check(self)

    def episodes(self, env: reach.ReachEnv, key: Key[Array, ""]) -> Iterator[Episode]:
        rows = jax.device_get(reach.demonstrate(env, key, self.num_episodes, self.demonstrator))
        steps = (rows.observation.state, rows.actions[:, :, 0], rows.rewards[..., 0], rows.discounts[..., 0])
        for i, length in enumerate(rows.action_mask[..., 0].sum(axis=1)):
            yield _episode(env, *(column[i, :length] for column in steps))


@dataclasses.dataclass(frozen=True)
class MazeData:
    """Noisy episodes over two routes; many are too late."""

    env: MazeConfig = MazeConfig()
    demonstrator: maze.DemonstratorConfig = maze.DemonstratorConfig()
    num_episodes: int = 200
    seed: int = 0

    def __post_init__(self):
        _check(self)

    def episodes(self, env: maze.MazeEnv, key: Key[Array, ""]) -> Iterator[Episode]:
        found = jax.device_get(maze.demonstrate(env, key, self.num_episodes, self.demonstrator))
        steps = (found.observation.state, found.actions, found.rewards, found.discounts)
        for i, length in enumerate(found.acts.sum(axis=1)):
            yield _episode(env, *(column[i, :length] for column in steps))


ScriptedData = PickCubeData | ReachData | MazeData


def generate(folder: str | Path, config: ScriptedData) -> Path:
    """Write the dataset into `folder` (its version folder) and return it; a finished one of this config is left alone.

    Raises DataError when `folder` holds something else, EnvError when an expert hardly succeeds.
    """
    folder, about = Path(folder), {"type": type(config).__name__, **dataclasses.asdict(config)}
    config_hash = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    if is_finished(folder, config_hash):
        return folder
    no_prompt = np.zeros((1, 1), np.int32)  # episodes carry the words themselves
    env = config.env.make(PromptTable(no_prompt, no_prompt.astype(bool)))
    cameras = env.spec.cameras if getattr(config, "cameras", True) else {}
    metadata = {
        "config": about,
        "config_hash": config_hash,
        "action_names": env.spec.action_names,
        "state_names": env.spec.state_names,
        "control_hz": env.spec.control_hz,
    }
    features = episode_features(cameras, env.spec.state_dim, env.spec.action_dim)
    description = f"Scripted episodes of {env.spec.name}: actions as they were run, with their rewards."
    with RldsWriter(folder, features, "scripted", description=description, metadata=metadata) as writer:
        for episode in config.episodes(env, keys.stream(config.seed, f"scripted/{env.spec.name}")):
            writer.write(episode)
    return folder


@dataclasses.dataclass(frozen=True)
class _Unseen:
    """An environment without its cameras."""

    env: Env

    @property
    def spec(self):
        return dataclasses.replace(self.env.spec, cameras={})

    def observe(self, state: EnvState):
        return self.env.observe(state).replace(images={}, image_mask={})


@functools.partial(jax.jit, static_argnums=(0, 1))
def _simulate(
    env: Env, jitter: float, episode_keys: Key[Array, "b"]
) -> tuple[EnvState, EnvState, Float[Array, "b t a"]]:
    """Episodes side by side: the states before and after every step, and the actions that were run."""

    def episode(key: Key[Array, ""]):
        reset_key, scale_key, noise_key = jax.random.split(key, 3)
        scale = jitter * jax.random.uniform(scale_key)

        def step(state: EnvState, key: Key[Array, ""]):
            action = expert(env, state)
            action = jnp.clip(action + scale * jax.random.normal(key, action.shape), -1, 1)
            following = env.step(state, action)
            return following, (state, following, action)

        return jax.lax.scan(step, env.reset(reset_key), jax.random.split(noise_key, env.spec.episode_length))[1]

    return jax.vmap(episode)(episode_keys)


def _episode(
    env: Env,
    state: Float[np.ndarray, "t s"],
    actions: Float[np.ndarray, "t a"],
    rewards: Float[np.ndarray, "t"],
    discounts: Float[np.ndarray, "t"],
) -> Episode:
    words = {"language_instruction": env.spec.instructions[0]}
    return Episode({"observation/state": state, "action": actions, **words, **_flags(rewards, discounts)})


def _flags(
    rewards: Float[np.ndarray, "t"], discounts: Float[np.ndarray, "t"]
) -> dict[str, Float[np.ndarray, "t"] | Bool[np.ndarray, "t"]]:
    place = np.arange(len(rewards))
    is_last = place == len(rewards) - 1
    ends = {"is_first": place == 0, "is_last": is_last, "is_terminal": is_last & (discounts == 0)}
    return {"reward": rewards, "discount": discounts, **ends}


def _check(config: Any) -> None:
    if config.num_episodes < 1:
        name = f"{type(config).__name__}.num_episodes"
        raise errors.ConfigError(name, expected="at least 1", found=config.num_episodes)
