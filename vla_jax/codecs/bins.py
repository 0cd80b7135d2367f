"""Actions as tokens: every action dim cut into bins, decoded to the middle of its bin (RT-2, arXiv 2307.15818).

Edges are even over a range or at quantiles of the data, which spend the bins where the actions are.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vla_jax.core import errors


@dataclasses.dataclass(frozen=True)
class BinCodec:
    """Edges per action dim, increasing; token `k` is the interval from edge `k` to edge `k + 1`.

    Plain floats, so that a codec can be part of a config, be compared and be stored beside a checkpoint.
    """

    edges: tuple[tuple[float, ...], ...]  # [a, num_bins + 1]

    def __post_init__(self):
        counts = {len(row) for row in self.edges}
        rising = all(low < high for row in self.edges for low, high in itertools.pairwise(row))
        if len(counts) != 1 or min(counts) < 3 or not rising:
            raise errors.ConfigError(
                "BinCodec.edges", expected="as many rising edges for every action dim, at least 3", found=self.edges
            )

    @property
    def action_dim(self) -> int:
        return len(self.edges)

    @property
    def num_bins(self) -> int:
        return len(self.edges[0]) - 1

    def encode(self, actions: Float[Array, "*b a"]) -> Int[Array, "*b a"]:
        """Tokens in [0, num_bins); actions beyond the outer edges get the outer bins."""
        inner = jnp.asarray(self.edges)[:, 1:-1]
        columns = actions.reshape(-1, actions.shape[-1])
        find = jax.vmap(lambda edges, column: jnp.searchsorted(edges, column, side="right"), (0, 1), 1)
        return find(inner, columns).reshape(actions.shape).astype(jnp.int32)

    def decode(self, tokens: Int[Array, "*b a"]) -> Float[Array, "*b a"]:
        """The middles of the bins: off by at most half the width of the bin for actions inside the outer edges."""
        edges = jnp.asarray(self.edges)
        centres = (edges[:, 1:] + edges[:, :-1]) / 2
        columns = tokens.reshape(-1, tokens.shape[-1])
        return jax.vmap(lambda row, column: row[column], (0, 1), 1)(centres, columns).reshape(tokens.shape)


def uniform_bins(action_dim: int, num_bins: int, low: float = -1.0, high: float = 1.0) -> BinCodec:
    """Bins of equal width; the error of a round trip is at most `(high - low) / num_bins / 2` inside the range."""
    if num_bins < 2 or action_dim < 1 or not low < high:
        raise errors.ConfigError(
            "uniform_bins",
            expected="num_bins >= 2, action_dim >= 1 and low < high",
            found=f"num_bins={num_bins}, action_dim={action_dim}, low={low}, high={high}",
        )
    return BinCodec((tuple(np.linspace(low, high, num_bins + 1).tolist()),) * action_dim)


def quantile_bins(actions: Float[np.ndarray, "m a"], num_bins: int, min_width: float = 1e-3) -> BinCodec:
    """Bins that hold equally many of `actions` (`m` single steps, real ones only, normalized as the policy sees them).

    Repeated values, such as an open or closed gripper, would give bins without width: every bin is at least `min_width`
    wide, and the edges above move up for it, by `num_bins * min_width` at most.
    """
    actions = np.asarray(actions, np.float64)
    if actions.ndim != 2 or not len(actions) or num_bins < 2 or not np.isfinite(actions).all():
        raise errors.ConfigError(
            "quantile_bins",
            expected="finite actions [m, a], m >= 1, and num_bins >= 2",
            found=f"shape {actions.shape}, num_bins={num_bins}, finite={bool(np.isfinite(actions).all())}",
        )
    edges = np.quantile(actions, np.linspace(0, 1, num_bins + 1), axis=0).T
    steps = min_width * np.arange(num_bins + 1)
    spread = np.maximum.accumulate(edges - steps, axis=1) + steps
    return BinCodec(tuple(map(tuple, spread.tolist())))
