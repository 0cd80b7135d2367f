"""RLPD from pictures: what is frozen, whose gradients train the encoder, which pictures are cropped."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vla_jax.core import images
from vla_jax.core.types import Observation, Transitions
from vla_jax.learners.rlpd import RLPD, RLPDConfig
from vla_jax.nets.critics import CriticConfig
from vla_jax.nets.pixels import PixelConfig, PixelEncoder

PIXELS = PixelConfig(("front",), (8, 8), 2, filters=4, stages=(1,), spatial_features=2, bottleneck=6, state_features=4)
CONFIG = RLPDConfig(num_critics=3, critic=CriticConfig((8,), activation="tanh"), actor_dims=(8,), crop_pad=1)
B, A = 4, 2
KEY = jax.random.key(0)


def make(**overrides) -> RLPD:
    config = dataclasses.replace(CONFIG, **overrides)
    return RLPD(A, PIXELS.feature_dim, optax.sgd(0.1), config, lambda rngs: PixelEncoder(PIXELS, rngs))


def observation(key, *leading):
    picture_key, state_key = jax.random.split(key)
    pictures = jax.random.randint(picture_key, (*leading, B, 8, 8, 3), 0, 256).astype(jnp.uint8)
    mask, ones = jnp.ones((*leading, B), bool), jnp.ones((*leading, B, 1), bool)
    state = jax.random.normal(state_key, (*leading, B, 2))
    return Observation({"front": pictures}, {"front": mask}, state, ones.astype(jnp.int32), ones)


def transitions(*leading):
    ones = jnp.ones((*leading, B, 1))
    actions = jax.random.uniform(KEY, (*leading, B, 1, A), minval=-1)
    after = observation(jax.random.key(2), *leading)
    return Transitions(observation(KEY, *leading), actions, ones, ones, ones > 0, after, {})


def moved(before, after):
    return [bool((a != b).any()) for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)]


def test_the_trunk_stays_and_the_encoders_train():
    learner = make(encoder="separate")
    before = learner.init(KEY)
    after, _ = jax.jit(learner.update)(before, KEY, transitions(1, 2))
    assert not any(moved(before.frozen, after.frozen)) and set(before.frozen) == {"trunk"}
    for part in ("critic", "actor"):
        assert "trunk" not in before.params[part]["encoder"]
        assert any(moved(before.params[part]["encoder"], after.params[part]["encoder"]))
    assert any(moved(before.target["encoder"], after.target["encoder"]))


@pytest.mark.parametrize("which", ["shared", "separate"])
def test_the_actors_loss_trains_no_encoder_but_its_own(which):
    learner = make(encoder=which)
    state, batch = learner.init(KEY), transitions()

    def loss(params):
        changed = state.replace(params={**state.params, **params})
        return learner.actor_loss(params["actor"], changed, batch.observation, jnp.zeros((B, A)))[0]

    grads = jax.jit(jax.grad(loss))({name: state.params[name] for name in ("critic", "actor")})
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(grads["critic"]))
    own = jax.tree.leaves(grads["actor"]["encoder"])
    assert bool(own) == (which == "separate") and (not own or any((leaf != 0).any() for leaf in own))


def test_a_trunk_that_is_not_frozen_trains():
    learner = make(frozen_trunk=False)
    state, batch = learner.init(KEY), transitions()
    assert state.frozen == {}
    loss = jax.jit(jax.grad(lambda critic: learner.critic_loss(critic, {}, batch, jnp.ones(B))[0]))
    grads = loss(state.params["critic"])
    assert any((leaf != 0).any() for leaf in jax.tree.leaves(grads["encoder"]["trunk"]))


def test_it_acts_on_pictures_and_a_pretrained_trunk_replaces_its_own():
    learner = make()
    state = learner.init(KEY)
    seen = observation(KEY)
    act = jax.jit(lambda state: learner.act(learner.actor(state), KEY, seen, ())[0])
    actions = act(state)
    assert actions.shape == (B, 1, A)
    other = jax.tree.map(lambda leaf: 2 * leaf + 0.1, state.frozen["trunk"])
    assert (act(learner.with_trunk(state, other)) != actions).any()
    assert learner.without_frozen(state).frozen == {}
    view, stored = jax.eval_shape(lambda seen: learner.observe(learner.actor(state), KEY, seen), seen)
    assert view.shape == (B, PIXELS.feature_dim) and stored.images["front"].dtype == jnp.uint8


def test_pictures_of_now_and_next_are_cropped_apart(monkeypatch):
    learner, seen = make(), []
    monkeypatch.setattr(RLPD, "_critic_step", lambda self, state, inputs: seen.append(inputs[1]) or (state, {}))
    monkeypatch.setattr(RLPD, "_actor_step", lambda self, state, key, batch: (state, {}))
    monkeypatch.setattr(jax.lax, "scan", lambda body, state, inputs, **_: body(state, inputs))
    batch = transitions(1)
    batch = batch.replace(next_observation=batch.observation)
    learner._round(learner.init(KEY), (KEY, batch))
    now, following = (np.asarray(side.images["front"]) for side in (seen[0].observation, seen[0].next_observation))
    assert (now != following).any() and (now != np.asarray(batch.observation.images["front"])).any()
    np.testing.assert_array_equal(seen[0].observation.state, batch.observation.state)


def test_a_crop_of_an_observation_keeps_its_shape_and_its_cameras_apart():
    seen = observation(KEY, 2, 3)
    both = seen.replace(images={"front": seen.images["front"], "side": seen.images["front"]})
    cropped = images.crop_observation(KEY, both, 2)
    assert cropped.images["side"].shape == (2, 3, B, 8, 8, 3)
    assert (cropped.images["front"] != cropped.images["side"]).any()
