"""What is measured of chunks on the robot task."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scripts import inspect_discrete_diffusion_place as inspect
from scripts.reproduce_discrete_diffusion_place import OTHER_DECODERS
from tests.nets import examples
from tests.policies.test_bins import batch_of
from vla_jax.codecs.bins import uniform_bins
from vla_jax.core import functional
from vla_jax.evaluation import table_specs
from vla_jax.policies.discrete_diffusion import DiscreteDiffusionConfig, DiscreteDiffusionPolicy
from vla_jax.samplers.maskgit import MaskedOptions, ReleasedOptions

H, A, BINS = 4, 3, 2
BATCH = batch_of(jnp.full((5, H, A), 0.5))
OPTIONS = inspect.Options(draws=200)


def constructor(decoding):
    config = DiscreteDiffusionConfig(H, uniform_bins(A, BINS), decoding)
    return lambda rngs: DiscreteDiffusionPolicy(config, examples.conv_film(H * A, False, rngs), rngs)


NET, PARAMS = examples.init(constructor(MaskedOptions(num_rounds=1)), jax.random.key(0))
EVEN = jax.tree.map(jnp.zeros_like, PARAMS)  # both bins, at -0.5 and 0.5, are equally likely, whatever is seen


def test_four_steps_of_half_an_action_are_forty_millimetres():
    np.testing.assert_allclose(inspect.displacement(BATCH.actions), 40.0)


def test_the_likeliest_tokens_do_not_spread_and_a_bias_is_all_error():
    """Ties go to the lower bin: -40 mm along each of three axes instead of 40."""
    found = inspect.distances(NET, EVEN, BATCH, OPTIONS)
    np.testing.assert_allclose(found["spread"], 0.0, atol=1e-4)
    np.testing.assert_allclose(found["error_of_mean"], 80 * 3**0.5, rtol=1e-5)


def test_independent_coin_flips_spread_as_they_should():
    """12 flips of +-10 mm: a standard deviation of 10 * sqrt(12), around a mean of 0, 40 mm off on each axis."""
    net, _ = functional.describe(constructor(ReleasedOptions(num_rounds=1)))
    found = inspect.distances(net, EVEN, BATCH, OPTIONS)
    assert found["spread"].mean() == pytest.approx(10 * 12**0.5, rel=0.05)
    assert found["error_of_mean"].mean() == pytest.approx(40 * 3**0.5, rel=0.05)


@pytest.mark.parametrize("share", [1.0, 0.025])
def test_even_bins_cost_one_bit_per_masked_token(share):
    np.testing.assert_allclose(inspect.nats(NET, EVEN, BATCH, share), np.log(BINS), rtol=1e-5)


def test_every_row_is_in_the_table():
    rows = {row.name for row in table_specs.TABLES[inspect.TABLE].rows}
    assert rows == {"discrete_diffusion", *OTHER_DECODERS, *(f"masked_{share}" for share in inspect.SHARES)}
