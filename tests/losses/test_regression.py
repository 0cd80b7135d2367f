import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from vla_jax.losses import regression

LEVEL = 0.8
TARGETS = jnp.array([0.05, 0.2, 0.3, 0.55, 0.9])


def minimizer(loss, low, high):
    return optimize.minimize_scalar(lambda x: float(loss(jnp.full(TARGETS.shape, x)).mean()), (low, high)).x


def test_half_is_the_mean_and_the_median():
    mean = minimizer(lambda x: regression.expectile_loss(x, TARGETS, 0.5), 0, 1)
    median = minimizer(lambda x: regression.quantile_loss(x, TARGETS, 0.5), 0, 1)
    assert mean == pytest.approx(float(TARGETS.mean()), abs=1e-4) and median == pytest.approx(0.3, abs=1e-3)


def test_the_expectile_balances_its_weighted_residuals():
    at = minimizer(lambda x: regression.expectile_loss(x, TARGETS, LEVEL), 0, 1)
    residuals = np.asarray(TARGETS) - at
    weighted = np.where(residuals >= 0, LEVEL, 1 - LEVEL) * residuals
    assert weighted.sum() == pytest.approx(0, abs=1e-3) and at > TARGETS.mean()


def test_a_binary_expectile_of_two_equal_points_is_the_level():
    targets = jnp.array([0.0, 1.0])
    slope = jax.grad(lambda x: regression.binary_expectile_loss(jnp.full(2, x), targets, LEVEL).sum())
    assert float(slope(jnp.log(LEVEL / (1 - LEVEL)))) == pytest.approx(0, abs=1e-6)
    assert float(slope(0.0)) < 0


def test_the_quantile_of_logits_is_the_quantile_of_values():
    slope = jax.grad(lambda x: regression.binary_quantile_loss(jnp.full(5, x), TARGETS, 0.7).sum())
    below, above = regression.logit(jnp.array([0.549, 0.551]))  # the fourth of five is the 0.7-quantile
    assert float(slope(below)) < 0 < float(slope(above))


def test_binary_regression_of_soft_targets_stops_at_their_mean():
    slope = jax.grad(lambda x: regression.binary_value_loss(jnp.full(5, x), TARGETS).sum())
    assert float(slope(regression.logit(TARGETS.mean()))) == pytest.approx(0, abs=1e-5)


def test_weights_carry_no_gradient_and_logits_are_finite_at_the_ends():
    slope = jax.grad(lambda x: regression.asymmetric_weight(x, TARGETS, LEVEL).sum())
    np.testing.assert_array_equal(slope(jnp.full(5, 0.4)), 0)
    assert jnp.isfinite(regression.logit(jnp.array([0.0, 1.0]))).all()
    np.testing.assert_allclose(jax.nn.sigmoid(regression.logit(TARGETS)), TARGETS, rtol=1e-5)
