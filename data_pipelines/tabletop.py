"""Demonstrations of the scripted tabletop experts, written as an RLDS dataset.

    path = generate("data/tabletop/1.0.0", TabletopDataConfig(tasks=("place",), episodes_per_task=500))

Every episode has its own noise level: what the robot does is the expert's action plus noise, what is written is the
expert's action without it (DART, arXiv 1703.09327, with one standard deviation for all dims but the gripper). The data
so shows how to come back from small errors. Only successful episodes are kept.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Array, Float, Key

from data_pipelines.finished import is_finished
from data_pipelines.recorder import Recorder
from vla_jax.core import errors, keys
from vla_jax.core.types import PromptTable
from vla_jax.data.formats.features import Episode, episode_features
from vla_jax.data.formats.rlds import load_info
from vla_jax.data.formats.rlds_writer import FileFormat, RldsWriter
from vla_jax.data.schema import DatasetConfig
from vla_jax.envs.base import Env, EnvSpec, EnvState
from vla_jax.envs.mjx.experts import expert
from vla_jax.envs.mjx.tabletop import Randomization, TabletopConfig, TabletopEnv

Act = Callable[[EnvState], Float[Array, "a"]]
Progress = Callable[[int, int], None]  # (episodes written, episodes wanted)
GRIP = "grip"  # the action entry that is a command, not a displacement

_LEAST_SUCCESS_RATE = 0.05  # below it the expert is broken, and waiting for enough episodes would take for ever


@dataclasses.dataclass(frozen=True)
class TabletopDataConfig:
    """What is generated; another value of any field is another dataset."""

    tasks: tuple[str, ...] = ("place",)
    episodes_per_task: int = 500  # successful ones
    noise_max: float = 0.4  # action noise std of an episode is uniform in [0, noise_max], in action units
    seed: int = 0
    image_size: int = 64  # pixels
    randomization: Randomization = dataclasses.field(default_factory=Randomization)
    batch_size: int = 128  # episodes simulated at once
    jpeg_quality: int = 95
    file_format: FileFormat = "array_record"

    def __post_init__(self):
        if not self.tasks or len(set(self.tasks)) != len(self.tasks):
            raise errors.ConfigError("TabletopDataConfig.tasks", expected="different tasks", found=self.tasks)
        if self.episodes_per_task < 1 or self.batch_size < 1:
            raise errors.ConfigError(
                "TabletopDataConfig",
                expected="episodes_per_task and batch_size of 1 or more",
                found=(self.episodes_per_task, self.batch_size),
            )
        if not 0 <= self.noise_max <= 1:
            raise errors.ConfigError("TabletopDataConfig.noise_max", expected="in [0, 1]", found=self.noise_max)

    @property
    def hash(self) -> str:
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    def env(self, task: str) -> TabletopEnv:
        config = TabletopConfig(task=task, image_size=self.image_size, randomization=self.randomization)
        no_prompts = np.zeros((len(config.instructions), 1), np.int32)  # episodes carry the words themselves
        return config.make(PromptTable(tokens=no_prompts, mask=no_prompts.astype(bool)))


def generate(folder: str | Path, config: TabletopDataConfig, progress: Progress | None = None) -> Path:
    """Write the dataset into `folder` (its version folder) and return it; a finished one of this config is left alone.

    Deterministic in the config on one machine and version of JAX. Nothing appears under `folder` before the last
    episode is written. Raises DataError when `folder` holds something else, EnvError when an expert hardly succeeds.
    """
    folder = Path(folder)
    if is_finished(folder, config.hash):
        return folder
    total = config.episodes_per_task * len(config.tasks)
    spec = config.env(config.tasks[0]).spec
    features = episode_features(
        spec.cameras,
        spec.state_dim,
        spec.action_dim,
        metadata={
            "task": tfds.features.Text(),
            "noise_std": tfds.features.Scalar(dtype=np.float32),
            "rollout": tfds.features.Scalar(dtype=np.int64),  # number of the attempt within the task
        },
    )
    metadata = {
        "config": dataclasses.asdict(config),
        "config_hash": config.hash,
        "action_names": spec.action_names,
        "state_names": spec.state_names,
        "control_hz": spec.control_hz,
    }
    writer = RldsWriter(
        folder,
        features,
        "tabletop",
        file_format=config.file_format,
        description="Scripted experts of the vla_jax tabletop suite; clean actions under action noise, successes only.",
        metadata=metadata,
        jpeg_quality=config.jpeg_quality,
    )
    written = 0
    with writer:
        for task in config.tasks:
            for episode in _successes(config, task):
                writer.write(episode)
                written += 1
                if progress is not None:
                    progress(written, total)
    return folder


def dataset_config(folder: str | Path, action_horizon: int, history: int = 1) -> DatasetConfig:
    """How the loader reads what `generate` wrote. Raises DataError when `folder` is not such a dataset."""
    info = load_info(folder)
    if "action_names" not in info.metadata:
        raise errors.DataError(
            f"{folder}: not a tabletop dataset", expected="action_names in metadata.json", found=sorted(info.metadata)
        )
    is_movement = [name != GRIP for name in info.metadata["action_names"]]
    return DatasetConfig(
        path=str(folder),
        action_horizon=action_horizon,
        cameras=(("front", "front"), ("wrist", "wrist")),
        displacement_dims=tuple(int(dim) for dim in np.flatnonzero(is_movement)),
        history=history,
    )


class Collector:
    """Runs an expert in many copies of one environment and records the successes."""

    def __init__(self, env: Env, act: Act, noise_max: float, batch_size: int):
        self._env, self._act, self._noise_max, self._batch_size = env, act, noise_max, batch_size
        self._rollout = jax.jit(jax.vmap(self._one))
        self._recorder = Recorder(env)

    def successes(self, key: Key[Array, ""]) -> tuple[list[Episode], list[int]]:
        """The successful ones of a batch of episodes, in order, and their places in the batch."""
        states, actions, noise_std, success = self._rollout(jax.random.split(key, self._batch_size))
        kept = np.flatnonzero(success)
        metadata = [{"episode_metadata/noise_std": std} for std in np.asarray(noise_std)[kept]]
        return self._recorder.episodes(states, actions, kept, metadata), kept.tolist()

    def _one(self, key: Key[Array, ""]) -> tuple[EnvState, Float[Array, "t a"], Float[Array, ""], Array]:
        """One episode: the state before every step, the expert's action there, the noise level, success."""
        reset_key, level_key, noise_keys = episode_keys(key, self._env.spec)
        noise_std = self._noise_max * jax.random.uniform(level_key)

        def step(state: EnvState, key: Key[Array, ""]):
            action = self._act(state)
            return self._env.step(state, disturbed(action, noise_std, key, self._env.spec)), (state, action)

        last, (states, actions) = jax.lax.scan(step, self._env.reset(reset_key), noise_keys)
        return states, actions, noise_std, last.success


