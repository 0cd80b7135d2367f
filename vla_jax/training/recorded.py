"""Recorded episodes for learners of values, all of them on the device: alone (offline), or beside their experience.

    transitions(config, action_horizon, ...)    every chunk of an RLDS or LeRobot set as rows, pictures included
    trajectories(config, ...)                   its low-dimensional columns, chunks and hindsight goals drawn anew
    OfflineSource                               the `Source` of a learner that has nothing else

`training/online.py` mixes such rows with what an environment gives.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, Key

from vla_jax.core import errors, keys
from vla_jax.core.types import Observation, Params, Transitions
from vla_jax.data import trajectories as resident
from vla_jax.data import trajectory_sets
from vla_jax.data.loader import open_frames
from vla_jax.data.normalization import Normalizer
from vla_jax.data.observations import Tokenizer
from vla_jax.data.samples import draws
from vla_jax.data.schema import DatasetConfig
from vla_jax.data.trajectories import HindsightConfig
from vla_jax.training import sharding
from vla_jax.training.sources import SourceMetrics

_BLOCK = 1024  # frames read at a time


@dataclasses.dataclass(frozen=True)
class RecordedConfig:
    """What is drawn from recorded episodes. `dataset.transitions` says which reward and which end."""

    dataset: DatasetConfig  # its action_horizon is not used: chunks are as long as the learner's
    # of every batch, beside experience; without an environment 1. None: each row counts the same, as if recordings were
    # in the buffer
    fraction: float | None = 0.5
    hindsight: HindsightConfig | None = None  # goals for learners of goals, from the state
    goal_dims: tuple[int, ...] = ()  # of the state that make a goal
    returns: bool = False  # extras["mc_return"], which calibrated critics ask for
    return_tail: float = 0.0  # what would have followed an episode that was cut off
    batch_size: int = 256  # without an environment: of one critic update
    critic_updates: int = 1  # likewise: per update of the learner

    def __post_init__(self):
        if self.dataset.transitions is None:
            raise errors.ConfigError("RecordedConfig.dataset.transitions", expected="a TransitionConfig", found=None)
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise errors.ConfigError(
                "RecordedConfig.fraction", expected="above 0, at most 1, or None", found=self.fraction
            )
        if (self.hindsight is None) != (not self.goal_dims):
            raise errors.ConfigError(
                "RecordedConfig", expected="hindsight and goal_dims, or neither", found=(self.hindsight, self.goal_dims)
            )


def transitions(
    config: RecordedConfig, action_horizon: int, tokenizer: Tokenizer, normalizer: Normalizer, discount: float
) -> Transitions:
    """Every chunk of `action_horizon` steps of the set, one row per frame that may be sampled, on the host.

    Frames with a damaged picture are left out. Raises DataError when none is left, and as the loader does.
    """
    dataset = open_frames(
        dataclasses.replace(config.dataset, action_horizon=action_horizon), normalizer, tokenizer, image_cache_bytes=0
    )
    samples = np.arange(dataset.num_samples)
    frames = dataset.selection(samples, draws.sample_keys(0, samples))
    blocks = [dataset.batch(frames[i : i + _BLOCK]) for i in range(0, len(frames), _BLOCK)]
    rows = jax.tree.map(lambda *leaves: np.concatenate(leaves), *blocks)
    is_whole, extras = rows.extras["weight"] > 0, {}
    if not is_whole.any():
        raise errors.DataError(
            f"{config.dataset.path}: recorded transitions", expected="a frame without damage", found=len(frames)
        )
    if config.returns:
        every = trajectory_sets.rewards_of(dataset.dataset, config.dataset.transitions)
        returns = trajectory_sets.with_mc_returns(every, discount, config.return_tail).mc_returns
        extras = {"mc_return": np.asarray(returns)[frames]}
    return jax.tree.map(lambda leaf: leaf[is_whole], rows.replace(extras=extras))


def take(rows: Transitions, key: Key[Array, ""], shape: tuple[int, ...]) -> Transitions:
    """Rows drawn uniformly with replacement; leaves get the leading `shape`."""
    index = jax.random.randint(key, shape, 0, rows.rewards.shape[0])
    return jax.tree.map(lambda leaf: leaf[index], rows)


def seen(
    rows: Transitions, key: Key[Array, ""], look: Callable[[Key[Array, ""], Observation], Any], block: int = 256
) -> Transitions:
    """The rows with `look(key, observations)`, a block at a time, in place of what was seen; inside a jit."""
    num_rows = rows.rewards.shape[0]
    block = min(block, num_rows)
    num_blocks = -(-num_rows // block)

    def every(key: Key[Array, ""], observation: Observation) -> Any:
        index = jnp.minimum(jnp.arange(num_blocks * block), num_rows - 1).reshape(num_blocks, block)
        inputs = (jax.random.split(key, num_blocks), index)
        found = jax.lax.map(lambda each: look(each[0], jax.tree.map(lambda x: x[each[1]], observation)), inputs)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:num_rows], found)

    now_key, next_key = jax.random.split(key)
    looked = dict(observation=every(now_key, rows.observation), next_observation=every(next_key, rows.next_observation))
    return rows.replace(**looked)


class OfflineSource:
    """Batches drawn on the device: a function of the seed and the step alone, so there is nothing to restore.

    `make(data, key)` makes a batch with leading `shape` of what `data` holds; see `of_rows` and `of_trajectories`.
    """

    simulates = False

    def __init__(
        self, data: Any, shape: tuple[int, ...], make: Callable[[Any, Key[Array, ""]], Transitions], seed: int
    ):
        self._data, self._make, self._key = jax.tree.map(jnp.asarray, data), make, keys.stream(seed, "recorded")
        self._shape, self._mesh, self._step = shape, None, 0

    @classmethod
    def of_rows(cls, rows: Transitions, shape: tuple[int, ...], seed: int) -> "OfflineSource":
        return cls(rows, shape, lambda rows, key: take(rows, key, shape), seed)

    @classmethod
    def of_trajectories(
        cls, config: RecordedConfig, normalizer: Normalizer, shape: tuple[int, ...], action_horizon: int, seed: int
    ) -> "OfflineSource":
        """Chunks with hindsight goals, which are drawn anew for every batch."""
        every = trajectory_sets.from_dataset(dataclasses.replace(config.dataset, cameras=()), normalizer)
        every = every.replace(goals=every.observations.state[:, np.asarray(config.goal_dims)])
        starts = resident.chunk_starts(every, action_horizon, arrives=True)

        def make(data: Any, key: Key[Array, ""]) -> Transitions:
            return resident.goal_batch(*data, key, shape, action_horizon, config.hindsight)

        return cls((every, starts), shape, make, seed)

    def use_mesh(self, mesh: Mesh) -> None:
        """The data on every device, the rows of a batch (the last axis of `shape`) over the batch axes."""
        self._mesh = mesh
        self._data = jax.device_put(self._data, NamedSharding(mesh, PartitionSpec()))

    def example(self) -> Transitions:
        """Zeros of the shape of a batch."""
        shapes = jax.eval_shape(self._make, self._data, self._key)
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def next(self, step: int, actor_params: Params) -> tuple[Transitions, SourceMetrics]:
        self._step = step + 1
        return self._next(self._data, step), {}

    def state(self) -> dict[str, int]:
        return {"next_step": self._step}

    def restore(self, state: dict[str, int]) -> None:
        self._step = state["next_step"]

    # --- compiled with the updates (`sources.Compiles`), or alone ---------------------------------------------------

    def operands(self, actor_params: Params) -> tuple[Any, None]:
        return self._data, None

    def draw(
        self, fixed: Any, moving: None, actor_params: Params, step: int | Int[Array, ""]
    ) -> tuple[None, Transitions, SourceMetrics]:
        batch = self._make(fixed, keys.at_step(self._key, step))
        if self._mesh is None or self._shape[-1] % math.prod(self._mesh.shape[axis] for axis in sharding.BATCH_AXES):
            return None, batch, {}
        spec = PartitionSpec(*(None,) * (len(self._shape) - 1), sharding.BATCH_AXES)
        return None, jax.lax.with_sharding_constraint(batch, NamedSharding(self._mesh, spec)), {}

    def moved(self, moving: None, next_step: int) -> None:
        self._step = next_step

    @partial(jax.jit, static_argnums=0)
    def _next(self, data: Any, step: Int[Array, ""]) -> Transitions:
        return self.draw(data, None, None, step)[1]
