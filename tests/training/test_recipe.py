"""What a recipe says of learners, and the combinations that it refuses."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from vla_jax.core import errors
from vla_jax.envs.planar.reach import ReachConfig
from vla_jax.learners.expo import EXPOConfig
from vla_jax.learners.imitation import ImitationConfig
from vla_jax.learners.pa_rl import IQL, PARLConfig
from vla_jax.nets.state_mlp import StateMLPConfig
from vla_jax.policies.flow import FlowConfig
from vla_jax.training import plain, trained
from vla_jax.training.fit import FitConfig
from vla_jax.training.online import ReplayConfig
from vla_jax.training.optimizers import Adam, AdamW
from vla_jax.training.recipe import DataConfig, EvaluationConfig, PolicyConfig, Recipe

POLICY = PolicyConfig(StateMLPConfig(2, 1, 2, (8,)), FlowConfig(1, 2))
PARL = PARLConfig(critic_kind=IQL())
EXPO = EXPOConfig(execution_horizon=1, base="imitation")


def make(learner, **changes):
    return Recipe(
        name="test",
        policy=POLICY,
        learner=learner,
        optimizer=Adam(peak_lr=3e-3),
        fit=FitConfig(1),
        evaluation=EvaluationConfig((ReachConfig(),), 1),
        data=DataConfig((), batch_size=4),
        **changes,
    )


def first_step(optimizer):
    """Of a parameter with gradient 1: Adam's is the learning rate."""
    params = {"scale": jnp.zeros(())}
    return -float(optimizer.update({"scale": jnp.ones(())}, optimizer.init(params), params)[0]["scale"])


@pytest.mark.parametrize("learner", [PARL, EXPO])
def test_the_fine_tuned_policy_may_have_an_optimizer_of_its_own(learner):
    both = make(learner, replay=ReplayConfig(), start_from="a")
    apart = dataclasses.replace(both, base_optimizer=AdamW(peak_lr=1e-4))
    assert plain.from_plain(Recipe, plain.to_plain(apart)) == apart
    for recipe, base_lr in ((both, 3e-3), (apart, 1e-4)):
        made = trained.make_learner(recipe)
        found = first_step(made.optimizer), first_step(made.base_optimizer)
        np.testing.assert_allclose(found, (3e-3, base_lr), rtol=1e-4)


@pytest.mark.parametrize(
    ("learner", "changes"),
    [(ImitationConfig(), {}), (EXPOConfig(execution_horizon=1), dict(replay=ReplayConfig(), start_from="a"))],
    ids=["imitation", "frozen"],
)
def test_a_second_optimizer_without_anything_to_train_is_refused(learner, changes):
    with pytest.raises(errors.ConfigError, match="base_optimizer"):
        make(learner, base_optimizer=Adam(), **changes)
