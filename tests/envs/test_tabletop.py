"""The tabletop suite: the contract of `envs/base.py`, language and experts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vla_jax.core import errors
from vla_jax.core.types import PromptTable
from vla_jax.envs.mjx.tabletop import Randomization, TabletopConfig, TabletopEnv
from vla_jax.envs.mjx.tasks import TASKS

_BATCH = 16


def _make(**overrides):
    config = TabletopConfig(**{"image_size": 16, **overrides})
    num_instructions = len(config.instructions)
    tokens = jnp.arange(num_instructions * 3).reshape(num_instructions, 3)
    return TabletopEnv(config, PromptTable(tokens=tokens, mask=jnp.ones_like(tokens, bool)))


@pytest.fixture(scope="module")
def place():
    env = _make()
    return env, jax.jit(jax.vmap(env.reset)), jax.jit(jax.vmap(env.step))


def _first(tree):
    return jax.tree.map(lambda leaf: leaf[0], tree)


def _assert_equal(left, right):
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(_data(a), _data(b)), left, right)


def _data(leaf):
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else np.asarray(leaf)


def test_reset_is_a_function_of_the_key(place):
    _, reset, _ = place
    keys = jax.random.split(jax.random.key(1), _BATCH)
    once, again = reset(keys), reset(keys)
    _assert_equal(once, again)
    assert np.unique(np.asarray(once.physics.qpos), axis=0).shape[0] == _BATCH


def test_a_batch_equals_its_members(place):
    _, reset, step = place
    states = reset(jax.random.split(jax.random.key(3), _BATCH))
    actions = jax.random.uniform(jax.random.key(4), (_BATCH, 5), minval=-1.0)
    batched = step(states, actions)
    # Filled up with copies of itself, so that the compiled program is the same.
    alone = step(*jax.tree.map(lambda leaf: jnp.stack([leaf[5]] * _BATCH), (states, actions)))
    np.testing.assert_allclose(alone.physics.qpos[0], batched.physics.qpos[5], atol=1e-6)


def test_a_finished_episode_stays_and_pays_nothing(place):
    _, reset, step = place
    states = reset(jax.random.split(jax.random.key(5), _BATCH))
    states = states.replace(done=jnp.ones(_BATCH, bool), discount=jnp.zeros(_BATCH), reward=jnp.ones(_BATCH))
    after = step(states, jnp.ones((_BATCH, 5)))
    _assert_equal(after, states.replace(reward=jnp.zeros(_BATCH)))


def test_a_time_limit_ends_the_episode_but_not_the_task(place):
    env, reset, step = place
    states = reset(jax.random.split(jax.random.key(6), _BATCH))
    states = step(
        states.replace(env_step=jnp.full(_BATCH, env.spec.episode_length - 1, jnp.int32)), jnp.zeros((_BATCH, 5))
    )
    assert states.done.all() and (states.discount == 1).all() and not states.success.any()
    assert not step(states.replace(env_step=states.env_step - 2, done=~states.done), jnp.zeros((_BATCH, 5))).done.any()


def test_only_the_named_block_on_the_named_zone_is_success(place):
    _, reset, step = place
    state = _first(reset(jax.random.split(jax.random.key(7), _BATCH)))

    def outcome(instruction, block, zone):
        place = state.physics.fixtures[zone]
        qpos = state.physics.qpos.at[7 * block : 7 * block + 2].set(place)
        return state.replace(physics=state.physics.replace(qpos=qpos), instruction=jnp.int32(instruction))

    cases = [(i, block, zone) for i in range(4) for block in range(2) for zone in range(2)]
    states = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(outcome(*case) for case in cases))
    after = step(states, jnp.zeros((16, 5)).at[:, 4].set(-1.0))
    # Instruction 2 * block + zone names them; a success test blind to language would pass 8 or 16 of the 16 cases.
    expected = [i == 2 * block + zone for i, block, zone in cases]
    assert after.success.tolist() == expected
    assert after.reward.tolist() == [float(good) for good in expected]
    assert after.discount.tolist() == [1 - float(good) for good in expected]
    assert (after.done == after.success).all()


def test_observation_is_what_the_spec_says(place):
    env, reset, _ = place
    state = _first(reset(jax.random.split(jax.random.key(8), _BATCH)))
    observation = jax.jit(env.observe)(state)
    assert {name: image.shape for name, image in observation.images.items()} == {
        name: (*size, 3) for name, size in env.spec.cameras.items()
    }
    assert observation.images["front"].dtype == jnp.uint8
    assert observation.state.shape == (env.spec.state_dim,)
    np.testing.assert_array_equal(observation.prompt, env.prompts.tokens[state.instruction])
    np.testing.assert_allclose(observation.state[:3], state.physics.qpos[14:17])


def test_the_policy_sees_no_object_pose_in_state(place):
    env, reset, _ = place
    state = _first(reset(jax.random.split(jax.random.key(8), _BATCH)))
    moved = state.replace(physics=state.physics.replace(qpos=state.physics.qpos.at[:14].add(0.01)))
    observe = jax.jit(env.observe)
    np.testing.assert_array_equal(observe(state).state, observe(moved).state)
    assert (observe(state).images["front"] != observe(moved).images["front"]).any()
    assert (env.env_state(state) != env.env_state(moved)).any()


def test_reset_places_things_apart():
    for name, task in TASKS.items():
        env = _make(task=name)
        states = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(9), 256))
        num_objects = len(task.scene.objects)
        objects = np.asarray(states.physics.qpos)[:, : 7 * num_objects].reshape(256, num_objects, 7)[..., :2]
        points = np.concatenate([objects, np.asarray(states.physics.fixtures)], axis=1)
        gaps = np.linalg.norm(points[:, :, None] - points[:, None], axis=-1) + 10 * np.eye(points.shape[1])
        assert (gaps.min((1, 2)) >= task.spacing - 1e-6).mean() > 0.98
        assert set(states.instruction.tolist()) == set(range(len(task.goals)))


def test_randomization_draws_what_it_says_and_nothing_else():
    plain, varied = (
        _make(),
        _make(randomization=Randomization(color=0.2, light=0.3, friction=0.3, mass=0.3, camera=0.02)),
    )
    key = jax.random.key(10)
    still, moved = plain.reset(key).physics, varied.reset(key).physics
    np.testing.assert_array_equal(still.qpos, moved.qpos)
    assert (still.variation.color_scale == 1).all() and still.variation.mass_scale == 1
    assert (jnp.abs(moved.variation.color_scale - 1) <= 0.2).all() and moved.variation.friction_scale != 1
    assert (moved.variation.camera_offset[0] != 0).any() and (moved.variation.camera_offset[1] == 0).all()
    assert jnp.linalg.norm(moved.variation.light.direction) == pytest.approx(1, abs=1e-5)


def test_bad_configs_name_what_is_wrong():
    with pytest.raises(errors.ConfigError, match="place"):
        TabletopConfig(task="plaec")
    with pytest.raises(errors.ConfigError, match="mass"):
        Randomization(mass=-1.0)
    with pytest.raises(errors.ConfigError, match="4 rows"):
        TabletopEnv(TabletopConfig(), PromptTable(jnp.zeros((3, 2), jnp.int32), jnp.ones((3, 2), bool)))


def test_config_is_hashable_and_overridable():
    config = dataclasses.replace(TabletopConfig(), episode_length=7)
    assert hash(config) != hash(TabletopConfig()) and _make(episode_length=7).spec.episode_length == 7
