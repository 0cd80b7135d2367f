"""Denoising diffusion over action chunks (DDPM, arXiv 2006.11239; as a policy, arXiv 2303.04137 and 2304.10573).

Training adds the noise of a random level of a short variance-preserving schedule and regresses that noise; sampling
removes it level by level. The network is the flow policy's, told level `k` of `n` as `time = 1 - k / n`, so that time
runs from noise to data. PA-RL and EXPO fine-tune this class (their base policies are small DDPMs of 5 to 10 levels).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from vla_jax.core import errors, functional, keys
from vla_jax.core.types import Demonstrations, Metrics, Observation
from vla_jax.losses.flow import masked_squared_error
from vla_jax.nets.backbone import Backbone
from vla_jax.policies.chunk_field import ChunkField, TimeConditioning
from vla_jax.samplers.diffusion import DDIMOptions, DDPMOptions, NoiseSchedule, ddim, ddpm


@dataclasses.dataclass(frozen=True)
class DiffusionConfig:
    action_horizon: int  # h
    action_dim: int  # a
    schedule: NoiseSchedule = NoiseSchedule(num_steps=10)
    ddim_steps: int | None = None  # levels of a deterministic sampler; None: DDPM over all of them
    loss_samples: int = 1  # draws of noise and level per encoded observation
    time_conditioning: TimeConditioning = "concat"
    clip_actions: bool = True  # to [-1, 1] in every step of sampling

    def __post_init__(self):
        if min(self.action_horizon, self.action_dim, self.loss_samples) < 1:
            raise errors.ConfigError("DiffusionConfig", expected="counts of at least 1", found=self)
        if self.ddim_steps is not None:
            DDIMOptions(self.schedule, self.ddim_steps)


class DiffusionPolicy(ChunkField):
    """`Policy` and `HasPrefix`; one suffix token per step of the chunk."""

    def __init__(self, config: DiffusionConfig, backbone: Backbone, rngs: nnx.Rngs):
        super().__init__(config.action_horizon, config.action_dim, config.time_conditioning, backbone, rngs)
        self.config = config

    def loss(self, key: Key[Array, ""], batch: Demonstrations) -> tuple[Float[Array, "b"], Metrics]:
        """Mean squared error of the predicted noise over `loss_samples` draws per example.

        Actions under a False mask count as 0, so what stands there changes nothing.
        """
        noise_key, level_key = jax.random.split(keys.for_arrays(key))
        schedule = self.config.schedule
        actions = jnp.where(batch.action_mask, batch.actions, 0.0)
        noise = jax.random.normal(noise_key, (self.config.loss_samples, *actions.shape))
        level = jax.random.randint(level_key, noise.shape[:2], 1, schedule.num_steps + 1)
        prefix = self.prefix(batch.observation)

        def one_draw(noise, level):
            signal, sigma = (jnp.asarray(x)[level][:, None, None] for x in (schedule.signal, schedule.sigma))
            predicted = self.noise(prefix, signal * actions + sigma * noise, schedule.time(level))
            return masked_squared_error(predicted, noise, batch.action_mask)

        losses = functional.each_draw(one_draw, noise, level).mean(0)
        return losses, {"diffusion/loss": losses.mean()}

    def sample(self, key: Key[Array, ""], observation: Observation, num_samples: int = 1) -> Float[Array, "n b h a"]:
        return self.sample_from(key, self.prefix(observation), num_samples)

    def sample_from(self, key: Key[Array, ""], prefix: Any, num_samples: int = 1) -> Float[Array, "n b h a"]:
        noise_key, sampler_key = jax.random.split(key)
        batch_size = self.features(prefix).shape[0]
        start = jax.random.normal(noise_key, (num_samples, batch_size, self.action_horizon, self.action_dim))
        config = self.config

        def noise_fn(x, time):
            return jax.vmap(lambda x: self.noise(prefix, x, jnp.full(batch_size, time)))(x)

        if config.ddim_steps is None:
            return ddpm(sampler_key, noise_fn, start, DDPMOptions(config.schedule, config.clip_actions))[0]
        options = DDIMOptions(config.schedule, config.ddim_steps, config.clip_actions)
        return ddim(sampler_key, noise_fn, start, options)[0]

    def noise(self, prefix: Any, x: Float[Array, "b h a"], time: Float[Array, "b"]) -> Float[Array, "b h a"]:
        """The expected noise in `x` at a level's time."""
        return self.field(prefix, x, time)
