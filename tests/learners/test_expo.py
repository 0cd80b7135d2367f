"""EXPO on a two-mode base policy without a network; its options and other bases are in test_expo_options.py."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from vla_jax.core import errors
from vla_jax.core.types import Observation, Transitions
from vla_jax.learners.expo import EXPO, Embedded, EXPOConfig
from vla_jax.samplers.best_of import best_of

H, A, S, B = 2, 1, 3, 8


class TwoModes(nnx.Module):
    """Chunks near -0.5 or +0.5 with equal chance; `spread` is the only parameter."""

    action_horizon, action_dim = H + 1, A  # one step longer than what is executed

    def __init__(self, rngs):
        self.spread = nnx.Param(jnp.asarray(0.01))

    def prefix(self, observation):
        return observation.state

    def features(self, prefix):
        return prefix[:, :2]

    def sample_from(self, key, prefix, num_samples=1):
        sign_key, noise_key = jax.random.split(key)
        sign = jax.random.rademacher(sign_key, (num_samples, prefix.shape[0], 1, 1), jnp.float32)
        noise = jax.random.normal(noise_key, (num_samples, prefix.shape[0], self.action_horizon, A))
        return 0.5 * sign + self.spread[...] * noise

    def sample(self, key, observation, num_samples=1):
        return self.sample_from(key, self.prefix(observation), num_samples)

    def loss(self, key, batch):
        error = jnp.square(self.spread[...] - batch.actions) * batch.action_mask
        return error.sum((1, 2)) / batch.action_mask.sum((1, 2)), {}


def make(encoder=None, policy=TwoModes, **overrides) -> EXPO:
    defaults = dict(execution_horizon=H, num_critics=4, hidden_dims=(16, 16), edit_scale=0.1)
    config = EXPOConfig(**defaults | overrides)
    return EXPO(policy, A, 2 + S, optax.adam(3e-3), optax.adam(1e-2), config, encoder=encoder)


def observation(key, batch=B):
    state = jax.random.normal(key, (batch, S))
    return Observation({}, {}, state, jnp.zeros((batch, 1), jnp.int32), jnp.ones((batch, 1), bool))


def embedded(key, batch=B, n=8):
    feature_key, chunk_key = jax.random.split(key)
    chunks = jax.random.uniform(chunk_key, (batch, n, H, A), minval=-1, maxval=1)
    return Embedded(jax.random.normal(feature_key, (batch, 2 + S)), chunks)


def transitions(key, leading=(1, 1), batch=B, raw=False):
    make_observation = observation if raw else embedded

    def one(key):
        keys = jax.random.split(key, 4)
        actions = jax.random.uniform(keys[0], (batch, H, A), minval=-1, maxval=1)
        ones = jnp.ones((batch, H))
        return Transitions(
            make_observation(keys[1], batch),
            actions,
            jax.random.uniform(keys[2], (batch, H)),
            ones,
            ones > 0,
            make_observation(keys[3], batch),
            {},
        )

    rows = [one(k) for k in jax.random.split(key, int(np.prod(leading)))]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves).reshape(*leading, *leaves[0].shape), *rows)


KEY = jax.random.key(0)


def choose(learner, state, inputs, edit_key=KEY):
    """Candidates, their values, and the chosen one."""
    candidates = learner.candidates(state.params["edit"], edit_key, inputs.features, inputs.candidates)
    q_values = learner.score(state.target_critic, KEY, inputs, candidates)
    return candidates, q_values, best_of(candidates, q_values)


def test_without_edit_the_choice_is_best_of_n_of_the_base():
    learner = make(edited=False)
    state, inputs = learner.init(KEY), embedded(jax.random.key(1))
    candidates, q_values, chosen = choose(learner, state, inputs)
    assert candidates.shape == (B, 8, H, A)
    np.testing.assert_array_equal(chosen, inputs.candidates[jnp.arange(B), q_values.argmax(1)])


def test_a_vanishing_edit_chooses_the_same_action_as_no_edit():
    tiny, plain = make(edit_scale=1e-7), make(edited=False)
    state, inputs = tiny.init(KEY), embedded(jax.random.key(1))
    _, edited_values, with_edit = choose(tiny, state, inputs)
    _, plain_values, without = choose(plain, state, inputs)
    np.testing.assert_allclose(with_edit, without, atol=1e-5)
    np.testing.assert_allclose(edited_values, jnp.concatenate([plain_values] * 2, axis=1), atol=1e-5)


def test_the_chosen_value_is_at_least_that_of_every_raw_sample():
    learner = make()
    inputs = embedded(jax.random.key(1))
    candidates, q_values, _ = choose(learner, learner.init(KEY), inputs)
    np.testing.assert_array_equal(candidates[:, :8], inputs.candidates)
    assert (q_values.max(1) >= q_values[:, :8].max(1)).all()


def test_both_modes_of_the_base_are_among_the_candidates_and_only_the_executed_steps():
    learner = make()
    inputs = learner.embed(learner.init(KEY).params["base"], KEY, observation(jax.random.key(1), 64))
    assert inputs.candidates.shape == (64, 8, H, A)
    positive = (inputs.candidates[..., 0, 0] > 0).mean()
    assert 0.4 < positive < 0.6


def test_terminal_transitions_have_the_reward_as_target():
    learner = make()
    batch = jax.tree.map(lambda leaf: leaf[0, 0], transitions(KEY))
    batch = batch.replace(discounts=batch.discounts.at[:, 0].set(0.0), rewards=batch.rewards.at[:, 1].set(0.0))
    targets = learner.targets(learner.init(KEY), KEY, batch, batch.next_observation)
    np.testing.assert_allclose(targets, batch.rewards[:, 0], rtol=1e-6)


def test_the_target_bootstraps_from_the_clipped_value_discounted_per_control_step():
    learner = make(value_range=(2.0, 2.0), discount=0.5)  # every value becomes 2
    batch = jax.tree.map(lambda leaf: leaf[0, 0], transitions(KEY))
    targets = learner.targets(learner.init(KEY), KEY, batch, batch.next_observation)
    expected = batch.rewards[:, 0] + 0.5 * batch.rewards[:, 1] + 0.5**2 * 2
    np.testing.assert_allclose(targets, expected, rtol=1e-5)


def test_softmax_backup_at_infinite_sharpness_without_temperature_is_the_default_backup():
    batch = jax.tree.map(lambda leaf: leaf[0, 0], transitions(KEY))
    default, sharp = make(), make(backup="softmax", softmax_sharpness=1e9)
    state = default.init(KEY)
    state = state.replace(params={**state.params, "log_temperature": jnp.asarray(-100.0)})
    np.testing.assert_allclose(
        sharp.targets(state, KEY, batch, batch.next_observation),
        default.targets(state, KEY, batch, batch.next_observation),
        rtol=1e-5,
    )


def test_selection_and_evaluation_draw_different_subsets():
    learner = make(num_min_critics=1)
    batch = jax.tree.map(lambda leaf: leaf[0, 0], transitions(KEY)).replace(rewards=jnp.zeros((B, H)))
    state = learner.init(KEY)
    different = 0
    for i in range(20):
        key = jax.random.key(i)
        targets = learner.targets(state, key, batch, batch.next_observation)
        edit_key, select_key, _, _ = jax.random.split(key, 4)
        following = batch.next_observation
        candidates = learner.candidates(state.params["edit"], edit_key, following.features, following.candidates)
        q_values = learner.score(state.target_critic, select_key, following, candidates)
        different += not jnp.allclose(targets, 0.99**2 * q_values.max(1), atol=1e-6)
    assert different >= 10  # one key for both would give 0; with 4 heads a quarter agree by chance


@pytest.mark.parametrize("critic_updates", [1, 5])
def test_the_base_moves_once_per_round_and_only_by_imitation(critic_updates):
    learner = make(base="imitation")
    state = learner.init(KEY)
    batch = transitions(KEY, (1, critic_updates), raw=True)
    new_state, metrics = jax.jit(learner.update)(state, KEY, batch)
    # Adam's first step is the learning rate whatever the gradient: two steps would move it twice as far
    moved = abs(new_state.params["base"]["spread"] - state.params["base"]["spread"])
    np.testing.assert_allclose(moved, 1e-2, rtol=1e-3)
    assert new_state.step == 1 and "base/loss" in metrics


def test_a_frozen_base_never_moves_and_its_candidates_come_from_the_buffer():
    learner = make()
    state = learner.init(KEY)
    new_state, metrics = jax.jit(learner.update)(state, KEY, transitions(KEY, (3, 2)))
    assert new_state.params["base"]["spread"] == state.params["base"]["spread"]
    assert new_state.step == 3 and "base/loss" not in metrics


def test_imitation_leaves_critic_and_edit_alone():
    learner = make(base="imitation")
    state = learner.init(KEY)
    batch = jax.tree.map(lambda leaf: leaf[0, 0], transitions(KEY, raw=True))
    new_state, _ = learner._base_step(state, KEY, batch)
    for name in ("critic", "edit", "log_temperature"):
        assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), state.params[name], new_state.params[name]))


def test_two_rounds_equal_two_updates_of_one_round():
    learner = make()
    state, batch = learner.init(KEY), transitions(KEY, (2, 2))
    both, _ = jax.jit(learner.update)(state, KEY, batch)
    one_round = jax.jit(lambda state, inputs: learner._round(state, inputs)[0])
    one_by_one = state
    for i, key in enumerate(jax.random.split(KEY, 2)):
        one_by_one = one_round(one_by_one, (key, jax.tree.map(lambda leaf, i=i: leaf[i], batch)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), both.params, one_by_one.params)


def test_one_critic_update_per_round_is_one_update_of_each():
    learner = make(base="imitation")
    state, batch = learner.init(KEY), transitions(KEY, (1, 1), raw=True)
    scanned, _ = jax.jit(learner.update)(state, KEY, batch)

    @jax.jit
    def by_hand(state):
        critic_key, edit_key, base_key = jax.random.split(jax.random.split(KEY, 1)[0], 3)
        only = jax.tree.map(lambda leaf: leaf[0, 0], batch)
        state, _ = learner._critic_step(state, (jax.random.split(critic_key, 1)[0], only))
        state, _ = learner._edit_step(state, edit_key, only)
        return learner._base_step(state, base_key, only)[0]

    expected = by_hand(state)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), scanned.params, expected.params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), scanned.target_critic, expected.target_critic
    )


@pytest.mark.parametrize(("optimum", "expected"), [(0.04, 0.04), (0.5, 0.1)])
def test_the_edit_finds_the_optimum_inside_its_range_and_saturates_outside(optimum, expected):
    learner = make(initial_temperature=1e-6, entropy_per_dim=-5.0)
    state = learner.init(KEY)
    batch = jax.tree.map(lambda leaf: leaf[0, 0], transitions(KEY, batch=64))
    batch = batch.replace(actions=jnp.zeros_like(batch.actions))
    # a known critic in place of the learned one: Q = -(a - optimum)^2
    quadratic = lambda params, features, actions: -jnp.square(actions - optimum).sum((-1, -2))[None]  # noqa: E731
    object.__setattr__(learner, "_q_values", quadratic)
    step = jax.jit(lambda state, key: learner._edit_step(state, key, batch)[0])
    for i in range(600):
        state = step(state, jax.random.key(i))
    edited = learner.edit.bind(state.params["edit"]).mode(batch.observation.features, batch.actions)
    np.testing.assert_allclose(edited.mean(), expected, atol=0.012)


def test_the_temperature_settles_instead_of_diverging_for_a_small_range():
    # with a target of -d / 2 that ignores the range, entropy can never reach it and the temperature grows for ever
    learner = make(initial_temperature=0.1)
    state = learner.init(KEY)
    step = jax.jit(lambda state, key: learner.update(state, key, transitions(jax.random.key(3), (4, 1), batch=32)))
    for i in range(150):
        state, metrics = step(state, jax.random.key(i))
    assert metrics["edit/temperature"] < 0.1
    assert abs(metrics["edit/entropy"] - learner.target_entropy) < 2.5


def test_a_bandit_with_its_optimum_beside_the_demonstrated_modes_is_solved_only_with_edits():
    # reward 1 within 0.04 of +0.58: base samples sit at +-0.5 (std 0.01), so the choice alone cannot reach it
    def final_reward(edited):
        learner = make(edited=edited, num_base_samples=4, initial_temperature=0.01)
        state = learner.init(KEY)

        def play(state, key):
            observe_key, embed_key, act_key, update_key = jax.random.split(key, 4)
            actor = learner.actor(state)
            now, stored = learner.observe(actor, embed_key, observation(observe_key, 256))
            actions = learner.explore(actor, act_key, now)
            rewards = jnp.exp(-jnp.square((actions[..., 0] - 0.58) / 0.03)) * jnp.array([[0.5, 0.5]])
            end = jnp.zeros((256, H)).at[:, 0].set(1.0)
            mask = jnp.ones((256, H), bool)
            batch = Transitions(stored, actions, rewards, end, mask, stored, {})
            batch = jax.tree.map(lambda leaf: leaf[None, None], batch)
            return learner.update(state, update_key, batch)[0], rewards.sum(1).mean()

        _, rewards = jax.lax.scan(play, state, jax.random.split(KEY, 500))
        return rewards[-1]

    with_edit, without = final_reward(True), final_reward(False)
    assert with_edit > without + 0.3, (with_edit, without)


def test_impossible_subsets_are_refused():
    with pytest.raises(errors.ConfigError, match="num_min_critics"):
        EXPOConfig(num_critics=2, num_min_critics=3)


def test_a_frozen_base_cannot_imitate_successes():
    with pytest.raises(errors.ConfigError, match="imitate"):
        EXPOConfig(imitate="success")


def test_a_policy_without_prefix_is_refused():
    class NoPrefix(nnx.Module):
        def __init__(self, rngs):
            self.w = nnx.Param(jnp.zeros(()))

    with pytest.raises(errors.ConfigError, match="no features, prefix, sample_from"):
        dataclasses.replace(make(), policy=NoPrefix).init(KEY)
