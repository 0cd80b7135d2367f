"""An ensemble of chunk critics as critic learners use one: its values, its loss, and its conservative regularizer.

A head is a number, regressed by squared error, or a distribution over bins (`HLGauss`), trained by cross-entropy and
read as its mean; everything else is the same for both. The policy comes in as actions only, so PA-RL's critics are made
of this, and those of an actor with densities may be.
"""

import dataclasses
from functools import cached_property

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from vla_jax.core import errors, functional
from vla_jax.core.types import Metrics, Params
from vla_jax.losses import categorical, conservative, td
from vla_jax.nets import critics


@dataclasses.dataclass(frozen=True)
class HLGauss:
    """Values as histograms (arXiv 2403.03950). Defaults: PA-RL's for rewards of -1 per step and a discount of 0.99."""

    low: float = -100.0
    high: float = 0.0
    num_bins: int = 128
    sigma_ratio: float = 0.75  # standard deviation of a target in bins
    widened: bool = True  # by sqrt(2), as released code has it (losses/categorical.py)

    @property
    def support(self) -> categorical.Support:
        return categorical.Support(self.low, self.high, self.num_bins)


@dataclasses.dataclass(frozen=True)
class Conservative:
    """CQL's regularizer, calibrated or not. Defaults: PA-RL's for tasks with states."""

    weight: float = 0.005  # of the regularizer beside the TD loss
    num_actions: int = 10  # uniform ones per state; each of the policy's counts as often where it has no density
    calibrated: bool = True  # Cal-QL: values of the policy's actions count at least as the data's return
    temperature: float = 1.0
    gap_range: tuple[float, float] | None = None  # the gap of every head and example is clipped to it

    def __post_init__(self):
        if self.weight < 0 or self.num_actions < 1 or self.temperature <= 0:
            raise errors.ConfigError(
                "Conservative", expected="weight >= 0, num_actions >= 1 and temperature > 0", found=self
            )


