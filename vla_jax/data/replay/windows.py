"""Single steps of environments side by side, in rings on the device; chunks and n-step returns are made at sampling.

    time      0 1 2 3 4 5 6        one environment
    acts      1 1 1 0 1 1 1        row 3 is only arrived at: the episode ended there, and the next begins at 4
    window of 2 at 1   1 2         next observation 3; bootstraps from it unless the discount of step 2 is 0
    window of 2 at 2   2 -         cut short by the end of the episode
    window of 2 at 5   5 -         cut short by the newest row, 6, which is arrived at: what follows it is not here yet

An observation is stored once, as the start of its own step; the one a step leads to is the next row's. So an episode
needs a row of its own for its last observation, with `acts` False. That is what the wrappers' convention gives: an
environment that ended sits out a step before it is replaced. A time limit leaves the discount at 1 and is bootstrapped
from that row; only a termination is 0.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Int, Key

from vla_jax.core import errors
from vla_jax.core.types import Transitions
from vla_jax.data.trajectories import Steps, gather


class StepBuffer(struct.PyTreeNode):
    steps: Steps  # leaves [num_envs, capacity, ...]
    acts: Bool[Array, "envs capacity"]  # the action was run, and the next row is where it led to
    extras: dict[str, Array]  # of the rows, for example the source of an action
    num_inserted: Int[Array, ""]  # per environment, over the whole life; the next goes to `num_inserted % capacity`

    @property
    def capacity(self) -> int:
        """Steps per environment."""
        return self.acts.shape[1]

    @property
    def size(self) -> Int[Array, ""]:
        """Steps per environment that are there."""
        return jnp.minimum(self.num_inserted, self.capacity)


def init(num_envs: int, capacity: int, step: Steps, extras: dict[str, Any] | None = None) -> StepBuffer:
    """An empty buffer of `capacity` steps per environment, for steps of the shape and dtype of one, `step`."""

    def empty(leaf):
        return jnp.zeros((num_envs, capacity, *leaf.shape), leaf.dtype)

    acts = jnp.zeros((num_envs, capacity), bool)
    return StepBuffer(jax.tree.map(empty, step), acts, jax.tree.map(empty, extras or {}), jnp.zeros((), jnp.int32))


def insert(
    buffer: StepBuffer, steps: Steps, acts: Bool[Array, "envs n"], extras: dict[str, Array] | None = None
) -> StepBuffer:
    """Append `n` steps of every environment, oldest first; leaves are `[envs, n, ...]`.

    `acts` is False for a row that only holds the last observation of an episode. Raises ConfigError when one insertion
    exceeds the capacity.
    """
    num_steps = acts.shape[1]
    if num_steps > buffer.capacity:
        raise errors.ConfigError(
            "step buffer is smaller than one insertion",
            expected=f"capacity of at least {num_steps} steps",
            found=buffer.capacity,
            fix="raise the capacity or insert fewer steps at once",
        )
    slots = (buffer.num_inserted + jnp.arange(num_steps)) % buffer.capacity
    put = lambda old, new: old.at[:, slots].set(new.astype(old.dtype))  # noqa: E731
    return StepBuffer(
        steps=jax.tree.map(put, buffer.steps, steps),
        acts=put(buffer.acts, acts),
        extras=jax.tree.map(put, buffer.extras, extras or {}),
        num_inserted=buffer.num_inserted + num_steps,
    )


def steps_ahead(buffer: StepBuffer, stride: int = 1) -> Int[Array, "envs capacity"]:
    """From every slot, how many steps were run without a break whose outcome is in the buffer; 0: nothing starts there.

    A run ends at a row that does not act, and at the newest row, which the oldest follows in the ring; with a `stride`
    at the first of the newest `stride` rows, see `sample`.
    """
    # in order of time: the oldest row first, the newest last
    oldest = jnp.where(buffer.num_inserted > buffer.capacity, buffer.num_inserted % buffer.capacity, 0)
    order = (oldest + jnp.arange(buffer.capacity)) % buffer.capacity
    time = jnp.broadcast_to(jnp.arange(buffer.capacity), buffer.acts.shape)
    is_break = ~buffer.acts[:, order] | (time >= buffer.size - stride)
    next_break = jax.lax.cummin(jnp.where(is_break, time, buffer.capacity), axis=1, reverse=True)
    return jnp.zeros_like(time).at[:, order].set(next_break - time)


def sample(
    buffer: StepBuffer,
    key: Key[Array, ""],
    shape: tuple[int, ...],
    action_horizon: int,
    *,
    whole: bool = False,
    stride: int = 1,
) -> Transitions:
    """Chunks of up to `action_horizon` steps, uniform with replacement over all rows where one may start.

    With `whole` only where all its steps were run; else those behind an end are masked. `extras` are those of the first
    step. A buffer with nothing to sample gives chunks without a single step.

    With a `stride` observations are known at every `stride`-th row alone and where episodes end, because so many steps
    are run per look: chunks start at one and lead to one. It divides the capacity and `action_horizon`, and so many
    rows are inserted at once.
    """
    ahead = steps_ahead(buffer, stride)
    is_seen = jnp.arange(buffer.capacity) % stride == 0
    allowed = ((ahead >= (action_horizon if whole else 1)) & is_seen[None]).ravel()
    number = jnp.cumsum(allowed)  # an allowed row is the first where this reaches its number
    drawn = jax.random.randint(key, shape, 0, jnp.maximum(number[-1], 1)) + 1
    rows = jnp.minimum(jnp.searchsorted(number, drawn.ravel()), allowed.size - 1).reshape(shape)
    # where nothing may start, a row is drawn all the same: it runs nothing
    num_steps = jnp.where(allowed[rows], jnp.minimum(ahead.ravel()[rows], action_horizon), 0)
    step = jnp.broadcast_to(jnp.arange(action_horizon), (*shape, action_horizon))
    held = jnp.minimum(step, jnp.maximum(num_steps - 1, 0)[..., None])
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), (buffer.steps, buffer.extras))
    extras = jax.tree.map(lambda leaf: leaf[rows], flat[1])
    index, after = _ahead(rows[..., None], held, buffer.capacity), _ahead(rows, num_steps, buffer.capacity)
    return gather(flat[0], rows, index, step < num_steps[..., None], after, extras)


def n_step(batch: Transitions, discount: float) -> Transitions:
    """The same batch as transitions of one action each: the first one, with the discounted return of all the steps.

    Numpy or jax. `discounts` become `prod(discount * discounts) / discount`, so that a learner that multiplies by
    `discount` gets `discount**m` after `m` steps that were run and 0 where one ended the task.
    """
    xp = jnp if isinstance(batch.rewards, jax.Array) else np
    per_step = xp.where(batch.action_mask, discount, 1.0)
    through = xp.cumprod(per_step, axis=-1) * batch.discounts
    before = xp.concatenate([xp.ones_like(through[..., :1]), through[..., :-1]], axis=-1)
    rewards = xp.where(batch.action_mask, batch.rewards * before, 0.0).sum(axis=-1, keepdims=True)
    return batch.replace(
        actions=batch.actions[..., :1, :],
        rewards=rewards.astype(batch.rewards.dtype),
        discounts=(through[..., -1:] / discount).astype(batch.discounts.dtype),
        action_mask=batch.action_mask[..., :1],
    )


def _ahead(rows: Int[Array, "*b"], steps: Int[Array, "*b"], capacity: int) -> Int[Array, "*b"]:
    """The flat rows so many steps further in the ring of the same environment."""
    return rows - rows % capacity + (rows % capacity + steps) % capacity
