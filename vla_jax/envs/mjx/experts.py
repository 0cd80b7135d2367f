"""Scripted experts: stateless functions from the privileged view of a state to an action.

Each is a funnel: from any state it heads for the next one on the way, so it recovers from noise and dropped objects.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vla_jax.core.registry import Registry
from vla_jax.envs.base import Env, EnvState
from vla_jax.envs.mjx.panda import PandaEnv, attitude_error
from vla_jax.envs.mjx.pick_cube import PickCube, PickCubeConfig
from vla_jax.envs.mjx.scene import FINGER_RADIUS
from vla_jax.envs.mjx.tabletop import TRANSLATION_STEP, YAW_STEP
from vla_jax.envs.mjx.tasks import View
from vla_jax.envs.relative_frame import RelativeFrame

_HOLDING_WIDTH = 0.026  # metres; fingers closed this far have met the object
_CARRY_CLEARANCE = 0.06  # metres above the height of release
_BALL_DROP = 0.053  # metres; a ball is let go over the walls of its bin, where open fingers have room
_BLOCK_HALF = 0.02
_MAX_YAW = 1.75  # radians, a little inside the hand's range
_PUSH_GAP = _BLOCK_HALF * 1.42 + FINGER_RADIUS  # metres from hand to block centre where no corner touches yet


def expert(env: Env, state: EnvState) -> Float[Array, "a"]:
    """The action of the task's scripted expert in this state of a tabletop environment, in [-1, 1]."""
    if isinstance(env, RelativeFrame):
        return env.to_tool(state, expert(env.env, env.unwrapped(state)))
    if isinstance(env, PickCube):
        return pick_cube(env.view(state), env.config)
    action = EXPERTS[env.task.name](env.view(state))
    if not isinstance(env, PandaEnv):
        return action
    upright = jnp.clip(attitude_error(state.physics.target) / YAW_STEP, -1, 1)
    return jnp.concatenate([action[:3], upright, action[4:]])


def place(view: View) -> Float[Array, "5"]:
    """Grasp the block, carry it over its zone, lower it and let go."""
    return _carry(view, view.fixture, release=_BLOCK_HALF, tolerance=0.02)


def stack(view: View) -> Float[Array, "5"]:
    """As `place`, on top of the other block."""
    base = view.objects[view.goal_target]
    return _carry(view, base[:2], release=3 * _BLOCK_HALF, tolerance=0.008)


def put_in_bin(view: View) -> Float[Array, "5"]:
    """Grasp the ball and drop it over the bin."""
    return _carry(view, view.fixture, release=_BALL_DROP, tolerance=0.012)


def lift(view: View) -> Float[Array, "5"]:
    """Grasp the block and raise it."""
    approach, at_grasp = _grasp(view)
    up = view.hand + jnp.array([0.0, 0.0, 0.05])
    return _toward(view, jnp.where(_is_holding(view, at_grasp), up, approach), _square(), close=at_grasp)


def pick_cube(view: View, config: PickCubeConfig) -> Float[Array, "4"]:
    """Grasp the cube, raise it no faster than friction holds it, and keep it a little higher than it has to be."""
    approach, at_grasp = _grasp(view)
    top = _BLOCK_HALF + config.lift_height + 0.03
    up = view.target[:3].at[2].set(jnp.minimum(view.target[2] + 0.02, top))  # of the target: hands sag and drift
    target = jnp.where(_is_holding(view, at_grasp), up, approach)
    move = jnp.clip((target - view.target[:3]) / config.action_scale, -1, 1)
    return jnp.append(move, jnp.where(at_grasp, 1.0, -1.0))


