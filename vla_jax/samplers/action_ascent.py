"""Better actions from samples and a value: keep the best few, then move each a little uphill (PA-RL's operator).

    candidates [b k d] --rank--> best m --num_steps of  a + step_size * dq/da, clipped--> per candidate its best point

No gradient of whatever made the candidates is needed. Source: PA-RL (arXiv 2412.06685), section 4.1, and its released
code. Letters: n candidates, m those kept, d a flattened chunk.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int, Key

from vla_jax.core import errors

QFn = Callable[[Float[Array, "b n d"]], Float[Array, "b n"]]


@dataclasses.dataclass(frozen=True)
class AscentOptions:
    """Defaults: PA-RL's for tasks with states."""

    num_kept: int = 10  # m, of the candidates
    num_steps: int = 10  # of gradient ascent; 0: the best candidates as they are
    step_size: float = 3e-4
    low: float = -1.0  # actions are clipped after every step
    high: float = 1.0

    def __post_init__(self):
        if self.num_kept < 1 or self.num_steps < 0 or not self.low < self.high:
            raise errors.ConfigError(
                "AscentOptions", expected="num_kept >= 1, num_steps >= 0 and low < high", found=self
            )


class AscentTrace(struct.PyTreeNode):
    actions: Float[Array, "steps b m d"]  # before each step
    q_values: Float[Array, "steps b m"]  # of these


def optimize_actions(
    q_fn: QFn, candidates: Float[Array, "b k d"], options: AscentOptions
) -> tuple[Float[Array, "b m d"], Float[Array, "b m"], AscentTrace]:
    """The `num_kept` best candidates, best first, each at the best of its `num_steps + 1` points, and their values.

    So no value is below that of the candidate it started from, however large the step. Of equal points the later one
    counts, as in the released code. `q_fn` must value every candidate on its own. Raises ConfigError when there are
    fewer candidates than are to be kept.
    """
    if candidates.shape[1] < options.num_kept:
        raise errors.ConfigError(
            "optimize_actions: too few candidates",
            expected=f"at least num_kept = {options.num_kept}",
            found=candidates.shape[1],
        )
    q_values, order = jax.lax.top_k(q_fn(candidates), options.num_kept)
    start = jnp.take_along_axis(candidates, order[..., None], axis=1)

    def total(actions: Float[Array, "b m d"]):
        values = q_fn(actions)
        return values.sum(), values

    def better(best, best_values, actions, values):
        is_better = values >= best_values
        return jnp.where(is_better[..., None], actions, best), jnp.where(is_better, values, best_values)

    def step(carry, _):
        actions, best, best_values = carry
        gradient, values = jax.grad(total, has_aux=True)(actions)
        best, best_values = better(best, best_values, actions, values)
        moved = jnp.clip(actions + options.step_size * gradient, options.low, options.high)
        return (moved, best, best_values), (actions, values)

    carry = (start, start, q_values)
    (last, best, best_values), points = jax.lax.scan(step, carry, None, length=options.num_steps)
    if options.num_steps:
        best, best_values = better(best, best_values, last, q_fn(last))
    return best, best_values, AscentTrace(*points)


def choose(
    key: Key[Array, ""] | None, q_values: Float[Array, "b m"], temperature: float | None = None
) -> Int[Array, "b"]:
    """Which candidate the implied policy takes: the best, or with a temperature a draw from `softmax(q / temperature)`.

    `key` may be None for the best.
    """
    if temperature is None:
        return q_values.argmax(axis=-1)
    return jax.random.categorical(key, q_values / temperature, axis=-1)
