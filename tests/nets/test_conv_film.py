import jax
import jax.numpy as jnp
import optax
import pytest

from tests.nets import examples
from vla_jax.codecs.text import ByteTokenizer, prompt_table
from vla_jax.core import errors, functional
from vla_jax.nets.conv_film import ConvFilm, ConvFilmConfig, TextEncoder

KEY = jax.random.key(0)
N = 4
CONFIG = examples.conv_film_config(N, adaptive_norm=True)
NET, PARAMS = examples.init(lambda rngs: ConvFilm(CONFIG, rngs), KEY)
OBSERVATION = examples.observation(KEY, 3)
TOKENS = jax.random.normal(KEY, (3, N, CONFIG.suffix_width))


def features(observation):
    return NET.bind(PARAMS).prefix(observation)


def suffix(tokens, causal=False, condition=None, params=PARAMS):
    net = NET.bind(params)
    return net.suffix(net.prefix(OBSERVATION), tokens, causal=causal, condition=condition)


def test_the_default_network_has_the_size_that_was_measured():
    config = ConvFilmConfig(("front", "wrist"), 6, vocab_size=257, prompt_length=48, num_suffix_tokens=8)
    _, params = functional.describe(lambda rngs: ConvFilm(config, rngs))
    assert 1.4e6 < functional.count(params) < 1.7e6


def test_shapes_of_prefix_features_and_suffix():
    assert features(OBSERVATION).shape == (3, CONFIG.feature_dim)
    assert suffix(TOKENS).shape == TOKENS.shape


def test_every_input_moves_the_features():
    changed = [
        OBSERVATION.replace(state=OBSERVATION.state + 1),
        OBSERVATION.replace(prompt=OBSERVATION.prompt.at[:, 0].set((OBSERVATION.prompt[:, 0] + 1) % examples.VOCAB)),
        OBSERVATION.replace(images={**OBSERVATION.images, "wrist": 255 - OBSERVATION.images["wrist"]}),
    ]
    for observation in changed:
        assert (jnp.abs(features(observation) - features(OBSERVATION)).max(-1) > 1e-4).all()


def test_padding_of_the_prompt_and_absent_cameras_change_nothing():
    padded = jnp.where(OBSERVATION.prompt_mask, OBSERVATION.prompt, (OBSERVATION.prompt + 5) % examples.VOCAB)
    assert jnp.array_equal(features(OBSERVATION.replace(prompt=padded)), features(OBSERVATION))
    absent = OBSERVATION.replace(image_mask={**OBSERVATION.image_mask, "wrist": jnp.zeros(3, bool)})
    other = absent.replace(images={**absent.images, "wrist": 255 - absent.images["wrist"]})
    assert jnp.array_equal(features(other), features(absent))
    assert not jnp.allclose(features(absent), features(OBSERVATION))


def test_causal_suffix_outputs_do_not_see_later_tokens_but_see_their_own_and_earlier_ones():
    jacobian = jax.jacobian(lambda tokens: suffix(tokens[None].repeat(3, 0), causal=True)[0])(TOKENS[0])
    influence = jnp.abs(jacobian).sum((1, 3))  # [output token, input token]
    assert jnp.array_equal(influence > 0, jnp.tril(jnp.ones((N, N), bool)))
    jacobian = jax.jacobian(lambda tokens: suffix(tokens[None].repeat(3, 0))[0])(TOKENS[0])
    assert (jnp.abs(jacobian).sum((1, 3)) > 0).all()


def test_a_condition_changes_nothing_at_first_and_modulates_once_trained():
    condition = jax.random.normal(KEY, (3, CONFIG.suffix_width))
    assert jnp.array_equal(suffix(TOKENS, condition=condition), suffix(TOKENS))
    trained = jax.tree.map(lambda x: x + 0.1, PARAMS)
    assert not jnp.allclose(suffix(TOKENS, condition=condition, params=trained), suffix(TOKENS, params=trained))


def test_a_batch_equals_a_loop_over_its_examples():
    rows = [features(jax.tree.map(lambda x, i=i: x[i : i + 1], OBSERVATION)) for i in range(3)]
    assert jnp.allclose(jnp.concatenate(rows), features(OBSERVATION), atol=1e-5)


def test_instructions_that_differ_in_one_word_are_told_apart_within_a_hundred_steps():
    """Same image, four instructions "put the _ block on the _ zone": a linear readout has to tell which."""
    words = [(block, zone) for block in ("red", "blue") for zone in ("green", "yellow")]
    table = prompt_table(ByteTokenizer(), [f"put the {block} block on the {zone} zone" for block, zone in words], 48)
    config = examples.conv_film_config(N)
    config = ConvFilmConfig(**{**vars(config), "vocab_size": 257, "prompt_length": 48})
    net, params = examples.init(lambda rngs: ConvFilm(config, rngs), KEY)
    params = {"net": params, "readout": jnp.zeros((config.feature_dim, 4))}
    same = jax.tree.map(lambda x: x[:1].repeat(4, 0), OBSERVATION).replace(prompt=table.tokens, prompt_mask=table.mask)

    def loss(params, key):
        logits = net.bind(params["net"]).prefix(same) @ params["readout"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.arange(4)).mean()

    _, losses = examples.train(loss, params, 100, optax.adam(3e-3))
    assert losses[0] > 1.3 and losses[-1] < 0.05  # log 4 = 1.39 is what a policy deaf to the words keeps


def test_wrong_inputs_are_named():
    with pytest.raises(errors.ConfigError, match="lacks camera 'wrist'"):
        features(OBSERVATION.replace(images={"front": OBSERVATION.images["front"]}))
    with pytest.raises(errors.ConfigError, match="another size"):
        features(OBSERVATION.replace(images={name: x[:, :8] for name, x in OBSERVATION.images.items()}))
    with pytest.raises(errors.ConfigError, match="tokens"):
        suffix(TOKENS[:, :2])
    with pytest.raises(errors.ConfigError, match="identifiers"):
        ConvFilmConfig(("a b",), 1, 1, 1, 1)
    uneven = examples.conv_film_config(N, hidden=30)
    net, params = examples.init(lambda rngs: ConvFilm(uneven, rngs), KEY)
    with pytest.raises(errors.ConfigError, match="multiple"):
        net.bind(params).suffix(jnp.zeros((3, 16)), TOKENS, causal=True)
    with pytest.raises(errors.ConfigError, match="adaptive_norm"):
        net.bind(params).suffix(jnp.zeros((3, 16)), TOKENS, condition=jnp.zeros((3, 8)))


def test_text_features_cannot_die():
    # a final ReLU would give zeros for every instruction here, and zero gradients with them
    net, params = functional.init(lambda rngs: TextEncoder(CONFIG, rngs), KEY)
    params["out"]["bias"] = params["out"]["bias"] - 100.0
    prompts = jnp.array([[3, 4, 5, 0, 0, 0], [3, 4, 6, 0, 0, 0]])
    features = net.bind(params)(prompts, jnp.ones_like(prompts, bool))
    assert jnp.linalg.norm(features[0] - features[1]) > 0.1
