"""Tables read both ways: what goes out comes back, streaming, and reports name every tensor."""

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.interop import examples
from vla_jax.core import errors, functional
from vla_jax.nets import vla_transformer
from vla_jax.nets.paligemma import PaliGemma, pi0_fast
from vla_jax.policies.flow import FlowConfig, FlowPolicy
from vla_jax.training.checkpoints import flatten
from vla_jax.training.interop import compare, layouts, report, transfer
from vla_jax.training.interop.rules import Rule, reflect_time
from vla_jax.training.interop.safetensors import Safetensors
from vla_jax.training.interop.sources import OrbaxArrays

CASES = [("pi0", "lerobot"), ("pi05", "lerobot"), ("pi0", "openpi"), ("pi05", "openpi")]
VLM_CASES = ["paligemma", "gemma", "siglip", "lerobot", "openpi"]  # the last two as pi0-FAST has them


@pytest.fixture(
    scope="module",
    params=[*CASES, *((None, name) for name in VLM_CASES)],
    ids=lambda case: "-".join(filter(None, case)),
)
def exported(request, tmp_path_factory):
    """(random parameters, layout, the folder they were exported to)"""
    kind, name = request.param
    if kind is None:
        constructor, layout = examples.paligemma, layouts.layout(name, examples.paligemma_config(), prefix="")
    else:
        constructor = examples.policy(kind)
        layout = layouts.layout(name, examples.backbone(kind), examples.flow(kind))
    params = examples.random_params(constructor)
    folder = tmp_path_factory.mktemp(name)
    transfer.export_params(params, layout, folder)
    return params, layout, folder


def test_what_goes_out_comes_back(exported):
    params, layout, folder = exported
    shapes = flatten(params)
    zeros = lambda paths: {path: np.zeros(shapes[path].shape, np.float32) for path in paths}  # noqa: E731
    source = Safetensors(folder)
    back, found = transfer.import_params(source, layout, params, fresh=zeros)
    counts = found.counts()
    assert counts["missing"] == counts["mismatched"] == counts["unexpected"] == 0
    fresh = set(report.restarted(found))
    for path, array in flatten(back).items():
        # Only the flow time's kernel is computed, by a reflection in float64 rounded twice.
        tolerance = 1e-6 if path == "time_in/kernel" else 0
        if path not in fresh:
            np.testing.assert_allclose(array, shapes[path], rtol=0, atol=tolerance * 10, err_msg=path)
    worst = compare.Difference.worst(transfer.verify(source, layout, back))
    assert worst.relative < 1e-6


def test_names_of_lerobot_are_the_published_ones(tmp_path):
    # As in the checkpoints of LeRobot 0.6 and in openpi's torch models.
    layout = layouts.layout("lerobot", examples.backbone("pi05"), examples.flow("pi05"))
    transfer.export_params(examples.random_params(examples.policy("pi05")), layout, tmp_path)
    top, tensors = "model.paligemma_with_expert.", Safetensors(tmp_path).tensors
    expected = {
        f"{top}paligemma.model.language_model.layers.1.self_attn.q_proj.weight": (32, 24),
        f"{top}paligemma.model.language_model.embed_tokens.weight": (64, 24),
        f"{top}paligemma.model.language_model.norm.weight": (24,),
        f"{top}paligemma.model.vision_tower.vision_model.embeddings.patch_embedding.weight": (16, 3, 14, 14),
        f"{top}paligemma.model.vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight": (32, 16),
        f"{top}paligemma.model.multi_modal_projector.linear.weight": (24, 16),
        f"{top}gemma_expert.model.layers.0.input_layernorm.dense.weight": (48, 16),
        f"{top}gemma_expert.model.norm.dense.bias": (48,),
        f"{top}gemma_expert.lm_head.weight": (64, 16),
        "model.action_in_proj.weight": (16, 6),
        "model.time_mlp_in.weight": (16, 16),
    }
    assert {name: tensors[name].shape for name in expected} == expected
    assert not any("state_proj" in name or "action_time_mlp" in name for name in tensors)


