"""The grip's critic of HIL-SERL: its target, its choice, what it trains, and a task that needs arm and grip."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.training.actor_learner.toy import METADATA
from vla_jax.core import errors
from vla_jax.core.types import Observation, Transitions
from vla_jax.envs.base import EnvSpec, EnvState
from vla_jax.learners.hil_serl import GraspConfig, HilSerl
from vla_jax.learners.rlpd import RLPD, RLPDConfig
from vla_jax.nets.critics import CriticConfig
from vla_jax.nets.pixels import PixelConfig, PixelEncoder
from vla_jax.training.fit import FitConfig, fit
from vla_jax.training.online import ReplayConfig, ReplaySource

B, H, S, KEY = 6, 2, 3, jax.random.key(0)
TINY = RLPDConfig(action_horizon=H, num_critics=2, critic=CriticConfig((8,), activation="tanh"), actor_dims=(8,))


def make(**overrides) -> HilSerl:
    arm = RLPD(2, S, optax.adam(1e-2), TINY)
    return HilSerl(arm, S, optax.adam(1e-2), GraspConfig(**dict(hidden_dims=(8,), discount=0.9) | overrides))


def transitions(*leading, last_dim=None):
    shape = (*leading, B)
    actions = jax.random.uniform(KEY, (*shape, H, 3), minval=-1)
    actions = actions if last_dim is None else actions.at[..., -1].set(jnp.array(last_dim)[:, None])
    ones, states = jnp.ones((*shape, H)), jax.random.normal(KEY, (2, *shape, S))
    return Transitions(states[0], actions, ones, ones, ones > 0, states[1], {})


def valued(learner, params, values):
    """Parameters that give these values to the commands, whatever the features."""
    output = params["output"]
    output = {"kernel": jnp.zeros_like(output["kernel"]), "bias": jnp.array(values)}
    return {**params, "output": output}


@pytest.fixture(scope="module")
def state():
    return make().init(KEY)


def test_the_target_is_the_slow_value_of_the_command_that_the_fast_critic_prefers(state):
    learner = make(penalty=0.25)
    state = state.replace(
        params=valued(learner, state.params, [0.0, 5.0, 1.0]), target=valued(learner, state.target, [9.0, 2.0, 8.0])
    )
    batch = transitions(last_dim=[-1.0, 0.0, 1.0, 0.3, 0.8, 0.0])
    ended = batch.replace(discounts=batch.discounts.at[-1].set(0.0))
    # 1 + 0.9 in the chunk, 0.81 * 2 behind it: a plain maximum would bootstrap from 9
    expected = 1.9 + 0.81 * 2.0 - 0.25 * np.array([1, 0, 1, 0, 1, 0])
    found = jax.jit(learner.targets)(state, ended, batch.next_observation)
    np.testing.assert_allclose(found[:-1], expected[:-1], rtol=1e-5)
    np.testing.assert_allclose(found[-1], 1.0, rtol=1e-6)  # the step after the end does not count


def test_demonstrated_commands_are_the_nearest_ones():
    commands = make().commands_of(jnp.array([-1.0, -0.51, -0.49, 0.2, 0.51, 3.0])[:, None, None])
    assert commands.tolist() == [0, 0, 1, 1, 2, 2]


def test_only_the_value_of_the_given_command_moves(state):
    learner, commands = make(), jnp.array([2, 0, 2, 2, 0, 2])
    features, targets = jnp.ones((B, S)), jnp.zeros(B)
    (loss, mean_q), grads = jax.value_and_grad(learner.grasp_loss, has_aux=True)(
        valued(learner, state.params, [3.0, 7.0, 1.0]), features, commands, targets
    )
    assert float(loss) == pytest.approx((4 * 1.0 + 2 * 9.0) / 6)
    assert float(mean_q) == pytest.approx((4 * 1.0 + 2 * 3.0) / 6)
    np.testing.assert_allclose(grads["output"]["bias"], [2 * 3.0 * 2 / 6, 0.0, 2 * 1.0 * 4 / 6], rtol=1e-5)


def test_it_acts_by_its_best_command_and_explores_with_a_share_of_random_ones(state):
    learner, many = make(epsilon=0.3), 3000
    state = state.replace(params=valued(learner, state.params, [0.0, 1.0, 2.0]))
    actor = learner.actor(state)
    seen = Observation(
        {}, {}, jax.random.normal(KEY, (many, S)), jnp.zeros((many, 1), jnp.int32), jnp.ones((many, 1)) > 0
    )
    actions, _ = jax.jit(lambda: learner.act(actor, KEY, seen, ()))()
    assert actions.shape == (many, H, 3) and (actions[..., -1] == 1.0).all()
    np.testing.assert_allclose(actions[..., :2], learner.arm.act(actor["arm"], KEY, seen, ())[0], atol=1e-6)
    explored = jax.jit(lambda: learner.explore(actor, KEY, learner.observe(actor, KEY, seen)[0]))()
    assert (explored[:, 0, -1] == explored[:, 1, -1]).all()  # one command for the chunk
    shares = [float((explored[:, 0, -1] == command).mean()) for command in (-1.0, 0.0, 1.0)]
    # a random command is the best one in a third of the cases; 4 standard deviations are 0.03
    np.testing.assert_allclose(shares, [0.1, 0.1, 0.8], atol=0.03)
    greedy = jax.jit(lambda: make().explore(actor, KEY, seen.state))()
    assert (greedy[..., -1] == 1.0).all()


def test_the_arm_learns_as_it_would_alone_and_the_head_at_every_minibatch(state):
    learner, batch = make(), transitions(2, 3)
    after, metrics = jax.jit(learner.update)(state, KEY, batch)
    alone = batch.replace(actions=batch.actions[..., :2])
    arm, _ = jax.jit(learner.arm.update)(state.arm, jax.random.split(KEY)[0], alone)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), after.arm.params, arm.params)
    assert int(after.opt_state[0].count) == 6 and int(after.step) == 1
    assert all((a != b).any() for a, b in zip(*map(jax.tree.leaves, (state.target, after.target)), strict=True))
    assert all(jnp.isfinite(value) for value in metrics.values()) and "grasp/loss" in metrics


def test_its_loss_trains_no_encoder():
    """Of pictures: the gradient of a step's loss ends in the head, and the arm's state is not touched."""
    pixels = PixelConfig(("front",), (8, 8), 0, filters=4, stages=(1,), spatial_features=2, bottleneck=6)
    config = dataclasses.replace(TINY, action_horizon=1, frozen_trunk=False)
    arm = RLPD(1, pixels.feature_dim, optax.sgd(0.1), config, lambda rngs: PixelEncoder(pixels, rngs))
    learner = HilSerl(arm, pixels.feature_dim, optax.sgd(0.1), GraspConfig(hidden_dims=(8,), crop_pad=1))
    pictures, ones = jnp.full((B, 8, 8, 3), 90, jnp.uint8), jnp.ones((B, 1))
    seen = Observation({"front": pictures}, {"front": ones[:, 0] > 0}, jnp.zeros((B, 0)), jnp.int32(ones), ones > 0)
    batch = Transitions(seen, jnp.ones((B, 1, 2)), ones, ones, ones > 0, seen, {})
    state = learner.init(KEY)

    def loss(state):
        return learner._grasp_step(state, (KEY, batch))[1]["grasp/loss"]

    grads = jax.jit(jax.grad(loss, allow_int=True))(state)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(grads.arm.params))
    assert any((leaf != 0).any() for leaf in jax.tree.leaves(grads.params))
    assert learner.without_frozen(state.replace(arm=state.arm.replace(frozen={"trunk": 0}))).arm.frozen == {}


@pytest.mark.parametrize("wrong", [{"hold": 0.5}, {"commands": (0.0, 0.0)}, {"epsilon": 1.5}, {"penalty": -0.1}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(errors.ConfigError, match="GraspConfig"):
        GraspConfig(**wrong)


@dataclasses.dataclass(frozen=True)
class GripEnv:
    """A hand on a line closes its grip where the thing is, at 0; closing elsewhere takes nothing."""

    spec = EnvSpec("grip", ("take",), ("dx", "grip"), ("x",), {}, episode_length=8, control_hz=10.0)

    def reset(self, key):
        x = jax.random.uniform(key, (1,), minval=-0.6, maxval=0.6)
        no, one = jnp.bool_(False), jnp.float32(1)
        return EnvState(x, key, jnp.int32(0), jnp.int32(0), jnp.float32(0), one, no, no, {})

    def step(self, state, action):
        x = state.physics + 0.2 * jnp.clip(action[:1], -1, 1)
        success = (jnp.abs(x[0]) < 0.1) & (action[1] > 0.5)
        done = success | (state.env_step + 1 >= self.spec.episode_length)
        reward = success.astype(jnp.float32)
        moved = state.replace(
            physics=x, env_step=state.env_step + 1, reward=reward, discount=1 - reward, done=done, success=success
        )
        still = state.replace(reward=jnp.float32(0))
        return jax.tree.map(lambda old, new: jnp.where(state.done, old, new), still, moved)

    def observe(self, state):
        return Observation({}, {}, state.physics, jnp.zeros(1, jnp.int32), jnp.ones(1, bool))


def test_it_learns_to_take_a_thing_and_saves_the_rest_of_its_commands(tmp_path):
    config = dataclasses.replace(TINY, action_horizon=1, discount=0.9, target_update_rate=0.05)
    config = dataclasses.replace(config, critic=CriticConfig((32,), activation="tanh"), actor_dims=(32,))
    grasp = GraspConfig(hidden_dims=(32,), discount=0.9, target_update_rate=0.05, epsilon=0.2, penalty=0.2)
    learner = HilSerl(RLPD(1, 1, optax.adam(3e-3), config), 1, optax.adam(3e-3), grasp)
    abstract = jax.eval_shape(lambda key: learner.actor(learner.init(key)), KEY)
    replay = ReplayConfig(num_envs=16, capacity=4000, warmup_decisions=8, rounds=4, critic_updates=2, batch_size=64)
    source = ReplaySource(GripEnv(), learner, abstract, replay)
    fitted = fit(learner, source, FitConfig(100, log_every=50), tmp_path, metadata=METADATA, quiet=True)
    actor, env = learner.actor(fitted.state), GripEnv()

    @jax.jit
    def episode(states):
        def step(states, _):
            seen = jax.vmap(env.observe)(states)
            actions = learner.act(actor, KEY, seen, ())[0][:, 0]
            return jax.vmap(env.step)(states, actions), (actions[:, 1], states.done)

        return jax.lax.scan(step, states, None, env.spec.episode_length)

    states, (commands, done) = episode(jax.vmap(env.reset)(jax.random.split(jax.random.key(5), 200)))
    assert states.success.mean() > 0.95
    assert ((commands != 0) & ~done).sum() < 230  # 200 episodes need one each; without a penalty 303 were given
