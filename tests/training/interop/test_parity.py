"""Imported weights compute what their own framework computed: fixtures of openpi and transformers, float32."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.interop import examples
from vla_jax.core import functional
from vla_jax.core.types import Observation
from vla_jax.nets.attention import block_mask
from vla_jax.nets.language import Decoding
from vla_jax.nets.mixture import Stream, run_layers
from vla_jax.samplers.flow import EulerOptions, euler
from vla_jax.training.interop import layouts, transfer
from vla_jax.training.interop.compare import difference
from vla_jax.training.interop.safetensors import Safetensors
from vla_jax.training.interop.sources import OrbaxArrays

TOLERANCE = 1e-4  # relative to the largest magnitude of the reference


def zeros(template):
    leaves = transfer.flatten(template)
    return lambda paths: {path: np.zeros(leaves[path].shape, leaves[path].dtype) for path in paths}


@pytest.fixture(scope="module", params=["pi0", "pi05"])
def openpi(request, tmp_path_factory):
    """(kind, its policy with openpi's weights, the inputs and outputs of openpi)"""
    kind = request.param
    net, template = functional.describe(examples.policy(kind))
    source = OrbaxArrays(examples.openpi_folder(kind, tmp_path_factory.mktemp(kind)))
    layout = layouts.layout("openpi", examples.backbone(kind), examples.flow(kind))
    imported = transfer.import_params(source, layout, template)
    return kind, net, imported, jax.tree.map(jnp.asarray, examples.inputs("openpi_io.npz", kind))


def observation(arrays) -> Observation:
    return Observation(
        images={name: arrays[f"images/{name}"] for name in examples.CAMERAS},
        image_mask={name: arrays[f"image_mask/{name}"] for name in examples.CAMERAS},
        state=arrays["state"],
        prompt=arrays["prompt"],
        prompt_mask=arrays["prompt_mask"],
    )


def test_every_tensor_of_openpi_has_its_place(openpi):
    kind, _, imported, _ = openpi
    counts = imported.report.counts()
    assert (counts["matched"], counts["unused"]) == ((49, 1) if kind == "pi0" else (50, 1))
    assert sum(counts.values()) == counts["matched"] + counts["unused"]


def test_velocity_and_chunk_are_those_of_openpi(openpi):
    # Images, masks of missing cameras, padded prompts, state token or adaptive norms, RoPE, prefix cache, flow time:
    # a wrong one of these moves the velocity by far more than the tolerance.
    _, net, imported, arrays = openpi

    @jax.jit
    def run(params):
        policy = net.bind(params)
        prefix = policy.prefix(observation(arrays))
        velocity = policy.velocity(prefix, arrays["x"], 1 - arrays["time"])
        field = lambda x, time: policy.velocity(prefix, x, jnp.full(2, time))  # noqa: E731
        chunk, _ = euler(jax.random.key(0), field, arrays["noise"], EulerOptions(num_steps=10))
        return velocity, chunk

    velocity, chunk = run(imported.params)
    assert difference("velocity", -velocity, arrays["velocity"]).relative < TOLERANCE
    assert difference("chunk", chunk, arrays["chunk"]).relative < TOLERANCE


def test_words_of_pi0_fast_are_those_of_openpi(tmp_path):
    # Its prompt is seen both ways and its suffix is causal, as `token_ar_mask` says there.
    config = dataclasses.replace(examples.paligemma_config(), cameras=examples.CAMERAS, vision=examples.vision(32))
    net, template = functional.describe(lambda rngs: examples.PaliGemma(config, rngs))
    source = OrbaxArrays(examples.openpi_folder("pi0_fast", tmp_path))
    params, report = transfer.import_params(source, layouts.layout("openpi", config, prefix=""), template)
    assert report.counts()["matched"] == len(report.rows)
    arrays = jax.tree.map(jnp.asarray, examples.inputs("openpi_io.npz", "pi0_fast"))
    everywhere = {f"image_mask/{name}": jnp.ones(2, bool) for name in examples.CAMERAS}
    seen = observation(arrays | everywhere | {"state": jnp.zeros((2, 0)), "prompt_mask": jnp.ones((2, 4), bool)})

    @jax.jit
    def run(params):
        model = net.bind(params)
        return model.token_logits(model.prefix(seen), arrays["target"])

    assert difference("logits", run(params), arrays["logits"]).relative < TOLERANCE


@pytest.fixture(scope="module", params=["siglip", "gemma", "paligemma"])
def huggingface(request):
    name = request.param
    net, template = functional.describe(examples.paligemma)
    layout = layouts.layout(name, examples.paligemma_config(), prefix="")
    source = Safetensors(examples.FIXTURES / name)
    imported = transfer.import_params(source, layout, template, fresh=zeros(template))
    return name, net, imported.params, jax.tree.map(jnp.asarray, examples.inputs("huggingface_io.npz", name))


def test_outputs_are_those_of_transformers(huggingface):
    name, net, params, arrays = huggingface

    @jax.jit
    def run(params):
        model = net.bind(params)
        if name == "siglip":
            return model.vision(arrays["images"], jnp.float32)
        if name == "gemma":
            positions = jnp.broadcast_to(jnp.arange(9)[None], (2, 9))
            seen = block_mask(positions, jnp.ones((2, 9), bool))
            outputs = run_layers([model.text_layers], [Stream(model.embed(arrays["tokens"]), positions)], seen)
            return model.logits(model.text_norm(outputs.tokens[0]))
        return model.token_logits(model.prefix(seen_and_read(arrays)), arrays["target"])

    expected = arrays["features" if name == "siglip" else "logits"]
    assert difference(name, run(params), expected).relative < TOLERANCE


@pytest.mark.parametrize("huggingface", ["paligemma"], indirect=True)
def test_greedy_words_are_those_of_transformers(huggingface):
    _, net, params, arrays = huggingface

    def run(params):
        model = net.bind(params)
        return model.generate(jax.random.key(0), model.prefix(seen_and_read(arrays)), Decoding(6, end_token=62)).tokens

    assert jax.jit(run)(params).tolist() == arrays["generated"].tolist()


def seen_and_read(arrays) -> Observation:
    return Observation(
        images={"image": arrays["images"]},
        image_mask={"image": jnp.ones(2, bool)},
        state=jnp.zeros((2, 0)),
        prompt=arrays["prompt"],
        prompt_mask=jnp.ones((2, 5), bool),
    )