def push(view: View) -> Float[Array, "5"]:
    """Turn both closed fingers into a broadside behind the block, come down, and push it straight to the zone.

    Two contacts keep the block from turning away, which one fingertip does not.
    """
    to_goal = view.fixture - view.object[:2]
    ahead = to_goal / (jnp.linalg.norm(to_goal) + 1e-6)
    across = jnp.stack([-ahead[1], ahead[0]])
    offset = view.hand[:2] - view.object[:2]
    behind, beside = -offset @ ahead, offset @ across

    # A broadside has two headings. Take the one nearer to the hand's, or near a quarter turn noise would flip it.
    heading = jnp.arctan2(ahead[1], ahead[0])
    yaw = heading + jnp.pi * jnp.round((view.yaw - heading) / jnp.pi)
    yaw = jnp.where(jnp.abs(yaw) > _MAX_YAW, yaw - jnp.pi * jnp.sign(yaw), yaw)
    start = view.object[:2] - (_PUSH_GAP + 0.015) * ahead
    is_low = view.hand[2] < 0.03
    is_behind = (behind > 0.02) & (jnp.abs(beside) < 0.015)
    is_turned = jnp.abs(view.yaw - yaw) < 0.2
    is_pushing = is_low & is_behind & is_turned

    off_start = jnp.linalg.norm(view.hand[:2] - start)
    height = jnp.where((off_start < 0.015) & is_turned, 0.02, 0.075)
    approach = jnp.where(is_low & (off_start > 0.02), jnp.append(view.hand[:2], 0.075), jnp.append(start, height))
    stroke = view.hand[:2] + 0.013 * ahead - beside * across
    target = jnp.where(is_pushing, jnp.append(stroke, 0.02), approach)
    return _toward(view, target, yaw, close=jnp.ones((), bool))


def _carry(view: View, goal: Float[Array, "2"], release: float, tolerance: float) -> Float[Array, "5"]:
    """Grasp, lift, carry over `goal` and lower. `release` is the height of the object's centre where it is let go."""
    approach, at_grasp = _grasp(view)
    is_holding = _is_holding(view, at_grasp)
    to_goal = goal - view.object[:2]
    distance = jnp.linalg.norm(to_goal)

    is_over_goal = distance < tolerance
    is_clear = view.object[2] > release + 0.025
    xy = jnp.where(is_clear | is_over_goal, view.hand[:2] + to_goal, view.hand[:2])
    height = jnp.where(is_over_goal, release + 0.002, release + _CARRY_CLEARANCE)
    target = jnp.where(is_holding, jnp.append(xy, height), approach)

    is_placed = (distance < tolerance + 0.01) & (view.object[2] < release + 0.006)
    up = jnp.where(view.fingers.mean() < 0.03, 0.03, 0.0)  # rises while the fingers open, then waits
    target = jnp.where(is_placed, view.hand + up * jnp.array([0.0, 0.0, 1.0]), target)
    return _toward(view, target, _square(), close=at_grasp & ~is_placed)


def _grasp(view: View) -> tuple[Float[Array, "3"], Bool[Array, ""]]:
    """Where the hand should go to grasp, and whether it is there: above the object it comes down a cone."""
    offset = jnp.linalg.norm(view.object[:2] - view.hand[:2])
    height = view.hand[2] - view.object[2]
    # What hangs in closed fingers may creep downwards a little before it counts as lost.
    is_closed = (view.grip > 0.5) & (height < 0.02)
    at_grasp = (offset < 0.014) & ((height < 0.01) | is_closed) & (height > -0.025)
    cone = jnp.maximum(view.object[2], _BLOCK_HALF) - 0.002 + jnp.clip((offset - 0.012) * 4, 0, 0.09)
    return jnp.where(at_grasp, view.hand, jnp.append(view.object[:2], cone)), at_grasp


def _is_holding(view: View, at_grasp: Bool[Array, ""]) -> Bool[Array, ""]:
    return at_grasp & (view.fingers.mean() < _HOLDING_WIDTH) & (view.grip > 0.5)


def _square() -> Float[Array, ""]:
    """The yaw of a hand square to the table: blocks lie within 0.35 rad of it, so a grasp needs no other."""
    return jnp.zeros(())


def _toward(view: View, target: Float[Array, "3"], yaw: Float[Array, ""], close: Bool[Array, ""]) -> Float[Array, "5"]:
    move = jnp.clip((target - view.target[:3]) / TRANSLATION_STEP, -1, 1)
    turn = jnp.clip((yaw - view.target[3]) / YAW_STEP, -1, 1)
    return jnp.concatenate([move, turn[None], jnp.where(close, 1.0, -1.0)[None]])


EXPERTS = Registry(
    "tabletop_expert",
    {"place": place, "lift": lift, "push": push, "stack": stack, "bin": put_in_bin, "pick_place": place},
)
