import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds

from data_pipelines import tabletop
from data_pipelines.tabletop import Collector, TabletopDataConfig
from vla_jax.core.errors import ConfigError, DataError, EnvError
from vla_jax.core.types import Observation
from vla_jax.data.demonstrations import compute_statistics
from vla_jax.data.formats.rlds import RldsDataset
from vla_jax.envs.base import EnvSpec, EnvState

LENGTH = 12


class Line:
    """A point on a line: reach 1 from somewhere in [-1, 0.5] within 12 steps of at most 0.2. The grip is remembered."""

    spec = EnvSpec("line", ("go right", "go there"), ("dx", "grip"), ("x", "grip"), {"front": (8, 8)}, LENGTH, 10.0)

    def reset(self, key):
        place_key, goal_key, key = jax.random.split(key, 3)
        return EnvState(
            physics=jnp.stack([jax.random.uniform(place_key, minval=-1.0, maxval=0.5), 0.0]),
            key=key,
            env_step=jnp.zeros((), jnp.int32),
            instruction=jax.random.randint(goal_key, (), 0, 2),
            reward=jnp.zeros(()),
            discount=jnp.ones(()),
            done=jnp.zeros((), bool),
            success=jnp.zeros((), bool),
            info={"fixtures": jnp.zeros((0, 2))},  # an axis of length 0, as scenes without fixtures have
        )

    def step(self, state, action):
        action = jnp.clip(action, -1, 1)
        physics = jnp.stack([state.physics[0] + 0.2 * action[0], action[1]])
        env_step = state.env_step + 1
        success = physics[0] >= 1
        stepped = state.replace(
            physics=physics, env_step=env_step, success=success, done=success | (env_step >= LENGTH)
        )
        return jax.tree.map(lambda old, new: jnp.where(state.done, old, new), state, stepped)

    def observe(self, state):
        shade = jnp.clip(128 + 100 * state.physics[0], 0, 255).astype(jnp.uint8)
        return Observation(
            images={"front": jnp.full((8, 8, 3), shade)},
            image_mask={"front": jnp.ones((), bool)},
            state=state.physics,
            prompt=jnp.zeros(1, jnp.int32),
            prompt_mask=jnp.ones(1, bool),
        )


def go_right(state):
    """Speed depends on the place, so that a label tells which state it was made in."""
    return jnp.stack([0.75 + 0.1 * jnp.sin(9 * state.physics[0]), jnp.where(state.physics[0] > 0, 1.0, -1.0)])


def collect(act=go_right, noise_max=0.0, seed=0, batch_size=32):
    return Collector(Line(), act, noise_max, batch_size).successes(jax.random.key(seed))


def test_labels_are_the_experts_action_in_the_recorded_state():
    for noise_max in (0.0, 0.4):
        episodes, _ = collect(noise_max=noise_max)
        for episode in episodes:
            x = episode.steps["observation/state"][:, 0]
            np.testing.assert_allclose(episode.steps["action"][:, 0], 0.75 + 0.1 * np.sin(9 * x), atol=1e-5)


def test_noise_moves_the_robot_but_never_the_gripper():
    episodes, _ = collect(noise_max=0.4)
    moved = []
    for episode in episodes:
        state, action = episode.steps["observation/state"], episode.steps["action"]
        deviation = np.diff(state[:, 0]) - 0.2 * action[:-1, 0]
        moved.append(np.abs(deviation).max(initial=0) / (episode.metadata["episode_metadata/noise_std"] + 1e-9))
        np.testing.assert_array_equal(state[1:, 1], action[:-1, 1])
    assert np.mean(moved) > 0.1  # 0.2 metres per unit of action, times a noise of about one standard deviation
    levels = [float(e.metadata["episode_metadata/noise_std"]) for e in episodes]
    assert 0 <= min(levels) < 0.1 and 0.3 < max(levels) <= 0.4


def test_episodes_end_with_the_action_that_succeeded():
    episodes, _ = collect()
    for episode in episodes:
        x, action = episode.steps["observation/state"][:, 0], episode.steps["action"][:, 0]
        assert (x < 1).all() and x[-1] + 0.2 * action[-1] >= 1  # an off-by-one would keep or lose a state
        assert episode.steps["is_last"].tolist() == [False] * (len(x) - 1) + [True]
        shades = episode.steps["observation/front"][:, 0, 0, 0]
        np.testing.assert_allclose(shades, np.clip(128 + 100 * x, 0, 255), atol=1)


