"""Interventions: what is run, what is stored where, and that demonstrations stay."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vla_jax.core import errors
from vla_jax.core.types import Transitions
from vla_jax.data.replay import device as replay
from vla_jax.data.replay import mixing
from vla_jax.training import interventions

B = 4


def rows(value, extras):
    ones = jnp.ones((B, 1))
    state = jnp.full((B, 2), value) + jnp.arange(B)[:, None]
    return Transitions(state, jnp.zeros((B, 1, 3)), ones, ones, ones > 0, state, extras)


def buffers(capacity):
    example = jax.tree.map(lambda leaf: leaf[0], rows(0.0, {interventions.TAG: jnp.zeros(B, bool)}))
    return replay.init(capacity, example), replay.init(capacity, example)


def test_the_operators_action_is_run_and_tagged():
    given = jnp.array([True, False, True, False])
    actions, extras = interventions.take_over(jnp.zeros((B, 2, 3)), jnp.ones((B, 2, 3)), given)
    np.testing.assert_array_equal(actions[:, 0, 0], [1, 0, 1, 0])
    np.testing.assert_array_equal(extras["intervention"], given)


def test_corrections_are_demonstrations_and_experience_is_not():
    online, demos = buffers(8)
    demos = replay.insert(demos, rows(100.0, {interventions.TAG: jnp.zeros(B, bool)}), jnp.ones(B, bool))
    tags = {interventions.TAG: jnp.array([True, True, False, False])}
    valid = jnp.array([True, False, True, True])
    online, demos = interventions.insert(online, demos, rows(0.0, tags), valid)
    np.testing.assert_array_equal(online.rows.observation[:3, 0], [0, 2, 3])
    assert (int(online.size), int(demos.size)) == (3, 5)
    np.testing.assert_array_equal(demos.rows.observation[:5, 0], [100, 101, 102, 103, 0])


def test_no_amount_of_experience_pushes_demonstrations_out_and_batches_are_half_and_half():
    online, demos = buffers(4)
    tags = {interventions.TAG: jnp.zeros(B, bool)}
    demos = replay.insert(demos, rows(100.0, tags), jnp.ones(B, bool))
    for step in range(5):
        online, demos = interventions.insert(online, demos, rows(float(step), tags), jnp.ones(B, bool))
    samplers = [lambda key, shape, b=buffer: replay.sample(b, key, shape) for buffer in (demos, online)]
    batch = mixing.mix(jax.random.key(0), (2, 3, 256), samplers, (0.5, 0.5))
    from_demos = batch.observation[..., 0] >= 100
    np.testing.assert_array_equal(from_demos.sum(-1), jnp.full((2, 3), 128))
    np.testing.assert_array_equal(batch.extras["source"] == 0, from_demos)


def test_rows_without_the_tag_are_refused():
    online, demos = buffers(8)
    with pytest.raises(errors.DataError, match="intervention"):
        interventions.insert(online, demos, rows(0.0, {}), jnp.ones(B, bool))
