"""Scripted experts: stateless functions from the privileged view of a state to an action.

Each is a funnel: from any state it heads for the next one on the way, so it recovers from noise and dropped objects.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from vla_jax.core.registry import Registry
from vla_jax.envs.base import EnvState
from vla_jax.envs.mjx.tabletop import TRANSLATION_STEP, YAW_STEP, TabletopEnv
from vla_jax.envs.mjx.tasks import View

_HOLDING_WIDTH = 0.026  # metres; fingers closed beyond this hold something or nothing, not the air on their way
_CARRY_HEIGHT = 0.06  # metres above an object's rest


def expert(env: TabletopEnv, state: EnvState) -> Float[Array, "5"]:
    """The action of the task's scripted expert in this state, in [-1, 1]."""
    return EXPERTS[env.task.name](env.view(state))


def place(view: View) -> Float[Array, "5"]:
    """Grasp the object, carry it over its zone, lower it and let go."""
    return _carry(view, view.fixture, rest=0.02, carry=_CARRY_HEIGHT)


def _carry(view: View, goal: Float[Array, "2"], rest: float, carry: float) -> Float[Array, "5"]:
    """`rest` is the height of the object's centre on the table, `carry` how far above that it travels."""
    approach, at_grasp = _grasp(view)
    width = view.fingers.mean()
    is_holding = at_grasp & (width < _HOLDING_WIDTH) & (view.grip > 0.5)

    to_goal = goal - view.object[:2]
    distance = jnp.linalg.norm(to_goal)
    is_over_goal = distance < 0.02
    is_clear = view.object[2] > rest + 0.025
    xy = jnp.where(is_clear | is_over_goal, view.hand[:2] + to_goal, view.hand[:2])
    height = jnp.where(is_over_goal, rest + 0.002, rest + carry)
    target = jnp.where(is_holding, jnp.append(xy, height), approach)

    is_placed = (distance < 0.03) & (view.object[2] < rest + 0.006)
    is_open = width >= 0.03
    up = jnp.where(is_open, 0.0, 0.03)  # rises while the fingers open, then waits
    target = jnp.where(is_placed, view.hand + up * jnp.array([0.0, 0.0, 1.0]), target)
    return _toward(view, target, yaw=jnp.zeros(()), close=at_grasp & ~is_placed)


def _grasp(view: View) -> tuple[Float[Array, "3"], Array]:
    """Where the hand should go to grasp, and whether it is there: above the object it comes down a cone."""
    offset = jnp.linalg.norm(view.object[:2] - view.hand[:2])
    height = view.hand[2] - view.object[2]
    at_grasp = (offset < 0.014) & (height < 0.012) & (height > -0.025)
    cone = jnp.maximum(view.object[2], 0.02) - 0.002 + jnp.clip((offset - 0.012) * 4, 0, 0.09)
    return jnp.where(at_grasp, view.hand, jnp.append(view.object[:2], cone)), at_grasp


def _toward(view: View, target: Float[Array, "3"], yaw: Float[Array, ""], close: Array) -> Float[Array, "5"]:
    move = jnp.clip((target - view.target[:3]) / TRANSLATION_STEP, -1, 1)
    turn = jnp.clip((yaw - view.target[3]) / YAW_STEP, -1, 1)
    return jnp.concatenate([move, turn[None], jnp.where(close, 1.0, -1.0)[None]])


EXPERTS = Registry("tabletop_expert", {"place": place})
