import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brax.envs import fast
from brax.envs.base import Env as BraxBase
from brax.envs.base import State as BraxState
from brax.envs.wrappers import training as wrappers
from brax.training.agents.ppo import networks as ppo_networks
from brax.training.agents.ppo import train as ppo
from brax.training.agents.sac import networks as sac_networks
from brax.training.agents.sac import train as sac

from vla_jax.core import errors
from vla_jax.core.types import PromptTable
from vla_jax.envs import brax_env
from vla_jax.envs.brax_env import FromBrax, replicated_puts, to_brax
from vla_jax.envs.planar.reach import ReachConfig
from vla_jax.envs.wrappers import BatchedEnv, ChunkedEnv

PROMPTS = PromptTable(tokens=jnp.zeros((1, 1), jnp.int32), mask=jnp.zeros((1, 1), bool))


class Ladder(BraxBase):
    """Climbs by the action; the task ends at 2 rungs up, time (its own) at 2 rungs down."""

    dt = 0.1

    def reset(self, rng):
        start = jax.random.uniform(rng, (), maxval=0.1)
        obs = {"height": start[None], "pair": jnp.zeros((1, 2))}
        return BraxState(start, obs, jnp.zeros(()), jnp.zeros(()), {"height": start}, {"truncation": jnp.zeros(())})

    def step(self, state, action):
        height = state.pipeline_state + action[0]
        cut = (height < -2).astype(jnp.float32)
        state.info.update(truncation=cut)  # as brax's own environments do: the dict they were given
        return state.replace(
            pipeline_state=height,
            obs={"height": height[None], "pair": jnp.full((1, 2), height)},
            reward=height,
            done=jnp.maximum(cut, (height > 2).astype(jnp.float32)),
            metrics={"height": height},
        )

    @property
    def observation_size(self):
        return {"height": 1, "pair": 2}

    action_size = 1
    backend = "none"


def _ladder(**options):
    return FromBrax(Ladder(), "ladder", 6, observation_keys=("pair", "height"), **options)


def _run(env, actions, key=0):
    return jax.jit(lambda state, actions: ChunkedEnv(env).step(state, actions))(env.reset(jax.random.key(key)), actions)


def test_a_dict_observation_is_joined_in_its_declared_order():
    env = _ladder()
    assert env.spec.state_dim == 3 and env.spec.action_dim == 1 and env.spec.control_hz == 10
    chunk = _run(env, jnp.full((1, 1), 0.5))
    height = chunk.state.physics.pipeline_state
    assert env.observe(chunk.state).state.tolist() == [height, height, height]
    with pytest.raises(errors.EnvError, match="height, pair"):
        FromBrax(Ladder(), "ladder", 6)


def test_the_end_of_the_task_has_discount_0_and_freezes():
    chunk = _run(_ladder(success=lambda physics: physics.pipeline_state > 2), jnp.ones((5, 1)))
    assert chunk.mask.sum() == 2  # it starts a little above 0
    last = 1
    assert chunk.discounts[last] == 0 and (chunk.discounts[:last] == 1).all() and chunk.state.success
    assert (chunk.rewards[last + 1 :] == 0).all() and chunk.state.physics.pipeline_state < 3.2


def test_time_is_no_end_whoever_counts_it():
    own = _run(_ladder(), -jnp.ones((5, 1)))  # below -2 in three steps: the environment says that it truncates
    assert own.mask.sum() == 3 and own.state.done and (own.discounts == 1).all() and not own.state.success
    ours = _run(_ladder(), jnp.zeros((8, 1)))
    assert ours.mask.sum() == 6 and ours.state.done and (ours.discounts == 1).all()


def test_steps_are_those_of_brax():
    theirs = fast.Fast()
    env = FromBrax(theirs, "fast", 10, control_hz=50.0)
    actions = jax.random.uniform(jax.random.key(1), (6, 1), minval=-1)
    state, rewards = theirs.reset(jax.random.PRNGKey(0)), []
    for action in actions:
        state = theirs.step(state, action)
        rewards.append(float(state.reward))
    chunk = _run(env, actions)
    assert np.allclose(chunk.rewards, rewards) and np.allclose(env.observe(chunk.state).state, state.obs)


def test_it_batches_and_equal_keys_give_equal_episodes():
    env = BatchedEnv(_ladder())
    states = env.reset(jax.random.split(jax.random.key(0), 4))
    heights = env.observe(states).state[:, 2]
    assert len(set(heights.tolist())) == 4
    assert (env.observe(env.reset(jax.random.split(jax.random.key(0), 4))).state[:, 2] == heights).all()


def _reach(**fields):
    return ReachConfig(**fields).make(PROMPTS)


def test_ours_steps_alike_as_brax():
    env = _reach()
    theirs = to_brax(env)
    assert (theirs.observation_size, theirs.action_size, theirs.episode_length) == (2, 2, 16)
    state, ours = theirs.reset(jax.random.PRNGKey(3)), env.reset(jax.random.key(3))
    assert (state.obs == env.observe(ours).state).all()
    for action in jax.random.uniform(jax.random.key(1), (5, 2), minval=-1):
        state, ours = theirs.step(state, action), env.step(ours, action)
        assert (state.obs == env.observe(ours).state).all() and state.reward == ours.reward
        assert state.metrics["goal_distance"] == ours.info["goal_distance"]


