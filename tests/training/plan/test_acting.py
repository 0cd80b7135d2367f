"""Acting as a planned step: bytes of the weights by their form, the policy's own chunks, and a plan from end to end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.nets import examples
from tests.training.plan import small_recipe
from vla_jax.core import functional
from vla_jax.learners.base import LearnerState
from vla_jax.training.plan import acting, planner, report
from vla_jax.training.plan.chips import parse_topology
from vla_jax.training.quantize import num_bytes

RECIPE = small_recipe.quick()


@pytest.mark.parametrize(("weights", "share"), [("float32", 1.0), ("bfloat16", 0.5), ("int8", 0.25)])
def test_weights_have_the_bytes_of_their_form(weights, share):
    program = acting.of_recipe(RECIPE, 2, weights)
    state = jax.eval_shape(program.learner.init, jax.random.key(0), program.batch)
    whole = 4 * functional.count(functional.describe(RECIPE.policy.constructor())[1])
    # With int8 tables stay bfloat16 and kernels have scales, a large part of so small a network.
    assert share <= num_bytes(state.params) / whole < share + (0.15 if weights == "int8" else 1e-6)
    # A backward pass would cost twice as much again.
    assert program.model_flops() > 0 and program.passes == 1


def test_an_update_acts_and_keeps_its_weights():
    program = acting.of_recipe(RECIPE, 2, "float32")
    key, batch = jax.random.key(0), jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), program.batch)
    net, params = examples.init(RECIPE.policy.constructor(), key)
    state = LearnerState(jnp.zeros((), jnp.int32), params)
    after, metrics = jax.jit(program.learner.update)(state, key, batch)
    chunks = jax.jit(lambda params: net.bind(params).sample(key, batch.observation)[0])(params)
    np.testing.assert_allclose(metrics["act/actions"], chunks.sum(), rtol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, after.params, params)


def test_acting_is_planned_from_end_to_end(tmp_path):
    topology, options = parse_topology("h100:1"), dict(compiler="cpu", cache=tmp_path, timeout_s=240)
    plan = planner.plan(RECIPE, topology, (1, 1, 1), batch_size=1, acting="int8", **options)
    params = functional.count(functional.describe(RECIPE.policy.constructor())[1])
    assert params < plan.memory.parameters < 1.6 * params
    assert plan.memory.averages == 0 and plan.memory.optimizer < 100  # the counter of its steps
    assert "model: 1 x forward products" in report.details(plan)
    assert plan.name == "small, acting with int8 weights" and plan.microbatches == 1
