"""A policy's own episodes as data: what is written is what was run."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines import rollouts
from data_pipelines.recorder import Recorder
from tests.evaluation.point_env import PointEnv, expert
from vla_jax.core import errors

ENV, HORIZON = PointEnv(), 4


def trajectories(speed):
    policy = SimpleNamespace(
        learner=SimpleNamespace(act=expert, initial_memory=lambda batch_size: ()),
        edges=SimpleNamespace(
            normalize=lambda observation: observation, unnormalize=lambda actions, state: 2 * actions
        ),
        recipe=SimpleNamespace(evaluation=SimpleNamespace(execution_horizon=HORIZON)),
    )
    run = jax.jit(rollouts.Trajectories(ENV, policy))
    return run({"speed": jnp.asarray(speed)}, jax.random.key(0), jnp.arange(16))


def test_replaying_the_written_actions_from_the_first_state_gives_every_recorded_state():
    states, actions, success = trajectories(0.5)  # halved by the policy, doubled at its edge
    assert actions.shape == (16, 12, 2) and success.any()
    assert jnp.abs(actions).max() <= 1
    state = jax.tree.map(lambda leaf: leaf[:, 0], states)
    for step in range(1, 12):
        state = jax.vmap(ENV.step)(state, actions[:, step - 1])
        np.testing.assert_allclose(state.physics, states.physics[:, step], atol=1e-6)
        np.testing.assert_array_equal(state.done, states.done[:, step])


def test_episodes_end_where_they_ended_and_keep_their_order():
    states, actions, success = trajectories(0.5)
    kept = np.flatnonzero(success)[::-1]
    episodes = Recorder(ENV).episodes(states, actions, kept, [{"place": int(i)} for i in kept])
    for i, episode in zip(kept, episodes, strict=True):
        length = int((~states.done[i]).sum())
        assert episode.metadata == {"place": int(i)}
        assert len(episode.steps["action"]) == length == len(episode.steps["observation/front"])
        np.testing.assert_array_equal(episode.steps["action"], actions[i, :length])
        assert episode.steps["language_instruction"] == ENV.spec.instructions[int(states.instruction[i, 0])]


def test_the_number_of_episodes_is_a_whole_number_of_batches():
    with pytest.raises(errors.ConfigError, match="multiple of batch_size = 128"):
        rollouts.RolloutDataConfig("runs/x", num_episodes=100)
