"""Every recipe in recipes/: it builds, it survives JSON, its policy and learner fit together. Nothing is allocated."""

import json
from importlib.util import find_spec
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from vla_jax import cli
from vla_jax.core import functional
from vla_jax.core.types import Demonstrations, Observation
from vla_jax.envs.libero import LiberoTasks
from vla_jax.learners.imitation import Imitation
from vla_jax.nets.pixels import PixelConfig
from vla_jax.nets.state_mlp import StateMLPConfig
from vla_jax.training import plain, trained
from vla_jax.training import recipe as recipes

FILES = sorted(path for path in (Path(__file__).parent.parent / "recipes").glob("*.py") if path.name != "__init__.py")
BUILDERS = {
    f"{path.stem}:{name}": build for path in FILES for name, build in cli.recipe_functions(cli._load_file(path)).items()
}


def demonstrations(recipe, batch_size=2):
    backbone, decoder = recipe.policy.backbone, recipe.policy.decoder
    images = {name: jnp.zeros((batch_size, *backbone.image_size, 3), jnp.uint8) for name in backbone.cameras}
    prompt = jnp.zeros((batch_size, recipe.text.prompt_length), jnp.int32)
    observation = Observation(
        images,
        {name: jnp.ones(batch_size, bool) for name in images},
        jnp.zeros((batch_size, backbone.state_dim)),
        prompt,
        jnp.ones_like(prompt, bool),
    )
    actions = jnp.zeros((batch_size, decoder.action_horizon, decoder.action_dim))
    return Demonstrations(observation, actions, jnp.ones_like(actions, bool), jnp.ones(batch_size))


def test_there_are_recipes():
    assert "tabletop_demo:imitation" in BUILDERS


@pytest.mark.parametrize("name", BUILDERS)
def test_a_recipe_survives_json(name):
    recipe = BUILDERS[name]()
    stored = json.loads(json.dumps(plain.to_plain(recipe)))
    assert plain.from_plain(recipes.Recipe, stored) == recipe


@pytest.mark.parametrize("name", BUILDERS)
def test_the_learner_of_a_recipe_updates_and_acts(name):
    recipe = BUILDERS[name]()
    learner, batch = trained.make_learner(recipe), demonstrations(recipe)
    state = jax.eval_shape(learner.init, jax.random.key(0), batch)
    actor = jax.eval_shape(learner.actor, state)
    memory = learner.initial_memory(2)
    actions, _ = jax.eval_shape(learner.act, actor, jax.random.key(0), batch.observation, memory)
    assert actions.shape[-1] == recipe.policy.decoder.action_dim
    assert actions.shape[1] >= recipe.evaluation.execution_horizon
    if isinstance(learner, Imitation):  # the others learn from transitions: tests/test_value_recipes.py
        after, metrics = jax.eval_shape(learner.update, state, jax.random.key(0), batch)
        assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
        assert "policy/loss" in metrics


@pytest.mark.parametrize("name", BUILDERS)
def test_every_token_of_the_instructions_is_known(name):
    recipe = BUILDERS[name]()
    if any(isinstance(env, LiberoTasks) for env in recipe.evaluation.envs) and find_spec("libero") is None:
        pytest.skip("LIBERO, which knows the instructions, is not installed (extra [libero])")
    if recipe.text.vocabulary is not None and not Path(recipe.text.vocabulary).is_file():
        pytest.skip(f"{recipe.text.vocabulary}, which the user brings, is not here")
    tokenizer = recipe.text.tokenizer()
    if not isinstance(recipe.policy.backbone, StateMLPConfig | PixelConfig):  # which read no words
        assert tokenizer.vocab_size == recipe.policy.backbone.vocab_size
    for env in recipe.evaluation.envs:
        for instruction in env.instructions:
            assert tokenizer.encode(instruction, recipe.text.prompt_length)[1].any()


def test_the_feature_width_of_expo_is_that_of_its_policy():
    recipe = BUILDERS["tabletop_demo:finetune"]()
    learner, batch = trained.make_learner(recipe), demonstrations(recipe)
    _, params = functional.describe(recipe.policy.constructor())
    embedded = jax.eval_shape(learner.embed, params, jax.random.key(0), batch.observation)
    assert embedded.features.shape == (2, learner.feature_dim)
    assert embedded.candidates.shape == (2, 8, 4, recipe.policy.decoder.action_dim)
