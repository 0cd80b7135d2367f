"""Returns that are known when an episode ends, against numbers on paper and returns computed backwards."""

import jax
import jax.numpy as jnp
import numpy as np

from vla_jax.core.types import Transitions
from vla_jax.data.replay import device, returns
from vla_jax.losses import td
from vla_jax.losses.returns import monte_carlo_returns

advance, insert = jax.jit(returns.advance, static_argnums=5), jax.jit(device.insert)


def rows_of(numbers):
    """A row per number, which is its observation."""
    numbers = jnp.asarray(numbers, jnp.float32)
    blank = jnp.zeros((len(numbers), 1))
    return Transitions(numbers, blank[..., None], blank, blank, blank > 0, numbers, {})


def test_rows_grow_until_their_episode_ends():
    """The picture in the module; lane 1 runs out of time one decision earlier and then sits one out."""
    found = returns.init(8)
    half, one = jnp.full(2, 0.5), jnp.ones(2)
    no, tail = jnp.zeros(2, bool), 4.0
    found = advance(found, ~no, one, half, no, tail)
    np.testing.assert_array_equal(found.rows["value"][:2], [1, 1])
    found = advance(found, ~no, one, half, jnp.array([False, True]), tail)
    np.testing.assert_allclose(found.rows["value"][:4], [1.5, 1.5 + 1, 1, 1 + 2])  # lanes 0, 1, 0, 1
    ends = jnp.array([0.0, 1.0])  # lane 0 ends its task: no tail; lane 1 does nothing
    found = advance(found, jnp.array([True, False]), jnp.array([1.0, 0.0]), ends, jnp.array([True, False]), tail)
    np.testing.assert_allclose(found.rows["value"][:5], [1.75, 2.5, 1.5, 3, 1])
    assert not found.rows["is_open"].any() and int(found.size) == 5
    again = advance(found, no, one, half, ~no, tail)  # ended rows stay as they are
    np.testing.assert_array_equal(again.rows["value"], found.rows["value"])


def test_only_rows_of_ended_episodes_are_drawn_with_their_returns_and_all_of_them():
    buffer, found = device.init(6, jax.tree.map(lambda leaf: leaf[0], rows_of([0]))), returns.init(6)
    one, number = jnp.ones(2), 0
    # lane 0 ends at every second decision, lane 1 never; the ring of 6 holds the last three decisions
    for decision in range(5):
        ended = jnp.array([decision % 2 == 1, False])
        buffer = insert(buffer, rows_of([number, number + 1]), ended | True)
        found = advance(found, ended | True, jnp.array([1.0, 100.0]), one, ended, 0.0)
        number += 2
    drawn = jax.jit(returns.sample, static_argnums=3)(buffer, found, jax.random.key(0), (4, 16))
    assert drawn.observation.shape == (4, 16)
    # decisions 2, 3 and 4 are left; lane 0's are rows 4, 6 and 8, of which 8 goes on
    pairs = set(zip(np.ravel(drawn.observation).tolist(), np.ravel(drawn.extras["mc_return"]).tolist(), strict=True))
    assert pairs == {(4.0, 2.0), (6.0, 1.0)}


def test_they_are_those_computed_backwards():
    rng = np.random.default_rng(0)
    decisions, lanes, steps, discount, tail = 12, 5, 3, 0.9, -7.0
    rewards = rng.standard_normal((decisions, lanes, steps)).astype(np.float32)
    terminated = rng.random((decisions, lanes)) < 0.15
    truncated = ~terminated & (rng.random((decisions, lanes)) < 0.15)
    truncated[-1] = ~terminated[-1]
    length = np.where(terminated | truncated, rng.integers(1, steps + 1, (decisions, lanes)), steps)
    mask = np.arange(steps) < length[..., None]
    is_last = np.arange(steps) == length[..., None] - 1
    discounts = np.where(is_last & terminated[..., None], 0.0, 1.0).astype(np.float32)
    found = returns.init(decisions * lanes)
    for i in range(decisions):
        gained, factor = jax.jit(td.chunk_return)(rewards[i], discounts[i], mask[i], discount)
        ended = jnp.asarray(terminated[i] | truncated[i])
        found = advance(found, jnp.ones(lanes, bool), gained, factor, ended, tail)
    for lane in range(lanes):
        ran = mask[:, lane].ravel()
        line = [np.asarray(x[:, lane]).ravel()[ran] for x in (rewards, discounts, is_last & truncated[..., None])]
        expected = monte_carlo_returns(*map(jnp.asarray, line), discount, jnp.full(len(line[0]), tail))
        first = np.cumsum(length[:, lane]) - length[:, lane]
        np.testing.assert_allclose(found.rows["value"][lane::lanes], expected[first], rtol=1e-4, atol=1e-5)
