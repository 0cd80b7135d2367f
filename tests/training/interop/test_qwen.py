"""Qwen2.5-VL and Qwen3-VL: imported weights compute what transformers computed, and tables are read both ways."""

import jax
import numpy as np
import pytest

from tests.training.interop import examples, qwen_examples
from vla_jax.core import errors, functional
from vla_jax.nets import qwen_vl
from vla_jax.nets.language import Decoding
from vla_jax.nets.qwen_vl import QwenVL
from vla_jax.training.checkpoints import flatten
from vla_jax.training.interop import compare, layouts, transfer
from vla_jax.training.interop.compare import difference
from vla_jax.training.interop.safetensors import Safetensors

TOLERANCE = 1e-4  # relative to the largest magnitude of the reference


@pytest.fixture(scope="module", params=qwen_examples.NAMES)
def model(request):
    """(name, net, parameters, report, inputs and outputs of transformers)"""
    return request.param, *qwen_examples.imported(request.param), qwen_examples.arrays(request.param)


def test_every_tensor_has_its_place(model):
    _, _, _, report, _ = model
    assert report.counts()["matched"] == len(report.rows)


def test_features_logits_and_words_are_those_of_transformers(model):
    # Three examples: two pictures and prompts of 5 and 3 tokens, and one whose first picture is missing. Windows cut
    # at the edge, interpolated positions, DeepStack, and multimodal positions behind pictures, cached and not, are in
    # these numbers.
    name, net, params, _, arrays = model

    @jax.jit
    def run(params):
        model = net.bind(params)
        seen = model.vision(arrays["images"][0], "float32")
        prefix = model.prefix(qwen_examples.observation(arrays))
        words = model.generate(jax.random.key(0), prefix, Decoding(6, end_token=-1))
        return seen, model.token_logits(prefix, arrays["target"]), words.tokens

    seen, logits, words = run(params)
    assert difference("features", seen.tokens, arrays["features"]).relative < TOLERANCE
    if name == "qwen3_vl":
        assert difference("deepstack", seen.added, arrays["deepstack"]).relative < TOLERANCE
    assert difference("logits", logits, arrays["logits"]).relative < TOLERANCE
    assert words.tolist() == arrays["generated"].tolist()


@pytest.mark.parametrize("name", qwen_examples.NAMES)
@pytest.mark.parametrize("has_expert", [False, True])
def test_what_goes_out_comes_back(name, has_expert, tmp_path):
    config = qwen_examples.config(name)
    if has_expert:
        config = qwen_vl.with_action_expert(config, state_dim=3)
    constructor = lambda rngs: QwenVL(config, rngs)  # noqa: E731
    params = examples.random_params(constructor)
    layout = layouts.layout(name, config, prefix="")
    transfer.export_params(params, layout, tmp_path)
    shapes = flatten(params)
    zeros = lambda paths: {path: np.zeros(shapes[path].shape, np.float32) for path in paths}  # noqa: E731
    source = Safetensors(tmp_path)
    back, report = transfer.import_params(source, layout, params, fresh=zeros)
    counts = report.counts()
    assert counts["missing"] == counts["mismatched"] == counts["unexpected"] == 0
    fresh = {row.ours for row in report.of("fresh")}
    assert all(path.startswith(("mixture/suffix", "state_in")) for path in fresh) and bool(fresh) == has_expert
    for path, array in flatten(back).items():
        if path not in fresh:  # `1 + scale` is rounded once
            np.testing.assert_allclose(array, shapes[path], rtol=0, atol=3e-7, err_msg=path)
    assert compare.Difference.worst(transfer.verify(source, layout, back)).relative < 1e-6


@pytest.mark.parametrize(
    ("make", "layout", "count"),
    [
        (qwen_vl.qwen2_5_vl_3b, "qwen2_5_vl", 824),
        (qwen_vl.qwen2_5_vl_7b, "qwen2_5_vl", 729),
        (qwen_vl.qwen3_vl_2b, "qwen3_vl", 625),
        (qwen_vl.qwen3_vl_4b, "qwen3_vl", 713),
    ],
)
def test_published_shapes_have_the_published_number_of_tensors(make, layout, count):
    template = functional.describe(lambda rngs: QwenVL(make(), rngs))[1]
    tensors = transfer.their_tensors(layouts.layout(layout, make(), prefix=""), flatten(template), np.dtype(np.float32))
    assert len(tensors) == count


def test_both_spellings_of_qwen2_5_mean_the_same_tensors():
    layout = layouts.layout("qwen2_5_vl", qwen_examples.config("qwen2_5_vl"), prefix="")
    names = [name for rule in layout.rules for name in rule.names]
    newer = {"visual.": "model.visual.", "model.": "model.language_model.", "lm_head.": "lm_head."}
    spelled = [new + name.removeprefix(old) for name in names for old, new in newer.items() if name.startswith(old)]
    assert len(set(spelled)) == len(names) and [layout.canonical(name) for name in spelled] == names
    assert [layout.canonical(name) for name in names] == names


def test_the_output_layer_stands_in_for_the_embedding_that_it_is_tied_to():
    layout = layouts.layout("qwen3_vl", qwen_examples.config("qwen3_vl"), prefix="")
    assert layout.spellings(["lm_head.weight"]) == {"model.language_model.embed_tokens.weight": "lm_head.weight"}
    assert layout.why_unused("lm_head.weight")


def test_a_network_of_another_kind_is_refused():
    with pytest.raises(errors.ConfigError, match="QwenVLConfig"):
        layouts.layout("qwen3_vl", examples.paligemma_config())
    with pytest.raises(errors.ConfigError, match="PaliGemmaConfig"):
        layouts.layout("paligemma", qwen_examples.config("qwen3_vl"))
    with pytest.raises(errors.ConfigError, match=r"qwen2\.5"):
        layouts.layout("qwen3_vl", qwen_examples.config("qwen2_5_vl"))
