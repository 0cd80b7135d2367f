"""EXPO around a base of which a part trains: adapters imitate, the frozen part stays and is in no checkpoint."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from recipes import tabletop_demo
from tests.learners.test_expo import KEY, A, B, H, S, make, observation, transitions
from vla_jax.core import errors, functional
from vla_jax.learners.base import HasFrozen
from vla_jax.learners.expo import EXPO, EXPOConfig
from vla_jax.nets.linear import Dense
from vla_jax.training.adapters import Lora
from vla_jax.training.checkpoints import flatten
from vla_jax.training.recipe import Recipe
from vla_jax.training.tuning import Tuning, TuningConfig


class Linear(nnx.Module):
    """Chunks around a linear function of the state."""

    action_horizon, action_dim = H + 1, A

    def __init__(self, rngs):
        self.hidden, self.out = Dense(S, 8, rngs), Dense(8, (H + 1) * A, rngs)

    def prefix(self, observation):
        return observation.state

    def features(self, prefix):
        return prefix[:, :2]

    def sample_from(self, key, prefix, num_samples=1):
        mean = self.out(jnp.tanh(self.hidden(prefix))).reshape(1, -1, H + 1, A)
        return mean + 0.1 * jax.random.normal(key, (num_samples, *mean.shape[1:]))

    def sample(self, key, observation, num_samples=1):
        return self.sample_from(key, self.prefix(observation), num_samples)

    def loss(self, key, batch):
        error = jnp.square(self.sample(key, batch.observation)[0] - batch.actions) * batch.action_mask
        return error.sum((1, 2)) / batch.action_mask.sum((1, 2)), {}


LORA = TuningConfig(lora=(Lora("hidden/kernel", rank=2),), train=("out/*",))


def learner(config=None):
    tuning = None if config is None else Tuning(config, Linear)
    options = EXPOConfig(execution_horizon=H, num_critics=4, hidden_dims=(16, 16), edit_scale=0.1, base="imitation")
    return EXPO(Linear, A, 2 + S, optax.adam(3e-3), optax.adam(1e-2), options, tuning)


@pytest.fixture(scope="module")
def base():
    return functional.init(Linear, jax.random.key(7))[1]


def updated(expo, base):
    state = expo.with_base(expo.init(KEY), base, jax.random.key(1))
    return state, *jax.jit(expo.update)(state, KEY, transitions(KEY, (4, 1), raw=True))


@pytest.fixture(scope="module")
def plain(base):
    return updated(learner(), base)


@pytest.fixture(scope="module")
def tuned(base):
    return updated(learner(LORA), base)


def test_a_tuning_that_trains_everything_is_plain_expo_to_the_bit(plain, base):
    _, end, metrics = updated(learner(TuningConfig()), base)
    jax.tree.map(np.testing.assert_array_equal, (end, metrics), plain[1:])


def test_adapters_imitate_and_the_frozen_part_stays(plain, tuned, base):
    expo, (start, end, metrics) = learner(LORA), tuned
    assert set(flatten(start.frozen)) == {"hidden/kernel", "hidden/bias"}
    for tree in (end.params["base"], end.ema_base):
        assert set(flatten(tree)) == {"hidden/kernel/a", "hidden/kernel/b", "out/kernel", "out/bias"}
    for path, leaf in flatten(end.frozen).items():
        np.testing.assert_array_equal(leaf, flatten(base)[path])
    before, after = flatten(start.params["base"]), flatten(end.params["base"])
    assert not before["hidden/kernel/b"].any() and all((before[path] != after[path]).any() for path in before)
    assert 0 < metrics["base/loss"] < 2 * plain[2]["base/loss"]
    moved = jax.tree.map(lambda new, old: (new != old).any(), end.params["critic"], start.params["critic"])
    assert jax.tree.all(moved)
    # The merged base acts as the tuned one does.
    merged = expo.tuning.merge(base, end.ema_base)
    acted = expo.act(expo.actor(end), KEY, observation(jax.random.key(3), B), ())[0]
    plain = {**expo.actor(end), "base": merged}
    np.testing.assert_allclose(learner().act(plain, KEY, observation(jax.random.key(3), B), ())[0], acted, atol=1e-5)


def test_checkpoints_leave_the_frozen_part_out_and_get_it_back(tuned, base):
    expo, (_, end, _) = learner(LORA), tuned
    assert isinstance(expo, HasFrozen)
    stored = expo.without_frozen(end)
    assert not any("frozen" in path for path in flatten(expo.actor(stored)["base"]))
    back = expo.with_frozen(stored, base)
    jax.tree.map(np.testing.assert_array_equal, back, end)


def test_a_frozen_base_has_nothing_to_tune():
    recipe = tabletop_demo.finetune()
    with pytest.raises(errors.ConfigError, match=r"tuning\n.*EXPO trains nothing of the policy"):
        Recipe(**{**vars(recipe), "tuning": LORA})
    assert make().config.base == recipe.learner.base == "frozen"
