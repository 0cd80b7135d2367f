"""The chain of DQC's small reproduction: its exact values, its recorded chunks, and that a run fills its table."""

import jax
import jax.numpy as jnp
import numpy as np

from scripts import reproduce_dqc as chain
from vla_jax.evaluation import table_specs, tables
from vla_jax.losses import td


def test_the_best_values_are_those_of_going_on_fast():
    """From position 59 - 2 n, n fast steps arrive, the last with reward 1: 0.97 ** (n - 1)."""
    best = chain.best_values(chain.directions(0))
    np.testing.assert_allclose(best[57::-2], 0.97 ** np.arange(29), rtol=1e-6)
    np.testing.assert_allclose(best[0], 0.97**29, rtol=1e-6)  # one position more, one step more


def test_recorded_chunks_begin_right_and_arriving_ends_the_task():
    right = chain.directions(1)
    batch = jax.jit(lambda key: chain.draw(right, key, 512))(jax.random.key(0))
    start = batch.observation.state.argmax(1)
    np.testing.assert_array_equal(jnp.sign(batch.actions[:, 0, 0]), right[start])
    returns, factor = td.chunk_return(batch.rewards, batch.discounts, batch.action_mask, 0.97)
    arrived = batch.next_observation.state.argmax(1) == chain.GOAL
    np.testing.assert_array_equal(returns > 0, arrived)
    np.testing.assert_allclose(factor, np.where(arrived, 0, 0.97**5), rtol=1e-5)
    fast, slow_back = batch.actions[:, 0, 1] > 0, batch.next_observation.state.argmax(1) < start
    assert 0.4 < fast.mean() < 0.6 and 0.15 < slow_back.mean() < 0.35 and not (slow_back & ~fast).any()


def test_a_short_run_fills_every_column_of_its_table(monkeypatch):
    monkeypatch.setattr(chain, "UPDATES_PER_CALL", 2)
    entries = chain.run("n_step", 0, chain.Options(num_train_steps=2, batch_size=8, episodes=4))
    assert [e.cell for e in entries] == [column.name for column in table_specs.TABLES["dqc"].columns]
    tables.to_markdown(table_specs.TABLES["dqc"], entries)
