"""A classifier of success from pictures, trained on labelled ones: the reward of tasks that have no other.

Batches hold as many positives (the last observations of successes) as negatives; every picture is cropped at random.
`envs/rewards.py` makes a reward of the probability. Source: SERL (arXiv 2401.16013) and its code.
"""

import dataclasses
from functools import cached_property

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from vla_jax.core import errors, functional, images
from vla_jax.core.types import Metrics, Observation, Params
from vla_jax.learners import labelled
from vla_jax.learners.labelled import ClassifierState, Examples
from vla_jax.nets.pixels import PictureClassifier, PixelConfig


@dataclasses.dataclass(frozen=True)
class ClassifierConfig:
    """Defaults: SERL's. It makes 100 updates of 256 examples with Adam at 1e-4."""

    hidden: int = 256
    dropout: float = 0.1
    crop_pad: int = 4  # pixels
    frozen_trunk: bool = True

    def __post_init__(self):
        if not 0 <= self.dropout < 1:
            raise errors.ConfigError("ClassifierConfig.dropout", expected="a share in [0, 1)", found=self.dropout)


@dataclasses.dataclass(frozen=True)
class SuccessClassifier:
    pixels: PixelConfig
    optimizer: optax.GradientTransformation
    config: ClassifierConfig = ClassifierConfig()

    @cached_property
    def net(self) -> functional.Net[PictureClassifier]:
        return functional.describe(self._make)[0]

    def init(self, key: Key[Array, ""]) -> ClassifierState:
        frozen, params = labelled.split_trunk(functional.init(self._make, key)[1], frozen=self.config.frozen_trunk)
        return ClassifierState(jnp.zeros((), jnp.int32), params, self.optimizer.init(params), frozen)

    def update(self, state: ClassifierState, key: Key[Array, ""], batch: Examples) -> tuple[ClassifierState, Metrics]:
        """One step on a balanced batch. Raises DataError when there are more of one kind."""
        crop_key, dropout_key = jax.random.split(key)
        observation, labels = labelled.balanced(batch)
        observation = images.crop_observation(crop_key, observation, self.config.crop_pad)

        def loss(params: Params):
            net = self.net.bind(labelled.join_trunk(state.frozen, params))
            logits = net(observation, dropout_key, self.config.dropout)
            return optax.sigmoid_binary_cross_entropy(logits, labels).mean(), logits

        (value, logits), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {"classifier/loss": value, "classifier/accuracy": ((logits > 0) == (labels > 0.5)).mean()}
        return ClassifierState(state.step + 1, params, opt_state, state.frozen), metrics

    def probability(self, state: ClassifierState, observation: Observation) -> Float[Array, "b"]:
        return jax.nn.sigmoid(self.net.bind(labelled.join_trunk(state.frozen, state.params))(observation))

    def _make(self, rngs) -> PictureClassifier:
        return PictureClassifier(self.pixels, rngs, hidden=self.config.hidden)
