"""The wrapper around a point robot that turns, in closed form."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vla_jax.core import errors, lie
from vla_jax.core.types import Observation
from vla_jax.envs.base import EnvSpec, EnvState
from vla_jax.envs.relative_frame import FrameLayout, RelativeFrame
from vla_jax.envs.wrappers import BatchedEnv

LAYOUT = FrameLayout(
    position=(0, 1, 2), rotation=tuple(range(3, 9)), velocity=(9, 10, 11), points=((12, 13, 14),),
    rotation_action=(3, 4, 5),
)  # fmt: skip
NAMES = tuple(f"s{i}" for i in range(15))
START = lie.pose(jnp.array([0.4, 0.1, 0.2]), lie.from_quaternion(jnp.array([0.1, 0.5, -0.2, 0.8])))


@dataclasses.dataclass(frozen=True)
class Turning:
    """The last action, in the base frame, is its velocity; a quarter of its linear part moves the tool."""

    offset: float = 0.0  # metres along x, of tool and thing alike
    spec = EnvSpec("turning", ("move",), (*"xyzuvw", "grip"), NAMES, {}, 5, 10.0)

    def reset(self, key):
        shift = jnp.array([self.offset, 0, 0])
        pose = START.at[:3, 3].add(shift)
        physics = {"pose": pose, "last": jnp.zeros(7), "thing": jnp.array([0.6, -0.1, 0.05]) + shift}
        zero, off = jnp.zeros(()), jnp.zeros((), bool)
        return EnvState(physics, key, jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32), zero, zero + 1, off, off, {})

    def step(self, state, action):
        pose = state.physics["pose"].at[:3, 3].add(0.25 * action[:3])
        return state.replace(physics={**state.physics, "pose": pose, "last": action}, env_step=state.env_step + 1)

    def observe(self, state):
        pose, last = state.physics["pose"], state.physics["last"]
        turn = lie.rotation(pose)[:, :2].T.ravel()
        seen = jnp.concatenate([lie.position(pose), turn, last[:3], state.physics["thing"]])
        return Observation({}, {}, seen, jnp.zeros(1, jnp.int32), jnp.ones(1, bool))


KEY = jax.random.key(0)
ACTION = jnp.array([0.5, -0.2, 0.1, 0.3, 0.2, -0.4, 1.0])


def test_the_pose_is_the_identity_at_the_start_and_the_thing_lies_where_the_tool_sees_it():
    env = RelativeFrame(Turning(), LAYOUT)
    seen = env.observe(env.reset(KEY)).state
    np.testing.assert_allclose(seen[:9], [0, 0, 0, 1, 0, 0, 0, 1, 0], atol=1e-6)
    thing = lie.inverse(START) @ jnp.array([0.6, -0.1, 0.05, 1.0])
    np.testing.assert_allclose(seen[12:], thing[:3], atol=1e-6)


def test_an_action_along_the_tools_axis_moves_it_there_and_is_seen_so():
    env = RelativeFrame(Turning(), LAYOUT)
    stepped = env.step(env.reset(KEY), jnp.zeros(7).at[0].set(1.0))
    seen = env.observe(stepped).state
    np.testing.assert_allclose(seen[:3], [0.25, 0, 0], atol=1e-6)
    np.testing.assert_allclose(seen[9:12], [1.0, 0, 0], atol=1e-6)  # its velocity, in its own axes
    moved = lie.position(env.unwrapped(stepped).physics["pose"]) - lie.position(START)
    np.testing.assert_allclose(moved, 0.25 * lie.rotation(START)[:, 0], atol=1e-6)


@pytest.mark.parametrize("compat", [False, True])
def test_an_intervention_in_the_base_frame_comes_back_as_it_was(compat):
    env = RelativeFrame(Turning(), LAYOUT, serl_compat=compat)
    state = env.step(env.reset(KEY), ACTION)
    stored = env.to_tool(state, ACTION)
    np.testing.assert_allclose(env.to_base(state, stored), ACTION, atol=1e-5)
    assert stored[6] == ACTION[6]  # the grip has no frame
    assert jnp.abs(stored[:6] - ACTION[:6]).max() > 0.05


def test_compat_mode_turns_the_tool_where_the_default_does_not():
    push = jnp.zeros(7).at[0].set(1.0)
    for compat in (False, True):
        env = RelativeFrame(Turning(), LAYOUT, serl_compat=compat)
        turned = env.to_base(env.reset(KEY), push)[3:6]
        quirk = jnp.cross(lie.position(START), lie.rotation(START)[:, 0])
        np.testing.assert_allclose(turned, quirk if compat else jnp.zeros(3), atol=1e-6)


def test_the_same_actions_look_the_same_wherever_they_begin():
    runs = []
    for offset in (0.0, 0.15):
        env = BatchedEnv(RelativeFrame(Turning(offset), LAYOUT))
        states = env.reset(jax.random.split(KEY, 2))
        states = env.step(states, jnp.stack([ACTION, -ACTION]))
        runs.append(env.observe(states).state)
    np.testing.assert_allclose(runs[0], runs[1], atol=1e-6)


def test_layouts_that_cannot_be_are_refused():
    with pytest.raises(errors.ConfigError, match="FrameLayout"):
        FrameLayout(position=(0, 1))
    with pytest.raises(errors.ConfigError, match="serl_compat"):
        RelativeFrame(Turning(), FrameLayout(position=(0, 1, 2)), serl_compat=True)
