"""Gemma 3: imported weights compute what transformers computed, and tables are read both ways."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.interop import examples
from vla_jax.core import errors, functional
from vla_jax.core.types import Observation
from vla_jax.nets.attention import Rotary
from vla_jax.nets.gemma import GemmaConfig, LocalLayers
from vla_jax.nets.gemma3 import READING, gemma3_1b, gemma3_4b
from vla_jax.nets.language import Decoding
from vla_jax.nets.paligemma import PaliGemma, PaliGemmaConfig
from vla_jax.nets.reading import Reading
from vla_jax.nets.siglip import SiglipConfig
from vla_jax.nets.vla_transformer import VlaTransformer, VlaTransformerConfig
from vla_jax.training.checkpoints import flatten
from vla_jax.training.interop import layouts, transfer
from vla_jax.training.interop.compare import Difference, difference
from vla_jax.training.interop.safetensors import Safetensors

TOLERANCE = 1e-4  # relative to the largest magnitude of the reference
CAMERAS = ("left", "right")
LANGUAGE = GemmaConfig(
    width=24,
    depth=3,
    mlp_dim=40,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    qk_norm=True,
    post_norm=True,
    rotary=Rotary(1e6, stretch=8.0),
    local=LocalLayers(window=3, period=2),
)
SEEING = PaliGemmaConfig(
    cameras=CAMERAS,
    vocab_size=64,
    prompt_length=5,
    vision=SiglipConfig(width=16, depth=2, mlp_dim=24, num_heads=2, patch_size=14, image_size=56),
    reading=dataclasses.replace(READING, pool=2, before_image=(5, 60), after_image=(61, 5)),
    language=LANGUAGE,
)
READING_ONLY = dataclasses.replace(SEEING, cameras=(), vision=None, reading=Reading(causal=True))


def seeing(rngs):
    return PaliGemma(SEEING, rngs)


def reading_only(rngs):
    return PaliGemma(READING_ONLY, rngs)


def imported(folder: str, layout: str, constructor, config):
    net, template = functional.describe(constructor)
    source = Safetensors(examples.FIXTURES / folder)
    params, report = transfer.import_params(source, layouts.layout(layout, config, prefix=""), template)
    return net, params, report, jax.tree.map(jnp.asarray, examples.inputs("gemma3_io.npz", folder))


def written_before_the_end(tokens, end=62):
    """True up to the end token: behind it transformers scores padding."""
    return jnp.cumsum(tokens == end, axis=1) - (tokens == end) == 0


def test_words_alone_are_those_of_transformers():
    # 14 tokens through windows of 3: the first layer and the third forget what the second, global one, still sees.
    net, params, report, arrays = imported("gemma3_text", "gemma", reading_only, READING_ONLY)
    assert report.counts()["matched"] == len(report.rows)
    tokens = arrays["tokens"]

    def read(words):
        return Observation({}, {}, jnp.zeros((2, 0)), words, jnp.ones(words.shape, bool))

    @jax.jit
    def run(params):
        model = net.bind(params)
        scored = model.token_logits(model.prefix(read(tokens[:, :1])), tokens[:, 1:])
        prefix = model.prefix(read(tokens[:, :8]))
        words = model.generate(jax.random.key(0), prefix, Decoding(6, end_token=62)).tokens
        return scored, words, model.token_logits(prefix, arrays["generated"])

    logits, words, written = run(params)
    assert difference("logits", logits, arrays["logits"][:, :-1]).relative < TOLERANCE
    assert words.tolist() == arrays["generated"].tolist()
    kept = written_before_the_end(arrays["generated"])[..., None]
    assert difference("written", written * kept, arrays["generated_logits"] * kept).relative < TOLERANCE


def test_pictures_and_words_are_those_of_transformers():
    # Two pictures of 4 tokens in windows of 3, which they see both ways as far as those reach; words around them.
    net, params, report, arrays = imported("gemma3", "gemma3", seeing, SEEING)
    assert report.counts()["matched"] == len(report.rows)
    observation = Observation(
        images={name: arrays["images"][:, i] for i, name in enumerate(CAMERAS)},
        image_mask={name: jnp.ones(2, bool) for name in CAMERAS},
        state=jnp.zeros((2, 0)),
        prompt=arrays["prompt"],
        prompt_mask=jnp.ones((2, 5), bool),
    )

    @jax.jit
    def run(params):
        model = net.bind(params)
        pictures = [part.tokens for part in model.see_and_read(observation)]
        prefix = model.prefix(observation)
        words = model.generate(jax.random.key(0), prefix, Decoding(6, end_token=62)).tokens
        scored = [model.token_logits(prefix, arrays[name]) for name in ("target", "generated")]
        return jnp.stack([pictures[2], pictures[5]], axis=1), words, *scored

    pictures, words, logits, written = run(params)
    assert difference("pictures", pictures, arrays["image_tokens"]).relative < TOLERANCE
    assert difference("logits", logits, arrays["logits"]).relative < TOLERANCE
    assert words.tolist() == arrays["generated"].tolist()
    kept = written_before_the_end(arrays["generated"])[..., None]
    assert difference("written", written * kept, arrays["generated_logits"] * kept).relative < TOLERANCE


def policy(rngs):
    return VlaTransformer(POLICY, rngs)


POLICY = VlaTransformerConfig(
    **{field.name: getattr(SEEING, field.name) for field in dataclasses.fields(SEEING) if field.name != "language"}
    | dict(state_dim=3, prefix_expert=LANGUAGE, suffix_expert=dataclasses.replace(LANGUAGE, width=16)),
    with_text=True,
    state_token="suffix",
)


@pytest.mark.parametrize(
    ("layout", "config", "constructor"),
    [("gemma3", SEEING, seeing), ("gemma", READING_ONLY, reading_only), ("gemma3", POLICY, policy)],
    ids=["seeing", "words", "policy"],
)
def test_what_goes_out_comes_back(layout, config, constructor, tmp_path):
    params = examples.random_params(constructor)
    table, shapes = layouts.layout(layout, config, prefix=""), flatten(params)
    transfer.export_params(params, table, tmp_path)
    zeros = lambda paths: {path: np.zeros(shapes[path].shape, np.float32) for path in paths}  # noqa: E731
    source = Safetensors(tmp_path)
    back, report = transfer.import_params(source, table, params, fresh=zeros)
    fresh = {row.ours for row in report.of("fresh")}
    assert report.counts()["matched"] + len(fresh) == len(report.rows)
    assert all(path.startswith(("mixture/suffix", "state_in")) for path in fresh)
    assert bool(fresh) == (config is POLICY)
    for path, array in flatten(back).items():
        assert path in fresh or np.array_equal(array, shapes[path]), path
    assert Difference.worst(transfer.verify(source, table, back)).relative == 0


@pytest.mark.parametrize(
    ("folder", "layout", "config"), [("gemma3", "gemma3", SEEING), ("gemma3_text", "gemma", READING_ONLY)]
)
def test_an_export_has_the_names_and_shapes_that_transformers_wrote(folder, layout, config):
    template = flatten(functional.describe(lambda rngs: PaliGemma(config, rngs))[1])
    table = layouts.layout(layout, config, prefix="")
    ours = transfer.their_tensors(table, template, np.dtype(np.float32))
    theirs = Safetensors(examples.FIXTURES / folder).tensors
    assert {name: info.shape for name, info in ours.items()} == {
        table.canonical(name): info.shape for name, info in theirs.items()
    }


@pytest.mark.parametrize(
    ("layout", "config", "count"), [("gemma3", gemma3_4b(), 883), ("gemma", gemma3_1b(), 340)], ids=["4b", "1b"]
)
def test_published_shapes_have_the_published_number_of_tensors(layout, config, count):
    """As many as the indices of google/gemma-3-4b-pt and gemma-3-1b-pt list: 13 in each layer, 16 in each of SigLIP's
    27, and 5 or 0 around those, 2 for the projection, embedding and norm."""
    template = functional.describe(lambda rngs: PaliGemma(config, rngs))[1]
    tensors = transfer.their_tensors(layouts.layout(layout, config, prefix=""), flatten(template), np.dtype(np.float32))
    assert len(tensors) == count


def test_the_spellings_of_transformers_4_and_5_mean_the_same_tensors():
    layout = layouts.layout("gemma3", SEEING, prefix="")
    names = [name for rule in layout.rules for name in rule.names]
    newer = {
        "language_model.model.": "model.language_model.",
        "vision_tower.vision_model.": "model.vision_tower.",
        "multi_modal_projector.": "model.multi_modal_projector.",
    }
    spelled = [new + name.removeprefix(old) for name in names for old, new in newer.items() if name.startswith(old)]
    assert len(set(spelled)) == len(names) and [layout.canonical(name) for name in spelled] == names


def test_a_network_of_the_other_generation_is_refused():
    with pytest.raises(errors.ConfigError, match="layout paligemma has no place for qk_norm, post_norm, pooled_norm"):
        layouts.layout("paligemma", SEEING)
    with pytest.raises(errors.ConfigError, match="qk_norm=True, post_norm=True, pooled_norm=True"):
        layouts.layout("gemma3", examples.paligemma_config())
    with pytest.raises(errors.ConfigError, match=r"layout openpi has no place for .*reading"):
        layouts.layout("openpi", POLICY)
    with pytest.raises(errors.ConfigError, match="vision tower"):
        layouts.layout("gemma3", READING_ONLY)
