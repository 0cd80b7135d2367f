"""A point on a plane that must reach one of two goals; the smallest thing that keeps the contract of `envs/base.py`."""

import dataclasses

import jax
import jax.numpy as jnp

from vla_jax.core.types import Observation
from vla_jax.envs.base import EnvSpec, EnvState

STEP = 0.1
RADIUS = 0.05


@dataclasses.dataclass(frozen=True)
class PointEnv:
    """Start anywhere in the unit square, go to the corner that the instruction names, the other corner fails."""

    spec = EnvSpec(
        name="point",
        instructions=("go to the near corner", "go to the far corner", "go to the third corner"),
        action_names=("x", "y"),
        state_names=("x", "y"),
        cameras={"front": (4, 4)},
        episode_length=12,
        control_hz=10.0,
    )
    corners = ((0.0, 0.0), (1.0, 1.0), (0.0, 1.0))

    def reset(self, key):
        position_key, instruction_key, state_key = jax.random.split(key, 3)
        return EnvState(
            physics=jax.random.uniform(position_key, (2,)),
            key=state_key,
            env_step=jnp.int32(0),
            instruction=jax.random.randint(instruction_key, (), 0, 3),
            reward=jnp.float32(0),
            discount=jnp.float32(1),
            done=jnp.bool_(False),
            success=jnp.bool_(False),
            info={},
        )

    def step(self, state, action):
        position = state.physics + STEP * jnp.clip(action, -1, 1)
        distances = jnp.linalg.norm(position[None] - jnp.array(self.corners), axis=-1)
        success = distances[state.instruction] < RADIUS
        failure = jnp.any(distances < RADIUS) & ~success
        time_is_up = state.env_step + 1 >= self.spec.episode_length
        moved = state.replace(
            physics=position,
            env_step=state.env_step + 1,
            reward=success.astype(jnp.float32) - 0.01,
            discount=1 - (success | failure).astype(jnp.float32),
            done=success | failure | time_is_up,
            success=success,
        )
        frozen = state.replace(reward=jnp.float32(0))
        return jax.tree.map(lambda old, new: jnp.where(state.done, old, new), frozen, moved)

    def observe(self, state):
        pixel = jnp.clip(state.physics * 255, 0, 255).astype(jnp.uint8)
        image = jnp.zeros((4, 4, 3), jnp.uint8).at[..., :2].set(jnp.broadcast_to(pixel, (4, 4, 2)))
        return Observation(
            images={"front": image},
            image_mask={"front": jnp.bool_(True)},
            state=state.physics,
            prompt=jnp.array([state.instruction + 1]),
            prompt_mask=jnp.ones(1, bool),
        )


def expert(actor_params, key, observation, memory, horizon=4):
    """Straight to the corner that the prompt names, at most `actor_params["speed"]`, as an open-loop chunk."""
    goal = jnp.array(PointEnv.corners)[observation.prompt[:, 0] - 1]
    offset = goal - observation.state
    per_step = jnp.clip(offset / STEP / horizon, -1, 1) * actor_params["speed"]
    return jnp.repeat(per_step[:, None], horizon, axis=1), memory
