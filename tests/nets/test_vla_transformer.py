import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from tests.nets import examples
from vla_jax.core import errors, functional
from vla_jax.nets.attention import block_mask
from vla_jax.nets.gemma import GemmaConfig
from vla_jax.nets.mixture import Mixture, Stream
from vla_jax.nets.siglip import Siglip, SiglipConfig, join_neighbours
from vla_jax.nets.vla_transformer import VlaTransformer, pi0, tiny

KEY = jax.random.key(0)
B, N = 3, 4
OBSERVATION = examples.observation(KEY, B)
NETS = {}


def make(**changes):
    name = str(sorted(changes.items()))
    if name not in NETS:
        config = examples.transformer_config(**changes)
        NETS[name] = examples.init(lambda rngs: VlaTransformer(config, rngs), KEY)
    return NETS[name]


def decode(net, params, observation, tokens, **options):
    @jax.jit
    def run(params, observation, tokens):
        bound = net.bind(params)
        prefix = bound.prefix(observation)
        return bound.suffix(prefix, tokens, **options), bound.features(prefix)

    return run(params, observation, tokens)


TOKENS = jax.random.normal(KEY, (B, N, 12))


def test_the_full_size_model_has_the_published_number_of_parameters():
    """3.3B in the paper: So400m/14 0.41B, Gemma 2B 2.5B, action expert 0.3B. Nothing is allocated."""
    config = pi0(("base", "left_wrist", "right_wrist"))
    _, params = functional.describe(lambda rngs: VlaTransformer(config, rngs))
    assert 3.2e9 < functional.count(params) < 3.35e9
    assert 0.40e9 < functional.count(params["vision"]) < 0.42e9
    gemma = functional.count(params["mixture"]["prefix_layers"]) + functional.count(params["embedding"])
    assert 2.50e9 < gemma < 2.52e9  # Gemma 2B has 2.51B
    assert 0.30e9 < functional.count(params["mixture"]["suffix_layers"]) < 0.32e9


def test_the_tiny_model_has_about_a_million_parameters():
    _, params = functional.describe(lambda rngs: VlaTransformer(tiny(("front", "wrist"), 6, 257, 48), rngs))
    assert 0.8e6 < functional.count(params) < 1.3e6


def test_every_parameter_has_names_for_its_axes():
    config = examples.transformer_config(adaptive_norm=True, camera_embedding=True)

    def constructor(rngs):
        return VlaTransformer(config, rngs)

    axes = functional.logical_axes(constructor)
    _, params = functional.describe(constructor)
    names = jax.tree.leaves(axes, is_leaf=lambda x: isinstance(x, tuple))
    assert all(len(name) == leaf.ndim for name, leaf in zip(names, jax.tree.leaves(params), strict=True))
    assert axes["mixture"]["prefix_layers"]["query"]["kernel"] == ("layers", "embed", "heads", "head_dim")
    assert axes["embedding"] == ("vocab", "embed")


def make_mixture():
    shared = dict(depth=3, mlp_dim=24, num_heads=4, num_kv_heads=1, head_dim=8)
    prefix, suffix = GemmaConfig(width=16, **shared), GemmaConfig(width=12, **shared)
    return examples.init(lambda rngs: Mixture(prefix, suffix, rngs), KEY)


@pytest.mark.parametrize("causal", [False, True])
def test_decoding_against_the_cache_equals_one_joint_pass_with_the_block_mask(causal):
    net, params = make_mixture()
    mixture = net.bind(params)
    num_prefix = 5
    prefix = jax.random.normal(KEY, (B, num_prefix, 16))
    state = jax.random.normal(KEY, (B, 1, 12))
    mask = jnp.arange(num_prefix)[None] < jnp.array([[5], [3], [1]])
    cached = mixture.suffix(mixture.prefix(prefix, mask, state), TOKENS, causal=causal)

    is_real = jnp.concatenate([mask, jnp.ones((B, 1 + N), bool)], axis=1)
    suffix_blocks = 2 + jnp.arange(N) if causal else jnp.full(N, 2)
    block = jnp.concatenate([jnp.zeros(num_prefix, int), jnp.ones(1, int), suffix_blocks])
    positions = jnp.cumsum(is_real, axis=1) - 1
    streams = [
        Stream(prefix, positions[:, :num_prefix]),
        Stream(jnp.concatenate([state, TOKENS], axis=1), positions[:, num_prefix:]),
    ]
    joint = mixture.forward(streams, block_mask(jnp.broadcast_to(block, is_real.shape), is_real))
    assert jnp.allclose(mixture.suffix_norm(joint.tokens[1], None)[0][:, 1:], cached, atol=1e-5)


