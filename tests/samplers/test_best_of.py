"""The best of several candidates, and one drawn by a softmax of their scores."""

import jax
import jax.numpy as jnp
import numpy as np

from vla_jax.samplers.best_of import best_of, softmax_of

CANDIDATES = jnp.arange(2 * 3 * 1 * 2, dtype=jnp.float32).reshape(2, 3, 1, 2)


def test_the_first_of_equal_scores_is_taken():
    chosen = best_of(CANDIDATES, jnp.array([[0.0, 2.0, 2.0], [5.0, 5.0, 5.0]]))
    np.testing.assert_array_equal(chosen, CANDIDATES[jnp.arange(2), jnp.array([1, 0])])


def test_draws_are_as_frequent_as_the_softmax_says_and_come_with_their_surprise():
    scores = jnp.array([[0.0, 1.0, 2.0], [3.0, 3.0, -50.0]])
    probs = jax.nn.softmax(0.5 * scores)
    draw = jax.vmap(lambda key: softmax_of(key, CANDIDATES, scores, 0.5))
    chosen, surprise = draw(jax.random.split(jax.random.key(0), 4000))
    which = (chosen[:, :, None] == CANDIDATES[None]).all((-2, -1))  # [draws, b, n]
    assert (which.sum(-1) == 1).all()
    np.testing.assert_allclose(which.mean(0), probs, atol=0.03)  # three standard errors: 0.024
    np.testing.assert_allclose(surprise, -jnp.log((which * probs[None]).sum(-1)), rtol=1e-5)
