"""A run with adapters from start to evaluation: what its checkpoints hold, how it resumes, what it loads as."""

import contextlib
import dataclasses
import shutil

import jax
import numpy as np
import pytest

from tests.nets import examples
from tests.test_libero_recipe import tiny, write_set
from vla_jax import cli, experiment
from vla_jax.core import errors
from vla_jax.training import checkpoints, plain, trained
from vla_jax.training import recipe as recipes
from vla_jax.training.adapters import Lora
from vla_jax.training.checkpoints import flatten
from vla_jax.training.quantize import num_bytes
from vla_jax.training.tuning import TuningConfig

LORA = TuningConfig(lora=(Lora("backbone/decoder/*kernel", rank=4),), train=("action_*", "time_*"))


def tuned(recipe, folder, **fit):
    # Without warm-up, so that the first of few steps moves; learning rates are high for the same reason.
    optimizer = dataclasses.replace(recipe.optimizer, peak_lr=0.01, end_lr=0.0, warmup_steps=0, decay_steps=None)
    learner = dataclasses.replace(recipe.learner, ema_decay=0.0)
    fit = dataclasses.replace(recipe.fit, **{"num_train_steps": 4, "checkpoint_every": 2, "log_every": 1} | fit)
    start = str(folder / "base")
    return dataclasses.replace(
        recipe, name="tuned", tuning=LORA, start_from=start, optimizer=optimizer, learner=learner, fit=fit
    )


def save_untrained(recipe, folder):
    _, params = examples.init(recipe.policy.constructor(), jax.random.key(5))
    metadata = trained.contract(recipe, experiment.data_statistics(recipe), tuple("abcdefg"), 20.0)
    with contextlib.closing(checkpoints.Checkpoints(folder)) as store:
        store.save(1, {}, params, {}, metadata)
        store.wait()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with a base, a tuned run, and the same run killed after its first checkpoint and gone on with."""
    folder = tmp_path_factory.mktemp("tuned")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLA_JAX_COMPILE_CACHE", jax.config.jax_compilation_cache_dir)
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        recipe = tiny(write_set(folder / "set"))
        save_untrained(recipe, folder / "base")
        recipe = tuned(recipe, folder)
        experiment.train(recipe, folder / "whole", quiet=True)
        shutil.copytree(folder / "whole", folder / "parts")
        shutil.rmtree(folder / "parts" / "checkpoints" / "4")
        experiment.train(recipe, folder / "parts", quiet=True)
        yield folder


def test_checkpoints_hold_what_trained_and_nothing_else(runs):
    actor, document = checkpoints.load_actor(runs / "whole")
    assert set(actor) == {"trained"}
    names = set(flatten(actor["trained"]))
    assert {"backbone/decoder/out/kernel/a", "backbone/decoder/out/kernel/b", "action_in/kernel"} <= names
    assert not any(name.startswith(("backbone/cameras", "backbone/text")) for name in names)
    assert not any("frozen" in name or "cameras" in name for name in document["leaves"]["learner"])
    assert num_bytes(actor) < 0.5 * num_bytes(trained.load(runs / "base").params)
    assert plain.from_plain(recipes.Recipe, document["recipe"]).tuning == LORA


def test_a_resumed_run_is_the_one_that_was_never_stopped(runs):
    whole, parts = (checkpoints.load_actor(runs / name)[0] for name in ("whole", "parts"))
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    assert (runs / "whole" / "metrics.jsonl").read_bytes() == (runs / "parts" / "metrics.jsonl").read_bytes()
    assert any(leaf.any() for path, leaf in flatten(parts).items() if path.endswith("/b"))


def test_it_loads_as_a_merged_policy_that_differs_from_its_base_where_it_trained(runs):
    base, policy = trained.load(runs / "base"), trained.load(runs / "whole")
    ours, theirs = flatten(policy.params), flatten(base.params)
    assert ours.keys() == theirs.keys() and policy.learner.tuning is None
    moved = {path for path in ours if not np.array_equal(ours[path], theirs[path])}
    assert "backbone/decoder/out/kernel" in moved and "action_out/kernel" in moved
    assert all(path.startswith(("backbone/decoder/", "action_", "time_")) for path in moved)
    small = policy.quantized()
    assert num_bytes(small.params) < 0.4 * num_bytes(policy.params)


def test_merged_it_needs_no_base_and_is_not_written_twice(runs, tmp_path, capsys):
    cli.main(["merge", str(runs / "whole"), str(tmp_path / "merged")])
    assert "merged with what it started from" in " ".join(capsys.readouterr().out.split())  # lines break anywhere
    merged, policy = trained.load(tmp_path / "merged"), trained.load(runs / "whole")
    jax.tree.map(np.testing.assert_array_equal, merged.params, policy.params)
    assert merged.recipe.tuning == TuningConfig() and trained.BASE not in merged.metadata
    with pytest.raises(errors.CheckpointError, match="not empty"):
        trained.save_merged(runs / "whole", tmp_path / "merged")


def test_another_base_is_refused_and_a_moved_one_is_found_by_name(runs, tmp_path):
    before = trained.load(runs / "whole").params
    moved = runs / "base"
    moved = moved.rename(tmp_path / "elsewhere")
    try:
        with pytest.raises(errors.CheckpointError, match="no checkpoint"):
            trained.load(runs / "whole")
        jax.tree.map(np.testing.assert_array_equal, trained.load(runs / "whole", base=moved).params, before)
        # The same recipe again gives the same numbers in other files: it is another checkpoint.
        with pytest.raises(errors.CheckpointError, match="its frozen part is not the one"):
            trained.load(runs / "whole", base=runs / "parts" / "checkpoints" / "2")
    finally:
        moved.rename(runs / "base")


def test_what_cannot_be_is_refused(runs):
    recipe = trained.load(runs / "whole").recipe
    with pytest.raises(errors.ConfigError, match="start_from"):
        dataclasses.replace(recipe, start_from=None)
    wrong = dataclasses.replace(recipe, tuning=TuningConfig(lora=(Lora("backbone/decode/*kernel"),)))
    with pytest.raises(errors.ConfigError, match="did you mean 'backbone/decoder/"):
        experiment.train(wrong, runs / "wrong", quiet=True)
