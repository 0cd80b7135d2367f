"""What trains and what is kept: gradients, bytes, precision and the reduction to plain imitation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from vla_jax.core import errors, functional
from vla_jax.core.types import Demonstrations, Observation
from vla_jax.learners.base import HasFrozen
from vla_jax.learners.imitation import Imitation, ImitationConfig
from vla_jax.nets.linear import Dense, RMSNorm
from vla_jax.nets.stack import scan_layers, stack
from vla_jax.training.adapters import Lora
from vla_jax.training.checkpoints import flatten
from vla_jax.training.optimizers import AdamW
from vla_jax.training.quantize import Quantized, num_bytes
from vla_jax.training.tuning import Tuning, TuningConfig


class Regression(nnx.Module):
    """State to action through two stacked layers: the smallest policy with everything that tuning tells apart."""

    action_horizon, action_dim = 1, 3

    def __init__(self, rngs):
        self.first = Dense(4, 32, rngs)
        self.layers = stack(lambda rngs: Dense(32, 32, rngs), 2, rngs)
        self.norm = RMSNorm(32)
        self.last = Dense(32, 3, rngs)

    def __call__(self, x):
        x = self.first(x)
        x, _ = scan_layers(lambda x, layers, _: (x + jnp.tanh(layers[0](x)), None), x, [self.layers])
        return self.last(self.norm(x))

    def loss(self, key, batch):
        predicted = self(batch.observation.state)[:, None]
        return jnp.square(predicted - batch.actions).mean((1, 2)), {}

    def sample(self, key, observation, num_samples=1):
        return self(observation.state)[None, :, None]


def batch(seed=0, size=16):
    state = jax.random.normal(jax.random.key(seed), (size, 4))
    prompt = jnp.zeros((size, 1), jnp.int32)
    actions = jnp.stack([state[:, 0], state[:, 1] * state[:, 2], jnp.sin(state[:, 3])], axis=-1)[:, None]
    observation = Observation({}, {}, state, prompt, prompt > 0)
    return Demonstrations(observation, actions, jnp.ones_like(actions, bool), jnp.ones(size))


def learner(tuning=None, optimizer=None):
    parts = None if tuning is None else Tuning(tuning, Regression)
    optimizer = optimizer or AdamW(peak_lr=3e-3, weight_decay=0.0).build()
    return Imitation(Regression, optimizer, ImitationConfig(ema_decay=0.9), parts)


def fit(learner, base=None, num_steps=30):
    state = jax.jit(learner.init)(jax.random.key(0), batch())
    if base is not None:
        state = learner.with_base(state, base, jax.random.key(1))
    start = state

    def step(state, number):
        return learner.update(state, number, jax.tree.map(lambda *x: x[0], batch()))

    state, metrics = jax.jit(lambda state: jax.lax.scan(step, state, jax.random.split(jax.random.key(2), num_steps)))(
        state
    )
    return start, state, metrics["policy/loss"]


@pytest.fixture(scope="module")
def base():
    return functional.init(Regression, jax.random.key(7))[1]


LORA = TuningConfig(lora=(Lora("layers/kernel", rank=4, alpha=8.0),), train=("last/*", "norm/*"))


def test_training_everything_in_float32_is_plain_imitation_to_the_bit(base):
    _, plain, losses = fit(learner(), base)
    _, tuned, same = fit(learner(TuningConfig()), base)
    assert not tuned.frozen
    jax.tree.map(np.testing.assert_array_equal, (tuned.params, tuned.ema_params), (plain.params, plain.ema_params))
    np.testing.assert_array_equal(losses, same)


def test_adapters_begin_at_the_base_and_lower_the_loss_while_the_rest_stays(base):
    tuned = learner(LORA)
    start, end, losses = fit(tuned, base, num_steps=60)
    observation = batch().observation
    acted = tuned.act(tuned.actor(start), jax.random.key(0), observation, ())[0]
    np.testing.assert_allclose(acted, learner().act(base, jax.random.key(0), observation, ())[0], atol=1e-6)
    assert losses[-1] < 0.6 * losses[0]
    assert set(flatten(end.params)) == {
        "layers/kernel/a", "layers/kernel/b", "last/kernel", "last/bias", "norm/scale"
    }  # fmt: skip
    assert set(flatten(end.frozen)) == {"first/kernel", "first/bias", "layers/kernel", "layers/bias"}
    for path, leaf in flatten(end.frozen).items():
        np.testing.assert_array_equal(leaf, flatten(base)[path])
    merged = tuned.tuning.merge(base, end.ema_params)
    expected = tuned.act(tuned.actor(end), jax.random.key(0), observation, ())[0]
    np.testing.assert_allclose(learner().act(merged, jax.random.key(0), observation, ())[0], expected, atol=1e-5)
    assert jax.tree.structure(merged) == jax.tree.structure(base)


def test_moments_averages_and_checkpoints_have_the_bytes_of_what_trains(base):
    tuned = learner(LORA)
    state = jax.eval_shape(tuned.init, jax.random.key(0), batch())
    # Two layers of rank 4 between 32 and 32, a last layer of 32 to 3 with bias, a norm of 32: 4 bytes each.
    trained = 4 * (2 * 4 * (32 + 32) + 32 * 3 + 3 + 32)
    assert num_bytes(state.params) == num_bytes(state.ema_params) == trained
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert num_bytes(moments) == 2 * trained
    assert isinstance(tuned, HasFrozen) and not tuned.without_frozen(state).frozen
    frozen = 4 * (4 * 32 + 32 + 2 * (32 * 32 + 32))
    assert num_bytes(state.frozen) == frozen
    stored = tuned.without_frozen(state)
    assert num_bytes((stored.params, tuned.actor(stored))) == 2 * trained


def test_freezing_by_pattern_without_adapters_trains_the_rest_as_if_alone(base):
    tuned = learner(TuningConfig(train=("last/*",)))
    _, end, losses = fit(tuned, base)
    frozen = AdamW(peak_lr=3e-3, weight_decay=0.0, freeze=("first/*", "layers/*", "norm/*")).build()
    _, masked, same = fit(learner(optimizer=frozen), base)
    np.testing.assert_allclose(end.params["last"]["kernel"], masked.params["last"]["kernel"], rtol=1e-5)
    np.testing.assert_allclose(losses, same, rtol=1e-5)


@pytest.mark.parametrize(("keep", "bytes_per_kernel_entry", "tolerance"), [("bfloat16", 2, 0.05), ("int8", 1, 0.05)])
def test_a_frozen_base_may_be_kept_small(base, keep, bytes_per_kernel_entry, tolerance):
    tuned = learner(dataclasses.replace(LORA, keep_frozen_in=keep))
    start, end, losses = fit(tuned, base)
    kernel = start.frozen["layers"]["kernel"]
    assert isinstance(kernel, Quantized) == (keep == "int8")
    scales = 4 * 2 * 32 if keep == "int8" else 0
    assert num_bytes(kernel) == 2 * 32 * 32 * bytes_per_kernel_entry + scales
    observation = batch().observation
    exact = learner().act(base, jax.random.key(0), observation, ())[0]
    acted = tuned.act(tuned.actor(start), jax.random.key(0), observation, ())[0]
    assert 0 < jnp.abs(acted - exact).max() < tolerance
    assert losses[-1] < losses[0]
    # What is merged is the policy as it trained, on the rounded base.
    merged = tuned.tuning.merge(base, end.ema_params)
    expected = tuned.act(tuned.actor(end), jax.random.key(0), observation, ())[0]
    np.testing.assert_allclose(learner().act(merged, jax.random.key(0), observation, ())[0], expected, atol=1e-5)


def test_bfloat16_training_keeps_float32_masters_that_follow_the_float32_run(base):
    mixed = learner(TuningConfig(train_in="bfloat16"))
    _, exact, losses = fit(learner(), base, num_steps=60)
    _, rough, rough_losses = fit(mixed, base, num_steps=60)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((rough.params, rough.ema_params)))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(rough.opt_state) if leaf.ndim)
    np.testing.assert_allclose(rough_losses, losses, rtol=0.05, atol=1e-3)
    assert rough_losses[-1] < 0.5 * rough_losses[0]
    drift = optax.global_norm(jax.tree.map(jnp.subtract, rough.params, exact.params))
    assert 0 < drift < 0.1 * optax.global_norm(jax.tree.map(jnp.subtract, exact.params, base))


def test_networks_get_bfloat16_kernels_and_tiny_steps_are_not_lost(base):
    mixed = learner(TuningConfig(train_in="bfloat16"), AdamW(peak_lr=1e-5, weight_decay=0.0).build())
    cast = flatten(mixed.tuning.cast(base))
    assert {path for path, leaf in cast.items() if leaf.dtype == jnp.bfloat16} == {
        "first/kernel", "layers/kernel", "last/kernel"
    }  # fmt: skip
    _, end, _ = fit(mixed, base)
    # Thirty steps of 1e-5 on entries near 0.2, whose neighbours in bfloat16 are 1e-3 away: rounded, none would move.
    moved = jnp.abs(end.params["layers"]["kernel"] - base["layers"]["kernel"])
    assert 1e-5 < moved.mean() < 4e-4


def test_gradients_are_held_in_bfloat16_only_where_the_network_is(base):
    def grads(config):
        tuning = Tuning(config, Regression)
        trained = {**base}
        text = str(
            jax.make_jaxpr(
                jax.grad(lambda trained: learner(config).loss(
                    {"frozen": {}, "trained": tuning.cast(trained)}, jax.random.key(0), batch()
                )[0])
            )(trained)
        )  # fmt: skip
        return text.count("bf16[2,32,32]")

    assert grads(TuningConfig()) == 0 < grads(TuningConfig(train_in="bfloat16"))


def test_patterns_that_match_nothing_are_refused():
    with pytest.raises(errors.ConfigError, match=r"TuningConfig\.train pattern 'list/\*' matches nothing"):
        jax.eval_shape(learner(TuningConfig(train=("list/*",))).init, jax.random.key(0), batch())
