import jax
import jax.numpy as jnp
import numpy as np

from vla_jax.losses.tokens import cross_entropy, per_token_log_prob

KEY = jax.random.key(0)
LOGITS = jax.random.normal(KEY, (2, 3, 4))
TOKENS = jnp.array([[0, 3, 1], [2, 2, 0]])


def test_equal_logits_cost_the_log_of_the_vocabulary():
    losses = cross_entropy(jnp.zeros((2, 3, 4)), TOKENS, jnp.ones((2, 3), bool))
    np.testing.assert_allclose(losses, np.log(4), rtol=1e-6)


def test_probabilities_of_all_tokens_sum_to_one():
    every = jnp.broadcast_to(jnp.arange(4), (2, 3, 4))
    log_probs = per_token_log_prob(jnp.repeat(LOGITS[..., None, :], 4, axis=-2), every)
    np.testing.assert_allclose(jnp.exp(log_probs).sum(-1), 1, rtol=1e-5)


def test_masked_tokens_have_no_gradient_and_no_say_in_the_mean():
    mask = jnp.array([[True, False, True], [False, False, False]])
    losses, pull = jax.vjp(lambda logits: cross_entropy(logits, TOKENS, mask), LOGITS)
    expected = -per_token_log_prob(LOGITS, TOKENS)[0, jnp.array([0, 2])].mean()
    np.testing.assert_allclose(losses, [expected, 0], rtol=1e-6)  # an example without tokens costs 0, not nan
    (gradient,) = pull(jnp.ones(2))
    assert (gradient[~mask] == 0).all() and (gradient[mask] != 0).all()
