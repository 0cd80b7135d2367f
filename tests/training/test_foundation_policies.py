"""pi0-FAST and insulated pi0.5 at tiny sizes through recipe, learner and `fit`: memorized chunks come back."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.nets import examples
from tests.policies import words
from vla_jax.core.types import Demonstrations
from vla_jax.learners.imitation import Imitation, ImitationConfig
from vla_jax.policies.fast_tokens import FastConfig
from vla_jax.policies.flow import FlowConfig, Insulation
from vla_jax.training import plain, recipe
from vla_jax.training.fit import FitConfig, fit
from vla_jax.training.optimizers import Adam
from vla_jax.training.sharding import MeshConfig

KEY = jax.random.key(0)
B = 2
FLOW = FlowConfig(words.H, words.A, time_conditioning="adaptive_norm", insulation=Insulation(words.TEXT))
POLICIES = {
    "pi0_fast": recipe.PolicyConfig(words.paligemma_config(), FastConfig(words.TEXT)),
    "pi05": recipe.PolicyConfig(words.pi05_config(), FLOW),
}
# Coefficients that the codec has exactly, so that a chunk can come back to the last bit of the rounding.
_POINTS = jnp.array([[[4, -3], [2, 0], [0, 0], [0, 0]], [[-5, 1], [0, 0], [0, 2], [0, 0]]], jnp.float32)
ACTIONS = words.CODEC.inverse_dct(_POINTS / words.CODEC.scale)
BATCH = Demonstrations(examples.observation(KEY, B), ACTIONS, jnp.ones(ACTIONS.shape, bool), jnp.ones(B))


class Memory:
    """The same batch again and again."""

    def example(self):
        return BATCH

    def next(self, step, actor_params):
        return BATCH, {}

    def state(self):
        return {}

    def restore(self, state):
        assert state == {}


def train(policy, run_dir, num_steps):
    config = FitConfig(num_steps, log_every=5, checkpoint_every=num_steps, mesh=MeshConfig(data=1))
    learner = Imitation(policy.constructor(), Adam(peak_lr=1e-2).build(), ImitationConfig(ema_decay=0.5))
    metadata = {"recipe": plain.to_plain(policy), "normalization": None, "cameras": [], "action": {}}
    result = fit(learner, Memory(), config, run_dir, metadata=metadata, quiet=True)
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return learner, result, lines


def test_pi0_fast_memorizes_chunks_and_says_them_again(tmp_path):
    learner, result, lines = train(POLICIES["pi0_fast"], tmp_path, 60)
    assert lines[0]["policy/loss"] > 1 > 0.05 > lines[-1]["policy/loss"]
    assert lines[-1]["tokens/accuracy"] == 1
    actions, _ = jax.jit(learner.act)(learner.actor(result.state), KEY, BATCH.observation, ())
    np.testing.assert_allclose(actions, ACTIONS, atol=1e-5)


def test_insulated_pi05_learns_the_words_and_the_flow_together():
    net, params = examples.init(POLICIES["pi05"].constructor(), KEY)
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(params, opt_state, key):
        def loss(params):
            losses, metrics = net.bind(params).loss(key, BATCH)
            return losses.mean(), metrics

        grads, metrics = jax.grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state)
        return optax.apply_updates(params, updates), opt_state, metrics

    opt_state, history = jax.jit(optimizer.init)(params), []
    for key in jax.random.split(KEY, 60):
        params, opt_state, metrics = step(params, opt_state, key)
        history.append(jax.device_get(metrics))
    assert history[0]["tokens/loss"] > 1 > 0.3 > history[-1]["tokens/loss"]
    flow = [metrics["flow/loss"] for metrics in history]
    assert np.mean(flow[-15:]) < 0.9 * np.mean(flow[:15])


@pytest.mark.parametrize("name", POLICIES)
def test_the_codec_and_the_words_travel_with_the_recipe(name):
    stored = json.loads(json.dumps(plain.to_plain(POLICIES[name])))
    assert plain.from_plain(recipe.PolicyConfig, stored) == POLICIES[name]


def test_the_text_of_a_recipe_puts_instructions_into_its_template():
    config = recipe.TextConfig(template="Task: {instruction}, State:")
    tokenizer = plain.from_plain(recipe.TextConfig, plain.to_plain(config)).tokenizer()
    ids, mask = tokenizer.encode("Pick_up", 48)
    assert tokenizer.decode(ids[mask]) == "Task: pick up, State:"
