"""A point on a line that moves by its action: for wrappers around environments."""

import dataclasses

import jax.numpy as jnp

from vla_jax.core.types import Observation
from vla_jax.envs.base import EnvSpec, EnvState


@dataclasses.dataclass(frozen=True)
class Line:
    """Its own task ends beyond 10; a picture's brightness is 100 and 50 per unit of position."""

    spec = EnvSpec("line", ("go",), ("dx",), ("x",), {"front": (4, 4)}, 5, 10.0)

    def reset(self, key):
        zero, off = jnp.zeros(()), jnp.zeros((), bool)
        return EnvState(zero, key, jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32), zero, zero + 1, off, off, {})

    def step(self, state, action):
        position = state.physics + action[0]
        return state.replace(physics=position, env_step=state.env_step + 1, success=position > 10, done=position > 10)

    def observe(self, state):
        picture = jnp.full((4, 4, 3), 100.0 + 50.0 * state.physics).astype(jnp.uint8)
        return Observation(
            {"front": picture},
            {"front": jnp.ones((), bool)},
            state.physics[None],
            jnp.zeros(1, jnp.int32),
            jnp.ones(1, bool),
        )
