"""A point in a square with a block in the middle: two routes lead around it, the upper one shorter.

    +-----------------+
    |     . . . .     |     S  start, anywhere in a small box
    |   . +-----+ .   |     G  goal: reaching it ends the episode
    | S   |     |   G |
    |   . |     | .   |     An action moves the point by up to `STEP` along x and y; what would enter a wall does not
    |   . +-----+ .   |     happen, axis by axis. Lengths are in units of half the square's side.
    |     . . . .     |
    +-----------------+

The demonstrator takes either route by a coin, slowly and with noise, so that imitation has two modes and is often too
late. Rewards are sparse: -1 until the goal is reached, or 1 there.
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key

from vla_jax.core import errors
from vla_jax.core.types import Observation, PromptTable
from vla_jax.envs.base import EnvSpec, EnvState
from vla_jax.envs.planar.base import ACTION_NAMES, Outcome, PlanarEnv

STEP = 0.1
GOAL, GOAL_RADIUS = (0.8, 0.0), 0.12
BLOCK_LOW, BLOCK_HIGH = (-0.5, -0.6), (0.5, 0.4)  # corners of the block
START_LOW, START_HIGH = (-0.92, -0.25), (-0.68, 0.25)
_CLEARANCE = 0.1  # of the routes' corners from the block


@dataclasses.dataclass(frozen=True)
class MazeConfig:
    reward: Literal["steps", "goal"] = "steps"  # -1 per step before the goal; or 1 where it is reached
    episode_length: int = 48  # control steps; at full speed the upper route takes about 20, the lower 25

    def __post_init__(self):
        if self.reward not in ("steps", "goal"):
            raise errors.ConfigError("MazeConfig.reward", expected="steps or goal", found=self.reward)

    @property
    def instructions(self) -> tuple[str, ...]:
        return ("reach the goal",)

    def make(self, prompts: PromptTable) -> "MazeEnv":
        return MazeEnv(self, prompts)


@dataclasses.dataclass(frozen=True)
class DemonstratorConfig:
    """How the demonstrations fall short."""

    speed: float = 0.65  # share of the largest step
    noise: float = 0.5  # standard deviation of the noise on every action entry
    wander: float = 0.1  # chance per step of an action without aim


class Episodes(struct.PyTreeNode):
    """Demonstrations: `n` episodes of `t` steps. Behind the end of an episode `acts` is False and nothing moves."""

    observation: Observation  # [n, t + 1], the one arrived at included
    actions: Float[Array, "n t a"]
    rewards: Float[Array, "n t"]
    discounts: Float[Array, "n t"]
    acts: Bool[Array, "n t"]
    success: Bool[Array, "n"]
    upper: Bool[Array, "n"]  # the route that the coin chose


class MazeEnv(PlanarEnv):
    """`PlanarEnv`; the physics is the point's position."""

    def __init__(self, config: MazeConfig, prompts: PromptTable):
        self.config = config
        spec = EnvSpec(
            name="planar/maze",
            instructions=config.instructions,
            action_names=ACTION_NAMES,
            state_names=("x", "y"),
            cameras={},
            episode_length=config.episode_length,
            control_hz=10.0,
        )
        super().__init__(spec, prompts)

    def start(self, key: Key[Array, ""], instruction: Int[Array, ""]) -> Float[Array, "2"]:
        return jax.random.uniform(key, (2,), minval=jnp.array(START_LOW), maxval=jnp.array(START_HIGH))

    def move(self, physics: Float[Array, "2"], action: Float[Array, "2"]) -> Float[Array, "2"]:
        along_x = physics + STEP * action * jnp.array([1.0, 0.0])
        physics = jnp.where(is_free(along_x), along_x, physics)
        along_y = physics + STEP * action * jnp.array([0.0, 1.0])
        return jnp.where(is_free(along_y), along_y, physics)

    def judge(self, physics: Float[Array, "2"], following: Float[Array, "2"]) -> Outcome:
        distance = jnp.linalg.norm(following - jnp.array(GOAL))
        success = distance < GOAL_RADIUS
        reached = success.astype(jnp.float32)
        reward = reached - 1 if self.config.reward == "steps" else reached
        return Outcome(reward=reward, success=success, terminal=success, info={"goal_distance": distance})

    def look(self, physics: Float[Array, "2"]) -> Float[Array, "2"]:
        return physics

    def expert(self, state: EnvState) -> Float[Array, "2"]:
        """At full speed, below the block only from far below."""
        return toward(state.physics, waypoint(state.physics, state.physics[1] > -0.3))


def is_free(position: Float[Array, "2"]) -> Bool[Array, ""]:
    """Inside the square and outside the block."""
    in_block = ((position > jnp.array(BLOCK_LOW)) & (position < jnp.array(BLOCK_HIGH))).all()
    return (jnp.abs(position) <= 1).all() & ~in_block


def waypoint(position: Float[Array, "2"], upper: Bool[Array, ""]) -> Float[Array, "2"]:
    """Where to head next on a route: the block's near corner, its far corner, then the goal."""
    height = jnp.where(upper, BLOCK_HIGH[1] + _CLEARANCE, BLOCK_LOW[1] - _CLEARANCE)
    near, far = (jnp.stack([jnp.asarray(x), height]) for x in (BLOCK_LOW[0] - 0.05, BLOCK_HIGH[0] + 0.05))
    is_beside = (jnp.abs(position[1]) < jnp.abs(height) - _CLEARANCE / 2) | (position[1] * height < 0)
    is_past = position[0] > BLOCK_HIGH[0]
    return jnp.where(is_past, jnp.array(GOAL), jnp.where(is_beside, near, far))


def toward(position: Float[Array, "2"], target: Float[Array, "2"]) -> Float[Array, "2"]:
    """The action that goes straight to the target, as fast as the larger entry allows."""
    wanted = (target - position) / STEP
    return wanted / jnp.maximum(jnp.abs(wanted).max(), 1.0)


def demonstrate(
    env: MazeEnv, key: Key[Array, ""], num_episodes: int, config: DemonstratorConfig = DemonstratorConfig()
) -> Episodes:
    """Noisy demonstrations over both routes, as one program of all episodes side by side."""
    return _demonstrate(env, key, num_episodes, config)


@functools.partial(jax.jit, static_argnums=(0, 2, 3))
def _demonstrate(env: MazeEnv, key: Key[Array, ""], num_episodes: int, config: DemonstratorConfig) -> Episodes:
    def episode(key):
        reset_key, route_key, act_key = jax.random.split(key, 3)
        upper = jax.random.bernoulli(route_key)
        state = env.reset(reset_key)

        def step(state, key):
            noise_key, wander_key, aimless_key = jax.random.split(key, 3)
            aimed = config.speed * toward(state.physics, waypoint(state.physics, upper))
            aimless = jax.random.uniform(aimless_key, (2,), minval=-1, maxval=1)
            chosen = jnp.where(jax.random.bernoulli(wander_key, config.wander), aimless, aimed)
            action = jnp.clip(chosen + config.noise * jax.random.normal(noise_key, (2,)), -1, 1)
            following = env.step(state, action)
            row = (env.observe(following), action, following.reward, following.discount, ~state.done)
            return following, row

        keys = jax.random.split(act_key, env.spec.episode_length)
        last, (after, actions, rewards, discounts, acts) = jax.lax.scan(step, state, keys)
        first = jax.tree.map(lambda leaf: leaf[None], env.observe(state))
        observation = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, after)
        return Episodes(observation, actions, rewards, discounts, acts, last.success, upper)

    return jax.vmap(episode)(jax.random.split(key, num_episodes))
