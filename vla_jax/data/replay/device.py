"""A replay buffer that lives on the device, as pure functions of a pytree.

buffer = replay.init(capacity, row_example)          # row_example: one row, arrays or ShapeDtypeStruct
buffer = replay.insert(buffer, rows, valid)          # vectorized, oldest rows are overwritten
batch = replay.sample(buffer, key, (4, 256))         # uniform with replacement, leading shape (4, 256)
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Int, Key

from vla_jax.core import errors


class ReplayBuffer(struct.PyTreeNode):
    rows: Any  # a pytree whose leaves have a leading axis of `capacity`
    num_inserted: Int[Array, ""]  # over the whole life; the next row goes to `num_inserted % capacity`

    @property
    def capacity(self) -> int:
        return jax.tree.leaves(self.rows)[0].shape[0]

    @property
    def size(self) -> Int[Array, ""]:
        """Rows that can be sampled."""
        return jnp.minimum(self.num_inserted, self.capacity)


def init(capacity: int, row: Any) -> ReplayBuffer:
    """An empty buffer for rows of the shape and dtype of `row`."""
    rows = jax.tree.map(lambda leaf: jnp.zeros((capacity, *leaf.shape), leaf.dtype), row)
    return ReplayBuffer(rows, jnp.zeros((), jnp.int32))


def insert(buffer: ReplayBuffer, rows: Any, valid: Bool[Array, "b"]) -> ReplayBuffer:
    """Append the rows where `valid`, in order; raises ConfigError when one insertion exceeds the capacity."""
    if valid.shape[0] > buffer.capacity:
        raise errors.ConfigError(
            "replay buffer is smaller than one insertion",
            expected=f"capacity of at least {valid.shape[0]} rows",
            found=buffer.capacity,
            fix="raise the capacity or collect from fewer environments",
        )
    order = jnp.cumsum(valid) - 1
    # rows that are not valid get an index past the end, which mode="drop" ignores
    index = jnp.where(valid, (buffer.num_inserted + order) % buffer.capacity, buffer.capacity)
    stored = jax.tree.map(lambda old, new: old.at[index].set(new.astype(old.dtype), mode="drop"), buffer.rows, rows)
    return ReplayBuffer(stored, buffer.num_inserted + valid.sum())


def sample(buffer: ReplayBuffer, key: Key[Array, ""], shape: tuple[int, ...]) -> Any:
    """Rows drawn uniformly with replacement; leaves get the leading `shape`. An empty buffer gives zero rows."""
    index = jax.random.randint(key, shape, 0, jnp.maximum(buffer.size, 1))
    return jax.tree.map(lambda leaf: leaf[index], buffer.rows)
