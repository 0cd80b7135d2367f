"""Validation loss and action error of a policy simple enough to know both."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vla_jax.core import errors
from vla_jax.core.types import Demonstrations, Observation
from vla_jax.data.action_space import ActionSpace
from vla_jax.data.normalization import NormalizationConfig, Normalizer
from vla_jax.evaluation.held_out import HeldOut, HeldOutConfig, HeldOutSet, together

SCALE = np.array([2.0, 10.0], np.float32)  # physical units per normalized one, of the two dims of the robot
HORIZON, MODEL_DIM = 3, 4  # the model is wider than the robot


class Guess:
    """Says `params["guess"]` whatever it sees; the loss of an example is the first number of its state."""

    def loss(self, params, key, batch):
        losses = batch.observation.state[:, 0] + params["guess"] * 0
        return (losses * batch.weight).sum() / jnp.maximum(batch.weight.sum(), 1e-6), {}

    def initial_memory(self, batch_size):
        return ()

    def act(self, actor_params, key, observation, memory):
        shape = (len(observation.state), HORIZON, MODEL_DIM)
        return jnp.broadcast_to(actor_params["guess"], shape), memory


SPACE = ActionSpace(
    Normalizer(np.zeros(1, np.float32), np.ones(1, np.float32), np.zeros(2, np.float32), SCALE, NormalizationConfig())
)


def held_out_set(num_frames, embodiment="arm", actions=0.0, asked=None, damaged=(), space=SPACE):
    """Frame i has a state of i, and actions of `actions` in all dims; the last step of a chunk is no real one."""

    def batch(frames):
        if asked is not None:
            asked.append(frames)
        size = len(frames)
        mask = np.zeros((size, HORIZON, MODEL_DIM), bool)
        mask[:, :2, :2] = True
        recorded = np.full((size, HORIZON, MODEL_DIM), actions, np.float32)
        recorded[:, 2] = 99.0  # padding: must not count
        observation = Observation(
            images={}, image_mask={}, state=frames[:, None].astype(np.float32), prompt=np.zeros((size, 1), np.int32),
            prompt_mask=np.ones((size, 1), bool),
        )  # fmt: skip
        weight = np.where(np.isin(frames, damaged), 0, 1).astype(np.float32)
        return Demonstrations(observation=observation, actions=recorded, action_mask=mask, weight=weight)

    return HeldOutSet(embodiment, num_frames, batch, space)


def measured(*sets, guess=1.0, **config):
    held_out = HeldOut(Guess(), sets, ("reach", "turn"), HeldOutConfig(**config))
    return held_out({"guess": jnp.float32(guess)}, 7)


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_loss_and_error_are_those_of_paper_for_any_batch_size(batch_size):
    metrics = measured(held_out_set(10, actions=0.25), batch_size=batch_size)
    assert metrics == pytest.approx(
        {
            "validation/loss": 4.5,  # the mean of 0 to 9: repeated rows of the last batch would pull it down
            "validation/action_error_reach": 1.5,  # 0.75 normalized, times 2
            "validation/action_error_turn": 7.5,
            "validation/action_error": 4.5,
        }
    )


def test_damaged_frames_count_for_nothing():
    assert measured(held_out_set(4, damaged=(3,)))["validation/loss"] == pytest.approx(1.0)  # of 0, 1, 2


def test_embodiments_are_reported_one_by_one_and_together():
    sets = (held_out_set(3), held_out_set(3), held_out_set(2, "hand", actions=1.0))
    metrics = measured(*sets)
    assert metrics["validation/arm/action_error_reach"] == pytest.approx(2.0)
    assert metrics["validation/hand/action_error_reach"] == pytest.approx(0.0)
    assert metrics["validation/action_error_reach"] == pytest.approx(2.0 * 6 / 8)  # by frames: 6 of 8 are off by 2
    assert metrics["validation/hand/loss"] == pytest.approx(0.5)


def test_every_set_is_measured_in_its_own_units():
    doubled = SPACE.replace(normalizer=SPACE.normalizer.replace(action_scale=2 * SCALE))
    metrics = measured(held_out_set(3), held_out_set(3, "hand", space=doubled))
    assert metrics["validation/arm/action_error_reach"] == pytest.approx(2.0)
    assert metrics["validation/hand/action_error_reach"] == pytest.approx(4.0)
    assert metrics["validation/action_error_reach"] == pytest.approx(3.0)


def test_a_robot_with_fewer_dims_counts_in_those_it_has():
    one = Normalizer(*(row[:1] for row in jax.tree.leaves(SPACE.normalizer)), config=NormalizationConfig())
    metrics = measured(held_out_set(3), held_out_set(3, "hand", actions=0.5, space=ActionSpace(one)))
    assert metrics["validation/hand/action_error"] == metrics["validation/hand/action_error_reach"] == 1.0
    assert "validation/hand/action_error_turn" not in metrics
    assert metrics["validation/action_error_reach"] == pytest.approx(1.5)
    assert metrics["validation/action_error_turn"] == pytest.approx(10.0)


def test_movements_are_compared_as_movements():
    """Learned as targets, recorded as movements: a guess that is off by the same all the way is off in one step."""
    targets = SPACE.replace(kind="absolute", relative_dims=((0, 0),))
    metrics = measured(held_out_set(3, actions=0.25, space=targets))
    assert metrics["validation/action_error_reach"] == pytest.approx(0.75)  # 1.5 in the first of two real steps
    assert metrics["validation/action_error_turn"] == pytest.approx(7.5)


def test_the_same_frames_spread_over_the_set_are_asked_for_every_time():
    asked = []
    config = HeldOutConfig(max_frames=5, batch_size=8)
    held_out = HeldOut(Guess(), (held_out_set(100, asked=asked),), ("a", "b"), config)
    first, second = (held_out({"guess": jnp.float32(0)}, step) for step in (1, 2))
    assert first == second and set(asked[0].tolist()) == {0, 25, 50, 74, 99}
    np.testing.assert_array_equal(asked[0], asked[1])


def test_a_set_that_holds_out_nothing_is_refused():
    with pytest.raises(errors.DataError, match="no held-out episode"):
        measured(held_out_set(0))


def test_every_dim_needs_a_name():
    with pytest.raises(errors.ConfigError, match="2 action names"):
        HeldOut(Guess(), (held_out_set(3),), ("only",))({"guess": jnp.float32(0)}, 0)


def test_evaluations_are_joined():
    both = together(lambda params, step: {"a": params + step}, lambda params, step: {"b": 2.0})
    assert both(1, 2) == {"a": 3, "b": 2.0}
