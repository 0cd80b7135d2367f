"""EXPO's options: copies, backups, subsets, entropy targets, an encoder of its own, and bases with networks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests.learners.test_expo import KEY, A, B, H, S, TwoModes, embedded, make, observation, transitions
from vla_jax.core import errors, functional
from vla_jax.learners.expo import EXPO, Embedded, EXPOConfig
from vla_jax.losses import td
from vla_jax.nets import critics, tanh_gaussian
from vla_jax.nets.pixels import PixelConfig, PixelEncoder
from vla_jax.nets.state_mlp import StateMLP, StateMLPConfig
from vla_jax.policies.diffusion import DiffusionConfig, DiffusionPolicy
from vla_jax.policies.flow import FlowConfig, FlowPolicy


class Zero(TwoModes):
    """A base that always does nothing."""

    def sample_from(self, key, prefix, num_samples=1):
        return jnp.zeros((num_samples, prefix.shape[0], self.action_horizon, A))


def one(batch):
    return jax.tree.map(lambda leaf: leaf[0, 0], batch)


def same(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), a, b))


def test_one_sample_of_a_base_that_does_nothing_gives_sacs_target_in_the_range_of_the_edit():
    learner = make(policy=Zero, num_base_samples=1, backup="one_sample", num_critics=2)
    state, batch = learner.init(KEY), one(transitions(KEY, raw=True))
    nothing = Embedded(
        jnp.concatenate([batch.next_observation.state[:, :2], batch.next_observation.state], -1),
        jnp.zeros((B, 1, H, A)),
    )
    drawn = learner.embed(state.params["base"], KEY, batch.next_observation)
    jax.tree.map(np.testing.assert_array_equal, drawn, nothing)
    # SAC by hand: the actor's sample at the next state, the least of both heads there
    edit_key = jax.random.split(KEY, 4)[0]
    net = learner.edit.bind(state.params["edit"]).delta
    x = jnp.concatenate([nothing.features, jnp.zeros((B, H * A))], -1)[:, None]
    action = net.sample(edit_key, x)[0].reshape(B, H, A)
    q = functional.apply_ensemble(
        learner.ensemble.net, state.target_critic["heads"], lambda critic: critic(nothing.features, action)
    )
    returns, factor = td.chunk_return(batch.rewards, batch.discounts, batch.action_mask, 0.99)
    found = learner.targets(state, KEY, batch, nothing)
    np.testing.assert_allclose(found, returns + factor * q.min(0), rtol=1e-5)
    assert (jnp.abs(action) <= 0.1).all() and (action != 0).any()


def test_one_sample_without_edit_evaluates_the_base_itself():
    learner = make(edited=False, num_base_samples=1, num_critics=2)
    state, batch = learner.init(KEY), one(transitions(KEY))
    following = Embedded(batch.next_observation.features, batch.next_observation.candidates[:, :1])
    q = functional.apply_ensemble(
        learner.ensemble.net,
        state.target_critic["heads"],
        lambda critic: critic(following.features, following.candidates[:, 0]),
    )
    returns, factor = td.chunk_return(batch.rewards, batch.discounts, batch.action_mask, 0.99)
    np.testing.assert_allclose(learner.targets(state, KEY, batch, following), returns + factor * q.min(0), rtol=1e-5)


def test_the_best_backup_is_at_least_that_of_one_sample_on_average():
    best, plain = make(num_critics=1, num_min_critics=1), make(num_critics=1, num_min_critics=1, backup="one_sample")
    state, batch = best.init(KEY), one(transitions(KEY, batch=64))
    best_values = best.targets(state, KEY, batch, batch.next_observation)
    plain_values = plain.targets(state, KEY, batch, batch.next_observation)
    assert (best_values >= plain_values - 1e-6).all() and (best_values > plain_values + 1e-6).mean() > 0.5


def test_no_gradient_of_critic_or_edit_reaches_the_base_and_none_of_imitation_the_critic():
    learner = make(base="imitation")
    state, batch = learner.init(KEY), one(transitions(KEY, raw=True))
    after_critic, _ = learner._critic_step(state, (KEY, batch))
    after_edit, _ = learner._edit_step(state, KEY, batch)
    assert same(after_critic.params["base"], state.params["base"]) and same(after_critic.ema_base, state.ema_base)
    assert same(after_edit.params["base"], state.params["base"])
    assert same(after_edit.params["critic"], state.params["critic"])
    assert not same(after_edit.params["edit"], state.params["edit"])
    after_base, _ = learner._base_step(state, KEY, batch)
    assert same(after_base.params["critic"], state.params["critic"])
    assert not same(after_base.params["base"], state.params["base"])


def test_the_density_of_an_edit_integrates_to_one_over_its_range():
    scale, mean, log_std = 0.05, jnp.array([0.4]), jnp.array([-0.3])
    edits = jnp.linspace(-scale, scale, 200_001)[1:-1, None]
    pre_tanh = jnp.arctanh(edits / scale)
    shape = pre_tanh.shape
    log_density = tanh_gaussian.log_density(
        pre_tanh, jnp.broadcast_to(mean[None], shape), jnp.broadcast_to(log_std[None], shape), scale
    )
    np.testing.assert_allclose(np.trapezoid(np.exp(log_density), edits[:, 0]), 1.0, atol=2e-3)


@pytest.mark.parametrize("counts_range", [True, False])
def test_the_entropy_target_counts_the_range_or_not(counts_range):
    learner = make(entropy_counts_range=counts_range)
    expected = -0.5 * H * A + (H * A * np.log(0.1) if counts_range else 0)
    np.testing.assert_allclose(learner.target_entropy, expected)


@pytest.mark.parametrize("replace", [False, True])
def test_the_expected_minimum_over_a_random_pair_of_heads_is_the_analytic_one(replace):
    # Heads valued 1 to 10, of which a pair is drawn. Without replacement the least is k with chance 2 (10 - k) / 90,
    # mean 11 / 3; with replacement the mean is sum_k ((11 - k) / 10)^2 = 3.85.
    learner = make(num_critics=10, draw_with_replacement=replace)
    values = jnp.arange(1.0, 11.0)
    object.__setattr__(learner, "_q_values", lambda heads, features, actions: heads[:, None])
    params = {"heads": values, "encoder": {}}
    score = jax.jit(jax.vmap(lambda key: learner.score(params, key, embedded(KEY), None)[0]))
    found = score(jax.random.split(KEY, 20_000))
    np.testing.assert_allclose(found.mean(), 3.85 if replace else 11 / 3, atol=0.06)
    assert (found == 10).any() == replace  # both heads the tenth


def test_two_draws_of_heads_differ_for_most_keys():
    pairs = jax.vmap(lambda key: critics.random_heads(key, 10, 2))(jax.random.split(KEY, 200))
    assert (jnp.sort(pairs[::2], -1) != jnp.sort(pairs[1::2], -1)).any(-1).mean() > 0.9  # 1 of 45 pairs agrees


def test_copies_of_base_and_critic_are_asked_where_the_config_says():
    state = make(base="imitation").init(KEY)
    state = state.replace(ema_base={"spread": jnp.asarray(7.0)}, params={**state.params})
    default, other = make(base="imitation"), make(base="imitation", acting_base="online", acting_critic="online")
    assert default.actor(state)["base"]["spread"] == 7 and other.actor(state)["base"]["spread"] == np.float32(0.01)
    assert default.actor(state)["critic"] is state.target_critic
    assert other.actor(state)["critic"] is state.params["critic"]
    seen = observation(KEY)
    spread = {
        copy: jnp.abs(make(base="imitation")._embedded(state, KEY, seen, copy).candidates).max()
        for copy in ("online", "average")
    }
    assert spread["online"] < 0.6 and spread["average"] > 2


def test_the_choice_in_targets_may_be_the_online_critics_but_the_target_critic_judges_it():
    learner, online = make(num_critics=2), make(num_critics=2, target_choice="online")
    state, batch = learner.init(KEY), one(transitions(KEY))
    # opposite tastes: the online critic wants what the target critic likes least
    target = jax.tree.map(jnp.copy, state.target_critic)
    target["heads"]["mlp"]["output"]["kernel"] *= -1
    state = state.replace(target_critic=target)
    best = learner.targets(state, KEY, batch, batch.next_observation)
    worst = online.targets(state, KEY, batch, batch.next_observation)
    assert (best >= worst).all() and (best > worst).any()


def test_the_softmax_backup_adds_the_entropy_of_the_choice():
    # Values all equal: each of 16 candidates has chance 1 / 16, so the bonus is temperature * log 16.
    learner = make(backup="softmax")
    state, batch = learner.init(KEY), one(transitions(KEY))
    object.__setattr__(
        learner, "_q_values", lambda heads, features, actions: jnp.zeros((2, *actions.shape[: actions.ndim - 2]))
    )
    state = state.replace(params={**state.params, "log_temperature": jnp.log(0.5)})
    returns, factor = td.chunk_return(batch.rewards, batch.discounts, batch.action_mask, 0.99)
    found = learner.targets(state, KEY, batch, batch.next_observation)
    np.testing.assert_allclose(found, returns + factor * 0.5 * np.log(16), rtol=1e-5)


@pytest.mark.parametrize("clip", [False, True])
def test_edited_candidates_stay_in_the_box_only_if_told_to(clip):
    learner = make(clip_candidates=clip, edit_scale=0.5)
    inputs = embedded(KEY).replace(candidates=jnp.ones((B, 8, H, A)))
    edited = learner.candidates(learner.init(KEY).params["edit"], KEY, inputs.features, inputs.candidates)
    assert (edited.max() > 1) != clip and edited.max() <= 1.5


def test_the_base_imitates_only_rows_of_successful_episodes():
    everything, successes = make(base="imitation"), make(base="imitation", imitate="success")
    state, batch = everything.init(KEY), one(transitions(KEY, raw=True))
    success = jnp.arange(B) < 3
    batch = batch.replace(extras={"success": success})
    after, metrics = successes._base_step(state, KEY, batch)
    kept = jax.tree.map(lambda leaf: leaf[:3], batch)
    alone, alone_metrics = everything._base_step(state, KEY, kept)
    np.testing.assert_allclose(metrics["base/loss"], alone_metrics["base/loss"], rtol=1e-5)
    np.testing.assert_allclose(after.params["base"]["spread"], alone.params["base"]["spread"], rtol=1e-5)
    with pytest.raises(errors.ConfigError, match="extras"):
        successes._base_step(state, KEY, batch.replace(extras={}))


def test_a_batch_without_success_moves_no_base():
    learner = make(base="imitation", imitate="success")
    state, batch = learner.init(KEY), one(transitions(KEY, raw=True))
    after, metrics = learner._base_step(state, KEY, batch.replace(extras={"success": jnp.zeros(B, bool)}))
    assert metrics["base/loss"] == 0 and same(after.params["base"], state.params["base"])


class Halves(nnx.Module):
    """An encoder of observations with a kernel of its own."""

    def __init__(self, rngs):
        self.out = nnx.Linear(S, 2 + S, rngs=rngs)

    def __call__(self, observation):
        return jnp.tanh(self.out(observation.state))


@pytest.mark.parametrize("base", ["frozen", "imitation"])
def test_an_encoder_of_its_own_trains_with_the_critic_alone(base):
    learner = make(encoder=Halves, base=base)
    state = learner.init(KEY)
    raw = transitions(KEY, (1, 1), raw=True)
    actor = learner.actor(state)
    if base == "frozen":  # the buffer keeps the observation beside the base's candidates
        stored = learner.observe(actor, KEY, one(raw).observation)[1]
        assert stored.features.state.shape == (B, S)
        stored = jax.tree.map(lambda leaf: leaf[None, None], stored)
        raw = raw.replace(observation=stored, next_observation=stored)
    batch = one(raw)
    after, _ = learner._critic_step(state, (KEY, batch))
    encoder = lambda s: s.params["critic"]["encoder"]  # noqa: E731
    assert not same(encoder(after), encoder(state))
    assert not same(after.target_critic["encoder"], state.target_critic["encoder"])
    after_edit, _ = learner._edit_step(state, KEY, batch)
    assert same(encoder(after_edit), encoder(state)) and not same(after_edit.params["edit"], state.params["edit"])
    actions, _ = learner.act(actor, KEY, observation(KEY), ())
    assert actions.shape == (B, H, A)
    # what is acted on is the encoder's view: other weights, another choice of values
    moved = {**actor, "critic": {**actor["critic"], "encoder": jax.tree.map(lambda x: x + 1, encoder(state))}}
    inputs = learner.embed(actor["base"], KEY, observation(KEY))
    scores = [learner.score(a["critic"], KEY, inputs, inputs.candidates) for a in (actor, moved)]
    assert not np.allclose(*scores)


def test_the_encoder_of_pictures_fits_with_fifty_features_of_picture_and_of_state():
    """The released form for vision-language-action models: a ResNet, 50 features of it and 50 of the state."""
    pixels = PixelConfig(("front",), (32, 32), S, filters=4, stages=(1, 1), bottleneck=50, state_features=50)
    learner = make(encoder=lambda rngs: PixelEncoder(pixels, rngs), base="imitation")
    learner = dataclasses.replace(learner, feature_dim=pixels.feature_dim)
    assert learner.feature_dim == 100

    def seen(observation):
        shape = observation.state.shape[:-1]
        images, mask = {"front": jnp.zeros((*shape, 32, 32, 3), jnp.uint8)}, {"front": jnp.ones(shape, bool)}
        return observation.replace(images=images, image_mask=mask)

    def update(key):
        batch = transitions(key, (2, 2), raw=True)
        batch = batch.replace(observation=seen(batch.observation), next_observation=seen(batch.next_observation))
        return learner.update(learner.init(key), key, batch)

    state, metrics = jax.eval_shape(update, KEY)
    assert "trunk" in state.target_critic["encoder"] and "base/loss" in metrics


@pytest.mark.parametrize(
    ("decoder", "policy"), [(DiffusionConfig(H, A), DiffusionPolicy), (FlowConfig(H, A), FlowPolicy)]
)
def test_bases_with_networks_imitate_their_own_successes(decoder, policy):
    """From noise to the one action that is replayed, by diffusion and by flow; the critic is along."""
    backbone = StateMLPConfig(S, H, A, hidden_dims=(32, 32))
    config = EXPOConfig(H, base="imitation", num_base_samples=2, num_critics=2, hidden_dims=(8,), base_ema_decay=0.9)
    learner = EXPO(
        lambda rngs: policy(decoder, StateMLP(backbone, rngs), rngs),
        A,
        S + S,
        optax.adam(1e-3),
        optax.adam(1e-2),
        config,
    )
    state = learner.init(KEY)
    batch = transitions(KEY, (150, 1), batch=32, raw=True)
    batch = batch.replace(actions=jnp.full_like(batch.actions, 0.6))
    after, metrics = jax.jit(learner.update)(state, KEY, batch)
    samples = learner.embed(learner.actor(after)["base"], KEY, observation(KEY, 32)).candidates
    assert abs(samples.mean() - 0.6) < 0.15 and samples.std() < 0.3, (samples.mean(), samples.std())
    assert jnp.isfinite(metrics["base/loss"])