def test_names_of_lerobots_pi0_fast_are_those_of_its_code(tmp_path):
    # As its modules are nested at commit 02e3ae7 of huggingface/lerobot (policies/pi0_fast, policies/pi_gemma).
    layout = layouts.layout("lerobot", examples.paligemma_config(), prefix="")
    transfer.export_params(examples.random_params(examples.paligemma), layout, tmp_path)
    top, tensors = "model.paligemma_with_expert.paligemma.", Safetensors(tmp_path).tensors
    expected = {
        f"{top}lm_head.weight": (64, 24),
        f"{top}model.language_model.embed_tokens.weight": (64, 24),
        f"{top}model.language_model.layers.1.input_layernorm.weight": (24,),
        f"{top}model.language_model.layers.0.self_attn.k_proj.weight": (8, 24),
        f"{top}model.language_model.layers.0.mlp.gate_proj.weight": (40, 24),
        f"{top}model.language_model.norm.weight": (24,),
        f"{top}model.vision_tower.vision_model.encoder.layers.1.self_attn.out_proj.bias": (16,),
        f"{top}model.multi_modal_projector.linear.bias": (24,),
    }
    assert {name: tensors[name].shape for name in expected} == expected
    assert all(name.startswith(top) for name in tensors)
    embedding = f"{top}model.language_model.embed_tokens.weight"
    assert layout.spellings([f"{top}lm_head.weight"]) == {
        embedding: f"{top}lm_head.weight"
    }  # a file may have one of two


def test_pi0_fast_at_published_shapes_has_pi0s_tensors_without_its_expert():
    leaves = flatten(functional.describe(lambda rngs: PaliGemma(pi0_fast(("base",)), rngs))[1])
    layout = layouts.layout("lerobot", pi0_fast(("base",)), prefix="")
    theirs = transfer.their_tensors(layout, leaves, np.dtype(np.float32))
    # Of the 778 of pi0 (see below): without 18 layers of 9 and a norm, the expert's output layer, and 10 of the heads.
    assert len(theirs) == 778 - (18 * 9 + 1) - 1 - 10


@pytest.mark.parametrize(
    ("name", "spelling"),
    [
        ("paligemma", lambda name: name.replace("vision_tower.vision_model.", "vision_tower.")),
        ("paligemma", lambda name: "model." + name.replace("language_model.model.", "language_model.")),
        ("siglip", lambda name: name.removeprefix("vision_model.")),
        ("gemma", lambda name: name.removeprefix("model.")),
        ("lerobot", lambda name: name.removeprefix("model.")),
        ("lerobot", lambda name: name.replace("paligemma.model.vision_tower.vision_model", "paligemma.vision_tower")),
        ("lerobot", lambda name: name.replace("paligemma.model.language_model.", "paligemma.language_model.model.")),
    ],
)
def test_older_and_newer_spellings_mean_the_same_tensors(name, spelling):
    backbone = examples.backbone("pi0") if name == "lerobot" else examples.paligemma_config()
    layout = layouts.layout(name, backbone, examples.flow("pi0") if name == "lerobot" else None)
    names = [tensor for rule in layout.rules for tensor in rule.names]
    assert [layout.canonical(spelling(tensor)) for tensor in names] == names
    assert [layout.canonical(tensor) for tensor in names] == names


@pytest.mark.parametrize("name", ["paligemma", "gemma", "lerobot"])
def test_the_output_layer_stands_in_for_the_embedding_that_it_is_tied_to(name):
    # As in LeRobot's published pi0_base and pi05_base, which have no embed_tokens.
    backbone = examples.backbone("pi0") if name == "lerobot" else examples.paligemma_config()
    layout = layouts.layout(name, backbone, examples.flow("pi0") if name == "lerobot" else None)
    (tie,) = layout.tied
    assert layout.spellings([tie.alias]) == {tie.name: tie.alias}
    assert layout.spellings([tie.alias, tie.name]) == {tie.name: tie.name, tie.alias: tie.alias}
    assert layout.why_unused(tie.alias)


@pytest.mark.parametrize(("kind", "count"), [("pi0", 777), ("pi05", 812)])
def test_published_shapes_have_the_published_number_of_tensors(kind, count):
    # "Remapped 777 state dict keys" is what LeRobot says of pi0_base, which has one of the two tied names. In pi0.5 37
    # norms have kernel and bias instead of a scale, and the state's two tensors are gone: 777 + 37 - 2.
    build, time = (vla_transformer.pi0, "concat") if kind == "pi0" else (vla_transformer.pi05, "adaptive_norm")
    backbone, flow = build(("base", "left", "right")), FlowConfig(50, 32, time_conditioning=time)
    constructor = lambda rngs: FlowPolicy(flow, vla_transformer.VlaTransformer(backbone, rngs), rngs)  # noqa: E731
    leaves = flatten(functional.describe(constructor)[1])
    theirs = transfer.their_tensors(layouts.layout("lerobot", backbone, flow), leaves, np.dtype(np.float32))
    assert len(theirs) == count + 1
    stacked = transfer.their_tensors(layouts.layout("openpi", backbone, flow), leaves, np.dtype(np.float32))
    assert stacked["PaliGemma/llm/layers/mlp/gating_einsum"].shape == (18, 2, 2048, 16384)
    assert stacked["PaliGemma/llm/embedder/input_embedding"].shape == (257152, 2048)