def test_there_and_back_is_the_same_environment():
    env = _reach(radius=0.3)
    again = FromBrax(to_brax(env), "again", 16, success=lambda physics: physics.metrics["success"] > 0)
    keys = jax.random.key(5)
    actions = jnp.tile(jnp.array([0.8, 0.5]), (12, 1))
    there = _run(again, actions, key=5)
    ours = jax.jit(ChunkedEnv(env).step)(env.reset(jax.random.wrap_key_data(_data_after_split(keys))), actions)
    assert there.rewards.sum() == 1 and (there.rewards == ours.rewards).all() and (there.mask == ours.mask).all()
    assert (there.discounts == ours.discounts).all() and there.state.success and ours.state.success


def _data_after_split(key):
    """The key that `FromBrax.reset` hands on."""
    return jax.random.key_data(jax.random.split(key)[1])


def _wrapped(env, episode_length):
    return wrappers.wrap(to_brax(env), episode_length=episode_length)


def _drive(env, action, num_steps):
    state = env.reset(jax.random.split(jax.random.PRNGKey(0), 2))

    def step(state, _):
        state = env.step(state, jnp.tile(jnp.asarray(action), (2, 1)))
        return state, (state.done, state.info["truncation"], state.reward)

    return jax.jit(lambda state: jax.lax.scan(step, state, length=num_steps))(state)


def test_brax_tells_a_time_limit_from_an_end():
    with jax.numpy_rank_promotion("allow"):
        _, (done, truncation, _) = _drive(_wrapped(_reach(), 16), (0.0, 0.0), 20)
    # a `done` of ours at the limit would make truncation 0 there, and brax would not bootstrap
    assert (done[:, 0] == (np.arange(20) == 15)).all() and (truncation == done).all()


def test_brax_sees_the_end_of_the_task_and_goes_on_with_a_fresh_episode():
    with jax.numpy_rank_promotion("allow"):
        state, (done, truncation, reward) = _drive(_wrapped(_reach(radius=0.3), 16), (0.9, 0.6), 8)
    assert (done.sum(0) >= 1).all() and (truncation == 0).all() and (reward == done).all()
    assert (state.info["steps"] < 8).all()


def test_brax_may_count_longer_than_we_do():
    with jax.numpy_rank_promotion("allow"):
        _, (done, truncation, _) = _drive(_wrapped(_reach(episode_length=3), 10), (0.0, 0.0), 12)
    assert done[:, 0].tolist() == [float(i == 9) for i in range(12)] and (truncation == done).all()


def test_what_the_agent_sees_and_earns_may_be_another_thing():
    env = _reach()
    distance = to_brax(env, observe=lambda s: s.physics * 2, reward=lambda old, new: -new.info["goal_distance"])
    state = distance.step(distance.reset(jax.random.PRNGKey(0)), jnp.ones(2))
    assert state.reward == -state.metrics["goal_distance"] < 0
    assert (state.obs == state.pipeline_state.physics * 2).all()


def test_the_missing_function_is_there_for_as_long_as_it_is_needed():
    missing = not hasattr(jax, "device_put_replicated")
    with pytest.raises(KeyError), replicated_puts():
        put = jax.device_put_replicated({"a": jnp.arange(3)}, jax.local_devices()[:2])
        assert put["a"].tolist() == [[0, 1, 2], [0, 1, 2]]
        raise KeyError
    assert hasattr(jax, "device_put_replicated") != missing


def test_a_missing_extra_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(errors.EnvError, match=r'pip install "vla-jax\[brax\]"'):
        brax_env.require()


def _easy():
    """Reached by going either way: an agent learns in a few hundred steps to keep going."""
    return to_brax(_reach(radius=0.4, goal=(0.6, 0.0)), reward=lambda old, new: -new.info["goal_distance"])


def _learned(train, **options):
    """Mean reward per episode before and after, and the number of steps taken."""
    seen = []
    env = _easy()
    with replicated_puts(), jax.numpy_rank_promotion("allow"):
        _, params, _ = train.train(
            environment=env,
            episode_length=env.episode_length,
            max_devices_per_host=1,
            num_evals=2,
            num_eval_envs=32,
            seed=0,
            progress_fn=lambda steps, metrics: seen.append((steps, float(metrics["eval/episode_reward"]))),
            **options,
        )
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(params))
    return seen


def test_braxs_ppo_learns_on_ours():
    nets = functools.partial(
        ppo_networks.make_ppo_networks, policy_hidden_layer_sizes=(16,), value_hidden_layer_sizes=(16,)
    )
    sizes = {"num_envs": 32, "batch_size": 32, "num_minibatches": 4, "unroll_length": 8, "num_updates_per_batch": 4}
    (_, before), (steps, after) = _learned(
        ppo, num_timesteps=16_384, learning_rate=3e-3, network_factory=nets, discounting=0.95, **sizes
    )
    assert steps >= 16_384 and after > before + 2  # about -8 before, and -1 where every episode ends soon


def test_braxs_sac_learns_on_ours():
    nets = functools.partial(sac_networks.make_sac_networks, hidden_layer_sizes=(32,))
    sizes = {"num_envs": 16, "batch_size": 64, "min_replay_size": 256, "grad_updates_per_step": 16}
    # at a scale of 1 the entropy of going on is worth more than the distance costs, and no episode ends
    (_, before), (steps, after) = _learned(
        sac,
        num_timesteps=4_096,
        learning_rate=3e-3,
        network_factory=nets,
        discounting=0.95,
        reward_scaling=5.0,
        **sizes,
    )
    assert steps >= 4_096 and after > before + 2