@pytest.mark.parametrize("state_token", ["prefix", "suffix"])
def test_every_input_reaches_the_suffix_and_padding_does_not(state_token):
    net, params = make(state_token=state_token)
    out, features = decode(net, params, OBSERVATION, TOKENS)
    assert out.shape == TOKENS.shape and features.shape == (B, 16)
    changed = [
        OBSERVATION.replace(state=OBSERVATION.state + 1),
        OBSERVATION.replace(prompt=OBSERVATION.prompt.at[:, 0].set((OBSERVATION.prompt[:, 0] + 1) % examples.VOCAB)),
        OBSERVATION.replace(images={**OBSERVATION.images, "wrist": 255 - OBSERVATION.images["wrist"]}),
    ]
    for observation in changed:
        assert (jnp.abs(decode(net, params, observation, TOKENS)[0] - out).max((1, 2)) > 1e-4).all()
    padded = jnp.where(OBSERVATION.prompt_mask, OBSERVATION.prompt, (OBSERVATION.prompt + 5) % examples.VOCAB)
    other, other_features = decode(net, params, OBSERVATION.replace(prompt=padded), TOKENS)
    assert jnp.array_equal(other, out) and jnp.array_equal(other_features, features)


def test_an_absent_camera_is_not_seen():
    net, params = make()
    absent = OBSERVATION.replace(image_mask={**OBSERVATION.image_mask, "wrist": jnp.zeros(B, bool)})
    other = absent.replace(images={**absent.images, "wrist": 255 - absent.images["wrist"]})
    assert jnp.array_equal(decode(net, params, other, TOKENS)[0], decode(net, params, absent, TOKENS)[0])


def test_causal_suffix_outputs_do_not_see_later_tokens_but_see_their_own_and_earlier_ones():
    net, params = make()
    for causal in (True, False):

        def out(tokens, causal=causal):
            bound = net.bind(params)
            first = jax.tree.map(lambda x: x[:1], OBSERVATION)
            return bound.suffix(bound.prefix(first), tokens[None], causal=causal)[0]

        influence = jnp.abs(jax.jit(jax.jacobian(out))(TOKENS[0])).sum((1, 3))  # [output token, input token]
        expected = jnp.tril(jnp.ones((N, N), bool)) if causal else jnp.ones((N, N), bool)
        assert jnp.array_equal(influence > 0, expected)


def test_scanned_rematerialized_and_library_attention_layers_compute_the_same():
    net, params = make()
    base = examples.transformer_config()
    expected = value_and_gradient(net, params)
    policies = [dict(remat=True), dict(remat="dots_with_no_batch_dims_saveable")]
    for changes in (dict(unroll=True), *policies, dict(attention="xla")):
        config = dataclasses.replace(base, **changes)
        other, _ = functional.describe(lambda rngs, config=config: VlaTransformer(config, rngs))
        found = value_and_gradient(other, params)
        assert all(jax.tree.leaves(jax.tree.map(lambda a, b: jnp.allclose(a, b, atol=1e-5), expected, found)))


def value_and_gradient(net, params):
    def loss(params):
        bound = net.bind(params)
        return jnp.square(bound.suffix(bound.prefix(OBSERVATION), TOKENS)).mean()

    return jax.jit(jax.value_and_grad(loss))(params)


