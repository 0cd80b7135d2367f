import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.nets import examples
from vla_jax.core import errors, functional
from vla_jax.core.types import Demonstrations, Observation
from vla_jax.nets.attention import Rotary, block_mask
from vla_jax.nets.backbone import Backbone
from vla_jax.nets.gemma import GemmaConfig, LocalLayers
from vla_jax.nets.gemma3 import GEMMA3_4B, READING, gemma3_1b, gemma3_4b, gemma3_policy, tiny_gemma3
from vla_jax.nets.language import Decoding
from vla_jax.nets.mixture import Stream
from vla_jax.nets.paligemma import PaliGemma, PaliGemmaConfig
from vla_jax.nets.reading import Reading, arrange
from vla_jax.nets.siglip import SiglipConfig
from vla_jax.nets.vla_transformer import VlaTransformer, VlaTransformerConfig
from vla_jax.policies.flow import FlowConfig, FlowPolicy
from vla_jax.policies.token_loss import text_losses

KEY = jax.random.key(0)
B, N, H, A = 3, 5, 4, 2
WINDOW = 3
OBSERVATION = examples.observation(KEY, B)
TARGET = jax.random.randint(jax.random.key(1), (B, N), 2, examples.VOCAB)
VISION = SiglipConfig(16, depth=1, mlp_dim=16, num_heads=2, patch_size=4, image_size=examples.SIZE)
SMALL_READING = dataclasses.replace(READING, pool=2, opening=(2,), before_image=(3, 4), after_image=(5,))
LANGUAGE = GemmaConfig(
    16,
    depth=3,
    mlp_dim=24,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    qk_norm=True,
    post_norm=True,
    rotary=Rotary(1e6, stretch=8.0),
    local=LocalLayers(WINDOW, period=2),
)
READ = dict(cameras=examples.CAMERAS, vocab_size=examples.VOCAB, prompt_length=examples.PROMPT)
PICTURES = dict(vision=VISION, reading=SMALL_READING)
NO_PICTURES = dict(cameras=(), vision=None, reading=Reading(causal=True))


def config(**changes):
    return PaliGemmaConfig(**READ | PICTURES | dict(language=LANGUAGE) | changes)


def make(config):
    """Louder words than at the start: an untrained model's logits are too even to tell right from wrong."""
    net, params = examples.init(lambda rngs: PaliGemma(config, rngs), KEY)
    return net, {**params, "embedding": 4 * params["embedding"]}


NET, PARAMS = make(config())
WORDS, WORDS_PARAMS = make(config(**NO_PICTURES))


@functools.partial(jax.jit, static_argnums=0)
def scored(net, params, observation, target):
    model = net.bind(params)
    return model.token_logits(model.prefix(observation), target)


@functools.partial(jax.jit, static_argnums=0)
def generate(decoding, observation=OBSERVATION):
    model = NET.bind(PARAMS)
    return model.generate(KEY, model.prefix(observation), decoding)


def text(tokens):
    return Observation({}, {}, jnp.zeros((len(tokens), 0)), tokens, jnp.ones(tokens.shape, bool))


def test_it_has_the_published_numbers_of_parameters():
    """Hugging Face counts 4,300,079,472 in google/gemma-3-4b-pt and 999,885,952 in gemma-3-1b-pt. Table 1 of the paper:
    4B has 417M in the vision tower, 675M in the embedding (with 2.9M of the projection) and 3209M in the rest."""
    _, params = functional.describe(lambda rngs: PaliGemma(gemma3_4b(), rngs))
    assert functional.count(params) == 4_300_079_472
    assert round(functional.count(params["vision"]) / 1e6) == 417
    assert round((functional.count(params["layers"]) + functional.count(params["norm"])) / 1e6) == 3209
    _, params = functional.describe(lambda rngs: PaliGemma(gemma3_1b(), rngs))
    assert functional.count(params) == 999_885_952
    assert round(functional.count(params["embedding"]) / 1e6) == 302
    _, tiny = functional.describe(lambda rngs: PaliGemma(tiny_gemma3(), rngs))
    assert functional.count(tiny) < 1e6


def test_the_policy_has_an_action_expert_of_pi06s_size():
    _, params = functional.describe(lambda rngs: VlaTransformer(gemma3_policy(("base",)), rngs))
    assert 0.85e9 < functional.count(params["mixture"]["suffix_layers"]) < 0.87e9
    assert functional.count(params["mixture"]["prefix_layers"]) > 3.2e9


def test_five_layers_of_six_are_local():
    kinds = [bool(GEMMA3_4B.local.is_global(jnp.int32(layer))) for layer in range(GEMMA3_4B.depth)]
    assert [layer for layer, is_global in enumerate(kinds) if is_global] == [5, 11, 17, 23, 29]
    # A window of 3 holds the query and the 2 before it; what is behind is the mask's business.
    queries = jnp.arange(5)[None]
    sees = LocalLayers(3).sees(jnp.int32(0), queries, queries)[0]
    assert sees[3].tolist() == [False, True, True, True, True]
    assert LocalLayers(3).sees(jnp.int32(5), queries, queries).all()