def test_report_names_missing_mismatched_and_unexpected_tensors(tmp_path):
    config, template = examples.paligemma_config(), functional.describe(examples.paligemma)[1]
    layout = layouts.layout("siglip", config, prefix="")
    params = examples.random_params(examples.paligemma)
    tensors = transfer.their_tensors(layout, flatten(params), np.dtype(np.float32))
    lost, bent = "vision_model.encoder.layers.1.mlp.fc2.bias", "vision_model.post_layernorm.bias"
    theirs = {name: info for name, info in tensors.items() if name != lost}
    theirs[bent] = theirs[bent]._replace(shape=(17,))
    theirs["vision_model.extra"] = theirs[bent]
    theirs["vision_model.head.probe"] = theirs[bent]
    found = report.make_report(layout, flatten(template), theirs, "some/file")
    assert [row.ours for row in found.of("missing")] == ["vision/layers/down/bias"]
    assert lost in found.of("missing")[0].detail
    assert [(row.ours, row.detail) for row in found.of("mismatched")] == [
        ("vision/norm/bias", "wants [16], found [17]")
    ]
    assert [row.theirs for row in found.of("unexpected")] == ["vision_model.extra"]
    assert [row.theirs for row in found.of("unused")] == ["vision_model.head.probe"]
    with pytest.raises(errors.CheckpointError, match="down/bias") as error:
        found.require(["vision/norm/*"])
    assert "vision/norm/bias" not in str(error.value)
    found.require(["vision/norm/*", "vision_model.extra", "vision/layers/down/bias"])
    assert report.to_table(found).row_count == len(found.rows) - len(found.of("matched"))


def test_allowed_gaps_start_anew_and_the_rest_is_read(tmp_path):
    params = examples.random_params(examples.policy("pi0"))
    layout = layouts.layout("lerobot", examples.backbone("pi0"), examples.flow("pi0"))
    transfer.export_params(params, layout, tmp_path)
    larger = functional.describe(examples.policy("pi0", vocab_size=70))[1]
    layout = layouts.layout("lerobot", examples.backbone("pi0", vocab_size=70), examples.flow("pi0"))
    source = Safetensors(tmp_path)
    with pytest.raises(errors.CheckpointError, match="embedding"):
        transfer.import_params(source, layout, larger)
    asked = []

    def fresh(paths):
        asked.extend(paths)
        return {path: np.full((70, 24), 7.0) for path in paths}

    back, _ = transfer.import_params(source, layout, larger, allow=["backbone/embedding"], fresh=fresh)
    assert asked == ["backbone/embedding"]
    assert (back["backbone"]["embedding"] == 7).all()
    np.testing.assert_array_equal(back["action_in"]["kernel"], params["action_in"]["kernel"])


def test_padding_is_left_out_on_import_and_zero_on_export(tmp_path):
    # A robot of 3 state dims: theirs is padded to the 6 of the actions, and a table of 70 words is cut to 64.
    params = examples.random_params(examples.policy("pi0", vocab_size=70))
    wide = layouts.layout("lerobot", examples.backbone("pi0", vocab_size=70), examples.flow("pi0"))
    transfer.export_params(params, wide, tmp_path / "wide")
    template = functional.describe(examples.policy("pi0", state_dim=3))[1]
    layout = layouts.layout("lerobot", examples.backbone("pi0", state_dim=3), examples.flow("pi0"))
    source = Safetensors(tmp_path / "wide")
    back, _ = transfer.import_params(source, layout, template, allow=["*gemma_expert.lm_head*"])
    np.testing.assert_array_equal(back["backbone"]["embedding"], params["backbone"]["embedding"][:64])
    np.testing.assert_array_equal(back["backbone"]["state_in"]["kernel"], params["backbone"]["state_in"]["kernel"][:3])
    assert compare.Difference.worst(transfer.verify(source, layout, back)).relative < 1e-6
    transfer.export_params(back, layout, tmp_path / "out")
    state = Safetensors(tmp_path / "out").read("model.state_proj.weight")
    assert state.shape == (16, 6) and (state[:, 3:] == 0).all()
    np.testing.assert_array_equal(state[:, :3].T, back["backbone"]["state_in"]["kernel"])