def test_only_successes_are_kept():
    # At 0.4 of the full speed 12 steps cover 0.96: starts above 0.04 arrive, the others run out of time.
    episodes, places = collect(act=lambda state: jnp.array([0.4, 0.0]), batch_size=64)
    starts = [float(episode.steps["observation/state"][0, 0]) for episode in episodes]
    assert 0 < len(episodes) < 64 and min(starts) > 0.04 - 1e-6
    assert len(set(places)) == len(episodes) and places == sorted(places)


def test_no_success_at_all_is_an_empty_list():
    assert collect(act=lambda state: jnp.zeros(2)) == ([], [])


def test_collection_is_a_function_of_the_key():
    (a, _), (b, _), (c, _) = collect(noise_max=0.4), collect(noise_max=0.4), collect(noise_max=0.4, seed=1)
    assert all(np.array_equal(x.steps["action"], y.steps["action"]) for x, y in zip(a, b, strict=True))
    assert not np.array_equal(a[0].steps["action"], c[0].steps["action"])


@pytest.fixture
def on_the_line(monkeypatch):
    """`generate` with the point on a line in place of the simulator."""
    monkeypatch.setattr(TabletopDataConfig, "env", lambda self, task: Line())
    monkeypatch.setattr(tabletop, "expert", lambda env, state: go_right(state))


CONFIG = TabletopDataConfig(tasks=("place", "push"), episodes_per_task=5, batch_size=4)


def test_several_tasks_fill_one_dataset(on_the_line, tmp_path):
    seen = []
    folder = tabletop.generate(tmp_path / "tabletop" / "1.0.0", CONFIG, lambda done, total: seen.append((done, total)))
    assert seen == [(i, 10) for i in range(1, 11)]
    dataset = RldsDataset(folder)
    tasks = [dataset.texts("episode_metadata/task")[i] for i in dataset.text_ids("episode_metadata/task")]
    assert tasks == ["place"] * 5 + ["push"] * 5
    assert set(dataset.texts("language_instruction")) <= set(Line.spec.instructions)
    assert dataset.info.metadata["config_hash"] == CONFIG.hash
    assert len(tfds.builder_from_directory(str(folder)).as_data_source("train")) == 10


def test_a_finished_dataset_is_left_alone_and_another_config_is_refused(on_the_line, tmp_path, monkeypatch):
    folder = tabletop.generate(tmp_path / "d", CONFIG)
    monkeypatch.setattr(tabletop, "_successes", lambda *_: pytest.fail("generated again"))
    assert tabletop.generate(folder, CONFIG) == folder
    with pytest.raises(DataError, match=r"(?s)dataset of another config.*choose another folder"):
        tabletop.generate(folder, dataclasses.replace(CONFIG, seed=1))


def test_the_same_config_writes_the_same_bytes(on_the_line, tmp_path):
    a, b = (tabletop.generate(tmp_path / name, dataclasses.replace(CONFIG, file_format="tfrecord")) for name in "ab")
    for path in a.iterdir():
        assert path.read_bytes() == (b / path.name).read_bytes()


def test_an_expert_that_never_succeeds_stops_the_run(on_the_line, tmp_path, monkeypatch):
    monkeypatch.setattr(tabletop, "expert", lambda env, state: jnp.zeros(2))
    with pytest.raises(EnvError, match=r"(?s)scripted expert of tabletop/place.*found\s+0 of 64"):
        tabletop.generate(tmp_path / "d", CONFIG)
    assert not list(tmp_path.iterdir())


def test_impossible_configs_are_refused():
    for changes in ({"tasks": ()}, {"tasks": ("place", "place")}, {"episodes_per_task": 0}, {"noise_max": 2.0}):
        with pytest.raises(ConfigError):
            TabletopDataConfig(**changes)


def test_the_real_expert_fills_a_dataset_the_loader_reads(tmp_path):
    config = TabletopDataConfig(episodes_per_task=2, batch_size=4, image_size=16)
    folder = tabletop.generate(tmp_path / "tabletop" / "1.0.0", config)
    data = tabletop.dataset_config(folder, action_horizon=8)
    assert data.displacement_dims == (0, 1, 2, 3)  # dx dy dz dyaw, and not the grip
    statistics = compute_statistics(data)
    assert min(statistics.actions.min) >= -1 and max(statistics.actions.max) <= 1
    assert RldsDataset(folder).image(0, "observation/wrist").std() > 5  # something is in view
