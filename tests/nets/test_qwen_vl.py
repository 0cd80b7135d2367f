import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.nets import examples
from vla_jax.core import errors, functional
from vla_jax.core.types import Demonstrations, Observation
from vla_jax.nets import qwen_text, qwen_vl
from vla_jax.nets.attention import Rotary, block_mask
from vla_jax.nets.backbone import Backbone
from vla_jax.nets.gemma import GemmaConfig
from vla_jax.nets.language import Decoding
from vla_jax.nets.mixture import Stream, next_position
from vla_jax.nets.qwen_vision import QwenVisionConfig
from vla_jax.nets.qwen_vl import READING, QwenVL, QwenVLConfig, tiny_qwen_vl, with_action_expert
from vla_jax.nets.reading import arrange
from vla_jax.policies.flow import FlowConfig, FlowPolicy
from vla_jax.policies.token_loss import text_losses
from vla_jax.training import plain, recipe

KEY = jax.random.key(0)
B, N, H, A = 3, 4, 4, 2
OBSERVATION = examples.observation(KEY, B)
TARGET = jax.random.randint(jax.random.key(1), (B, N), 2, examples.VOCAB)
_VISION = dict(width=8, depth=2, mlp_dim=16, num_heads=2, patch_size=4, out_width=16, image_size=(examples.SIZE,) * 2)
_LAYERS = dict(width=16, depth=2, mlp_dim=24, num_heads=4, num_kv_heads=2, head_dim=8, activation="silu")
_READING = dataclasses.replace(READING, opening=(2,), before_image=(3, 4), after_image=(5,))
_READ = dict(cameras=examples.CAMERAS, vocab_size=examples.VOCAB, prompt_length=examples.PROMPT, reading=_READING)
OLD = QwenVLConfig(
    vision=QwenVisionConfig(generation="qwen2.5", window_size=8, full_layers=(1,), **_VISION),
    language=GemmaConfig(qkv_bias=True, rotary=Rotary(100.0, (1, 1, 2)), **_LAYERS),
    tied_words=False,
    **_READ,
)
NEW = QwenVLConfig(
    vision=QwenVisionConfig(generation="qwen3", position_grid=3, deepstack_layers=(0,), **_VISION),
    language=GemmaConfig(qk_norm=True, rotary=Rotary(100.0, (2, 1, 1), interleaved=True), **_LAYERS),
    **_READ,
)
CONFIGS = {"qwen2.5": OLD, "qwen3": NEW}


def make(config):
    """Louder words than at the start: an untrained model's logits are too even to tell right from wrong."""
    net, params = examples.init(lambda rngs: QwenVL(config, rngs), KEY)
    return net, {**params, "embedding": 50 * params["embedding"]}


@functools.cache
def made(name):
    return make(CONFIGS[name])


@functools.partial(jax.jit, static_argnums=0)
def scored(net, params, observation, target):
    model = net.bind(params)
    return model.token_logits(model.prefix(observation), target)


