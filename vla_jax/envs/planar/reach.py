"""A point between two opposite goals, either of which ends the episode; touching one pays 1, everything else 0.

            G2
              .             S  start, anywhere in a small box in the middle
                S           G  goals at `goal` and at `-goal`, discs of `radius`
                  .         D  where demonstrators aim: near a goal, not at it
                   D G1

Demonstrators choose a goal by a coin, head for a point of their own near it and stay there with a trembling hand:
demonstrations have two modes and low precision. What the goals ask for and the demonstrations lack is then set by
`DemonstratorConfig`: somewhere within a ring (`aim_range`), or always the same small piece away (`shift`).
Lengths are in units of half the square's side.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from vla_jax.core import errors
from vla_jax.core.types import PromptTable, Transitions
from vla_jax.envs.base import EnvSpec, EnvState
from vla_jax.envs.planar.base import ACTION_NAMES, Outcome, PlanarEnv
from vla_jax.envs.wrappers import BatchedEnv, ChunkedEnv

START = 0.1  # half the side of the box it starts in


@dataclasses.dataclass(frozen=True)
class ReachConfig:
    goal: tuple[float, float] = (0.6, 0.4)
    radius: float = 0.04
    stride: float = 0.1  # of the point per control step, at an action entry of 1
    episode_length: int = 16  # control steps; the goal is six away

    def __post_init__(self):
        if (
            min(self.radius, self.stride) <= 0
            or max(map(abs, self.goal)) > 1
            or max(map(abs, self.goal)) <= START + self.radius
        ):
            raise errors.ConfigError(
                "ReachConfig",
                expected="a radius and a stride above 0, goals inside the square and outside the start",
                found=self,
            )

    @property
    def instructions(self) -> tuple[str, ...]:
        return ("reach a goal",)

    def make(self, prompts: PromptTable) -> "ReachEnv":
        return ReachEnv(self, prompts)


@dataclasses.dataclass(frozen=True)
class DemonstratorConfig:
    """How the demonstrations fall short of the goal."""

    aim_range: tuple[float, float] = (0.05, 0.15)  # distance of an episode's aim from its goal
    shift: tuple[float, float] = (0.0, 0.0)  # of every aim, towards the middle; in strides, that is in units of actions
    noise: float = 0.1  # standard deviation on every action entry


class ReachEnv(PlanarEnv):
    """`PlanarEnv`; the physics is the point's position."""

    def __init__(self, config: ReachConfig, prompts: PromptTable):
        self.config = config
        spec = EnvSpec(
            name="planar/reach",
            instructions=config.instructions,
            action_names=ACTION_NAMES,
            state_names=("x", "y"),
            cameras={},
            episode_length=config.episode_length,
            control_hz=10.0,
        )
        super().__init__(spec, prompts)

    def start(self, key: Key[Array, ""], instruction: Int[Array, ""]) -> Float[Array, "2"]:
        return jax.random.uniform(key, (2,), minval=-START, maxval=START)

    def move(self, physics: Float[Array, "2"], action: Float[Array, "2"]) -> Float[Array, "2"]:
        return jnp.clip(physics + self.config.stride * action, -1, 1)

    def judge(self, physics: Float[Array, "2"], following: Float[Array, "2"]) -> Outcome:
        goal = jnp.array(self.config.goal)
        distance = jnp.minimum(jnp.linalg.norm(following - goal), jnp.linalg.norm(following + goal))
        success = distance < self.config.radius
        info = {"goal_distance": distance}
        return Outcome(reward=success.astype(jnp.float32), success=success, terminal=success, info=info)

    def look(self, physics: Float[Array, "2"]) -> Float[Array, "2"]:
        return physics

    def expert(self, state: EnvState) -> Float[Array, "2"]:
        return self.straight(state.physics)

    def straight(self, position: Float[Array, "2"]) -> Float[Array, "2"]:
        """The action that goes to the goal that is nearer."""
        goal = jnp.array(self.config.goal)
        return toward(position, jnp.where(position @ goal >= 0, goal, -goal), self.config.stride)


def toward(position: Float[Array, "2"], aim: Float[Array, "2"], stride: float) -> Float[Array, "2"]:
    """The action that goes straight to `aim`, as fast as the larger entry allows."""
    wanted = (aim - position) / stride
    return wanted / jnp.maximum(jnp.abs(wanted).max(), 1.0)


@functools.partial(jax.jit, static_argnums=(0, 2, 3))
def demonstrate(
    env: ReachEnv, key: Key[Array, ""], num_episodes: int, config: DemonstratorConfig = DemonstratorConfig()
) -> Transitions:
    """Rows of one step, leaves `[num_episodes, episode_length, ...]`; behind the end of an episode `action_mask` is
    False. `extras["success"]` says of every row whether its episode succeeded."""
    aim_key, reset_key, act_key = jax.random.split(key, 3)
    aims = jax.vmap(functools.partial(_aim, env.config, config))(jax.random.split(aim_key, num_episodes))
    side_by_side = ChunkedEnv(BatchedEnv(env))
    states = side_by_side.reset(jax.random.split(reset_key, num_episodes))

    def step(states, key):
        planned = jax.vmap(toward, (0, 0, None))(states.physics, aims, env.config.stride)
        actions = jnp.clip(planned + config.noise * jax.random.normal(key, planned.shape), -1, 1)[:, None]
        chunk = side_by_side.step(states, actions)
        before, after = side_by_side.observe(states), side_by_side.observe(chunk.state)
        return chunk.state, Transitions(before, actions, chunk.rewards, chunk.discounts, chunk.mask, after, {})

    last, rows = jax.lax.scan(step, states, jax.random.split(act_key, env.spec.episode_length))
    rows = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), rows)
    success = jnp.broadcast_to(last.success[:, None], rows.rewards.shape[:2])
    return rows.replace(extras={"success": success})


def _aim(env: ReachConfig, config: DemonstratorConfig, key: Key[Array, ""]) -> Float[Array, "2"]:
    side_key, angle_key, distance_key = jax.random.split(key, 3)
    side = jax.random.rademacher(side_key, dtype=jnp.float32)
    angle = jax.random.uniform(angle_key, maxval=2 * jnp.pi)
    distance = jax.random.uniform(distance_key, minval=config.aim_range[0], maxval=config.aim_range[1])
    around = distance * jnp.stack([jnp.cos(angle), jnp.sin(angle)])
    inward = env.stride * jnp.array(config.shift) * jnp.sign(jnp.array(env.goal))
    return side * (jnp.array(env.goal) - inward) + around
