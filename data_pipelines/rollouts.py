"""What a trained policy does in its environment, written as an RLDS dataset: successes only, for filtered imitation.

    path = generate("runs/demo/rollouts/1.0.0", RolloutDataConfig("runs/demo/imitation", num_episodes=1500))

The actions written are those the policy ran, in the environment's units.
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
from jaxtyping import Array, Bool, Float, Key

from data_pipelines.finished import is_finished
from data_pipelines.recorder import Recorder
from vla_jax import experiment
from vla_jax.core import errors, keys
from vla_jax.core.types import Params
from vla_jax.data.formats.features import Episode, episode_features
from vla_jax.data.formats.rlds_writer import FileFormat, RldsWriter
from vla_jax.envs.base import Env, EnvState
from vla_jax.training import trained
from vla_jax.training.trained import TrainedPolicy

Progress = Callable[[int, int], None]  # (episodes run, episodes in all)


@dataclasses.dataclass(frozen=True)
class RolloutDataConfig:
    """What is generated; another value of any field is another dataset."""

    policy: str  # run folder or checkpoint; it acts in the first environment of its recipe's evaluation
    num_episodes: int = 1500  # run; those that succeed are written
    seed: int = 0
    batch_size: int = 128  # episodes simulated at once
    file_format: FileFormat = "array_record"

    def __post_init__(self):
        if self.num_episodes < 1 or self.num_episodes % self.batch_size:
            raise errors.ConfigError(
                "RolloutDataConfig.num_episodes",
                expected=f"a positive multiple of batch_size = {self.batch_size}",
                found=self.num_episodes,
            )

    @property
    def hash(self) -> str:
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()[:16]


def generate(folder: str | Path, config: RolloutDataConfig, progress: Progress | None = None) -> Path:
    """Write the dataset into `folder` (its version folder) and return it; a finished one of this config is left alone.

    Raises DataError when `folder` holds something else, EnvError when the policy never succeeds.
    """
    folder = Path(folder)
    if is_finished(folder, config.hash):
        return folder
    policy = trained.load(config.policy)
    env = experiment.make_env(policy.recipe, policy.recipe.evaluation.envs[0], policy.edges)
    features = episode_features(
        env.spec.cameras,
        env.spec.state_dim,
        env.spec.action_dim,
        metadata={"rollout": tfds.features.Scalar(dtype=np.int64)},
    )
    metadata = {
        "config": dataclasses.asdict(config),
        "config_hash": config.hash,
        "action_names": env.spec.action_names,
        "state_names": env.spec.state_names,
        "control_hz": env.spec.control_hz,
    }
    description = f"Successful episodes of the policy {policy.recipe.name} in {env.spec.name}."
    written = 0
    with RldsWriter(
        folder, features, "rollouts", file_format=config.file_format, description=description, metadata=metadata
    ) as writer:
        for episode, num_run in _successes(env, policy, config):
            writer.write(episode)
            written += 1
            if progress is not None:
                progress(num_run, config.num_episodes)
        if not written:
            raise errors.EnvError(f"{config.policy} never succeeds in {env.spec.name}", fix="train it longer first")
    return folder


def _successes(env: Env, policy: TrainedPolicy, config: RolloutDataConfig) -> Iterator[tuple[Episode, int]]:
    run, recorder = jax.jit(Trajectories(env, policy)), Recorder(env)
    key = keys.stream(config.seed, f"rollouts/{env.spec.name}")
    for start in range(0, config.num_episodes, config.batch_size):
        states, actions, success = run(policy.params, keys.at_step(key, start), jnp.arange(config.batch_size))
        kept = np.flatnonzero(success)
        metadata = [{"episode_metadata/rollout": start + int(place)} for place in kept]
        for episode in recorder.episodes(states, actions, kept, metadata):
            yield episode, start + config.batch_size


@dataclasses.dataclass(frozen=True, eq=False)
class Trajectories:
    """Whole episodes of a policy: the state before every control step, the action run there, and success."""

    env: Env
    policy: TrainedPolicy

    def __call__(
        self, params: Params, key: Key[Array, ""], indices: Array
    ) -> tuple[EnvState, Float[Array, "b t a"], Bool[Array, "b"]]:
        reset_key, act_key = jax.random.split(key)
        reset_keys = jax.vmap(lambda index: jax.random.fold_in(reset_key, index))(indices)
        states = jax.vmap(self.env.reset)(reset_keys)
        learner, edges = self.policy.learner, self.policy.edges
        horizon = self.policy.recipe.evaluation.execution_horizon

        def decide(carry, key):
            states, memory = carry
            observation = jax.vmap(self.env.observe)(states)
            actions, memory = learner.act(params, key, edges.normalize(observation), memory)
            actions = jnp.clip(edges.unnormalize(actions, observation.state), -1, 1)  # as the environment does
            states, trajectory = jax.lax.scan(step, states, jnp.swapaxes(actions[:, :horizon], 0, 1))
            return (states, memory), trajectory

        def step(states, action):
            return jax.vmap(self.env.step)(states, action), (states, action)

        num_decisions = -(-self.env.spec.episode_length // horizon)
        carry = (states, learner.initial_memory(indices.shape[0]))
        (last, _), trajectory = jax.lax.scan(decide, carry, jax.random.split(act_key, num_decisions))
        states, actions = jax.tree.map(self._batch_first, trajectory)
        return states, actions, last.success

    @staticmethod
    def _batch_first(leaf: Array) -> Array:
        """[decision, step, b, ...] to [b, t, ...]."""
        flat = leaf.reshape(leaf.shape[0] * leaf.shape[1], *leaf.shape[2:])
        return jnp.swapaxes(flat, 0, 1)