@pytest.mark.parametrize(
    ("make", "published"),
    [
        (qwen_vl.qwen2_5_vl_3b, 3_754_622_976),
        (qwen_vl.qwen2_5_vl_7b, 8_292_166_656),
        (qwen_vl.qwen3_vl_2b, 2_127_532_032),
        (qwen_vl.qwen3_vl_4b, 4_437_815_808),
    ],
)
def test_it_has_the_published_number_of_parameters_and_a_tiny_one_has_few(make, published):
    """As counted in Hugging Face's Qwen/Qwen2.5-VL-3B-Instruct, -7B-Instruct, Qwen3-VL-2B-Instruct, -4B-Instruct."""
    _, params = functional.describe(lambda rngs: QwenVL(make(), rngs))
    assert functional.count(params) == published
    tiny = with_action_expert(tiny_qwen_vl(make(), cameras=("front", "wrist")), state_dim=7)
    assert functional.count(functional.describe(lambda rngs: QwenVL(tiny, rngs))[1]) < 1.3e6
    size = make(image_size=(448, 672)).vision
    assert size.token_grid == (448 // (2 * size.patch_size), 672 // (2 * size.patch_size))


def test_generation_takes_the_likeliest_token_of_the_scored_text_and_padding_changes_nothing():
    net, params = made("qwen2.5")

    @jax.jit
    def generate(observation):
        model = net.bind(params)
        return model.generate(KEY, model.prefix(observation), Decoding(N, end_token=-1)).tokens

    written = generate(OBSERVATION)
    assert jnp.array_equal(scored(net, params, OBSERVATION, written).argmax(-1), written)
    assert len(set(map(tuple, written.tolist()))) > 1
    longer = OBSERVATION.replace(
        prompt=jnp.pad(OBSERVATION.prompt, ((0, 0), (0, 4)), constant_values=3),
        prompt_mask=jnp.pad(OBSERVATION.prompt_mask, ((0, 0), (0, 4))),
    )
    assert jnp.array_equal(generate(longer), written)


def test_an_absent_camera_is_a_network_without_it():
    net, params = made("qwen3")
    absent = OBSERVATION.replace(image_mask={**OBSERVATION.image_mask, "front": jnp.zeros(B, bool)})
    without, _ = functional.describe(lambda rngs: QwenVL(dataclasses.replace(NEW, cameras=("wrist",)), rngs))
    expected = scored(without, params, OBSERVATION, TARGET)
    np.testing.assert_allclose(scored(net, params, absent, TARGET), expected, atol=1e-4)
    assert jnp.abs(scored(net, params, OBSERVATION, TARGET) - expected).max() > 1e-2


def test_no_token_of_the_prefix_sees_a_later_one():
    net, params = made("qwen3")
    keys = jax.jit(lambda observation: net.bind(params).prefix(observation).keys)
    changed = OBSERVATION.replace(images={**OBSERVATION.images, "wrist": 255 - OBSERVATION.images["wrist"]})
    moved = jnp.abs(keys(changed) - keys(OBSERVATION)).max((0, 1, 3, 4)) > 0
    before = 1 + (2 + 4 + 1) + 2  # opening, the front picture and its words, the words before the wrist's
    assert not moved[:before].any() and moved[before : before + 5].all()  # the picture, and the word that closes it


def test_a_caption_is_learned():
    net, params = examples.init(lambda rngs: QwenVL(OLD, rngs), KEY)

    def loss(params, key):
        model = net.bind(params)
        return text_losses(model, model.prefix(OBSERVATION), TARGET, jnp.ones(TARGET.shape, bool))[0].mean()

    trained, losses = examples.train(loss, params, 40, optax.adam(1e-2))
    assert losses[0] > 1 and losses[-1] < 0.2
    for (path, new), old in zip(jax.tree.leaves_with_path(trained), jax.tree.leaves(params), strict=True):
        assert not np.array_equal(new, old), jax.tree_util.keystr(path)


def test_it_is_a_backbone_whose_suffix_may_see_itself_both_ways_or_not():
    net, params = made("qwen3")
    model = net.bind(params)
    assert isinstance(model, Backbone) and model.feature_dim == model.suffix_width == 16
    prefix = jax.jit(model.prefix)(OBSERVATION)
    tokens = jax.random.normal(KEY, (B, N, 16))
    for causal in (True, False):
        suffix = jax.jit(functools.partial(model.suffix, prefix, causal=causal))
        assert jnp.array_equal(suffix(tokens)[:, 0], suffix(tokens.at[:, -1].add(1))[:, 0]) == causal
    with pytest.raises(errors.ConfigError, match="condition"):
        model.suffix(prefix, tokens, condition=jnp.zeros((B, 16)))


class Uncached(QwenVL):
    """Every suffix runs the prefix again, both in one pass."""

    def prefix(self, observation):
        parts = self.see_and_read(observation)
        positions = qwen_text.positions(parts, self.config.vision.token_grid)
        added = qwen_vl._added(parts, len(self.config.vision.deepstack_layers))
        state = None
        if self.config.state_token == "suffix":
            state = self.state_in(observation.state)[:, None]
        return arrange(parts, self.config.reading), positions, added, state

    def suffix(self, prefix, tokens, *, condition=None, causal=False):
        (seen, mask, block), positions, added, state = prefix
        own = tokens if state is None else jnp.concatenate([state, tokens], axis=1)
        num_state, num_suffix = own.shape[1] - tokens.shape[1], tokens.shape[1]
        is_real = jnp.pad(mask, ((0, 0), (0, own.shape[1])), constant_values=True)
        blocks = np.concatenate([block, block[-1] + 1 + np.arange(num_state), np.full(num_suffix, block[-1] + 9)])
        behind = next_position(positions, mask)[:, None] + jnp.arange(own.shape[1])[None]
        streams = [Stream(seen, positions, added=added), Stream(own, behind, condition)]
        out = self.mixture.forward(streams, block_mask(jnp.broadcast_to(blocks[None], is_real.shape), is_real))
        return self.mixture.suffix_norm(out.tokens[1], condition)[0][:, num_state:]

    def features(self, prefix):
        return prefix[0].tokens.mean(1)


@pytest.mark.parametrize("make", [qwen_vl.qwen2_5_vl_7b, qwen_vl.qwen3_vl_2b])
def test_a_policy_of_published_shapes_traces_in_bfloat16(make):
    """Nothing is allocated; a scan whose dtypes do not come back would be refused."""
    size = (224, 448)
    backbone = with_action_expert(make(examples.CAMERAS, image_size=size), 7)
    net, params = functional.describe(lambda rngs: FlowPolicy(FlowConfig(16, 7), QwenVL(backbone, rngs), rngs))
    of = jax.ShapeDtypeStruct
    observation = Observation(
        images={name: of((B, *size, 3), jnp.uint8) for name in examples.CAMERAS},
        image_mask={name: of((B,), bool) for name in examples.CAMERAS},
        state=of((B, 7), jnp.float32),
        prompt=of((B, 20), jnp.int32),
        prompt_mask=of((B, 20), bool),
    )
    batch = Demonstrations(observation, of((B, 16, 7), jnp.float32), of((B, 16, 7), bool), of((B,), jnp.float32))
    grads = jax.eval_shape(jax.grad(lambda p, batch: net.bind(p).loss(KEY, batch)[0].mean()), params, batch)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), grads) == jax.tree.map(lambda x: (x.shape, x.dtype), params)
    words = jax.eval_shape(lambda p, o: net.bind(p).backbone.prefix(o), params, observation)
    assert words.last.shape == (B, backbone.language.width) and words.keys.dtype == jnp.bfloat16


