"""What scanned layers keep for the gradient."""

import jax
import jax.numpy as jnp
import pytest

from vla_jax.core import errors, functional
from vla_jax.nets.linear import Dense
from vla_jax.nets.stack import scan_layers, stack


def num_products(remat):
    """Matrix products in the gradient of one stack of layers that multiply by a parameter and by each other."""
    net, params = functional.init(lambda rngs: stack(lambda rngs: Dense(4, 4, rngs), 3, rngs), jax.random.key(0))

    def loss(params, x):
        def step(x, layers, _):
            y = layers[0](x)  # [b, n, d]: a product with a parameter
            return x + jnp.sin(y @ jnp.sin(y).mT @ x), None  # products with batch dims, as attention's

        return scan_layers(step, x, [net.bind(params)], remat=remat)[0].sum()

    return str(jax.make_jaxpr(jax.grad(loss))(params, jnp.ones((2, 5, 4)))).count("dot_general")


def test_a_policy_says_which_products_are_computed_twice():
    # Forward 3 and backward 5 or 6 (each product has two cotangents); what is not kept is computed again.
    everything, all_products, with_parameters, inputs_only = map(
        num_products, (False, "dots_saveable", "dots_with_no_batch_dims_saveable", True)
    )
    assert everything == all_products
    # The product with a parameter is kept, the first of the two others is needed again.
    assert all_products < with_parameters < inputs_only


def test_an_unknown_policy_names_the_known_ones():
    with pytest.raises(errors.ConfigError, match="did you mean 'dots_saveable'"):
        num_products("dot_saveable")
