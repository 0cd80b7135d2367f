"""Acting as a step to be planned: the weights as a server holds them, one observation per row in, chunks out."""

import dataclasses
from collections.abc import Callable
from functools import cached_property
from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from vla_jax.core import functional
from vla_jax.core.types import Demonstrations, Metrics, Params
from vla_jax.learners.base import LearnerState
from vla_jax.policies.base import Policy
from vla_jax.training.plan import program as programs
from vla_jax.training.plan.program import Program
from vla_jax.training.recipe import Recipe
from vla_jax.training.tuning import Tuning, TuningConfig

Weights = Literal["float32", "bfloat16", "int8"]


@dataclasses.dataclass(frozen=True)
class Acting:
    """As much of a `Learner` as a plan asks for; an update acts and leaves its weights as they are."""

    policy: Callable[[nnx.Rngs], Policy]
    weights: Weights

    @cached_property
    def tuning(self) -> Tuning:
        return Tuning(TuningConfig(train=(), keep_frozen_in=self.weights), self.policy)

    def init(self, key: Key[Array, ""], example_batch: Demonstrations) -> LearnerState:
        return LearnerState(jnp.zeros((), jnp.int32), self.tuning.freeze(functional.init(self.policy, key)[1]))

    def actor(self, state: LearnerState) -> Params:
        return state.params

    def loss(
        self, actor_params: Params, key: Key[Array, ""], batch: Demonstrations
    ) -> tuple[Float[Array, ""], Metrics]:
        """The sum of the chunks: something to keep, so that no compiler leaves them out."""
        policy = functional.describe(self.policy)[0].bind(actor_params)
        return policy.sample(key, batch.observation)[0].sum(), {}

    def update(self, state: LearnerState, key: Key[Array, ""], batch: Demonstrations) -> tuple[LearnerState, Metrics]:
        total, _ = self.loss(state.params, key, batch)
        return state.replace(step=state.step + 1), {"act/actions": total}


def of_recipe(recipe: Recipe, batch_size: int, weights: Weights) -> Program:
    """One call of the recipe's policy for `batch_size` observations."""
    acting = Acting(recipe.policy.constructor(), weights)
    return Program(
        name=f"{recipe.name}, acting with {weights} weights",
        learner=acting,
        batch=programs.demonstrations(recipe, batch_size),
        logical_axes=acting.tuning.logical_axes,
        num_train_steps=1,
        fsdp_min_size=recipe.fit.mesh.fsdp_min_size,
        passes=1,
    )
