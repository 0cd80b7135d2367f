"""Flow matching over action chunks (pi0, arXiv 2410.24164; pi0.5, arXiv 2504.16054).

A velocity field carries noise at time 0 to actions at time 1 along straight lines. Training draws a time and a noise
per chunk and regresses `actions - noise`; sampling integrates the field with a few Euler steps from one encoded
observation. Unlike the paper, time runs from noise to data, as everywhere here, and masked action entries
train nothing.

pi0.5 puts time into every norm (`time_conditioning="adaptive_norm"`, a swish behind each of the two time layers). With
knowledge insulation (arXiv 2505.23705) the flow loss reads the prefix and does not train it; the same chunk, said in
FAST tokens by the prefix expert, does.

    prefix  images, prompt  <---- trained by ---- words of the chunk       (cross-entropy)
       '---- keys, values, gradient stopped ----> noisy chunk              (flow matching)
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from vla_jax.codecs.action_text import ActionText
from vla_jax.core import errors, functional, keys
from vla_jax.core.types import Demonstrations, Metrics, Observation
from vla_jax.losses.flow import flow_matching_loss, interpolate
from vla_jax.nets.backbone import Backbone
from vla_jax.policies.chunk_field import ChunkField, TimeConditioning
from vla_jax.policies.token_loss import require_text, token_losses
from vla_jax.samplers.flow import EulerOptions, euler


@dataclasses.dataclass(frozen=True)
class Insulation:
    """Knowledge insulation: what trains the prefix in place of the flow loss. Acting does not change."""

    text: ActionText  # how the chunk is said in words
    token_weight: float = 1.0  # of the words' loss beside the flow loss

    def __post_init__(self):
        if not self.token_weight > 0:
            raise errors.ConfigError("Insulation.token_weight", expected="above 0", found=self.token_weight)


@dataclasses.dataclass(frozen=True)
class FlowConfig:
    action_horizon: int  # h
    action_dim: int  # a
    num_flow_steps: int = 10
    time_distribution: Literal["uniform", "pi0"] = "uniform"  # "pi0" trains more near the noise
    loss_samples: int = 1  # draws of noise and time per encoded observation; worth it where the suffix is cheap
    time_conditioning: TimeConditioning = "concat"
    clip_actions: bool = False  # whether samples are clipped to [-1, 1] after the last step
    action_weights: tuple[float, ...] | None = None  # of every action dim in the loss; None: all the same
    insulation: Insulation | None = None  # pi0.5's; needs a backbone that writes words

    def __post_init__(self):
        counts = (self.action_horizon, self.action_dim, self.num_flow_steps, self.loss_samples)
        if min(counts) < 1:
            raise errors.ConfigError("FlowConfig", expected="counts of at least 1", found=self)
        weights = self.action_weights
        if weights is not None and not (len(weights) == self.action_dim and min(weights) > 0):
            raise errors.ConfigError(
                "FlowConfig.action_weights", expected=f"{self.action_dim} positive numbers", found=weights
            )
        _require_choice("time_distribution", self.time_distribution, ("uniform", "pi0"))
        _require_choice("time_conditioning", self.time_conditioning, ("concat", "adaptive_norm"))


class FlowPolicy(ChunkField):
    """`Policy`, `HasPrefix` and `HasVelocity`; one suffix token per step of the chunk."""

    def __init__(self, config: FlowConfig, backbone: Backbone, rngs: nnx.Rngs):
        if config.insulation is not None:
            _require_insulable(config, backbone)
        super().__init__(config.action_horizon, config.action_dim, config.time_conditioning, backbone, rngs)
        self.config = config

    def loss(self, key: Key[Array, ""], batch: Demonstrations) -> tuple[Float[Array, "b"], Metrics]:
        """Mean flow matching loss over `loss_samples` draws per example, and with insulation the words' loss.

        Actions under a False mask count as 0, so what stands there changes nothing.
        """
        noise_key, time_key = jax.random.split(keys.for_arrays(key))
        actions = jnp.where(batch.action_mask, batch.actions, 0.0)
        noise = jax.random.normal(noise_key, (self.config.loss_samples, *actions.shape))
        time = sample_time(time_key, noise.shape[:2], self.config.time_distribution)
        prefix = self.backbone.prefix(batch.observation)
        insulation = self.config.insulation
        read = prefix if insulation is None else jax.lax.stop_gradient(prefix)

        weights = None if self.config.action_weights is None else jnp.asarray(self.config.action_weights)

        def one_draw(noise, time):
            velocity = self.velocity(read, interpolate(noise, actions, time), time)
            return flow_matching_loss(velocity, noise, actions, batch.action_mask, weights)

        losses = functional.each_draw(one_draw, noise, time)
        metrics = {f"flow/{name}": value for name, value in _loss_by_time(losses, time).items()}
        losses = losses.mean(0)
        if insulation is not None:
            words, word_metrics = token_losses(self.backbone, prefix, insulation.text, batch)
            losses, metrics = losses + insulation.token_weight * words, metrics | word_metrics
        return losses, metrics

    def sample(self, key: Key[Array, ""], observation: Observation, num_samples: int = 1) -> Float[Array, "n b h a"]:
        return self.sample_from(key, self.prefix(observation), num_samples)

    def sample_from(self, key: Key[Array, ""], prefix: Any, num_samples: int = 1) -> Float[Array, "n b h a"]:
        noise_key, sampler_key = jax.random.split(key)
        batch_size = self.backbone.features(prefix).shape[0]
        noise = jax.random.normal(noise_key, (num_samples, batch_size, self.action_horizon, self.action_dim))

        def model_fn(x, time):
            return jax.vmap(lambda x: self.velocity(prefix, x, jnp.full(batch_size, time)))(x)

        actions, _ = euler(sampler_key, model_fn, noise, EulerOptions(self.config.num_flow_steps))
        return jnp.clip(actions, -1, 1) if self.config.clip_actions else actions

    def velocity(self, prefix: Any, x: Float[Array, "b h a"], time: Float[Array, "b"]) -> Float[Array, "b h a"]:
        """The field at `x`: the expected `actions - noise` of the straight paths that pass `x` at `time`."""
        return self.field(prefix, x, time)


def sample_time(key: Key[Array, ""], shape: tuple[int, ...], distribution: str) -> Float[Array, "..."]:
    """Training times. "pi0" is its Beta(1.5, 1) with cutoff 0.999, turned to our direction: `0.999 * (1 - beta)`.

    Source: arXiv 2410.24164, appendix B. The inverse of Beta(1.5, 1)'s distribution function is `u ** (2 / 3)`.
    """
    uniform = jax.random.uniform(key, shape)
    return uniform if distribution == "uniform" else 0.999 * (1 - uniform ** (2 / 3))


def _require_insulable(config: FlowConfig, backbone: Backbone) -> None:
    require_text(backbone, config.insulation.text, "FlowConfig.insulation")
    codec = config.insulation.text.codec
    ours, theirs = (config.action_horizon, config.action_dim), (codec.action_horizon, codec.action_dim)
    if ours != theirs:
        raise errors.ConfigError(
            "FlowConfig.insulation: the words say other chunks", expected=f"horizon, dim {ours}", found=theirs
        )
    if getattr(backbone.config, "state_token", None) == "suffix":
        raise errors.ConfigError(
            "FlowConfig.insulation: nothing would train the state token, which is part of what the flow reads",
            expected="state_token='text' or 'prefix'",
            found="'suffix'",
        )


def _loss_by_time(losses: Float[Array, "k b"], time: Float[Array, "k b"]) -> Metrics:
    """The halves tell apart a field that has no mean (early) from one that has no detail (late)."""
    halves = {"early": time < 0.5, "late": time >= 0.5}
    by_half = {f"loss_{name}": jnp.where(m, losses, 0).sum() / jnp.maximum(m.sum(), 1) for name, m in halves.items()}
    return {"loss": losses.mean(), **by_half}


def _require_choice(field: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise errors.ConfigError(f"FlowConfig.{field}", expected=" or ".join(choices), found=value)
