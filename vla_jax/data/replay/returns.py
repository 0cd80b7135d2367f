"""The Monte-Carlo return behind every row of a device buffer, known once the row's episode has ended.

    returns = init(capacity)                                       # beside a `device` buffer of the same capacity
    returns = advance(returns, valid, chunk_returns, factors, ended, tail_value)       # after every decision
    rows = sample(buffer, returns, key, (4, 256))                  # of ended episodes, with extras["mc_return"]

Lanes of environments insert a row each per decision. Rows of an episode that goes on grow with every chunk of their
lane: no episode is walked back, and what the ring has overwritten is not missed.

    gamma 1/2, rewards 1 1 1, then the task ends     1 . .      1.5 1 .      1.75 1.5 1
    time runs out instead, tail_value 4                                      2.25 2.5 3
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from vla_jax.core.types import Transitions
from vla_jax.data.replay import device
from vla_jax.data.replay.device import ReplayBuffer


def init(capacity: int) -> ReplayBuffer:
    """Nothing inserted so far."""
    return device.init(capacity, jax.tree.map(lambda leaf: leaf[0], _fresh(1)))


def advance(
    returns: ReplayBuffer,
    valid: Bool[Array, "b"],
    chunk_returns: Float[Array, "b"],
    factors: Float[Array, "b"],
    ended: Bool[Array, "b"],
    tail_value: float,
) -> ReplayBuffer:
    """One decision in every lane: the rows inserted where `valid`, as `device.insert` does, and what their chunks gave.

    `chunk_returns` and `factors` are those of `losses.td.chunk_return`: a factor is 0 from the end of the task on.
    Where an episode `ended` without that, `tail_value` stands for what would have followed.
    """
    returns = device.insert(returns, _fresh(len(valid)), valid)
    rows = returns.rows
    lane, is_open = rows["lane"], rows["is_open"]
    closes = is_open & ended[lane]
    weight = rows["weight"] * factors[lane]
    value = rows["value"] + rows["weight"] * chunk_returns[lane] + jnp.where(closes, weight * tail_value, 0.0)
    grown = {"value": jnp.where(is_open, value, rows["value"]), "weight": jnp.where(is_open, weight, rows["weight"])}
    return returns.replace(rows={**rows, **grown, "is_open": is_open & ~closes})


def sample(buffer: ReplayBuffer, returns: ReplayBuffer, key: Key[Array, ""], shape: tuple[int, ...]) -> Transitions:
    """Rows of ended episodes drawn uniformly with replacement; leaves get the leading `shape`. There must be one."""
    is_known = ~returns.rows["is_open"] & (jnp.arange(returns.capacity) < returns.size)
    place = jnp.cumsum(is_known)  # from 1, of every row among those
    index = jnp.searchsorted(place, jax.random.randint(key, shape, 0, place[-1]), side="right")
    rows = jax.tree.map(lambda leaf: leaf[index], buffer.rows)
    return rows.replace(extras={**rows.extras, "mc_return": returns.rows["value"][index]})


def _fresh(num_rows: int) -> dict[str, Array]:
    return {
        "value": jnp.zeros(num_rows),  # discounted reward since the row, so far
        "weight": jnp.ones(num_rows),  # of the lane's next chunk, seen from the row
        "lane": jnp.arange(num_rows, dtype=jnp.int32),
        "is_open": jnp.ones(num_rows, bool),  # the episode goes on
    }
