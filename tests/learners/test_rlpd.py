"""What RLPD must hold to, on features that are the state itself; pictures are in test_rlpd_pixels.py."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vla_jax.core import errors
from vla_jax.core.types import Observation, Transitions
from vla_jax.learners.rlpd import RLPD, RLPDConfig
from vla_jax.nets.critics import CriticConfig

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


def targets(learner, state, batch, heads=(0, 1)):
    chunks = jnp.full((B, H, A), 0.3)
    return learner.targets(state, jnp.array(heads), batch, chunks, jnp.full(B, -7.0))


def changed(a, b):
    return [bool(jnp.any(x != y)) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)]


def test_a_round_updates_the_critic_at_every_minibatch_and_the_rest_once():
    """Adam counts its steps: of 2 rounds of 4, eight for the critic, two for actor and temperature."""
    learner = make()
    before = learner.init(KEY)
    after, metrics = jax.jit(learner.update)(before, KEY, transitions(KEY, 2, 4))
    counts = {name: int(state[0].count) for name, state in after.opt_state.items()}
    assert counts == {"actor": 2, "critic": 8, "temperature": 2}
    assert all(changed(before.params, after.params)) and int(after.step) == 2
    assert all(jnp.isfinite(value) for value in metrics.values())


def test_the_target_has_no_entropy_term_unless_asked():
    batch = transitions(KEY)
    plain = make()
    state = plain.init(KEY)
    hot = state.replace(params={**state.params, "temperature": jnp.asarray(3.0)})
    np.testing.assert_array_equal(targets(plain, state, batch), targets(plain, hot, batch))
    bonus = make(entropy_backup=True)
    gap = targets(bonus, hot, batch) - targets(plain, hot, batch)
    np.testing.assert_allclose(gap, 0.96**H * 7.0 * jax.nn.softplus(3.0), rtol=1e-4)


def test_a_transition_that_ended_the_task_has_its_reward_for_a_target():
    learner, batch = make(), transitions(KEY)
    ended = batch.replace(discounts=jnp.zeros_like(batch.discounts))
    np.testing.assert_allclose(targets(learner, learner.init(KEY), ended), batch.rewards[:, 0], rtol=1e-6)


def test_the_target_looks_at_the_drawn_heads_alone():
    learner, batch = make(), transitions(KEY)
    state = learner.init(KEY)
    spoilt = jax.tree.map(lambda leaf: leaf.at[2:].set(jnp.nan), state.target["head"])
    spoilt = state.replace(target={**state.target, "head": spoilt})
    values = learner.q_values(state.target["head"], batch.next_observation, jnp.full((B, H, A), 0.3))
    expected = batch.rewards[:, 0] + 0.96 * batch.rewards[:, 1] + 0.96**2 * values[:2].min(0)
    np.testing.assert_allclose(targets(learner, spoilt, batch), expected, rtol=1e-5)


def test_the_temperature_rises_when_the_policy_is_too_certain_and_falls_when_it_is_too_random():
    for form in ("softplus", "exp"):
        learner = make(temperature_form=form, initial_temperature=0.3)
        parameter = learner.init(KEY).params["temperature"]
        assert learner.temperature(parameter) == pytest.approx(0.3, rel=1e-5)
        at = -learner.target_entropy
        certain, random = jnp.full(B, at + 1.0), jnp.full(B, at - 1.0)
        assert jax.grad(learner.temperature_loss)(parameter, certain) < 0
        assert jax.grad(learner.temperature_loss)(parameter, random) > 0
        assert learner.temperature_loss(parameter, certain) == pytest.approx(-0.3, rel=1e-5)


def test_the_entropy_is_measured_where_the_config_says():
    """Of the states that do not count nothing reaches the temperature."""
    batch, metrics = transitions(KEY, 1, 1), {}
    far = batch.replace(next_observation=batch.next_observation + 100.0)
    for where in ("next", "current"):
        learner = make(temperature_states=where, std_range=(1e-3, 5.0))
        step = jax.jit(learner._actor_step)
        state = learner.init(KEY)
        last = [jax.tree.map(lambda leaf: leaf[0, -1], rows) for rows in (batch, far)]
        metrics[where] = [float(step(state, KEY, rows)[1]["actor/entropy"]) for rows in last]
    assert metrics["current"][0] == metrics["current"][1]
    assert metrics["next"][0] != metrics["next"][1]


def test_the_actor_sees_the_last_minibatch_or_all_of_a_round(monkeypatch):
    batch = jax.tree.map(lambda leaf: leaf[0], transitions(KEY, 1, 3))
    for which, rows in (("last", batch.observation[-1]), ("all", batch.observation.reshape(-1, S))):
        learner, seen = make(actor_batch=which), []
        monkeypatch.setattr(
            RLPD, "_actor_step", lambda self, state, key, rows, seen=seen: seen.append(rows) or (state, {})
        )
        monkeypatch.setattr(RLPD, "_critic_step", lambda self, state, inputs: (state, {}))
        learner._round(learner.init(KEY), (KEY, batch))
        np.testing.assert_array_equal(seen[0].observation, rows)


def test_the_standard_deviation_stays_in_its_range():
    learner = make(std_range=(0.2, 0.3))
    head = learner.gaussian.bind(learner.init(KEY).params["actor"]["head"])
    _, log_std = head.parameters(100 * jax.random.normal(KEY, (64, S)))
    assert jnp.exp(log_std).min() >= 0.2 - 1e-6 and jnp.exp(log_std).max() <= 0.3 + 1e-6


def test_it_acts_by_its_mode_and_explores_around_it():
    learner = make()
    actor = learner.actor(learner.init(KEY))
    state = jax.random.normal(KEY, (B, S))
    observation = Observation({}, {}, state, jnp.zeros((B, 1), jnp.int32), jnp.ones((B, 1), bool))
    actions, _ = learner.act(actor, KEY, observation, learner.initial_memory(B))
    again, _ = learner.act(actor, jax.random.key(9), observation, ())
    view, stored = learner.observe(actor, KEY, observation)
    assert actions.shape == (B, H, A)
    np.testing.assert_array_equal(actions, again)
    np.testing.assert_array_equal(stored, state)  # without pictures the buffer keeps the state alone
    assert (learner.explore(actor, KEY, view) != actions).all()


def test_it_finds_the_best_action_of_a_bandit():
    """Reward -|action - 0.5|^2 in one step: the mode moves to 0.5 from 0."""
    learner = RLPD(1, 1, optax.adam(3e-3), dataclasses.replace(SMALL, action_horizon=1, initial_temperature=1e-3))

    def step(state, key):
        keys = jax.random.split(key)
        actions = jax.random.uniform(keys[0], (1, 4, 64, 1, 1), minval=-1)
        zeros, ones = jnp.zeros((1, 4, 64, 1)), jnp.ones((1, 4, 64, 1))
        rewards = -jnp.square(actions[..., 0] - 0.5)
        batch = Transitions(zeros, actions, rewards, zeros, ones > 0, zeros, {})
        return learner.update(state, keys[1], batch)[0], None

    state, _ = jax.lax.scan(step, learner.init(KEY), jax.random.split(KEY, 300))
    mode = learner.gaussian.bind(state.params["actor"]["head"]).mode(jnp.zeros((1, 1)))
    assert abs(float(mode[0, 0]) - 0.5) < 0.1


@pytest.mark.parametrize("wrong", [{"num_min_critics": 5}, {"std_range": (1.0, 0.1)}, {"initial_temperature": 0.0}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(errors.ConfigError, match=next(iter(wrong))):
        make(**wrong)