def test_bfloat16_activations_stay_near_float32_and_gradients_are_float32():
    net, params = make()
    exact = decode(net, params, OBSERVATION, TOKENS)[0]
    config = examples.transformer_config(compute_dtype="bfloat16")
    other, _ = functional.describe(lambda rngs: VlaTransformer(config, rngs))
    rough = decode(other, params, OBSERVATION, TOKENS)[0]
    assert rough.dtype == jnp.bfloat16
    # 8 bits of mantissa through two layers of unit-scale activations
    assert jnp.abs(rough.astype(jnp.float32) - exact).max() < 0.1
    _, grads = value_and_gradient(other, params)
    assert all(grad.dtype == jnp.float32 and jnp.isfinite(grad).all() for grad in jax.tree.leaves(grads))


def test_a_batch_equals_a_loop_over_its_examples():
    net, params = make()
    whole = decode(net, params, OBSERVATION, TOKENS)[0]
    rows = [
        decode(net, params, jax.tree.map(lambda x, i=i: x[i : i + 1], OBSERVATION), TOKENS[i : i + 1])[0]
        for i in range(B)
    ]
    assert jnp.allclose(jnp.concatenate(rows), whole, atol=1e-5)


@pytest.mark.parametrize("patch_size", [4, 8, 16])
def test_the_merging_stem_makes_the_same_number_of_tokens(patch_size):
    vision = SiglipConfig(16, 1, 16, 2, patch_size=patch_size, image_size=16, stem="merge", stem_channels=4)
    net, params = make(vision=vision)
    prefix = jax.eval_shape(lambda p: net.bind(p).prefix(OBSERVATION), params)
    assert prefix.mask.shape == (B, 2 * (16 // patch_size) ** 2 + examples.PROMPT + 1)


def test_joined_neighbours_are_the_squares_of_the_image():
    image = jnp.arange(2 * 8 * 4 * 3).reshape(2, 8, 4, 3)
    joined = join_neighbours(image, 2)
    assert joined.shape == (2, 4, 2, 12)
    assert jnp.array_equal(joined[1, 3, 0], image[1, 6:8, 0:2].reshape(-1))


def vision_tokens(vision, image):
    tower = Siglip(vision, nnx.Rngs(0))
    return tower(image, jnp.float32)


def test_a_patch_token_sees_its_patch_alone_and_a_mixed_token_the_whole_grid():
    image = jax.random.randint(jax.random.key(3), (1, 16, 16, 3), 0, 256).astype(jnp.uint8)
    other = image.at[0, 15, 15].set(255 - image[0, 15, 15])
    # No layers: what a token knows is then what the stem told it.
    for stem in ("patch", "merge"):
        vision = SiglipConfig(16, 0, 16, 2, patch_size=8, image_size=16, stem=stem, stem_channels=8)
        moved = jnp.any(vision_tokens(vision, image) != vision_tokens(vision, other), axis=-1)[0]
        assert moved.tolist() == [False, False, False, True]
        mixed = dataclasses.replace(vision, mixed_tokens=3)
        moved = jnp.any(vision_tokens(mixed, image) != vision_tokens(mixed, other), axis=-1)[0]
        assert moved.tolist() == [True, True, True]


def test_impossible_configs_and_inputs_are_named():
    with pytest.raises(errors.ConfigError, match="cached"):
        examples.transformer_config(state_token="suffix", adaptive_norm=True)
    with pytest.raises(errors.ConfigError, match="power of 2"):
        SiglipConfig(16, 1, 16, 2, patch_size=12, image_size=24, stem="merge")
    with pytest.raises(errors.ConfigError, match="mixed_tokens"):
        SiglipConfig(16, 1, 16, 2, patch_size=8, image_size=16, mixed_tokens=0)
    with pytest.raises(errors.ConfigError, match="depth has to agree"):
        deep = dataclasses.replace(examples.transformer_config().suffix_expert, depth=3)
        config = examples.transformer_config(suffix_expert=deep)
        functional.describe(lambda rngs: VlaTransformer(config, rngs))
    net, params = make()
    with pytest.raises(errors.ConfigError, match="camera 'wrist'"):
        net.bind(params).prefix(OBSERVATION.replace(images={"front": OBSERVATION.images["front"]}))
    with pytest.raises(errors.ConfigError, match="adaptive_norm"):
        decode(net, params, OBSERVATION, TOKENS, condition=jnp.zeros((B, 12)))