@dataclasses.dataclass(frozen=True)
class CriticEnsemble:
    feature_dim: int
    action_horizon: int
    action_dim: int
    num_critics: int
    config: critics.CriticConfig
    head: HLGauss | None = None  # None: a number

    @cached_property
    def net(self) -> functional.Net[critics.ChunkCritic]:
        return functional.describe(self._make)[0]

    def init(self, key: Key[Array, ""]) -> Params:
        return functional.init_ensemble(self._make, key, self.num_critics)[1]

    def _make(self, rngs: nnx.Rngs) -> critics.ChunkCritic:
        config = dataclasses.replace(self.config, num_bins=self.head.num_bins if self.head else None)
        return critics.ChunkCritic(self.feature_dim, self.action_horizon, self.action_dim, config, rngs)

    def outputs(
        self, params: Params, features: Float[Array, "b f"], actions: Float[Array, "b *n h a"]
    ) -> Float[Array, "..."]:
        """What the heads say, `e b *n`: values, or with bins logits in one more last axis."""
        return functional.apply_ensemble(self.net, params, lambda critic: critic(features, actions))

    def read(self, outputs: Float[Array, "..."]) -> Float[Array, "e b *n"]:
        """The values that outputs stand for."""
        return outputs if self.head is None else categorical.expected(outputs, self.head.support.centers)

    def q_values(
        self, params: Params, features: Float[Array, "b f"], actions: Float[Array, "b *n h a"]
    ) -> Float[Array, "e b *n"]:
        return self.read(self.outputs(params, features, actions))

    def td_loss(self, outputs: Float[Array, "..."], targets: Float[Array, "b"]) -> Float[Array, "b"]:
        """Squared error, or cross-entropy to the targets' histograms, the mean over the heads."""
        if self.head is None:
            return td.squared_error(outputs, targets)
        encoded = categorical.hl_gauss(targets, self.head.support, self.head.sigma_ratio, widened=self.head.widened)
        return categorical.cross_entropy(outputs, jnp.broadcast_to(encoded[None], outputs.shape)).mean(axis=0)

    def subset_minimum(
        self, params: Params, heads: Int[Array, "m"], features: Float[Array, "b f"], actions: Float[Array, "b h a"]
    ) -> Float[Array, "b"]:
        """The least value among some heads, which alone are evaluated."""
        return self.q_values(critics.take_heads(params, heads), features, actions).min(axis=0)

    def conservative_loss(
        self,
        params: Params,
        features: Float[Array, "b f"],
        actions: Float[Array, "b h a"],
        targets: Float[Array, "b"],
        uniform_actions: Float[Array, "b n h a"],
        policy_actions: Float[Array, "b p h a"],
        returns: Float[Array, "b"] | None,
        heads: Int[Array, "m"],
        config: Conservative,
        copies: int = 1,
    ) -> tuple[Float[Array, ""], Metrics]:
        """CQL's or Cal-QL's loss: the TD loss of all heads and the weighted gap of some; see `conservative_gap`.

        The caller stops gradients in `targets` and in the actions.
        """
        outputs = self.outputs(params, features, actions)
        q_values = self.read(outputs)
        td_loss, some = self.td_loss(outputs, targets).mean(), critics.take_heads(params, heads)
        gap, metrics = self.conservative_gap(
            some, features, uniform_actions, policy_actions, q_values[heads], returns, config, copies
        )
        loss = td_loss + config.weight * gap.mean()
        metrics |= {"critic/loss": loss, "critic/td_loss": td_loss, "critic/gap": gap.mean()}
        return loss, metrics | {"critic/q_values": q_values.mean(), "critic/targets": targets.mean()}

    def conservative_gap(
        self,
        params: Params,
        features: Float[Array, "b f"],
        uniform_actions: Float[Array, "b n h a"],
        policy_actions: Float[Array, "b p h a"],
        q_data: Float[Array, "e b"],
        returns: Float[Array, "b"] | None,
        config: Conservative,
        copies: int = 1,
    ) -> tuple[Float[Array, "e b"], Metrics]:
        """How far a soft maximum over actions lies above the logged one, per head and example, not yet weighted.

        Candidates are the uniform chunks, the policy's, each `copies` times (once evaluated), and the logged one, whose
        values `q_data` are. `params` hold as many heads as `q_data`. `returns` are what the data reached; needed where
        calibrated. See `losses.conservative.counted_gap`.
        """
        q_all = self.q_values(params, features, jnp.concatenate([uniform_actions, policy_actions], axis=1))
        q_uniform, q_policy = jnp.split(q_all, [uniform_actions.shape[1]], axis=-1)
        metrics = {"critic/uniform_q_values": q_uniform.mean(), "critic/policy_q_values": q_policy.mean()}
        if config.calibrated:
            metrics["critic/bound_rate"] = (q_policy < returns[None, :, None]).mean()
            q_policy = conservative.calibrated(q_policy, returns)
        repeated = jnp.repeat(q_policy, copies, axis=-1)
        gap = conservative.counted_gap(jnp.concatenate([q_uniform, repeated], axis=-1), q_data, config.temperature)
        if config.gap_range is not None:
            gap = jnp.clip(gap, *config.gap_range)
        return gap, metrics


def uniform_actions(key: Key[Array, ""], actions: Float[Array, "b h a"], num_actions: int) -> Float[Array, "b n h a"]:
    """Chunks from all of the box [-1, 1], so many for every example."""
    return jax.random.uniform(key, (actions.shape[0], num_actions, *actions.shape[1:]), minval=-1.0, maxval=1.0)


def bootstrap(
    rewards: Float[Array, "b h"],
    discounts: Float[Array, "b h"],
    action_mask: Bool[Array, "b h"],
    discount: float,
    next_values: Float[Array, "b"],
) -> Float[Array, "b"]:
    """The target of an executed chunk: the return inside it, and the discounted value of the state after it."""
    returns, factor = td.chunk_return(rewards, discounts, action_mask, discount)
    return returns + factor * next_values
