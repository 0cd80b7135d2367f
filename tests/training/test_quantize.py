"""Int8 kernels: how far they may be off, how small they are, and what a policy makes of them."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.nets import examples
from vla_jax.core import errors, functional
from vla_jax.nets.vla_transformer import VlaTransformer
from vla_jax.policies.flow import FlowConfig, FlowPolicy
from vla_jax.training import kernels
from vla_jax.training.kernels import KernelDims
from vla_jax.training.quantize import Quantized, num_bytes, quantize, quantize_kernel


def test_a_column_is_scaled_by_its_largest_entry():
    quantized = quantize_kernel(jnp.array([[127.0, 0.0, -0.5], [-63.6, 0.0, 1.27]]), KernelDims((2, 3), 0, 1))
    np.testing.assert_allclose(quantized.scales, [[1.0, 1.0, 0.01]], rtol=1e-6)
    np.testing.assert_array_equal(quantized.values, [[127, 0, -50], [-64, 0, 127]])
    assert quantized.values.dtype == jnp.int8


@hypothesis.settings(max_examples=25)
@hypothesis.given(seed=st.integers(0, 2**16), exponent=st.integers(-20, 20), case=st.integers(0, 2))
def test_no_entry_is_off_by_more_than_half_a_scale(seed, exponent, case):
    # one matrix, heads as outputs, and stacked layers with heads as inputs
    shape, num_stacked, num_outputs = [((8, 6), 0, 1), ((8, 2, 3), 0, 2), ((2, 2, 4, 6), 1, 1)][case]
    kernel = np.random.default_rng(seed).standard_t(2, shape).astype(np.float32) * np.float32(10.0**exponent)
    quantized = quantize_kernel(jnp.asarray(kernel), KernelDims(shape, num_stacked, num_outputs))
    assert quantized.scales.size == np.prod(shape[:num_stacked], dtype=int) * 6  # one per layer and output
    error = np.abs(np.asarray(quantized[...]) - kernel)
    assert (error <= 0.5001 * np.asarray(quantized.scales)).all()
    largest = np.abs(kernel).max(axis=KernelDims(shape, num_stacked, num_outputs).input_axes, keepdims=True)
    np.testing.assert_allclose(quantized.scales, largest / 127, rtol=1e-6)


def test_products_stay_within_the_bound_of_the_rounding():
    x, kernel = jax.random.normal(jax.random.key(0), (16, 64)), jax.random.normal(jax.random.key(1), (64, 32))
    quantized = quantize_kernel(kernel, KernelDims((64, 32), 0, 1))
    error = jnp.abs(x @ quantized[...] - x @ kernel)
    bound = jnp.abs(x).sum(1, keepdims=True) * quantized.scales / 2  # every rounding in the worst direction
    assert (error <= bound + 1e-4).all()
    # Independent roundings: standard deviation |x| * scale / sqrt(12), about a thousandth of the product's.
    assert jnp.sqrt(jnp.square(error).mean()) < 0.012 * jnp.sqrt(jnp.square(x @ kernel).mean())


@pytest.fixture(scope="module")
def policy():
    def constructor(rngs):
        backbone = VlaTransformer(examples.transformer_config(), rngs)
        return FlowPolicy(FlowConfig(action_horizon=4, action_dim=3, num_flow_steps=4), backbone, rngs)

    net, params = examples.init(constructor, jax.random.key(0))
    return net, params, kernels.find(params, functional.logical_axes(constructor))


def test_a_policy_samples_nearly_the_same_chunks_from_a_quarter_of_the_bytes(policy):
    net, params, found = policy
    # A trained policy's output layer is not as small as a fresh one's, whose chunks would be the noise.
    params = {**params, "action_out": {**params["action_out"], "kernel": 10 * params["action_out"]["kernel"]}}
    small = quantize(params, found, others="bfloat16")
    observation = examples.observation(jax.random.key(1))
    run = jax.jit(lambda params: net.bind(params).sample(jax.random.key(2), observation, num_samples=2))
    exact, rough = run(params), run(small)
    noise_only = run(jax.tree.map(jnp.zeros_like, params))
    moved = jnp.sqrt(jnp.square(exact - noise_only).mean())
    assert 0 < jnp.sqrt(jnp.square(rough - exact).mean()) < 0.03 * moved
    # By hand: one byte per kernel entry, four per output channel and layer, two for all the rest.
    channels = sum(np.prod(dims.stacked, dtype=int) * dims.outputs for dims in found.values())
    entries = sum(np.prod(dims.shape) for dims in found.values())
    assert num_bytes(small) == entries + 4 * channels + 2 * (functional.count(params) - entries)
    assert num_bytes(small) < 0.36 * num_bytes(params)  # a quarter where kernels are large


def test_patterns_choose_what_becomes_int8(policy):
    _, params, found = policy
    small = quantize(params, found, ("backbone/mixture/*",))
    assert isinstance(small["backbone"]["mixture"]["prefix_layers"]["up"]["kernel"], Quantized)
    assert small["action_out"]["kernel"].dtype == jnp.float32
    with pytest.raises(errors.ConfigError, match="int8 pattern 'mixtures/"):
        quantize(params, found, ("mixtures/*",))
