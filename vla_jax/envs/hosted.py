"""A JAX environment behind the host contract: one lane of it, step by step, for actors in processes of their own."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from vla_jax.core.types import Observation
from vla_jax.envs import host
from vla_jax.envs.base import Env, EnvSpec, EnvState
from vla_jax.envs.host import HostChunk
from vla_jax.envs.wrappers import ChunkedEnv


class HostedEnv:
    """A `HostEnv`. Every length of a chunk compiles once."""

    def __init__(self, env: Env):
        chunked = ChunkedEnv(env)
        self._spec, self._state = env.spec, None
        self._reset = jax.jit(lambda seed: env.reset(jax.random.key(seed)))
        self._step, self._look = jax.jit(chunked.step), jax.jit(env.observe)

    @property
    def spec(self) -> EnvSpec:
        return self._spec

    def reset(self, seed: int) -> Observation:
        self._state: EnvState | None = self._reset(jnp.uint32(seed))
        return self._observe()

    def step(self, actions: Float[np.ndarray, "h a"]) -> HostChunk:
        is_running = self._state is not None and not bool(self._state.done)
        host.check_runs(is_running, self._spec)
        chunk = self._step(self._state, host.check_chunk(actions, self._spec))
        self._state = chunk.state
        rewards, discounts, mask = (np.asarray(column) for column in (chunk.rewards, chunk.discounts, chunk.mask))
        # not run: here the state says 0 behind a termination
        discounts = np.where(mask, discounts, 1.0).astype(np.float32)
        done, success = bool(chunk.state.done), bool(chunk.state.success)
        truncated = done and bool((discounts == 1).all())
        return HostChunk(rewards, discounts, mask, done, truncated, success, self._observe())

    def close(self) -> None:
        self._state = None

    def _observe(self) -> Observation:
        return jax.tree.map(np.asarray, self._look(self._state))