def test_openpi_arrays_are_read_by_layer(tmp_path):
    source = OrbaxArrays(examples.openpi_folder("pi0", tmp_path))
    name = "PaliGemma/llm/layers/mlp/gating_einsum"
    assert source.tensors[name].shape == (2, 2, 24, 40)
    np.testing.assert_array_equal(source.read(name, 1), source.read(name)[1])


def test_a_folder_that_is_no_openpi_checkpoint_is_refused(tmp_path):
    with pytest.raises(errors.CheckpointError, match=r"manifest\.ocdbt"):
        OrbaxArrays(tmp_path)


@pytest.mark.parametrize(
    "changes", [dict(state_token="prefix"), dict(camera_embedding=True)], ids=["neither pi0 nor pi0.5", "our departure"]
)
def test_networks_without_a_place_in_a_layout_are_refused(changes):
    with pytest.raises(errors.ConfigError):
        layouts.layout("openpi", examples.backbone("pi0", **changes), examples.flow("pi0"))


@given(depth=st.integers(0, 3), heads=st.integers(1, 3), width=st.integers(1, 4), by_name=st.booleans())
@settings(max_examples=30, deadline=None)
def test_a_rule_and_its_inverse_are_one(depth, heads, width, by_name):
    theirs = "w.{layer}" if by_name and depth else "w"
    rule = Rule(("a", "b"), theirs, "parts (h k) d -> parts d h k", depth=depth, values=np.negative)
    shape = (width, heads, 2)
    ours = [np.random.default_rng(i).normal(size=shape) for i in range(2)]
    full = (depth, *shape) if depth else shape
    there = rule.to_theirs(ours)
    assert there.shape == (2, heads * 2, width)
    assert rule.their_shape(full) == ((depth, *there.shape) if depth and not (by_name and depth) else there.shape)
    assert there[1, 2 * heads - 1, 0] == -ours[1][0, heads - 1, 1]
    for back, array in zip(rule.to_ours(there, full), ours, strict=True):
        np.testing.assert_array_equal(back, array)


def test_reflected_time_features_are_those_of_one_minus_time():
    # A kernel that reads sin, cos of w t, reflected, must give at t what the kernel gave at 1 - t.
    periods = np.array([0.5, 1.3])
    features = lambda t: np.concatenate([np.sin(2 * np.pi * t / periods), np.cos(2 * np.pi * t / periods)])  # noqa: E731
    kernel = np.random.default_rng(0).normal(size=(6, 3))
    turned = reflect_time(periods, slice(2, None))(kernel)
    np.testing.assert_allclose(features(0.3) @ turned[2:], features(0.7) @ kernel[2:], atol=1e-12)
    np.testing.assert_array_equal(turned[:2], kernel[:2])
    np.testing.assert_allclose(reflect_time(periods, slice(2, None))(turned), kernel, atol=1e-12)


def test_importing_takes_little_more_than_one_copy(tmp_path):
    """In a process of its own: 100 MB read, then written as a checkpoint. Two copies would be 200 MB and 300 MB."""
    config = examples.large_paligemma_config()
    layout = layouts.layout("paligemma", config, prefix="")
    template = functional.describe(lambda rngs: examples.PaliGemma(config, rngs))[1]
    params = jax.tree.map(lambda leaf: np.random.default_rng(0).random(leaf.shape, np.float32), template)
    (file,) = transfer.export_params(params, layout, tmp_path / "theirs")
    size = file.stat().st_size
    assert size > 95e6
    command = [sys.executable, "-m", "tests.training.interop.peak_memory", str(file), str(tmp_path / "run")]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[3], check=False
    )
    assert done.returncode == 0, done.stderr
    _, reading, writing = map(int, done.stdout.split())
    assert reading < 1.15 * size
    # What orbax holds while it writes does not grow with the checkpoint: 70 to 110 MB at 100 and at 400 MB.
    assert writing < size + 150e6