def test_stretched_positions_turn_by_as_much_at_eight_times_the_distance():
    positions = jnp.arange(6)[None]
    angles = Rotary(1e6, stretch=8.0).angles(8 * positions, 16)
    np.testing.assert_allclose(angles, Rotary(1e6).angles(positions, 16), rtol=1e-6)
    assert angles[0, 1, 0] == 1


@pytest.mark.parametrize("period", [2, 4])
def test_local_layers_reach_as_far_as_their_windows_add_up_to(period):
    """Three layers of window 3 reach 6 tokens back. With period 2 the second is global and reaches everything."""
    language = dataclasses.replace(LANGUAGE, local=LocalLayers(WINDOW, period=period))
    net, _ = functional.describe(lambda rngs: PaliGemma(config(**NO_PICTURES, language=language), rngs))
    tokens = jax.random.randint(KEY, (1, 10), 2, examples.VOCAB)

    def logits(tokens):
        return scored(net, WORDS_PARAMS, text(tokens[:, :8]), tokens[:, 8:])[0, -1]  # of the token behind number 8

    moved = [jnp.abs(logits((tokens.at[0, i].add(1)) % examples.VOCAB) - logits(tokens)).max() > 0 for i in range(9)]
    assert moved == [period == 2] * 2 + [True] * 7


def test_words_may_move_from_the_target_to_the_prompt():
    """The window over the cache, over what is decoded now and over both is one."""
    tokens = jax.random.randint(KEY, (2, 12), 2, examples.VOCAB)
    late = scored(WORDS, WORDS_PARAMS, text(tokens[:, :9]), tokens[:, 9:])
    early = scored(WORDS, WORDS_PARAMS, text(tokens[:, :2]), tokens[:, 2:])
    np.testing.assert_allclose(late, early[:, 7:], atol=1e-5)


def test_generation_takes_the_likeliest_token_of_the_scored_text():
    """Twelve tokens, many more than a window holds."""
    written = generate(Decoding(12, end_token=-1))
    assert written.mask.all()
    assert jnp.array_equal(scored(NET, PARAMS, OBSERVATION, written.tokens).argmax(-1), written.tokens)
    assert len(set(map(tuple, written.tokens.tolist()))) > 1


def test_padding_takes_no_place_in_a_window():
    spread = OBSERVATION.replace(
        prompt=jnp.repeat(OBSERVATION.prompt, 3, axis=1),
        prompt_mask=jnp.repeat(OBSERVATION.prompt_mask, 3, axis=1) & (jnp.arange(3 * examples.PROMPT) % 3 == 1)[None],
    )
    expected = scored(NET, PARAMS, OBSERVATION, TARGET)
    np.testing.assert_allclose(scored(NET, PARAMS, spread, TARGET), expected, atol=1e-5)
    decoding = Decoding(8, end_token=-1)
    assert jnp.array_equal(generate(decoding, spread).tokens, generate(decoding).tokens)


def test_an_absent_camera_leaves_with_the_words_around_it():
    absent = OBSERVATION.replace(image_mask={**OBSERVATION.image_mask, "front": jnp.zeros(B, bool)})
    alone, _ = functional.describe(lambda rngs: PaliGemma(config(cameras=("wrist",)), rngs))
    expected = scored(alone, PARAMS, OBSERVATION, TARGET)
    np.testing.assert_allclose(scored(NET, PARAMS, absent, TARGET), expected, atol=1e-5)
    assert jnp.abs(scored(NET, PARAMS, OBSERVATION, TARGET) - expected).max() > 1e-3


def test_pictures_see_themselves_and_nothing_sees_to_its_right():
    model = NET.bind(PARAMS)
    keys = jax.jit(lambda observation: model.prefix(observation).keys)
    before = keys(OBSERVATION)
    front = OBSERVATION.images["front"]
    # The last corner of the first picture: 1 opening, 2 before, 4 of the picture, 1 after; then the second camera.
    other = keys(
        OBSERVATION.replace(images={**OBSERVATION.images, "front": front.at[:, -4:, -4:].set(255 - front[:, -4:, -4:])})
    )
    moved = jnp.abs(other - before).max((0, 1, 3, 4)) > 0
    assert moved[:8].tolist() == [False] * 3 + [True] * 5
    last = OBSERVATION.replace(prompt=(OBSERVATION.prompt + 1) % examples.VOCAB)
    assert (jnp.abs(keys(last) - before).max((0, 1, 3, 4)) > 0).tolist() == [False] * 15 + [True] * examples.PROMPT


def test_a_prompt_may_be_read_both_ways():
    """As PaliGemma's is: an option for policies, whose prompt is never written."""
    both, _ = functional.describe(
        lambda rngs: PaliGemma(config(reading=dataclasses.replace(SMALL_READING, causal=False)), rngs)
    )
    keys = jax.jit(lambda observation: both.bind(PARAMS).prefix(observation).keys)
    changed = OBSERVATION.replace(prompt=(OBSERVATION.prompt + 1) % examples.VOCAB)
    assert (jnp.abs(keys(changed) - keys(OBSERVATION)).max((0, 1, 3, 4)) > 0).all()


