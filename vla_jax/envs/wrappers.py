"""Batches, chunks and resets of pure environments; each wrapper is pure too.

    env = ChunkedEnv(BatchedEnv(TabletopEnv(config, prompts)))
    states = env.reset(jax.random.split(key, 64))
    states = reset_where(env, states, jax.random.split(key, 64))   # START of a decision: replace finished episodes
    observation = env.observe(states)                              # one rendering per decision
    chunk = env.step(states, actions)                              # "b h a": up to h control steps
    ... chunk.state holds the final state of an episode that ended in it, still observable

Resets come at the start of the next decision, so nothing is rendered twice and the last observation is never lost.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Key

from vla_jax.core.types import Observation
from vla_jax.envs.base import Env, EnvSpec, EnvState


@dataclasses.dataclass(frozen=True)
class BatchedEnv:
    """`b` environments side by side; everything in a state has a leading axis, randomized model parameters included."""

    env: Env

    @property
    def spec(self) -> EnvSpec:
        return self.env.spec

    def reset(self, keys: Key[Array, "b"]) -> EnvState:
        return jax.vmap(self.env.reset)(keys)

    def step(self, states: EnvState, actions: Float[Array, "b a"]) -> EnvState:
        return jax.vmap(self.env.step)(states, actions)

    def observe(self, states: EnvState) -> Observation:
        return jax.vmap(self.env.observe)(states)


class Chunk(struct.PyTreeNode):
    """What executing a chunk gave."""

    state: EnvState
    rewards: Float[Array, "*b h"]
    discounts: Float[Array, "*b h"]  # 0 from termination on
    mask: Bool[Array, "*b h"]  # False: the episode had ended before this step, which was not run


@dataclasses.dataclass(frozen=True)
class ChunkedEnv:
    """Executes action chunks on one environment or a batch; an episode that ends within a chunk stays there."""

    env: Env | BatchedEnv

    @property
    def spec(self) -> EnvSpec:
        return self.env.spec

    def reset(self, key: Key[Array, "*b"]) -> EnvState:
        return self.env.reset(key)

    def observe(self, state: EnvState) -> Observation:
        return self.env.observe(state)

    def step(self, state: EnvState, actions: Float[Array, "*b h a"]) -> Chunk:
        """Run `actions` one control step after the other, as one scan."""

        def run(state, action):
            was_done = state.done
            state = self.env.step(state, action)
            return state, (state.reward, state.discount, ~was_done)

        state, columns = jax.lax.scan(run, state, jnp.moveaxis(actions, -2, 0))
        rewards, discounts, mask = (jnp.moveaxis(column, 0, -1) for column in columns)
        return Chunk(state=state, rewards=rewards, discounts=discounts, mask=mask)


def reset_where(
    env: BatchedEnv | ChunkedEnv, states: EnvState, keys: Key[Array, "b"], where: Bool[Array, "b"] | None = None
) -> EnvState:
    """Fresh episodes in place of the finished ones (or of those `where` says); the others are returned unchanged."""
    chosen = states.done if where is None else where
    fresh = env.reset(keys)

    def choose(new, old):
        # A typed key array has no dims for its words, so ndim is right for keys as well.
        return jnp.where(chosen.reshape(chosen.shape + (1,) * (new.ndim - chosen.ndim)), new, old)

    return jax.tree.map(choose, fresh, states)