def batch_key(config: TabletopDataConfig, task: str, attempt: int) -> Key[Array, ""]:
    """Of the batch of episodes that attempt number `attempt` is in; its episodes split it."""
    return keys.at_step(keys.stream(config.seed, f"tabletop/{task}"), attempt // config.batch_size)


def episode_keys(key: Key[Array, ""], spec: EnvSpec) -> tuple[Key[Array, ""], Key[Array, ""], Key[Array, "t"]]:
    """Of an episode: its reset, its noise level, and the noise of every step."""
    reset_key, level_key, noise_key = jax.random.split(key, 3)
    return reset_key, level_key, jax.random.split(noise_key, spec.episode_length)


def disturbed(
    action: Float[Array, "a"], noise_std: Float[Array, ""], key: Key[Array, ""], spec: EnvSpec
) -> Float[Array, "a"]:
    """What the robot does: noise in all dims but the grip."""
    has_noise = np.array([name != GRIP for name in spec.action_names], np.float32)
    return action + noise_std * jnp.asarray(has_noise) * jax.random.normal(key, action.shape)


def _successes(config: TabletopDataConfig, task: str) -> Iterator[Episode]:
    """`episodes_per_task` successful episodes of one task."""
    env = config.env(task)
    collector = Collector(env, lambda state: expert(env, state), config.noise_max, config.batch_size)
    written = attempts = 0
    while True:
        episodes, places = collector.successes(batch_key(config, task, attempts))
        for episode, place in zip(episodes, places, strict=True):
            metadata = {
                **episode.metadata,
                "episode_metadata/task": task,
                "episode_metadata/rollout": attempts + place,
            }
            yield dataclasses.replace(episode, metadata=metadata)
            written += 1
            if written == config.episodes_per_task:
                return
        attempts += config.batch_size
        if attempts >= 64 and written < _LEAST_SUCCESS_RATE * attempts:
            raise errors.EnvError(
                f"the scripted expert of tabletop/{task}",
                expected=f"success in at least {_LEAST_SUCCESS_RATE:.0%} of the episodes",
                found=f"{written} of {attempts}",
                fix="lower noise_max or the randomization",
            )
