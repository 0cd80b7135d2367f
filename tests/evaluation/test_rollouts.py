import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.evaluation.point_env import PointEnv, expert
from vla_jax.core import errors
from vla_jax.evaluation import rollouts

FAST = {"speed": jnp.float32(1)}
KEY = jax.random.key(3)


@functools.lru_cache
def rollout(**changes):
    return rollouts.Rollout(PointEnv(), expert, execution_horizon=changes.pop("execution_horizon", 4), **changes)


def by_hand(index, speed=1.0):
    """One episode as a plain Python loop over the contract, without batching or chunk machinery."""
    env = PointEnv()
    state = env.reset(jax.random.fold_in(KEY, index))
    total, length = 0.0, 0
    while not state.done:
        observation = jax.tree.map(lambda x: x[None], env.observe(state))
        for action in expert({"speed": speed}, None, observation, ())[0][0]:
            if not state.done:
                state = env.step(state, action)
                total, length = total + float(state.reward), length + 1
    return bool(state.success), total, length, int(state.instruction)


def test_episodes_equal_a_loop_written_by_hand():
    episodes = rollout().evaluate(FAST, KEY, num_episodes=6, batch_size=6)
    for i in range(6):
        success, total, length, instruction = by_hand(i)
        assert bool(episodes.success[i]) == success
        assert episodes.returns[i] == pytest.approx(total, abs=1e-5)
        assert (int(episodes.length[i]), int(episodes.instruction[i])) == (length, instruction)


def test_episode_i_is_the_same_whatever_the_batch_size():
    whole = rollout().evaluate(FAST, KEY, num_episodes=7, batch_size=7)
    parts = rollout().evaluate(FAST, KEY, num_episodes=7, batch_size=3)  # the last batch is filled up to 3
    assert whole.success.shape == (7,)
    jax.tree.map(np.testing.assert_array_equal, whole, parts)


def test_every_initial_state_is_counted_once():
    episodes = rollout().evaluate(FAST, KEY, num_episodes=7, batch_size=3)
    assert len({tuple(data) for data in episodes.initial_key}) == 7
    expected = jax.random.key_data(rollouts.initial_keys(KEY, jnp.arange(7)))
    np.testing.assert_array_equal(episodes.initial_key, expected)


def test_an_actor_that_stands_still_runs_into_the_time_limit():
    episodes = rollout().evaluate({"speed": jnp.float32(0)}, KEY, num_episodes=4, batch_size=4)
    assert not episodes.success.any()
    np.testing.assert_array_equal(episodes.length, 12)
    np.testing.assert_allclose(episodes.returns, -0.12, rtol=1e-5)  # without freezing at the limit it goes on falling


def test_the_time_limit_holds_when_the_chunk_does_not_divide_it():
    clumsy = rollouts.Rollout(PointEnv(), functools.partial(expert, horizon=8), execution_horizon=5)
    assert clumsy.num_decisions == 3
    episodes = clumsy.evaluate({"speed": jnp.float32(0)}, KEY, num_episodes=2, batch_size=2)
    np.testing.assert_array_equal(episodes.length, 12)


def test_shown_the_wrong_instruction_an_obedient_policy_fails():
    honest = rollout().evaluate(FAST, KEY, num_episodes=32, batch_size=32)
    swapped = rollouts.evaluate(
        PointEnv(), expert, FAST, KEY, num_episodes=32, batch_size=32, execution_horizon=4, swap_instructions=True
    )
    assert honest.success.all()
    assert not swapped.success.any()
    np.testing.assert_array_equal(swapped.instruction, honest.instruction)
    np.testing.assert_array_equal(swapped.shown_instruction, (honest.instruction + 1) % 3)
    np.testing.assert_array_equal(swapped.initial_key, honest.initial_key)


def test_the_normalizers_sit_at_the_policys_edges():
    def actor_in_centimetres(actor_params, key, observation, memory):
        observation = observation.replace(state=observation.state / 100)
        actions, memory = expert(actor_params, key, observation, memory)
        padded = jnp.pad(actions / 10, ((0, 0), (0, 0), (0, 3)), constant_values=9.0)  # dims the robot lacks
        return padded, memory

    other_units = rollouts.Rollout(
        PointEnv(),
        actor_in_centimetres,
        4,
        normalize=lambda observation: observation.replace(state=observation.state * 100),
        unnormalize=lambda actions, state: actions * 10,
    )
    plain = rollout().evaluate(FAST, KEY, num_episodes=5, batch_size=5)
    found = other_units.evaluate(FAST, KEY, num_episodes=5, batch_size=5)
    np.testing.assert_array_equal(found.success, plain.success)
    np.testing.assert_allclose(found.returns, plain.returns, rtol=1e-4)