@pytest.mark.parametrize(("name", "kind"), [("qwen2.5", "pi0"), ("qwen3", "pi05")])
def test_a_flow_policy_trains_and_samples_from_the_cache_what_it_samples_without(name, kind):
    own = dict(state_token="suffix") if kind == "pi0" else dict(state_token="text", adaptive_norm=True)
    backbone = with_action_expert(CONFIGS[name], examples.STATE_DIM, **own)
    time = "concat" if kind == "pi0" else "adaptive_norm"
    policy = recipe.PolicyConfig(backbone, FlowConfig(H, A, num_flow_steps=3, time_conditioning=time))
    assert plain.from_plain(recipe.PolicyConfig, json.loads(json.dumps(plain.to_plain(policy)))) == policy
    net, params = examples.init(policy.constructor(), KEY)
    actions = jax.random.uniform(KEY, (B, H, A), minval=-1, maxval=1)
    batch = Demonstrations(OBSERVATION, actions, jnp.ones(actions.shape, bool), jnp.ones(B))
    trained, losses = examples.train(
        lambda params, key: net.bind(params).loss(KEY, batch)[0].mean(), params, 8, optax.adam(1e-2)
    )
    assert losses[-1] < 0.8 * losses[0]
    unmoved = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for (path, new), old in zip(jax.tree.leaves_with_path(trained), jax.tree.leaves(params), strict=True)
        if np.array_equal(new, old)
    }
    words = {"backbone/mixture/prefix_norm/scale", *(["backbone/words_out/kernel"] if name == "qwen2.5" else [])}
    assert unmoved == words  # what only words need

    uncached, _ = functional.describe(lambda rngs: FlowPolicy(policy.decoder, Uncached(backbone, rngs), rngs))

    def sample(net):
        return jax.jit(lambda params: net.bind(params).sample(KEY, OBSERVATION, 2))(trained)

    np.testing.assert_allclose(sample(uncached), sample(net), atol=1e-5)
    # The words are there beside the actions.
    logits = jax.eval_shape(
        lambda model: model.token_logits(model.prefix(OBSERVATION), TARGET), net.bind(trained).backbone
    )
    assert logits.shape == (B, N, examples.VOCAB)


def test_every_dim_of_every_parameter_is_named_for_sharding():
    for config in (OLD, with_action_expert(NEW, 3)):
        constructor = lambda rngs, config=config: QwenVL(config, rngs)  # noqa: E731
        axes = jax.tree.leaves(functional.logical_axes(constructor), is_leaf=lambda x: isinstance(x, tuple))
        params = jax.tree.leaves(functional.describe(constructor)[1])
        assert all(len(names) == leaf.ndim for names, leaf in zip(axes, params, strict=True))
        assert all(any(names) for names in axes)


def test_impossible_configs_are_named():
    with pytest.raises(errors.ConfigError, match="out_width"):
        dataclasses.replace(OLD, vision=dataclasses.replace(OLD.vision, out_width=24))
    with pytest.raises(errors.ConfigError, match="action_expert"):
        dataclasses.replace(OLD, adaptive_norm=True)
    with pytest.raises(errors.ConfigError, match="state_dim"):
        with_action_expert(OLD, 0)
    other = dataclasses.replace(OLD.language, rotary=Rotary(100.0))
    with pytest.raises(errors.ConfigError, match="rotary has to agree"):
        functional.describe(lambda rngs: QwenVL(with_action_expert(OLD, 3, action_expert=other), rngs))
    net, params = made("qwen3")
    small = OBSERVATION.replace(images={name: image[:, :8] for name, image in OBSERVATION.images.items()})
    with pytest.raises(errors.ConfigError, match="16x16"):
        net.bind(params).prefix(small)
