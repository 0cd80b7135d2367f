"""A metric against its own history, and a run that goes back to its last good checkpoint."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.training import toy_learner as toy
from vla_jax.core import errors
from vla_jax.training import collapse
from vla_jax.training import logging as logs
from vla_jax.training.checkpoints import Checkpoints
from vla_jax.training.collapse import CollapseConfig
from vla_jax.training.fit import FitConfig, fit
from vla_jax.training.sources import DatasetSource

FALLS = CollapseConfig(window=2, patience=2)
GROWS = CollapseConfig("critic/q_values", "grows", factor=3.0, window=3, patience=2)


def history(*values):
    return [(10 * (i + 1), value) for i, value in enumerate(values)]


@pytest.mark.parametrize(
    ("config", "values", "good_step"),
    [
        (FALLS, (0.2, 0.5, 0.8, 0.9, 0.85, 0.3, 0.2), 40),
        (FALLS, (0.2, 0.5, 0.8, 0.9, 0.85, 0.3), None),  # once is chance
        (FALLS, (0.2, 0.9, 0.8, 0.1, 0.8, 0.1), None),  # it came back in between
        (FALLS, (0.9, 0.1, 0.1), None),  # a single measurement is no history to fall from
        (FALLS, (0.0, 0.0, 0.0, 0.0), None),
        (GROWS, (1, 2, 3, 4, 4, 40, 900), 40),
        (GROWS, (-1, -2, -3, -4, -4, -40, -900), 40),
        (GROWS, (1, 2, 3, 5, 8, 12), None),  # growing is learning, as long as it is slow
    ],
)
def test_a_collapse_is_a_lasting_departure_from_what_was_good(config, values, good_step):
    found = collapse.find(history(*values), config)
    assert (found and found.good_step) == good_step


@given(st.lists(st.floats(0, 1), max_size=30), st.floats(0.01, 0.99))
def test_no_history_within_the_factor_of_its_best_collapses(values, factor):
    low = max(values, default=0) * factor
    kept = [max(value, low) for value in values]
    assert collapse.find(history(*kept), dataclasses.replace(FALLS, factor=factor)) is None


@dataclasses.dataclass(frozen=True)
class Fragile(toy.ToyLearner):
    """Forgets everything at update 25, for every draw of the keys but some."""

    luck: float = 0.0  # probability to get through

    def update(self, state, key, batch):
        state, metrics = super().update(state, key, batch)
        is_lost = (state.step == 25) & ~jax.random.bernoulli(jax.random.fold_in(key, 1), self.luck)
        params = jax.tree.map(lambda leaf: jnp.where(is_lost, 50.0, leaf), state.params)
        return state.replace(params=params, ema_params=params), metrics | {"score": 1 / (1 + metrics["loss"])}


WATCH = CollapseConfig("score", window=2, patience=2)
CONFIG = FitConfig(40, log_every=2, checkpoint_every=5, max_to_keep=8, collapse=WATCH)


def run(folder, learner, config=CONFIG):
    return fit(learner, DatasetSource(toy.ToyLoader()), config, folder, metadata=toy.METADATA, quiet=True)


def test_a_run_goes_back_and_takes_another_way(tmp_path):
    # Seed 1 is lost at 25; with the keys behind the rollback it gets through.
    result = run(tmp_path, Fragile(luck=0.5), dataclasses.replace(CONFIG, seed=1))
    told = collapse.rollbacks(tmp_path)
    assert [row["to_step"] for row in told] == [20] and told[0]["found"] < told[0]["good"] / 2
    assert result.train_step == 40 and result.metrics["score"] > 0.5
    steps = [row["step"] for row in logs.read(tmp_path)]
    assert steps == sorted(set(steps))  # the log says what led to the result, and nothing of what was given up


def test_a_run_that_was_lost_every_time_fails_with_its_last_good_checkpoint(tmp_path):
    with pytest.raises(errors.TrainingError, match=r"score has collapsed(?s:.*)2 rollbacks so far"):
        run(tmp_path, Fragile(), dataclasses.replace(CONFIG, collapse=dataclasses.replace(WATCH, max_rollbacks=2)))
    store = Checkpoints(tmp_path)
    assert store.latest_step() <= 29
    store.close()
    assert len(collapse.rollbacks(tmp_path)) == 2


def test_without_a_good_checkpoint_there_is_nothing_to_go_back_to(tmp_path):
    with pytest.raises(errors.TrainingError, match="no checkpoint"):
        run(tmp_path, Fragile(), dataclasses.replace(CONFIG, checkpoint_every=40))


def test_settings_that_cannot_work_are_refused():
    for changes in (dict(factor=2.0), dict(direction="grows"), dict(patience=0)):
        with pytest.raises(errors.ConfigError):
            CollapseConfig(**changes)