def test_memory_travels_from_decision_to_decision():
    def stubborn(actor_params, key, observation, memory):
        """Acts on the first observation only: every later chunk repeats the first."""
        actions, _ = expert(actor_params, key, observation, ())
        chosen = jnp.where(memory["is_set"][:, None, None], memory["actions"], actions)
        return chosen, {"is_set": jnp.ones_like(memory["is_set"]), "actions": chosen}

    remembered = rollouts.Rollout(
        PointEnv(),
        stubborn,
        4,
        initial_memory=lambda batch: {"is_set": jnp.zeros(batch, bool), "actions": jnp.zeros((batch, 4, 2))},
    )
    film = remembered.record({"speed": jnp.float32(0.1)}, KEY, (0,), render=lambda state: state.physics)
    moves = np.diff(film.frames[0], axis=0)
    np.testing.assert_allclose(moves, np.broadcast_to(moves[0], moves.shape), atol=1e-6)


def test_policy_noise_changes_from_decision_to_decision():
    def noisy(actor_params, key, observation, memory):
        return 0.1 * jax.random.normal(key, (observation.state.shape[0], 4, 2)), memory

    film = rollouts.Rollout(PointEnv(), noisy, 4).record({}, KEY, (0, 1), render=lambda state: state.physics)
    moves = np.diff(film.frames, axis=1)
    assert len(np.unique(moves[..., 0].round(6))) > 20


def test_a_film_shows_the_episodes_that_were_counted():
    episodes = rollout().evaluate(FAST, KEY, num_episodes=6, batch_size=6)
    film = rollout().record(FAST, KEY, (1, 4))
    assert film.frames.shape == (2, 13, 4, 4, 3) and film.frames.dtype == np.uint8
    for shot, index in enumerate((1, 4)):
        assert film.episodes.length[shot] == episodes.length[index]
        np.testing.assert_array_equal(film.episodes.initial_key[shot], episodes.initial_key[index])
        last = film.num_frames[shot] - 1
        assert last == episodes.length[index]
        start = PointEnv().reset(jax.random.fold_in(KEY, index)).physics
        np.testing.assert_array_equal(film.frames[shot, 0, 0, 0, :2], (start * 255).astype(jnp.uint8))
        assert (film.frames[shot, last:] == film.frames[shot, last]).all()


def test_a_stride_keeps_every_second_frame():
    every = rollout().record(FAST, KEY, (0,))
    second = rollout().record(FAST, KEY, (0,), frame_stride=2)
    np.testing.assert_array_equal(second.frames, every.frames[:, ::2])
    assert second.num_frames[0] == 1 + -(-int(every.episodes.length[0]) // 2)


def test_a_batch_spread_over_devices_gives_the_same_episodes():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    spread = rollout().evaluate(FAST, KEY, num_episodes=8, batch_size=8, sharding=sharding)
    alone = rollout().evaluate(FAST, KEY, num_episodes=8, batch_size=8)
    np.testing.assert_array_equal(spread.success, alone.success)
    np.testing.assert_array_equal(spread.length, alone.length)


def test_progress_is_told_after_every_batch():
    seen = []
    rollout().evaluate(FAST, KEY, num_episodes=5, batch_size=2, progress=lambda *told: seen.append(told))
    assert seen == [(2, 5, 2), (4, 5, 4), (5, 5, 5)]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: rollouts.Rollout(PointEnv(), expert, 0), "execution_horizon >= 1"),
        (lambda: rollouts.Rollout(PointEnv(), expert, 4, shown_instructions=(0, 1)), "a permutation of 0 to 2"),
        (lambda: rollout(execution_horizon=5).evaluate(FAST, KEY, 2, 2), r"h >= 5 \(execution_horizon\)"),
        (lambda: rollout().evaluate(FAST, KEY, 0, 2), "num_episodes and batch_size >= 1"),
        (lambda: rollout().record(FAST, KEY, (0,), camera="frnt"), "did you mean 'front'"),
        (lambda: rollout().record(FAST, KEY, (0,), frame_stride=3), "frame_stride divides 4"),
        (lambda: rollouts.swapped_instructions(1), "at least 2 instructions"),
    ],
)
def test_impossible_rollouts_raise(build, message):
    with pytest.raises(errors.ConfigError, match=message):
        build()
