import jax
import numpy as np
import pytest

from vla_jax.core import errors, functional
from vla_jax.training import sharding
from vla_jax.training.plan import reference

RUN = reference.PUBLISHED["llama3.1-8b"]


def test_shapes_are_the_published_ones():
    mesh = sharding.make_mesh(sharding.MeshConfig(1), jax.devices()[:1])
    for name, billions in (("llama3.1-8b", 8.03), ("llama2-70b", 68.98), ("llama3.1-70b", 70.55)):
        learner = reference.program(name, 1, mesh).learner
        params = functional.describe(learner.constructor)[1]
        assert functional.count(params) / 1e9 == pytest.approx(billions, rel=1e-3)  # arXiv 2407.21783, 2307.09288


def test_published_utilization_and_tokens_per_second_agree():
    # Operations per token: 6 per parameter that multiplies, and 12 * layers * width * length for attention.
    multiplying = 8.03e9 - RUN.vocab_size * RUN.width
    per_token = 6 * multiplying + 12 * RUN.depth * RUN.width * RUN.sequence
    assert RUN.tokens_per_second * per_token / 918e12 == pytest.approx(RUN.utilization, rel=0.01)


def test_the_counted_operations_are_those_of_the_formula():
    mesh = sharding.make_mesh(sharding.MeshConfig(1), jax.devices()[:1])
    program = reference.program("llama3.1-8b", 1, mesh)
    multiplying = 8.03e9 - RUN.vocab_size * RUN.width
    expected = 6 * multiplying + 12 * RUN.depth * RUN.width * RUN.sequence
    assert program.model_flops() / RUN.sequence == pytest.approx(expected, rel=0.01)


def test_the_error_is_relative_to_what_was_published():
    chips, batch = 256, 1024
    seconds = batch * RUN.sequence / chips / (1.1 * RUN.tokens_per_second)
    held = reference.against_published("llama3.1-8b", batch, seconds, "v6e:16x16")
    np.testing.assert_allclose(held["error"], 0.1, rtol=1e-6)


def test_an_unknown_transformer_is_refused():
    mesh = sharding.make_mesh(sharding.MeshConfig(1), jax.devices()[:1])
    with pytest.raises(errors.ConfigError, match="llama2-70b"):
        reference.program("llama2-7b", 1, mesh)
