"""What RLPD must hold to, on features that are the state itself; pictures are in test_rlpd_pixels.py."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.evaluation.point_env import PointEnv
from vla_jax.core import errors
from vla_jax.core.types import Observation, Transitions
from vla_jax.learners import rlpd
from vla_jax.learners.rlpd import RLPD, RLPDConfig
from vla_jax.nets.critics import CriticConfig
from vla_jax.training.online import ReplayConfig, ReplaySource

H, A, S, B = 2, 2, 3, 6
SMALL = RLPDConfig(action_horizon=H, num_critics=4, critic=CriticConfig((16, 16), activation="tanh"), actor_dims=(16,))
KEY = jax.random.key(0)


def make(**overrides) -> RLPD:
    return RLPD(A, S, optax.adam(1e-2), dataclasses.replace(SMALL, **overrides))


def transitions(key, *leading):
    keys = jax.random.split(key, 4)
    shape = (*leading, B)
    ones = jnp.ones((*shape, H))
    return Transitions(
        jax.random.normal(keys[0], (*shape, S)),
        jax.random.uniform(keys[1], (*shape, H, A), minval=-1),
        jax.random.normal(keys[2], (*shape, H)),
        ones,
        ones > 0,
        jax.random.normal(keys[3], (*shape, S)),
        {},
    )


@pytest.fixture(scope="module")
def state():
    """Of every learner here: they differ in what they do with it."""
    return make().init(KEY)


def targets(learner, state, batch, heads=(0, 1)):
    chunks = jnp.full((B, H, A), 0.3)
    return jax.jit(learner.targets)(state, jnp.array(heads), batch, chunks, jnp.full(B, -7.0))


def changed(a, b):
    return [bool(jnp.any(x != y)) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)]


def test_a_round_updates_the_critic_at_every_minibatch_and_the_rest_once(state):
    """Adam counts its steps: of 2 rounds of 4, eight for the critic, two for actor and temperature."""
    before, (after, metrics) = state, jax.jit(make().update)(state, KEY, transitions(KEY, 2, 4))
    counts = {name: int(state[0].count) for name, state in after.opt_state.items()}
    assert counts == {"actor": 2, "critic": 8, "temperature": 2}
    assert all(changed(before.params, after.params)) and int(after.step) == 2
    assert all(jnp.isfinite(value) for value in metrics.values())


def test_the_target_has_no_entropy_term_unless_asked(state):
    batch, plain = transitions(KEY), make()
    hot = state.replace(params={**state.params, "temperature": jnp.asarray(3.0)})
    np.testing.assert_array_equal(targets(plain, state, batch), targets(plain, hot, batch))
    bonus = make(entropy_backup=True)
    gap = targets(bonus, hot, batch) - targets(plain, hot, batch)
    np.testing.assert_allclose(gap, 0.96**H * 7.0 * jax.nn.softplus(3.0), rtol=1e-4)


def test_a_transition_that_ended_the_task_has_its_reward_for_a_target(state):
    learner, batch = make(), transitions(KEY)
    ended = batch.replace(discounts=jnp.zeros_like(batch.discounts))
    np.testing.assert_allclose(targets(learner, state, ended), batch.rewards[:, 0], rtol=1e-6)


def test_the_target_looks_at_the_drawn_heads_alone(state):
    learner, batch = make(), transitions(KEY)
    spoilt = jax.tree.map(lambda leaf: leaf.at[2:].set(jnp.nan), state.target["head"])
    spoilt = state.replace(target={**state.target, "head": spoilt})
    values = jax.jit(learner.q_values)(state.target["head"], batch.next_observation, jnp.full((B, H, A), 0.3))
    expected = batch.rewards[:, 0] + 0.96 * batch.rewards[:, 1] + 0.96**2 * values[:2].min(0)
    np.testing.assert_allclose(targets(learner, spoilt, batch), expected, rtol=1e-5)


def test_the_temperature_rises_when_the_policy_is_too_certain_and_falls_when_it_is_too_random():
    for form in ("softplus", "exp"):
        learner = make(temperature_form=form, initial_temperature=0.3)
        parameter = jnp.asarray(rlpd._inverse(0.3, form))
        assert learner.temperature(parameter) == pytest.approx(0.3, rel=1e-5)
        at = -learner.target_entropy
        certain, random = jnp.full(B, at + 1.0), jnp.full(B, at - 1.0)
        assert jax.grad(learner.temperature_loss)(parameter, certain) < 0
        assert jax.grad(learner.temperature_loss)(parameter, random) > 0
        assert learner.temperature_loss(parameter, certain) == pytest.approx(-0.3, rel=1e-5)


def test_the_entropy_is_measured_where_the_config_says(state):
    """Of the states that do not count nothing reaches the temperature."""
    batch, metrics = transitions(KEY, 1, 1), {}
    far = batch.replace(next_observation=batch.next_observation + 100.0)
    for where in ("next", "current"):
        learner = make(temperature_states=where, std_range=(1e-3, 5.0))
        step = jax.jit(learner._actor_step)
        last = [jax.tree.map(lambda leaf: leaf[0], rows) for rows in (batch, far)]
        metrics[where] = [float(step(state, KEY, rows)[1]["actor/entropy"]) for rows in last]
    assert metrics["current"][0] == metrics["current"][1]
    assert metrics["next"][0] != metrics["next"][1]


def test_the_actor_sees_the_last_minibatch_or_all_of_a_round(state, monkeypatch):
    batch = jax.tree.map(lambda leaf: leaf[0], transitions(KEY, 1, 3))
    for which, rows in (("last", batch.observation[-1:]), ("all", batch.observation)):
        learner, seen = make(actor_batch=which), []
        monkeypatch.setattr(
            RLPD, "_actor_step", lambda self, state, key, rows, seen=seen: seen.append(rows) or (state, {})
        )
        monkeypatch.setattr(RLPD, "_critic_step", lambda self, state, inputs: (state, {}))
        learner._round(state, (KEY, batch))
        np.testing.assert_array_equal(seen[0].observation, rows)


def test_an_actors_step_on_several_minibatches_is_that_on_their_union(state, monkeypatch):
    """Up to the noise, which is taken out."""
    monkeypatch.setattr(jax.random, "normal", lambda key, shape: jnp.zeros(shape))
    learner, batch = make(temperature_states="current"), jax.tree.map(lambda leaf: leaf[0], transitions(KEY, 1, 3))
    union = jax.tree.map(lambda leaf: leaf.reshape(1, -1, *leaf.shape[2:]), batch)
    results = [jax.jit(learner._actor_step)(state, KEY, rows) for rows in (batch, union)]
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_the_standard_deviation_stays_in_its_range(state):
    learner = make(std_range=(0.2, 0.3))
    head = jax.tree.map(lambda leaf: 30 * leaf, state.params["actor"]["head"])
    _, log_std = jax.jit(lambda x: learner.gaussian.bind(head).parameters(x))(jax.random.normal(KEY, (64, S)))
    assert jnp.exp(log_std).min() >= 0.2 - 1e-6 and jnp.exp(log_std).max() <= 0.3 + 1e-6


def test_it_acts_by_its_mode_and_explores_around_it(state):
    learner = make()
    actor, seen = learner.actor(state), jax.random.normal(KEY, (B, S))
    observation = Observation({}, {}, seen, jnp.zeros((B, 1), jnp.int32), jnp.ones((B, 1), bool))
    actions, _ = learner.act(actor, KEY, observation, learner.initial_memory(B))
    again, _ = learner.act(actor, jax.random.key(9), observation, ())
    view, stored = learner.observe(actor, KEY, observation)
    assert actions.shape == (B, H, A)
    np.testing.assert_array_equal(actions, again)
    np.testing.assert_array_equal(stored, seen)  # without pictures the buffer keeps the state alone
    assert (learner.explore(actor, KEY, view) != actions).all()


def test_it_finds_the_best_action_of_a_bandit():
    """Reward -|action - 0.5|^2 in one step: the mode moves to 0.5 from 0."""
    learner = RLPD(1, 1, optax.adam(3e-3), dataclasses.replace(SMALL, action_horizon=1, initial_temperature=1e-3))

    def step(state, key):
        keys = jax.random.split(key)
        actions = jax.random.uniform(keys[0], (1, 2, 32, 1, 1), minval=-1)
        zeros, ones = jnp.zeros((1, 2, 32, 1)), jnp.ones((1, 2, 32, 1))
        rewards = -jnp.square(actions[..., 0] - 0.5)
        batch = Transitions(zeros, actions, rewards, zeros, ones > 0, zeros, {})
        return learner.update(state, keys[1], batch)[0], None

    state, _ = jax.jit(lambda state: jax.lax.scan(step, state, jax.random.split(KEY, 300)))(learner.init(KEY))
    mode = learner.gaussian.bind(state.params["actor"]["head"]).mode(jnp.zeros((1, 1)))
    assert abs(float(mode[0, 0]) - 0.5) < 0.2  # 0.36 to 0.64 over twelve seeds


@pytest.mark.parametrize("wrong", [{"num_min_critics": 5}, {"std_range": (1.0, 0.1)}, {"initial_temperature": 0.0}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(errors.ConfigError, match=next(iter(wrong))):
        make(**wrong)


def test_it_fits_the_source_of_online_learners():
    """The rows that an environment gives are the rows that the update takes, whatever the horizon; by shapes alone."""
    config = ReplayConfig(num_envs=4, capacity=64, warmup_decisions=2, rounds=1, critic_updates=2, batch_size=8)
    learner = RLPD(2, 2, optax.adam(1e-3), dataclasses.replace(SMALL, action_horizon=3))
    abstract = jax.eval_shape(learner.init, KEY)
    source = ReplaySource(PointEnv(), learner, jax.eval_shape(learner.actor, abstract), config)
    batch = source.example()
    assert batch.observation.shape == (1, 2, 8, 2) and batch.actions.shape == (1, 2, 8, 3, 2)
    after, _ = jax.eval_shape(learner.update, abstract, KEY, batch)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, abstract)
