"""pi0-FAST on DROID's schema at the smallest size: it trains, it is planned, and its words fit the vocabulary."""

import contextlib
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines import droid_synthetic
from recipes import pi0_droid, pi0_fast_droid
from vla_jax import cli, experiment
from vla_jax.codecs import fast_files
from vla_jax.codecs.text import ByteTokenizer
from vla_jax.core import errors
from vla_jax.data.loader import Loader
from vla_jax.nets.gemma import GemmaConfig
from vla_jax.nets.siglip import SiglipConfig
from vla_jax.training import trained


def tiny(folder):
    """`quick` on one layer and smaller pictures, without warm-up."""
    recipe = pi0_fast_droid.quick()
    backbone = dataclasses.replace(
        recipe.policy.backbone,
        vision=SiglipConfig(32, depth=1, mlp_dim=64, num_heads=2, patch_size=16, image_size=32),
        language=GemmaConfig(32, depth=1, mlp_dim=64, num_heads=2, num_kv_heads=1, head_dim=16),
    )
    return dataclasses.replace(
        recipe,
        policy=dataclasses.replace(recipe.policy, backbone=backbone),
        optimizer=dataclasses.replace(recipe.optimizer, peak_lr=1e-2, end_lr=1e-2, warmup_steps=0),
        data=pi0_fast_droid.data(str(folder), batch_size=4, size=32, kept=None, seed=0),
    )


class Bytes(ByteTokenizer):
    """With room for the words of actions at the end, as PaliGemma's vocabulary has it."""

    vocab_size = 257152


def test_it_learns_to_write_chunks(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = droid_synthetic.DroidSyntheticConfig(num_episodes=3, shortest=20, longest=24)
    droid_synthetic.generate(tmp_path / "droid/1.0.1", config)
    recipe = tiny(tmp_path / "droid/1.0.1")
    edges = trained.make_edges(recipe, experiment.data_statistics(recipe))
    loader = Loader(
        recipe.data.datasets, batch_size=4, seed=0, tokenizer=edges.encode, normalizer=edges.normalizer, num_threads=1
    )
    learner, key, history = trained.make_learner(recipe), jax.random.key(0), []
    update = jax.jit(learner.update)
    with contextlib.closing(loader):
        state = jax.jit(learner.init)(key, loader.example())
        for step, batch in zip(range(15), loader, strict=False):
            state, metrics = update(state, jax.random.fold_in(key, step), batch)
            history.append(jax.device_get(metrics))
    # An untrained model gives all of 257 words the same chance.
    assert abs(history[0]["policy/loss"] - np.log(257)) < 1
    assert history[-1]["policy/loss"] < 0.7 * history[0]["policy/loss"]
    assert all(each["tokens/cut_off"] == 0 for each in history)


def test_it_is_planned_without_an_accelerator(tmp_path, capsys):
    recipe = "recipes/pi0_fast_droid.py:quick"
    where = ["--cache", str(tmp_path / "cache"), "--json", str(tmp_path / "plan.json")]
    cli.main(["plan", recipe, "--topology", "h100:1", "--compiler", "cpu", "--batch-size", "2", *where])
    assert "pi0_fast_droid/quick on h100:1 (cpu compiler)" in capsys.readouterr().out
    (row,) = json.loads((tmp_path / "plan.json").read_text())
    assert row["fits"] and row["memory"]["parameters"] > 4e6 / 2**30


def test_the_codec_without_data_writes_what_a_chunk_can_be():
    codec, text = pi0_fast_droid.plain_codec(), pi0_fast_droid.quick().policy.decoder.text
    chunks = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (16, 10, 8)), jnp.float32)
    chunks = chunks.at[0].set(1.0).at[1].set(-1.0).at[2].set(0.0)
    ids, mask, fits = jax.jit(text.encode)(chunks)
    decoded, is_valid = jax.jit(text.decode)(ids)
    assert is_valid.all() and fits.all()
    # A coefficient is off by half a step of 1 / 10 at most, and 10 of them make an entry: sqrt(10) * 0.05.
    assert jnp.abs(decoded - chunks).max() < 0.16
    np.testing.assert_allclose(decoded[:3], chunks[:3], atol=0.05)
    # 80 zeros are ten runs of eight, between "Action: ", "|" and the end.
    assert mask[2].sum() == len(text.start) + 80 // 8 + len(text.stop) + 1
    assert codec.num_tokens == 2 * 32 + 1 + 3


def test_with_the_published_files_prompt_state_and_sentence_have_250_tokens(tmp_path, monkeypatch):
    (tmp_path / "tokenizer.model").touch()
    monkeypatch.setattr(pi0_droid, "VOCABULARY", str(tmp_path / "tokenizer.model"))
    monkeypatch.setattr(pi0_fast_droid.texts, "SentencePieceTokenizer", lambda path: Bytes())
    monkeypatch.setattr(pi0_fast_droid, "FAST", str(tmp_path / "fast"))
    with pytest.raises(errors.ConfigError, match=r"fast/processor_config\.json"):
        pi0_fast_droid.paper()
    fast_files.save(pi0_fast_droid.plain_codec(), tmp_path / "fast")
    recipe = pi0_fast_droid.paper()
    state = recipe.policy.backbone.state_text
    assert recipe.text.prompt_length + state.num_tokens(8) + recipe.policy.decoder.text.max_tokens == 250
    assert recipe.policy.decoder.text.codec == pi0_fast_droid.plain_codec()
