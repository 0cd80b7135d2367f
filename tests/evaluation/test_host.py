import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from tests.envs.fake_gymnasium import LineEnv
from vla_jax.core import errors
from vla_jax.envs.gymnasium_env import GymnasiumLayout, GymnasiumVectorEnv
from vla_jax.evaluation import host
from vla_jax.evaluation.host import HostPolicy, HostRecord

LAYOUT = GymnasiumLayout(
    name="line",
    state_keys=("robot/place",),
    success_key="is_success",
    episode_length=6,
    instructions=("go to one", "go to two", "go to three"),
    task_option="task",
)


@pytest.fixture(scope="module")
def env():
    with GymnasiumVectorEnv(LineEnv, LAYOUT, 2, timeout=120) as lanes:
        yield lanes


def _forward(speed: float, horizon: int = 3) -> HostPolicy:
    """Half a unit per step: the environment's bounds are -2 and 2."""

    def act(actor_params, key, observation, memory):
        chunk = jnp.zeros((observation.state.shape[0], horizon, 2)).at[..., 0].set(actor_params / 2)
        return chunk, memory

    return HostPolicy(act, jnp.asarray(speed))


def test_every_task_from_every_seed_is_counted_once(env):
    records = host.evaluate(_forward(0.5), env, tasks=[0, 2], seeds=[0, 5], execution_horizon=2)
    # from 0 to 1, and from 0.5: two steps and one; to 3: six steps, and from 0.5 five
    assert records == (
        HostRecord(0, 0, True, 1.0, 2),
        HostRecord(0, 5, True, 1.0, 1),
        HostRecord(2, 0, True, 1.0, 6),
        HostRecord(2, 5, True, 1.0, 5),
    )


def test_what_runs_out_of_time_is_a_failure(env):
    records = host.evaluate(_forward(0.25), env, tasks=[0, 2], seeds=[0], execution_horizon=3)
    assert [(each.success, each.returns, each.num_steps) for each in records] == [(True, 1.0, 4), (False, 0.0, 6)]


def test_memory_starts_anew_with_every_episode(env):
    """The policy goes as fast as it has decided before: a memory that is not reset overshoots in the next episode."""

    def act(actor_params, key, observation, memory):
        chunk = jnp.zeros((observation.state.shape[0], 1, 2)).at[..., 0].set(memory[:, None] / 20)
        return chunk, memory + 1

    policy = HostPolicy(act, (), initial_memory=lambda n: jnp.zeros(n))
    records = host.evaluate(policy, env, tasks=[0], seeds=[0] * 5, execution_horizon=1)
    # places after 1..6 steps: 0, .1, .3, .6, 1.0: success in the fifth
    assert [each.num_steps for each in records] == [5] * 5 and all(each.success for each in records)


def test_an_entry_pairs_episodes_by_their_start(env):
    records = host.evaluate(_forward(0.25), env, tasks=[0, 2], seeds=[0], execution_horizon=3)
    entry = host.to_entry(
        records, environment="line", table="t", row="r", cell="c", train_seed=7, manifest={"command": "here"}
    )
    assert entry.mean == 0.5 and entry.episodes == 2 and entry.seeds == (7,)
    assert entry.interval[0] < 0.5 < entry.interval[1]
    assert entry.records["initial_state"] == ["line:0:0", "line:2:0"] and entry.records["success"] == [True, False]


def test_a_chunk_that_does_not_fit_raises(env):
    with pytest.raises(errors.ConfigError, match="h >= 5"):
        host.evaluate(_forward(0.5), env, tasks=[0], seeds=[0], execution_horizon=5)
    narrow = dataclasses.replace(_forward(0.5), unnormalize=lambda chunk, state: chunk[..., :1])
    with pytest.raises(errors.ConfigError, match="a >= 2"):
        host.evaluate(narrow, env, tasks=[0], seeds=[0], execution_horizon=2)
    with pytest.raises(errors.ConfigError, match="0 episodes"):
        host.evaluate(_forward(0.5), env, tasks=[], seeds=[0], execution_horizon=2)


def test_wider_chunks_are_cut_and_an_actor_may_be_no_program_of_jax(env):
    def act(actor_params, key, observation, memory):
        chunk = np.full((len(observation.state), 4, 8), 9.0)
        chunk[..., :2] = [0.25, 0]
        return chunk, memory

    records = host.evaluate(HostPolicy(act, (), jit=False), env, tasks=[0], seeds=[0], execution_horizon=2)
    assert records[0].success and records[0].num_steps == 2
