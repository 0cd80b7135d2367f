"""VICE: a reward learned while the policy learns, from pictures of the goal against what the policy reaches.

Singh, Yang, Hartikainen, Finn, Levine, "End-to-End Robotic Reinforcement Learning without Reward Engineering" (arXiv
1904.07854), as SERL (arXiv 2401.16013) trains it. Goal pictures are positives, pictures from the replay buffer are
negatives, both as they are and cropped. What keeps the discriminator from being right about everything is label
smoothing, mixup, and a penalty on the norm of its gradient in what it sees (the trunk's maps). The reward is its
probability. Unlike the released code, the penalty's norm is over all cameras together.
"""

import dataclasses
from collections.abc import Callable
from functools import cached_property

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from vla_jax.core import errors, functional, images
from vla_jax.core.types import Metrics, Observation, Params
from vla_jax.learners import labelled
from vla_jax.learners.labelled import ClassifierState, Examples
from vla_jax.nets.pixels import Maps, PictureClassifier, PixelConfig


@dataclasses.dataclass(frozen=True)
class ViceConfig:
    """Defaults: SERL's. Its learning rate is 3e-4 (Adam)."""

    hidden: int = 256
    dropout: float = 0.1
    crop_pad: int = 4  # pixels
    label_smoothing: float = 0.2  # labels are half of it away from 0 and 1
    mixup_alpha: float = 1.0  # of the Beta distribution that weighs two examples
    gradient_penalty: float = 10.0

    def __post_init__(self):
        if not 0 <= self.label_smoothing < 1 or self.mixup_alpha <= 0 or self.gradient_penalty < 0:
            raise errors.ConfigError(
                "ViceConfig", expected="smoothing in [0, 1), alpha above 0, a penalty of at least 0", found=self
            )


@dataclasses.dataclass(frozen=True)
class Vice:
    pixels: PixelConfig
    optimizer: optax.GradientTransformation
    config: ViceConfig = ViceConfig()

    @cached_property
    def net(self) -> functional.Net[PictureClassifier]:
        return functional.describe(self._make)[0]

    def init(self, key: Key[Array, ""]) -> ClassifierState:
        frozen, params = labelled.split_trunk(functional.init(self._make, key)[1], frozen=True)
        return ClassifierState(jnp.zeros((), jnp.int32), params, self.optimizer.init(params), frozen)

    def update(self, state: ClassifierState, key: Key[Array, ""], batch: Examples) -> tuple[ClassifierState, Metrics]:
        """One step on goal pictures against replayed ones, as many of both, each also cropped."""
        crop_key, loss_key = jax.random.split(key)
        crop_keys = jax.random.split(crop_key)
        positives = self._with_crops(crop_keys[0], batch.positives)
        negatives = self._with_crops(crop_keys[1], batch.negatives)
        observation, labels = labelled.balanced(Examples(positives, negatives))
        smoothing = self.config.label_smoothing
        labels = labels * (1 - smoothing) + 0.5 * smoothing
        net = self.net.bind(labelled.join_trunk(state.frozen, state.params))
        maps = jax.lax.stop_gradient(net.encoder.maps(observation))
        loss_and_grads = jax.value_and_grad(self.loss, has_aux=True)
        (value, metrics), grads = loss_and_grads(state.params, state.frozen, loss_key, maps, labels)
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return ClassifierState(state.step + 1, params, opt_state, state.frozen), {"vice/loss": value} | metrics

    def _with_crops(self, key: Key[Array, ""], observation: Observation) -> Observation:
        cropped = images.crop_observation(key, observation, self.config.crop_pad)
        return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), observation, cropped)

    def loss(
        self, params: Params, frozen: Params, key: Key[Array, ""], maps: Maps, labels: Float[Array, "b"]
    ) -> tuple[Float[Array, ""], Metrics]:
        """Cross-entropy of mixed examples to both their labels, and the penalty between pairs of them."""
        weight_key, order_key, between_key, first_key, second_key = jax.random.split(key, 5)
        weight = jax.random.beta(weight_key, self.config.mixup_alpha, self.config.mixup_alpha)
        order = jax.random.permutation(order_key, labels.shape[0])
        mixed = jax.tree.map(lambda leaf: weight * leaf + (1 - weight) * leaf[order], maps)
        net = self.net.bind(labelled.join_trunk(frozen, params))
        logits = net.head(mixed, None, first_key, self.config.dropout)
        entropies = [optax.sigmoid_binary_cross_entropy(logits, each).mean() for each in (labels, labels[order])]
        cross_entropy = weight * entropies[0] + (1 - weight) * entropies[1]

        half = labels.shape[0] // 2
        share = jax.random.uniform(between_key, (half, 1, 1, 1))
        between = jax.tree.map(lambda leaf: share * leaf[:half] + (1 - share) * leaf[half:], mixed)
        penalty = gradient_penalty(lambda maps: net.head(maps, None, second_key, self.config.dropout), between)
        metrics = {"vice/cross_entropy": cross_entropy, "vice/gradient_penalty": penalty.mean()}
        return cross_entropy + self.config.gradient_penalty * penalty.mean(), metrics

    def reward(self, state: ClassifierState, observation: Observation) -> Float[Array, "b"]:
        """The probability, in (0, 1), that this is a picture of the goal."""
        return jax.nn.sigmoid(self.net.bind(labelled.join_trunk(state.frozen, state.params))(observation))

    def _make(self, rngs) -> PictureClassifier:
        return PictureClassifier(self.pixels, rngs, hidden=self.config.hidden, leaky=True)


def gradient_penalty(logits: Callable[[Maps], Float[Array, "b"]], maps: Maps) -> Float[Array, "b"]:
    """`(norm - 1)^2` of every example's gradient in its maps. `logits` must treat the examples one by one.

    Source: WGAN-GP (arXiv 1704.00028), eq. 3.
    """
    grads = jax.grad(lambda maps: logits(maps).sum())(maps)
    squares = sum(jnp.square(leaf).reshape(leaf.shape[0], -1).sum(-1) for leaf in jax.tree.leaves(grads))
    return jnp.square(jnp.sqrt(squares + 1e-12) - 1)
