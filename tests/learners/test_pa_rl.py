"""PA-RL on a policy of one number, and on every kind of policy there is."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from vla_jax.codecs.bins import uniform_bins
from vla_jax.core import errors
from vla_jax.core.types import Observation, Transitions
from vla_jax.learners.critic_ensemble import Conservative, HLGauss
from vla_jax.learners.pa_rl import IQL, PARL, CalQL, PARLConfig, offline
from vla_jax.nets.critics import CriticConfig
from vla_jax.nets.gemma import GemmaConfig
from vla_jax.nets.state_mlp import StateMLP, StateMLPConfig
from vla_jax.nets.vla_transformer import VlaTransformer, VlaTransformerConfig
from vla_jax.policies.bins import BinsConfig, BinsPolicy
from vla_jax.policies.diffusion import DiffusionConfig, DiffusionPolicy
from vla_jax.policies.discrete_diffusion import DiscreteDiffusionConfig, DiscreteDiffusionPolicy
from vla_jax.policies.flow import FlowConfig, FlowPolicy
from vla_jax.samplers.action_ascent import AscentOptions
from vla_jax.samplers.diffusion import NoiseSchedule
from vla_jax.samplers.maskgit import MaskedOptions

H, A, S, B = 2, 1, 3, 8
KEY = jax.random.key(0)
CRITIC = CriticConfig((16, 16), activation="silu")
SMALL = PARLConfig(
    execution_horizon=H,
    num_samples=6,
    ascent=AscentOptions(num_kept=3, num_steps=2, step_size=0.05),
    num_critics=4,
    critic=CRITIC,
    head=None,
)


class OneNumber(nnx.Module):
    """Chunks around `mean`, `spread` apart; imitation moves the mean."""

    action_horizon, action_dim = H + 1, A  # one step longer than what is executed
    spread = 0.3

    def __init__(self, rngs):
        self.mean = nnx.Param(jnp.asarray(0.0))

    def sample(self, key, observation, num_samples=1):
        shape = (num_samples, observation.state.shape[0], self.action_horizon, A)
        return self.mean[...] + self.spread * jax.random.normal(key, shape)

    def loss(self, key, batch):
        error = jnp.square(self.mean[...] - batch.actions) * batch.action_mask
        return error.sum((1, 2)) / batch.action_mask.sum((1, 2)), {}


class Dirac(OneNumber):
    spread = 0.0


def make(policy=OneNumber, rate=3e-3, **overrides) -> PARL:
    config = dataclasses.replace(SMALL, **overrides)
    return PARL(policy, A, S, optax.adam(rate), optax.adam(1e-2), config)


def observation(key, batch=B):
    state = jax.random.normal(key, (batch, S))
    return Observation({}, {}, state, jnp.zeros((batch, 1), jnp.int32), jnp.ones((batch, 1), bool))


def transitions(key, batch=B, action_dim=A, **extras):
    keys = jax.random.split(key, 4)
    actions = jax.random.uniform(keys[0], (batch, H, action_dim), minval=-1, maxval=1)
    ones, returns = jnp.ones((batch, H)), jax.random.uniform(keys[3], (batch,), minval=-5, maxval=0)
    rewards = -jax.random.uniform(keys[2], (batch, H))
    now, following = observation(keys[1], batch), observation(keys[3], batch)
    return Transitions(now, actions, rewards, ones, ones > 0, following, {"mc_return": returns, **extras})


def lead(batch, *axes):
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (*axes, *leaf.shape)), batch)


def same(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), a, b))


# --- the improved policy -----------------------------------------------------------------------------------------


def test_without_ascent_it_acts_by_the_best_of_the_policys_samples():
    learner = make(ascent=AscentOptions(num_kept=1, num_steps=0))
    actor, seen = learner.actor(learner.init(KEY)), observation(KEY)
    candidates = learner.candidates(actor["base"], KEY, seen)
    assert candidates.shape == (B, 6, H, A)
    q_values = learner.ensemble.q_values(actor["critic"], seen.state, candidates).mean(0)
    best = candidates[jnp.arange(B), q_values.argmax(1)]
    np.testing.assert_array_equal(learner.act(actor, KEY, seen, ())[0], best)


def test_one_sample_without_ascent_is_the_policy_itself():
    learner = make(num_samples=1, ascent=AscentOptions(num_kept=1, num_steps=0))
    actor, seen = learner.actor(learner.init(KEY)), observation(KEY)
    own = learner.base.bind(actor["base"]).sample(KEY, seen, 1)[0, :, :H]
    np.testing.assert_array_equal(learner.act(actor, KEY, seen, ())[0], own)


def test_ascent_raises_the_value_of_what_is_run():
    learner, plain = make(), make(ascent=AscentOptions(num_kept=3, num_steps=0))
    actor, seen = learner.actor(learner.init(KEY)), observation(KEY)
    value = lambda actions: learner.ensemble.q_values(actor["critic"], seen.state, actions).mean(0)  # noqa: E731
    with_ascent, without = (value(each.act(actor, KEY, seen, ())[0]) for each in (learner, plain))
    assert (with_ascent > without).all()


def test_equal_candidates_of_a_policy_without_spread_stay_equal():
    learner = make(Dirac, ascent=AscentOptions(num_kept=6, num_steps=3, step_size=0.05))
    actor, seen = learner.actor(learner.init(KEY)), observation(KEY)
    actions, q_values = learner.improve(actor["critic"], seen.state, learner.candidates(actor["base"], KEY, seen))
    np.testing.assert_allclose(actions, jnp.broadcast_to(actions[:, :1], actions.shape), atol=1e-6)
    np.testing.assert_allclose(q_values, jnp.broadcast_to(q_values[:, :1], q_values.shape), atol=1e-6)


def test_stored_candidates_take_the_place_of_samples():
    stored = jnp.full((B, 4, H, A), 0.7)
    learner = make(ascent=AscentOptions(num_kept=1, num_steps=0), base_ema_decay=0.0)
    batch = transitions(KEY, candidates=stored, next_candidates=stored)
    state = learner.init(KEY)
    # Adam's first step goes towards the target: 0.7 where they are used, and a sample may lie on either side
    after, _ = jax.jit(learner.update_policy)(state, KEY, batch)
    np.testing.assert_allclose(after.ema_base["mean"], 0.01, rtol=1e-3)
    critic_after = [jax.jit(learner.update_critic)(state, KEY, b)[0] for b in (batch, transitions(KEY))]
    assert not same(*(s.params["critic"] for s in critic_after))


# --- updates ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [CalQL(), IQL()])
def test_the_policy_learns_from_imitation_alone_and_the_critic_not_from_it(kind):
    learner = make(critic_kind=kind)
    state, batch = learner.init(KEY), transitions(KEY)
    by_policy, _ = jax.jit(learner.update_policy)(state, KEY, batch)
    assert same(by_policy.params["critic"], state.params["critic"])
    assert same(by_policy.target_critic, state.target_critic) and not same(
        by_policy.params["base"], state.params["base"]
    )
    by_critic, _ = jax.jit(learner.update_critic)(state, KEY, batch)
    assert same(by_critic.params["base"], state.params["base"]) and same(by_critic.ema_base, state.ema_base)
    assert not same(by_critic.params["critic"], state.params["critic"])


def test_a_round_imitates_first_and_the_offline_phase_leaves_the_policy_alone():
    learner = make(policy_updates=3)
    state, batch = learner.init(KEY), lead(transitions(KEY), 2, 2)
    after, metrics = jax.jit(learner.update)(state, KEY, batch)
    assert after.step == 2 and "policy/loss" in metrics and np.isfinite(list(map(float, metrics.values()))).all()
    policy_key, critic_key = jax.random.split(jax.random.split(KEY, 2)[0])
    by_hand, minibatch = state, transitions(KEY)
    for key in jax.random.split(policy_key, 3):
        by_hand, _ = learner.update_policy(by_hand, key, minibatch)
    for key in jax.random.split(critic_key, 2):
        by_hand, _ = learner.update_critic(by_hand, key, minibatch)
    one_round, _ = learner._round(state, (jax.random.split(KEY, 2)[0], lead(transitions(KEY), 2)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one_round.params, by_hand.params)

    alone = dataclasses.replace(learner, config=offline(learner.config))
    after, metrics = jax.jit(alone.update)(state, KEY, batch)
    assert same(after.params["base"], state.params["base"]) and "policy/loss" not in metrics


def test_resetting_forgets_moments_and_keeps_parameters():
    learner = make()
    after, _ = jax.jit(learner.update)(learner.init(KEY), KEY, lead(transitions(KEY), 1, 1))
    reset = learner.reset_optimizers(after)
    assert same(reset.params, after.params) and not same(reset.opt_state, after.opt_state)
    assert same(reset.opt_state, learner.init(KEY).opt_state)


@pytest.mark.parametrize("head", [None, HLGauss(-5.0, 0.0, 32)])
def test_a_terminal_row_has_its_reward_as_target(head):
    learner = make(head=head)
    batch = transitions(KEY)
    batch = batch.replace(discounts=jnp.zeros((B, H)))
    targets = learner._targets(batch, jnp.full(B, 1e6))
    np.testing.assert_allclose(targets, batch.rewards[:, 0], rtol=1e-6)


def test_calibration_asks_for_returns():
    learner, batch = make(), transitions(KEY)
    with pytest.raises(errors.DataError, match="mc_return"):
        learner.update_critic(learner.init(KEY), KEY, batch.replace(extras={}))
    plain = make(critic_kind=CalQL(Conservative(calibrated=False)))
    plain.update_critic(plain.init(KEY), KEY, batch.replace(extras={}))


def test_leaving_the_states_own_actions_out_samples_only_for_what_follows():
    both, only_next = make(), make(critic_kind=CalQL(next_actions_only=True))
    batch = transitions(KEY, next_candidates=jnp.zeros((B, 6, H, A)))
    state = both.init(KEY)
    moved = [
        only_next.update_critic(state, KEY, batch.replace(extras={**batch.extras, "candidates": jnp.full_like(c, x)}))
        for c, x in ((batch.extras["next_candidates"], 0.9), (batch.extras["next_candidates"], -0.9))
    ]
    assert same(moved[0][0].params, moved[1][0].params)
    metrics = both.update_critic(state, KEY, batch)[1]
    assert metrics["critic/policy_q_values"] != moved[0][1]["critic/policy_q_values"]


# --- every class of policy -------------------------------------------------------------------------------------------


def transformer(rngs):
    shape = GemmaConfig(width=16, depth=1, mlp_dim=16, num_heads=2, num_kv_heads=1, head_dim=8)
    sizes = dict(cameras=(), vision=None, state_dim=S, vocab_size=2, prompt_length=1, unroll=True)
    return VlaTransformer(VlaTransformerConfig(prefix_expert=shape, suffix_expert=shape, **sizes), rngs)


def small_mlp(rngs):
    return StateMLP(StateMLPConfig(S, H, 2, hidden_dims=(16,)), rngs)


POLICIES = {
    "flow": lambda rngs: FlowPolicy(FlowConfig(H, 2, num_flow_steps=2), small_mlp(rngs), rngs),
    "diffusion": lambda rngs: DiffusionPolicy(DiffusionConfig(H, 2, NoiseSchedule(2)), small_mlp(rngs), rngs),
    "bins": lambda rngs: BinsPolicy(BinsConfig(H, uniform_bins(2, 8)), transformer(rngs), rngs),
    "discrete_diffusion": lambda rngs: DiscreteDiffusionPolicy(
        DiscreteDiffusionConfig(H, uniform_bins(2, 8), MaskedOptions(num_rounds=2)), transformer(rngs), rngs
    ),
}


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("sees", ["state", "features"])
def test_any_policy_trains_by_the_same_code(name, sees):
    feature_dim = S if sees == "state" else 2 * S if name in ("flow", "diffusion") else 16 + S
    config = dataclasses.replace(SMALL, head=HLGauss(-5.0, 0.0, 8), critic_sees=sees)
    learner = PARL(POLICIES[name], 2, feature_dim, optax.adam(1e-3), optax.adam(1e-3), config)
    batch = transitions(KEY, action_dim=2)
    state, update = jax.eval_shape(learner.init, KEY), learner.update
    if sees == "state":  # run it; with features the shapes are enough
        state, update = learner.init(KEY), jax.jit(learner.update)
        after, metrics = update(state, KEY, lead(batch, 1, 1))
        assert not same(after.params["base"], state.params["base"]) and np.isfinite(metrics["policy/loss"])
        actions, _ = learner.act(learner.actor(after), KEY, batch.observation, ())
        assert actions.shape == (B, H, 2)
    else:
        after, _ = jax.eval_shape(update, state, KEY, lead(batch, 1, 1))
        assert jax.tree.map(jnp.shape, after.params) == jax.tree.map(jnp.shape, state.params)


@pytest.mark.parametrize("kind", [CalQL(), IQL(0.9)])
def test_a_bandit_beside_the_demonstrations_is_solved_and_told_to_the_policy(kind):
    # reward -(a - 0.6)^2 of one decision, the policy starts around 0: distillation has to carry its mean there
    learner = make(critic_kind=kind, rate=1e-2, base_ema_decay=0.9)
    seen = observation(KEY, 64)
    end = jnp.zeros((64, H))

    def play(state, key):
        act_key, update_key = jax.random.split(key)
        actions = learner.base.bind(state.ema_base).sample(act_key, seen, 1)[0, :, :H]
        rewards = -jnp.square(actions[..., 0] - 0.6)
        rewards = rewards.at[:, 1:].set(0.0)
        batch = Transitions(seen, actions, rewards, end, end == 0, seen, {"mc_return": rewards[:, 0]})
        return learner.update(state, update_key, lead(batch, 1, 1))[0], None

    run = jax.jit(lambda state: jax.lax.scan(play, state, jax.random.split(KEY, 400))[0])
    state = run(learner.init(KEY))
    first = learner.act(learner.actor(state), KEY, seen, ())[0][:, 0]
    assert abs(first.mean() - 0.6) < 0.2, first.mean()
    assert state.ema_base["mean"] > 0.15  # the mean over both steps of a chunk, of which only one is paid


def test_impossible_numbers_are_refused():
    with pytest.raises(errors.ConfigError, match="num_kept"):
        PARLConfig(num_samples=4)
    with pytest.raises(errors.ConfigError, match="num_min_critics"):
        PARLConfig(num_critics=1)
    with pytest.raises(errors.ConfigError, match="no features, prefix, sample_from"):
        make(critic_sees="features").init(KEY)
