"""Heads, targets and the conservative regularizer of an ensemble."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vla_jax.learners.critic_ensemble import Conservative, CriticEnsemble, HLGauss
from vla_jax.losses.categorical import hl_gauss
from vla_jax.nets.critics import CriticConfig

KEY = jax.random.key(0)
E, B, S, H, A = 3, 5, 4, 2, 2
ENSEMBLE = CriticEnsemble(S, H, A, E, CriticConfig((16,)))
BINS = CriticEnsemble(S, H, A, E, CriticConfig((16,)), HLGauss(-10.0, 0.0, 50))
PARAMS = ENSEMBLE.init(KEY)
FEATURES, DATA, UNIFORM, POLICY = (
    jax.random.uniform(key, (B, *shape), minval=-1, maxval=1)
    for key, shape in zip(jax.random.split(KEY, 4), ((S,), (H, A), (3, H, A), (2, H, A)), strict=True)
)


def gap(params=PARAMS, policy=POLICY, returns=None, calibrated=False, uniform=UNIFORM, copies=1, **config):
    q_data = ENSEMBLE.q_values(params, FEATURES, DATA)
    config = Conservative(calibrated=calibrated, **config)
    return ENSEMBLE.conservative_gap(params, FEATURES, uniform, policy, q_data, returns, config, copies)


def test_returns_out_of_reach_leave_the_policys_actions_without_gradient():
    def slopes(policy, value):
        returns = jnp.full(B, value)
        return jax.grad(lambda params: gap(params, policy, returns, calibrated=True)[0].mean())(PARAMS)

    # returns of 50 above all values: whatever the policy does, the gradient is the same
    above = [slopes(policy, 50.0) for policy in (POLICY, -POLICY)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), *above)
    below = [slopes(policy, -50.0) for policy in (POLICY, -POLICY)]
    differ = jax.tree.map(lambda a, b: not np.allclose(a, b, atol=1e-4), *below)
    assert any(jax.tree.leaves(differ))


def test_returns_below_all_values_make_it_cql():
    calibrated, metrics = gap(returns=jnp.full(B, -1e6), calibrated=True)
    np.testing.assert_array_equal(calibrated, gap()[0])
    assert metrics["critic/bound_rate"] == 0


def test_the_logged_action_alone_costs_nothing():
    np.testing.assert_allclose(gap(policy=POLICY[:, :0], uniform=UNIFORM[:, :0])[0], 0, atol=1e-6)


def test_copies_count_as_if_they_were_evaluated_again():
    np.testing.assert_allclose(gap(copies=3)[0], gap(policy=jnp.tile(POLICY, (1, 3, 1, 1)))[0], atol=1e-6)


def test_the_gap_is_clipped_to_its_range():
    plain = gap()[0]
    low, high = np.quantile(plain, [0.25, 0.75])
    np.testing.assert_allclose(gap(gap_range=(low, high))[0], np.clip(plain, low, high), atol=1e-6)


def test_a_histogram_reads_as_what_was_written_and_its_loss_is_least_there():
    targets = jnp.linspace(-9, -1, B)  # inside; at the ends the histogram is cut and leans inwards
    head = BINS.head
    logits = jnp.log(hl_gauss(targets, head.support, head.sigma_ratio, widened=True) + 1e-12)
    outputs = jnp.broadcast_to(logits[None], (E, *logits.shape))
    np.testing.assert_allclose(BINS.read(outputs), jnp.broadcast_to(targets[None], (E, B)), atol=1e-3 * 10)
    slope = jax.grad(lambda outputs: BINS.td_loss(outputs, targets).sum())(outputs)
    np.testing.assert_allclose(slope, 0, atol=1e-6)


@pytest.mark.parametrize("ensemble", [ENSEMBLE, BINS])
def test_the_minimum_of_some_heads_is_that_of_all_evaluated(ensemble):
    params, heads = ensemble.init(KEY), jnp.array([2, 0])
    every = ensemble.q_values(params, FEATURES, DATA)
    assert every.shape == (E, B)
    some = ensemble.subset_minimum(params, heads, FEATURES, DATA)
    np.testing.assert_allclose(some, every[jnp.array([0, 2])].min(0), atol=1e-5)
    same_twice = ensemble.subset_minimum(params, jnp.array([1, 1]), FEATURES, DATA)
    np.testing.assert_allclose(same_twice, every[1], atol=1e-5)


def test_a_loss_without_weight_is_the_td_loss():
    targets, heads = jnp.linspace(-3, 0, B), jnp.array([0, 1])
    loss = lambda weight: ENSEMBLE.conservative_loss(  # noqa: E731
        PARAMS, FEATURES, DATA, targets, UNIFORM, POLICY, None, heads, Conservative(weight, calibrated=False)
    )
    value, metrics = loss(0.0)
    q_values = ENSEMBLE.q_values(PARAMS, FEATURES, DATA)
    np.testing.assert_allclose(value, jnp.square(q_values - targets[None]).mean(), rtol=1e-6)
    heavy, _ = loss(2.0)
    np.testing.assert_allclose(heavy - value, 2 * metrics["critic/gap"], rtol=1e-4)
    np.testing.assert_allclose(metrics["critic/gap"], gap()[0][:2].mean(), rtol=1e-5)
