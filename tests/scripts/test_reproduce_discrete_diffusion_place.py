"""What the reproduction on the robot task adds to the policies it judges."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from scripts import reproduce_discrete_diffusion_place as chain
from tests.nets import examples
from tests.policies.test_bins import batch_of
from vla_jax.codecs.bins import uniform_bins
from vla_jax.evaluation import table_specs
from vla_jax.policies.discrete_diffusion import DiscreteDiffusionConfig, DiscreteDiffusionPolicy
from vla_jax.samplers.maskgit import ReleasedOptions

KEY = jax.random.key(0)
H, A = 3, 2
OBSERVATION = batch_of(jnp.zeros((2, H, A))).observation
CONFIG = DiscreteDiffusionConfig(H, uniform_bins(A, 4), ReleasedOptions(num_rounds=2))


def constructor(rngs):
    return DiscreteDiffusionPolicy(CONFIG, examples.conv_film(H * A, False, rngs), rngs)


def test_the_mean_of_one_draw_is_the_draw_and_of_many_near_the_middle():
    learners = [chain.MeanOfDraws(constructor, optax.sgd(0.0), num_draws=n) for n in (1, 64)]
    _, params = examples.init(constructor, KEY)
    one, many = (jax.jit(lambda p, act=each.act: act(p, KEY, OBSERVATION, ())[0])(params) for each in learners)
    draws = jax.jit(lambda p: learners[0].net.bind(p).sample(KEY, OBSERVATION, 1))(params)
    np.testing.assert_array_equal(one, draws[0])
    assert many.shape == one.shape and jnp.abs(many).max() < jnp.abs(one).max()
    # 64 draws of about even bins in [-0.75, 0.75], standard deviation 0.56: their mean is within 4 * 0.56 / 8 of 0
    assert jnp.abs(many).max() < 0.3


def test_every_cell_of_the_table_is_one_the_script_fills():
    cells = []
    for noise in (chain.NOISE_MAX, 0.1):
        options = chain.Options(noise_max=noise)
        cells += [chain._named(options, "success_rate" if n == 1 else f"mean_of_{n}") for n in options.draws]
    assert cells == [column.name for column in table_specs.TABLES[chain.TABLE].columns]
    rows = {*chain.ARMS, *chain.OTHER_DECODERS}
    assert rows == {row.name for row in table_specs.TABLES[chain.TABLE].rows}