def test_a_caption_is_learned():
    def loss(params, key):
        model = NET.bind(params)
        return text_losses(model, model.prefix(OBSERVATION), TARGET, jnp.ones(TARGET.shape, bool))[0].mean()

    _, losses = examples.train(loss, PARAMS, 60, optax.adam(1e-2))
    assert losses[0] > 1 and losses[-1] < 0.1


EXPERT = dataclasses.replace(LANGUAGE, width=12)
POLICY = VlaTransformerConfig(
    **READ | PICTURES, state_dim=examples.STATE_DIM, prefix_expert=LANGUAGE, suffix_expert=EXPERT
)


class Uncached(VlaTransformer):
    """Every suffix runs the prefix again, both in one pass."""

    def prefix(self, observation):
        parts = self.see_and_read(observation)
        state = None
        if self.config.state_token == "suffix":
            state = self.state_in(observation.state)[:, None]
        return arrange(parts, self.config.reading), state

    def suffix(self, prefix, tokens, *, condition=None, causal=False):
        (seen, mask, block), state = prefix
        own = tokens if state is None else jnp.concatenate([state, tokens], axis=1)
        num_state, num_suffix = own.shape[1] - tokens.shape[1], tokens.shape[1]
        is_real = jnp.pad(mask, ((0, 0), (0, own.shape[1])), constant_values=True)
        blocks = np.concatenate([block, block[-1] + 1 + np.arange(num_state), np.full(num_suffix, block[-1] + 9)])
        positions = jnp.cumsum(is_real, axis=1) - 1
        streams = [Stream(seen, positions[:, : len(block)]), Stream(own, positions[:, len(block) :], condition)]
        out = self.mixture.forward(streams, block_mask(jnp.broadcast_to(blocks[None], is_real.shape), is_real))
        return self.mixture.suffix_norm(out.tokens[1], condition)[0][:, num_state:]

    def features(self, prefix):
        return prefix[0].tokens.mean(1)


def flow_policy(kind, backbone=VlaTransformer, **changes):
    """Constructor. `kind` is pi0 or pi05."""
    token, time = ("suffix", "concat") if kind == "pi0" else ("text", "adaptive_norm")
    config = dataclasses.replace(POLICY, state_token=token, adaptive_norm=kind == "pi05", **changes)
    flow = FlowConfig(H, A, num_flow_steps=3, time_conditioning=time)
    return lambda rngs: FlowPolicy(flow, backbone(config, rngs), rngs)


@pytest.mark.parametrize("kind", ["pi0", "pi05"])
def test_a_flow_policy_samples_from_the_cache_what_it_samples_without(kind):
    _, shapes = functional.describe(flow_policy(kind))
    draw = np.random.default_rng(0).normal  # also what starts at zero, the gates of adaptive norms among it
    params = jax.tree.map(lambda leaf: 0.2 * draw(size=leaf.shape).astype(np.float32), shapes)

    def sample(constructor):
        net, _ = functional.describe(constructor)
        return jax.jit(lambda params: net.bind(params).sample(KEY, OBSERVATION, 2))(params)

    chunk = sample(flow_policy(kind))
    np.testing.assert_allclose(sample(flow_policy(kind, Uncached)), chunk, atol=1e-4)
    if kind == "pi0":  # and the windows are there
        wide = dataclasses.replace(LANGUAGE.local, window=1000)
        experts = dict(
            prefix_expert=dataclasses.replace(LANGUAGE, local=wide),
            suffix_expert=dataclasses.replace(EXPERT, local=wide),
        )
        assert jnp.abs(sample(flow_policy(kind, **experts)) - chunk).max() > 1e-2


def test_a_flow_policy_trains_every_parameter():
    net, params = examples.init(flow_policy("pi05"), KEY)
    assert isinstance(net.bind(params).backbone, Backbone)
    actions = jax.random.uniform(KEY, (B, H, A), minval=-1, maxval=1)
    batch = Demonstrations(OBSERVATION, actions, jnp.ones(actions.shape, bool), jnp.ones(B))
    loss = lambda params, key: net.bind(params).loss(KEY, batch)[0].mean()  # noqa: E731
    trained, losses = examples.train(loss, params, 8, optax.adam(1e-2))
    assert losses[-1] < 0.8 * losses[0]
    pairs = zip(jax.tree.leaves_with_path(trained), jax.tree.leaves(params), strict=True)
    assert not [jax.tree_util.keystr(path) for (path, new), old in pairs if jnp.array_equal(new, old)]


def test_impossible_configs_are_named():
    with pytest.raises(errors.ConfigError, match="window"):
        LocalLayers(0)
    with pytest.raises(errors.ConfigError, match="neither"):
        config(vision=None)
    with pytest.raises(errors.ConfigError, match="vision tower"):
        config(**NO_PICTURES).image_size  # noqa: B018
    with pytest.raises(errors.ConfigError, match="local has to agree"):
        plain = dataclasses.replace(POLICY, suffix_expert=dataclasses.replace(EXPERT, local=None))
        functional.describe(lambda rngs: VlaTransformer(plain, rngs))
