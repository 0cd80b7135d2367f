from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vla_jax.losses import policy_gradient


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "has_gradient"),
    [
        (1.0, 2.0, -2.0, True),
        (1.5, 2.0, -2.4, False),  # already moved enough towards a good action
        (1.5, -2.0, 3.0, True),  # a bad action got likelier: pull back
        (0.5, -2.0, 1.6, False),
        (0.5, 2.0, -1.0, True),
    ],
)
def test_the_surrogate_is_clipped_on_the_side_that_gains(ratio, advantage, loss, has_gradient):
    def surrogate(log_prob):
        return policy_gradient.clipped_surrogate(log_prob, jnp.float32(0), jnp.float32(advantage), 0.2)

    value, slope = jax.value_and_grad(surrogate)(jnp.log(jnp.float32(ratio)))
    assert float(value) == pytest.approx(loss, rel=1e-5)
    assert (abs(float(slope)) > 1e-6) == has_gradient


def test_rlax_agrees_on_the_surrogate_and_its_gradient():
    with np.load(Path(__file__).parents[1] / "fixtures" / "rlax_losses.npz") as stored:
        advantages, log_ratios = stored["ppo_advantages"], np.log(stored["ratios"])

        def loss(log_prob):
            return policy_gradient.clipped_surrogate(log_prob, jnp.zeros_like(log_prob), advantages, 0.2).mean()

        value, slope = jax.value_and_grad(loss)(jnp.asarray(log_ratios))
        np.testing.assert_allclose(value, stored["ppo_loss"], rtol=1e-5)
        np.testing.assert_allclose(slope, stored["ppo_gradient"], rtol=1e-4, atol=1e-7)


def test_the_upper_clip_may_be_wider():
    loss = policy_gradient.clipped_surrogate(jnp.log(2.0), jnp.float32(0), jnp.float32(1), 0.2, clip_range_high=0.28)
    assert float(loss) == pytest.approx(-1.28, rel=1e-5)


def test_a_value_that_left_its_trust_region_gets_no_gradient_towards_the_target():
    slope = jax.grad(lambda v: policy_gradient.clipped_value_loss(v, jnp.float32(0), jnp.float32(1), 0.2))
    assert float(slope(jnp.float32(0.1))) == pytest.approx(-0.9, rel=1e-5)
    assert float(slope(jnp.float32(0.5))) == 0


def test_group_advantages_are_standardized_within_their_group():
    returns, groups = jnp.array([1.0, 0.0, 5.0, 5.0, 0.0, 1.0]), jnp.array([0, 0, 1, 1, 0, 0])
    found = policy_gradient.group_advantages(returns, groups, 3)
    np.testing.assert_allclose(found, [1, -1, 0, 0, -1, 1], atol=1e-4)
    np.testing.assert_allclose(
        policy_gradient.group_advantages(returns, groups, 3, scaled=False), [0.5, -0.5, 0, 0, -0.5, 0.5], atol=1e-6
    )


def test_the_reference_penalty_estimates_the_divergence():
    policy, reference = jnp.array([0.7, 0.2, 0.1]), jnp.array([0.3, 0.3, 0.4])
    penalty = policy_gradient.reference_penalty(jnp.log(policy), jnp.log(reference))
    assert (penalty >= 0).all()
    assert float((policy * penalty).sum()) == pytest.approx(
        float((policy * jnp.log(policy / reference)).sum()), rel=1e-5
    )
    np.testing.assert_array_equal(policy_gradient.reference_penalty(policy, policy), 0)


def test_masked_entries_do_not_count():
    values, mask = jnp.array([[1.0, 100.0], [3.0, jnp.nan]]), jnp.array([[True, False], [True, False]])
    assert float(policy_gradient.masked_mean(values, mask)) == 2
    assert float(policy_gradient.masked_mean(values, jnp.zeros_like(mask))) == 0
